"""Plots along training and along the radius of the ball.

>>> LEVEL
0.1
"""

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from robust_nc.report.figures.axes import (
    GREY,
    colours_of,
    finish,
    log_scale,
    model_colours,
    model_lines,
    percent_axis,
    styled,
    value_lines,
)
from robust_nc.report.figures.selection import (
    RowFilter,
    deepest,
    note_of,
    one_model,
    optional,
    roles,
    select,
)

LEVEL = 0.1  # leap rate at which a model has lost its simplex: the eps there is its collapse radius
GROUPINGS = {"by true label": "#d55e00", "by nearest vertex": "#029e73"}
_NAMED = {"true": "by true label", "landed": "by nearest vertex"}


class _Radius(NamedTuple):
    """The collapse radius of one model, mean of its seeds, and the interval that holds them all.

    `high` is None where the interval of a seed is open: beyond the largest eps.
    """

    value: float
    low: float
    high: float | None


@styled
def collapse_over_epochs(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """NC1 (ratio of traces) of the penultimate layer on clean training data, over training."""
    wanted = RowFilter("nc1_trace", ("clean",), split="train", epochs=True)
    rows = select(frame, wanted)
    ax = model_lines(rows, ax, "epoch")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="epoch", ylabel="NC1 by traces (log scale)")
    log_scale(ax)
    return finish(ax, "Collapse over training", note_of(rows))


@styled
def accuracy_against_eps(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy under attack against the radius of the ball."""
    # Accuracies that name a feature are of the images that the geometry was measured on.
    sweep = frame[frame["feature"] == ""]
    rows = select(sweep, RowFilter("accuracy", ("attacked",), split="test", every_eps=True))
    ax = model_lines(rows, ax, "eps")
    _label_eps(ax, rows)
    ax.set(ylabel="accuracy under attack", ylim=(-0.02, 1.02))
    percent_axis(ax)
    return finish(ax, "Accuracy against eps", note_of(rows))


@styled
def leap_rate_against_eps(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Leap rate of the deepest tap against the radius of the ball, with the collapse radii."""
    rows = deepest(select(frame, RowFilter("leap_rate", ("sweep",), every_eps=True)))
    ax, colours, hue = model_lines(rows, ax, "eps"), model_colours(rows), roles(rows).hue
    ax.axhline(LEVEL, color=GREY, linewidth=0.8, linestyle=":")
    radii = {
        (str(model), str(name)): _radius(frame, part)
        for (model, name), part in rows.groupby(["model", hue], sort=True)
    }
    for (_, name), radius in radii.items():
        if radius is not None:
            high = rows["eps"].max() if radius.high is None else radius.high
            ax.errorbar(
                radius.value,
                LEVEL,
                xerr=[[radius.value - radius.low], [high - radius.value]],
                color=colours[name],
                marker="D",
                markersize=3,
                linewidth=1,
                capsize=2,
            )
    _label_eps(ax, rows)
    ax.set(ylabel="leap rate", ylim=(-0.02, 1.02))
    percent_axis(ax)
    note = f"layer {rows['tap'].iloc[0]}; {note_of(rows)}"
    if any(radii.values()):
        note = f"diamond: collapse radius (leap rate 10 %), whisker: its interval; {note}"
    return finish(ax, "Leap rate against eps", note)


@styled
def collapse_against_eps(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """NC1 by traces against the radius, by true label and by nearest vertex; one model.

    The deepest tap; the line and the band that stand upright are the collapse radius.
    """
    wanted = [RowFilter("nc1_trace", ("sweep",), name, every_eps=True) for name in _NAMED]
    found = [part for one in wanted if not (part := optional(frame, one)).empty]
    rows = deepest(pd.concat(found) if found else select(frame, wanted[0]))
    one_model(rows, "collapse against eps")
    rows = rows.assign(input=rows["grouping"].replace(_NAMED))
    ax = value_lines(rows, ax, "eps", "input", colours_of(rows["input"], GROUPINGS), "input")
    _label_eps(ax, rows)
    ax.set(ylabel="NC1 by traces (log scale)")
    log_scale(ax)
    note = f"layer {rows['tap'].iloc[0]}; {note_of(rows)}"
    radius = _radius(frame, rows)
    if radius is not None:
        high = rows["eps"].max() if radius.high is None else radius.high
        ax.axvspan(radius.low, high, color=GREY, alpha=0.12, linewidth=0)
        ax.axvline(radius.value, color=GREY, linewidth=0.9, linestyle="--")
        note = f"upright: collapse radius (leap rate 10 %) and its interval; {note}"
    return finish(ax, "Collapse against eps", note)


def _radius(frame: pd.DataFrame, like: pd.DataFrame) -> _Radius | None:
    """Return the collapse radius of the model and tap of other rows; None if a seed has none."""
    at, low, high = (_values(frame, f"collapse_radius{end}", like) for end in ("", "_low", "_high"))
    if len(at) < like["seed"].nunique():
        return None
    ends = max(at + high) if len(high) == len(at) else None
    return _Radius(sum(at) / len(at), min(at + low), ends)


def _values(frame: pd.DataFrame, measure: str, like: pd.DataFrame) -> list[float]:
    rows = optional(frame, RowFilter(measure, ("sweep",), every_eps=True))
    same = rows["model"].eq(like["model"].iloc[0]) & rows["tap"].eq(like["tap"].iloc[0])
    return [float(value) for value in rows[same]["value"]]


def _label_eps(ax: Axes, rows: pd.DataFrame) -> None:
    norm = str(rows["ball"].iloc[0]).split(" ")[0] if "ball" in rows else ""
    ax.set(xlabel=f"eps, {norm} radius in pixels of [0, 1]".replace("  ", " "))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
