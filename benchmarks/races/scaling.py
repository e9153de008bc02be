"""What exact NC1 and the one-pass measures cost as N, K and D grow: time, and peak memory.

    python -m robust_nc.benchmarks.races.geometry scaling --out docs/figures/geometry_cost.png

The figure needs the extra `report`. Memory is that of fresh processes, above what they held with a
batch of features before the first sum.
"""

import itertools
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.benchmarks.races.memory import held_bytes, peak_bytes
from robust_nc.benchmarks.races.timing import markdown, race
from robust_nc.benchmarks.races.variability import Setting, made
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.projection import Projection

BASE = Setting(classes=10, dim=2048, examples=4_000)
GRID = {
    "examples": (1_000, 2_000, 4_000, 8_000, 16_000),
    "classes": (10, 25, 50, 100, 200),
    "dim": (1_024, 4_096, 16_384, 65_536),
}
LABELS = {"examples": "examples N", "classes": "classes K", "dim": "dimensions D"}
ONE_PASS, EXACT = "one pass", "exact nc1, both passes"
_KEPT = 4  # batches of a sweep: every class is in them twice


class Point(NamedTuple):
    """Median seconds of one way of measuring at one place of one axis."""

    axis: str
    value: int
    measures: str
    seconds: float


def measure(
    setting: Setting, *, exact: bool, batches: Sequence[tuple[Tensor, Tensor]] | None = None
) -> float | None:
    """Measure features, in one pass, or with exact NC1 in two; return `nc1`.

    They are made batch by batch, or, so that only the measuring takes time, are the same few
    `batches` over and over.
    """

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        if batches is None:
            return made(setting)
        return itertools.islice(itertools.cycle(batches), setting.examples // len(batches[0][1]))

    moments = Moments(setting.classes, setting.dim)
    for values, labels in features():
        moments.update(values, labels)
    projection = Projection(moments) if exact else None
    if projection is not None:
        for values, labels in features():
            projection.update(values, labels)
    return collapse(moments, projection=projection).nc1


def sweep(*, repeats: int, base: Setting = BASE) -> list[Point]:
    """Time both ways along each axis from the base setting, on features that are there already."""
    points = []
    for axis, values in GRID.items():
        for value in values:
            setting = base._replace(**{axis: value})
            batches = list(itertools.islice(made(setting), _KEPT))
            both = {
                ONE_PASS: partial(measure, setting, exact=False, batches=batches),
                EXACT: partial(measure, setting, exact=True, batches=batches),
            }
            for timing in race(both, repeats=repeats):
                points.append(Point(axis, value, timing.name, timing.spread.median))
    return points


def draw(points: list[Point], path: Path) -> None:
    """Plot seconds against N, K and D with a line of slope 1, at one column's width."""
    import pandas as pd
    import seaborn as sns
    from matplotlib.figure import Figure

    frame = pd.DataFrame(points)
    sns.set_theme(style="whitegrid", context="paper", palette="colorblind", font_scale=0.85)
    figure = Figure(figsize=(3.4, 5.2), layout="constrained")
    for ax, axis in zip(figure.subplots(3, 1), GRID, strict=True):
        part = frame[frame["axis"] == axis]
        sns.lineplot(
            part, x="value", y="seconds", hue="measures", style="measures", markers=True, ax=ax
        )
        top = part.sort_values(["value", "seconds"]).iloc[-1]
        line = [top["seconds"] * value / top["value"] for value in GRID[axis]]
        ax.plot(GRID[axis], line, color="0.6", linewidth=0.8, label="proportional", zorder=0)
        ax.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel="seconds")
        ax.set_xticks(GRID[axis], [f"{value:,}" for value in GRID[axis]])
        ax.minorticks_off()
        ax.margins(x=0.1)
        handles, names = ax.get_legend_handles_labels()
        ax.get_legend().remove()
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def table(points: list[Point]) -> str:
    """Write the points as a Markdown table, with what a step of the axis multiplies the time by."""
    rows = [["axis", "at", *(f"{name}, ms" for name in (ONE_PASS, EXACT))]]
    for axis, values in GRID.items():
        for value in values:
            found = {p.measures: p.seconds for p in points if (p.axis, p.value) == (axis, value)}
            cells = [f"{1e3 * found[name]:,.1f}" for name in (ONE_PASS, EXACT)]
            rows.append([LABELS[axis], f"{value:,}", *cells])
    return markdown(rows)


def peak_of_nc1(classes: int, dim: int, examples: int) -> float:
    """MiB that exact NC1 and all one-pass measures take above what the process holds with a batch.

    Call it in a fresh process: the highest point is that of its whole life.
    """
    setting = Setting(classes, dim, examples)
    measure(Setting(2, 3, 8), exact=True)  # what torch loads at first use is not the features'
    batch = next(made(setting))
    before = held_bytes()
    del batch
    measure(setting, exact=True)
    return (peak_bytes(torch.device("cpu")) - before) / 2**20


def _child(answers: "multiprocessing.Queue[float]", setting: Setting, threads: int) -> None:
    torch.set_num_threads(threads)
    answers.put(peak_of_nc1(setting.classes, setting.dim, setting.examples))


def peak(setting: Setting) -> float:
    """Measure `peak_of_nc1` in a fresh process, MiB."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_child, args=(answers, setting, torch.get_num_threads()))
    process.start()
    found: float = answers.get()
    process.join()
    return found


def memory_table(settings: list[Setting], processes: int) -> str:
    """Compare peaks of fresh processes with the size of the sums."""
    rows = [["K", "D", "N", "sums, MiB", "peak above the batch, MiB: median (least to most)"]]
    for setting in settings:
        found = sorted(peak(setting) for _ in range(processes))
        sums = 8 * setting.classes * setting.dim / 2**20
        spread = f"{statistics.median(found):,.0f} ({found[0]:,.0f} to {found[-1]:,.0f})"
        numbers = (setting.classes, setting.dim, setting.examples)
        rows.append([*(f"{number:,}" for number in numbers), f"{sums:,.0f}", spread])
    return markdown(rows)
