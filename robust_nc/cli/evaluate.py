"""`robust-nc evaluate`: someone's model, judged, with the verdict on stdout, in one screen of text.

>>> share(Score(value=0.5, low=0.4, high=0.6, n=96))
'50.0% [40.0, 60.0]'
"""

import contextlib
import shlex
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from robust_nc.cli.stopping import heeding, typed
from robust_nc.pipeline.appraise import appraise
from robust_nc.pipeline.request import Request
from robust_nc.record.folder import evidence_path
from robust_nc.record.schema import Record, Score, Stored, data_name
from robust_nc.runtime.progress import Event
from robust_nc.runtime.screen import Screen
from robust_nc.threat import Ball, format_eps

_WIDTH = 100
_INDENT = " " * 12


def evaluate_command(request: Request, stderr: Console) -> int:
    """Judge a model, show the verdict, and return the exit code."""
    say = partial(stderr.print, markup=False, highlight=False, soft_wrap=True)

    def judge() -> int:
        # The code of a model may print; stdout is for the verdict.
        with contextlib.redirect_stdout(sys.stderr), Screen(stderr) as screen:
            found = appraise(request, tell=screen.line, report=screen.event)
            if not found.made:
                screen.line(
                    f"{found.stored.path} is there already and is shown as it is; to judge the "
                    "model anew, choose another --out"
                )
            page = _page(found.stored, request, screen)
        print(verdict_text(found.stored, page=page, root=request.root))
        return 0

    return heeding(judge, typed(), say)


def _page(stored: Stored, request: Request, screen: Screen) -> Path:
    """Write the page of the model."""
    from robust_nc.report.site.write import write_model
    from robust_nc.verification.pictures import adversarial_pictures

    screen.event(Event("page", 0.0, "draw the report"))
    pictures = partial(
        adversarial_pictures,
        root=request.root,
        reference=request.model,
        isolated=request.isolated,
    )
    return write_model(stored, pictures)


def verdict_text(stored: Stored, *, page: Path, root: Path | None) -> str:
    """Say what a model withstands, what its layers do, and where all that lies."""
    record = stored.record
    reference = _table(record, "model").get("reference", "MODEL")
    check = ["robust-nc", "verify", str(stored.path), "--model", str(reference)]
    check += [] if root is None else ["--root", str(root)]
    parts = [
        _title(record),
        *_verdict(record),
        *_warnings(record),
        *_geometry(record, stored.rows()),
        *_left_out(record),
        *_files(stored, page),
        f"check it:   {shlex.join(check)}",
    ]
    return "\n".join(parts)


def share(score: Score) -> str:
    """Write an accuracy with its 95 % interval, in percent."""
    return f"{score.value:.1%} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _table(record: Record, key: str) -> dict[str, Any]:
    found = record.config.get(key)
    return found if isinstance(found, dict) else {}


def _title(record: Record) -> str:
    threat = _table(record, "threat")
    reference = _table(record, "model").get("reference", "")
    ball = Ball(threat["norm"], threat["eps"])
    told = f"{record.model} on {data_name(record)}, {ball}, protocol {record.protocol}"
    return f"{told}\n{_line('model', f'{reference} ({record.weights.parameters:,} parameters)')}"


def _verdict(record: Record) -> list[str]:
    clean, robust = record.scores["clean"], record.scores["robust"]
    count, passes = record.data.examples, record.passes
    right = round(clean.value * clean.n)
    broken = [f"{use.name} {use.broke:,}" for use in record.attacks]
    each = (passes.forward + passes.backward) / count
    return [
        _line("clean", f"{share(clean)} of {record.data.which} (95 % interval)"),
        _line("robust", f"{share(robust)} of the same; what was not broken is no proof"),
        _line(
            "broken by",
            f"{', '.join(broken) or 'no attack was run'}; {count - right:,} were wrong already, "
            f"{round(robust.value * robust.n):,} of {count:,} are left",
        ),
        _line(
            "passes", f"{each:,.0f} per example, {passes.backward / count:,.0f} of them backward"
        ),
    ]


def _warnings(record: Record) -> list[str]:
    if not record.warnings:
        return [_line("warnings", "none")]
    return [_line("warning", f"{found.name}: {found.message}") for found in record.warnings]


def _geometry(record: Record, rows: pd.DataFrame) -> list[str]:
    found = record.summary
    if all(value is None for value in found.values()):
        return [_line("geometry", "not measured at the penultimate layer")]
    train = rows[(rows["tap"] == "penultimate") & (rows["split"] == "train")]
    count = int(train["n"].max()) if len(train) else 0
    leaps = (
        f"{_percent(found.get('leap_rate'))} leap to another class's vertex under attack, "
        f"{_percent(found.get('leap_rate_gaussian'))} under noise of that size "
        f"(penultimate layer, {count:,} training images)"
    )
    collapse = (
        f"{_number(found.get('nc1_clean'))} clean, {_number(found.get('nc1_attacked'))} attacked; "
        f"leaps alone give {_number(found.get('nc1_leap_null'))} (the null)"
    )
    return [
        _line("leaps", leaps),
        _line("NC1", collapse),
        _line("radius", _radius(found)),
        _line("leap layer", _leap_layer(rows, found.get("leap_layer"))),
    ]


def _left_out(record: Record) -> list[str]:
    use = record.geometry
    if use is None or not use.left_out:
        return []
    told = f"{', '.join(use.left_out)}: {use.allowed:,} passes were allowed (--geometry-budget)"
    return [_line("left out", told)]


def _radius(found: dict[str, float | None]) -> str:
    told = "of test images leap (collapse radius, penultimate layer)"
    value, beyond = found.get("collapse_radius"), found.get("collapse_radius_beyond")
    if value is not None:
        return f"from eps {value:.3g} on ({255 * value:.2f}/255) a tenth {told}"
    if beyond is not None:
        return f"up to eps {format_eps(beyond)}, the largest tried, less than a tenth {told}"
    return "not measured"


def _leap_layer(rows: pd.DataFrame, depth: float | None) -> str:
    if depth is None:
        return "nothing leaped"
    at = (rows["measure"] == "leap_layer") & (rows["condition"] == "attacked")
    found = rows[at & (rows["split"] == "train") & (rows["tap"] != "none")]
    here = found[found["depth"] == depth]
    layers = ", ".join(found.sort_values("depth")["tap"].unique())
    return (
        f"most leaps begin at layer {here['tap'].iloc[0]} ({here['value'].iloc[0]:,.0f} of "
        f"{found['value'].sum():,.0f}); layers: {layers}"
    )


def _files(stored: Stored, page: Path) -> list[str]:
    lines = [_line("record", str(stored.path), wrap=False)]
    evidence = stored.record.evidence
    if evidence is not None:
        told = f"{evidence_path(stored.path)} ({_size(evidence.bytes)}, {evidence.broken:,} images)"
        lines.append(_line("evidence", told, wrap=False))
    return [*lines, _line("page", str(page), wrap=False)]


def _line(name: str, text: str, *, wrap: bool = True) -> str:
    """Put a name before a text, which is broken into lines; paths are not, or nobody can copy."""
    head = f"{name + ':':<12}"
    if not wrap:
        return head + text
    return textwrap.fill(text, _WIDTH, initial_indent=head, subsequent_indent=_INDENT)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"
