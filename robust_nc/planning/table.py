"""The plan as text: a table by model, then the totals.

>>> duration(90), duration(7200)
('1.5 min', '2.0 h')
"""

from collections.abc import Sequence

from robust_nc.planning.pieces import STAGES
from robust_nc.planning.plan import PlannedCell, Totals
from robust_nc.planning.speeds import Speeds
from robust_nc.report.board.render import aligned, folded

_HEAD = ("model", "cells", "left", *STAGES, "all")


def plan_text(
    name: str,
    cells: Sequence[PlannedCell],
    speeds: Speeds,
    *,
    devices: int,
    price: float | None,
    width: int | None = None,
) -> str:
    """Write the plan of one suite, for a terminal of so many columns."""
    whole, left = (Totals(cells, speeds, devices, left=each) for each in (False, True))
    lines = [f"{name}: {len(cells)} cells", "", *_table(cells, speeds, width), "", *_sources(cells)]
    lines += totals_lines("the whole suite", whole, speeds, devices=devices, price=price)
    if left.cells < whole.cells:
        title = f"what is left ({whole.cells - left.cells} cells are done)"
        lines += totals_lines(title, left, speeds, devices=devices, price=price)
    return "\n".join(part for line in lines for part in folded(line, width, indent=15))


def speeds_line(speeds: Speeds, source: str) -> str:
    """Say where the speeds come from."""
    return (
        f"speeds: {source}, on {speeds.device}, {speeds.threads} "
        f"thread{'s' * (speeds.threads != 1)}, torch {speeds.torch}"
    )


def totals_lines(
    title: str, totals: Totals, speeds: Speeds, *, devices: int, price: float | None
) -> list[str]:
    """Write the sums: hours of a device and by the clock, disk, money."""
    hours = totals.seconds / 3600
    unit = "GPU" if speeds.on_gpu else "CPU core"
    cores = 1 if speeds.on_gpu else speeds.threads
    noun = "GPU" if speeds.on_gpu else "process"
    plural = ("es" if noun == "process" else "s") * (devices != 1)
    lines = [
        f"{title}: {totals.cells} cells",
        f"  {unit} hours   {hours * cores:,.2f} ({duration(totals.seconds)} of one {noun})",
        f"  by the clock {duration(totals.wall)} with {devices} {noun}{plural} at a time",
        f"  disk         {_size(totals.results)} of results, {_size(totals.weights)} of weights; "
        f"at most {_size(totals.peak)} while it runs",
    ]
    if price is not None:
        lines.append(f"  money        {hours:,.2f} h x {price:g} = {hours * price:,.2f}")
    return lines


def _sources(cells: Sequence[PlannedCell]) -> list[str]:
    """Say which accuracies the verdicts are reckoned with, and where they are from."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        survival, config = cell.survival, cell.cell.config
        text = (
            f"{survival.clean:.0%} clean, {survival.robust:.0%} robust at eps "
            f"{config.threat.eps:.3g} ({survival.source})"
        )
        objectives = found.setdefault(text, [])
        if config.train.objective.name not in objectives:
            objectives.append(config.train.objective.name)
    lines = [f"  {', '.join(names)}: {text}" for text, names in found.items()]
    return ["survivors, on which the cost of a verdict depends:", *lines]


def _table(cells: Sequence[PlannedCell], speeds: Speeds, width: int | None) -> list[str]:
    groups: dict[str, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(cell.cell.model, []).append(cell)
    if len(groups) > 1:
        groups["all"] = list(cells)
    rows = [list(_HEAD)]
    for name, group in groups.items():
        found = [cell.seconds(speeds) for cell in group]
        stages = [sum(seconds.get(stage, 0.0) for seconds in found) for stage in STAGES]
        left = sum(not cell.done for cell in group)
        rows.append([name, str(len(group)), str(left), *map(duration, (*stages, sum(stages)))])
    return aligned(rows, [False] + [True] * (len(_HEAD) - 1), width=width)


def duration(seconds: float) -> str:
    """Write a time with its unit."""
    for unit, length in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= (1.5 * length if unit != "d" else 3 * length):
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(nbytes: float) -> str:
    """Write a number of bytes with its unit."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if nbytes >= length:
            return f"{nbytes / length:.1f} {unit}"
    return f"{nbytes / 1e3:.0f} kB"
