"""`robust-nc compare A B`: two records on the same examples, or two methods over their seeds.

>>> p_text(0.0312), p_text(1e-9), p_text(1.0)
('0.031', '< 0.0001', '1')
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from robust_nc.io.text import printable
from robust_nc.report.board.comparing import Accuracy, Compared, Side, compare
from robust_nc.report.board.formats import INTERVALS, count, percent, points, short
from robust_nc.report.board.gather import identity
from robust_nc.statistics.intervals import Interval
from robust_nc.statistics.significance import ALPHA

_SEEDS_SHOWN = 10
_WIDTH = 96
_WIDTHS = (16, 22, 22, 22)
_SHARES = {"leap_rate": "leap %", "landed": "landed %"}
_HEADERS = {
    **_SHARES,
    "nc1_clean": "NC1 clean",
    "nc1_attacked": "NC1 attacked",
    "nc1_leap_null": "  its null",
    "nc1_landed": "NC1 landed",
    "nc1_landed_null": "  its null",
    "nc2_angle_clean": "NC2 angle",
    "collapse_radius": "collapse radius",
    "leap_layer": "leap layer",
}
_INTERVALS = {
    **INTERVALS,
    "newcombe": "95 % Newcombe interval (method 10) of a difference of paired shares",
}


def compare_command(first: Path, second: Path, stderr: Console) -> int:
    """Compare two records or two folders of seeds, and print one screen."""
    print(comparison_text(compare(first, second)))
    return 0


def comparison_text(found: Compared) -> str:
    """Write a comparison for a terminal."""
    parts = [
        [_side("A", found.first), _side("B", found.second), *_place(found)],
        [_line(("", "A", "B", "A - B"), "p"), *map(_accuracy, found.accuracies)],
        _examples(found) or _seeds(found),
        _geometry(found),
        [_verdict(found), *_notes(found)],
    ]
    return "\n\n".join("\n".join(map(printable, lines)) for lines in parts if lines)


def p_text(p: float) -> str:
    """Write a p-value in two digits."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _side(letter: str, side: Side) -> str:
    seeds = ", ".join(str(one.record.seed) for one in side.models[:_SEEDS_SHOWN])
    more = ", ..." if len(side.models) > _SEEDS_SHOWN else ""
    noun = "seed" if len(side.models) == 1 else "seeds"
    taken = sum(one.challenged for one in side.models)
    challenged = f"; challenges took {count(taken, taken, 'example')}" if taken else ""
    return f"{letter}  {side.name}, {noun} {seeds}{more} ({side.path}){challenged}"


def _place(found: Compared) -> list[str]:
    record = found.first.models[0].record
    what = identity(record)
    lines = [
        f"{what.dataset}, {what.ball}, protocol {what.protocol}; "
        f"the same {count(found.examples, found.examples, 'example')} of {record.data.split}"
    ]
    if not found.same_images:
        lines.append(
            "one judged more images; both say that theirs are the first in the official order, "
            "which no fingerprint can check"
        )
    return lines


def _line(cells: Sequence[str], last: str = "") -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False))
    return f"{''.join(padded)}{last}".rstrip()


def _accuracy(one: Accuracy) -> str:
    shown = [percent(side.value, side.low, side.high) for side in (one.first, one.second)]
    return _line((f"{one.name} %", *shown, _difference(one.difference)), p_text(one.p))


def _difference(found: Interval) -> str:
    ends = f" [{points(found.low)}, {points(found.high)}]"
    return f"{points(found.value)}{ends if math.isfinite(found.low + found.high) else ''}"


def _examples(found: Compared) -> list[str]:
    """Count examples by who gets them right, for two single models."""
    rows = [
        _line((one.name, *map(str, (one.counts.first, one.counts.second, one.counts.both))))
        + f" {one.counts.neither}"
        for one in found.accuracies
        if one.counts is not None
    ]
    return [_line(("examples", "A alone", "B alone", "both")) + " neither", *rows] if rows else []


def _seeds(found: Compared) -> list[str]:
    """Tell the robust accuracies seed by seed."""
    (robust,) = (one for one in found.accuracies if one.name == "robust")
    lines = [
        _line((f"robust %, {seed}", percent(one), percent(other), points(one - other)))
        for seed, (one, other) in list(robust.by_seed.items())[:_SEEDS_SHOWN]
    ]
    left = len(robust.by_seed) - len(lines)
    return [*lines, *([f"... and {count(left, left, 'seed')} more"] if left else [])]


def _geometry(found: Compared) -> list[str]:
    lines = []
    for name, values in found.geometry.items():
        if any(map(math.isfinite, values)):
            write = percent if name in _SHARES else short
            lines.append(_line((_HEADERS[name], *map(write, values))))
    several = any(len(side.models) > 1 for side in (found.first, found.second))
    title = f"geometry, as the records claim it{', means over seeds' if several else ''}"
    return [title, *lines] if lines else []


def _verdict(found: Compared) -> str:
    (robust,) = (one for one in found.accuracies if one.name == "robust")
    if robust.p >= ALPHA:
        return f"Neither is significantly more robust (p = {p_text(robust.p)}, level {ALPHA:g})."
    better, worse = ("A", "B") if robust.difference.value > 0 else ("B", "A")
    sign = "" if robust.p < 1e-4 else "= "
    return f"{better} is more robust than {worse} (p {sign}{p_text(robust.p)}, level {ALPHA:g})."


def _notes(found: Compared) -> list[str]:
    shown = [
        side.kind for one in found.accuracies for side in (one.first, one.second, one.difference)
    ]
    kinds = [_INTERVALS[kind] for kind in dict.fromkeys(shown) if kind in _INTERVALS]
    tests = "; ".join(dict.fromkeys(one.test for one in found.accuracies))
    return [
        *textwrap.wrap(f"p: two-sided, {tests}, of this comparison alone.", _WIDTH),
        *textwrap.wrap(f"Brackets: {'; '.join(kinds)}.", _WIDTH),
    ]
