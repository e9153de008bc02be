"""`robust-nc compare A B`: two records on the same examples, or two methods over their seeds.

>>> p_text(0.0312), p_text(1e-9), p_text(1.0)
('0.031', '< 0.0001', '1')
"""

import math
import textwrap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from robust_nc.cli.options import CompareOptions
from robust_nc.io.text import printable
from robust_nc.report.board.comparing import Accuracy, Compared, Side, compare
from robust_nc.report.board.formats import INTERVALS, count_text, percent, points, short
from robust_nc.report.board.gather import identity, read_results
from robust_nc.report.board.render import aligned, folded, terminal_width
from robust_nc.statistics.intervals import Interval
from robust_nc.statistics.significance import ALPHA

_SEEDS_SHOWN = 10
_EXAMPLES_SHOWN = 12
_WIDTH = 96
_Row = tuple[str, ...]
_SHARES = {"leap_rate": "leap %", "landed": "landed %"}
_HEADERS = {
    **_SHARES,
    "nc1_clean": "NC1 clean",
    "nc1_attacked": "NC1 attacked",
    "nc1_leap_null": "  leap null",
    "nc1_landed": "NC1 landed",
    "nc1_landed_null": "  landed null",
    "nc2_angle_clean": "NC2 angle",
    "collapse_radius": "collapse radius",
    "leap_layer": "leap layer",
}
_INTERVALS = {
    **INTERVALS,
    "newcombe": "95 % Newcombe interval (method 10) of a difference of paired shares",
}


def compare_command(options: CompareOptions, stderr: Console) -> int:
    """Compare two records or two folders of seeds, print one screen, and write a page if asked."""
    found = compare(options.first, options.second)
    print(comparison_text(found, width=terminal_width()))
    if options.out is not None:
        stderr.print(f"wrote {_page(found, options.out)}", markup=False, soft_wrap=True)
    return 0


def _page(found: Compared, out: Path) -> Path:
    from robust_nc.report.site.comparison import Differing, write_comparison
    from robust_nc.verification.pictures import adversarial_pictures

    sides = [read_results(side.path) for side in (found.first, found.second)]
    differing = []
    for letter, loser, rows in zip("AB", reversed(sides), _alone(found), strict=False):
        if len(rows):
            shown = torch.from_numpy(rows)
            made = adversarial_pictures(loser[0], out / "figures" / letter.lower(), rows=shown)
            text = f"{letter} alone withstands, and how {loser[0].record.model} falls"
            differing.append(Differing(text, rows.tolist(), made))
    geometry = [("measure, as claimed", "A", "B"), *_geometry(found)]
    seeds = [("seed by seed", "A", "B", "A - B"), *_seeds(found)]
    return write_comparison(
        sides,
        out,
        verdict=f"A - B: {_difference(_robust(found).difference)} points. {_verdict(found)}",
        about=[*_place(found), " ".join(_notes(found, _WIDTH))],
        tables=[_accuracies(found), _examples(found) or seeds, geometry],
        differing=differing,
    )


def _alone(found: Compared) -> list[npt.NDArray[np.intp]]:
    """Rows that A alone withstands, and B alone, where each is one model; else nothing."""
    one, other = (
        list(side.flags("robust", found.examples).values()) for side in (found.first, found.second)
    )
    if len(one) != 1 or len(other) != 1:
        return []
    return [np.flatnonzero(one[0] & ~other[0]), np.flatnonzero(other[0] & ~one[0])]


def _listed(rows: npt.NDArray[np.intp]) -> str:
    more = ", ..." if len(rows) > _EXAMPLES_SHOWN else ""
    return f"{', '.join(map(str, rows[:_EXAMPLES_SHOWN]))}{more}"


def comparison_text(found: Compared, *, width: int | None = None) -> str:
    """Write a comparison for a terminal of so many columns."""
    tables = [
        _accuracies(found),
        _examples(found) or _seeds(found),
        _geometry(found),
    ]
    whole = aligned([row for table in tables for row in table])
    if width is not None and max(map(len, whole)) > width:
        tables = [[line for row in table for line in _two_lines(row)] for table in tables]
    lines = iter(aligned([row for table in tables for row in table]))
    accuracies, counts, geometry = ([next(lines) for _ in table] for table in tables)
    several = any(len(side.models) > 1 for side in (found.first, found.second))
    title = f"geometry, as the records claim it{', means over seeds' if several else ''}"
    parts = [
        [_side("A", found.first), _side("B", found.second), *_place(found)],
        accuracies,
        [*counts, *_seeds_left(found)],
        [
            f"{letter} alone withstands number {_listed(rows)}"
            for letter, rows in zip("AB", _alone(found), strict=False)
            if len(rows)
        ],
        [title, *geometry] if geometry else [],
        [_verdict(found), *_notes(found, min(_WIDTH, width or _WIDTH))],
    ]
    return "\n\n".join(
        "\n".join(line for text in part for line in folded(printable(text), width, indent=3))
        for part in parts
        if part
    )


def _two_lines(row: _Row) -> list[_Row]:
    """Put the brackets of a row that is too long on a line of their own."""
    cells = [cell.partition(" [") for cell in row]
    if not any(sign for _, sign, _ in cells):
        return [row]
    return [
        tuple(value for value, _, _ in cells),
        tuple(f"[{ends}" if sign else "" for _, sign, ends in cells),
    ]


def p_text(p: float) -> str:
    """Write a p-value in two digits."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _side(letter: str, side: Side) -> str:
    seeds = ", ".join(str(one.record.seed) for one in side.models[:_SEEDS_SHOWN])
    more = ", ..." if len(side.models) > _SEEDS_SHOWN else ""
    noun = "seed" if len(side.models) == 1 else "seeds"
    taken = sum(one.challenged for one in side.models)
    challenged = f"; challenges took {count_text(taken, taken, 'example')}" if taken else ""
    return f"{letter}  {side.name}, {noun} {seeds}{more} ({side.path}){challenged}"


def _place(found: Compared) -> list[str]:
    record = found.first.models[0].record
    what = identity(record)
    lines = [
        f"{what.dataset}, {what.ball}, protocol {what.protocol}; "
        f"the same {count_text(found.examples, found.examples, 'example')} of {record.data.split}"
    ]
    if not found.same_images:
        lines.append(
            "one judged more images; both say that theirs are the first in the official order, "
            "which no fingerprint can check"
        )
    return lines


def _accuracies(found: Compared) -> list[_Row]:
    return [("", "A", "B", "A - B", "p"), *map(_accuracy, found.accuracies)]


def _accuracy(one: Accuracy) -> _Row:
    shown = [percent(side.value, side.low, side.high) for side in (one.first, one.second)]
    return (f"{one.name} %", *shown, _difference(one.difference), p_text(one.p))


def _difference(found: Interval) -> str:
    ends = f" [{points(found.low)}, {points(found.high)}]"
    return f"{points(found.value)}{ends if math.isfinite(found.low + found.high) else ''}"


def _examples(found: Compared) -> list[_Row]:
    """Count examples by who gets them right, for two single models."""
    told = [(one.name, one.counts) for one in found.accuracies if one.counts is not None]
    rows = [(name, *map(str, (c.first, c.second, c.both, c.neither))) for name, c in told]
    return [("examples", "A alone", "B alone", "both", "neither"), *rows] if rows else []


def _seeds(found: Compared) -> list[_Row]:
    """Tell the robust accuracies seed by seed."""
    return [
        (f"robust %, {seed}", percent(one), percent(other), points(one - other))
        for seed, (one, other) in list(_robust(found).by_seed.items())[:_SEEDS_SHOWN]
    ]


def _seeds_left(found: Compared) -> list[str]:
    robust = _robust(found)
    left = 0 if robust.counts else len(robust.by_seed) - _SEEDS_SHOWN
    return [f"... and {count_text(left, left, 'seed')} more"] if left > 0 else []


def _geometry(found: Compared) -> list[_Row]:
    return [
        (_HEADERS[name], *map(percent if name in _SHARES else short, values))
        for name, values in found.geometry.items()
        if any(map(math.isfinite, values))
    ]


def _robust(found: Compared) -> Accuracy:
    (robust,) = (one for one in found.accuracies if one.name == "robust")
    return robust


def _verdict(found: Compared) -> str:
    robust = _robust(found)
    if robust.p >= ALPHA:
        return f"Neither is significantly more robust (p = {p_text(robust.p)}, level {ALPHA:g})."
    better, worse = ("A", "B") if robust.difference.value > 0 else ("B", "A")
    sign = "" if robust.p < 1e-4 else "= "
    return f"{better} is more robust than {worse} (p {sign}{p_text(robust.p)}, level {ALPHA:g})."


def _notes(found: Compared, width: int) -> list[str]:
    shown = [
        side.kind for one in found.accuracies for side in (one.first, one.second, one.difference)
    ]
    kinds = [_INTERVALS[kind] for kind in dict.fromkeys(shown) if kind in _INTERVALS]
    tests = "; ".join(dict.fromkeys(one.test for one in found.accuracies))
    return [
        *textwrap.wrap(f"p: two-sided, {tests}, of this comparison alone.", width),
        *textwrap.wrap(f"Brackets: {'; '.join(kinds)}.", width),
    ]
