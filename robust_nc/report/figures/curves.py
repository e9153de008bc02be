"""Plots along training, along the radius of the ball, and along the steps of an attack.

>>> LEVEL, MOST_PATHS
(0.1, 40)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from robust_nc.report.figures.axes import (
    COLOURS,
    GREY,
    MOST_INSIDE,
    Width,
    finish,
    log_scale,
    model_colours,
    model_lines,
    new_axes,
    share_axis,
    styled,
    value_lines,
)
from robust_nc.report.figures.selection import (
    RowFilter,
    class_namer,
    deepest,
    in_order,
    literal,
    note_of,
    one_model,
    optional,
    roles,
    select,
    taps_in_order,
)

LEVEL = 0.1  # leap rate at which a model has lost its simplex: the eps there is its collapse radius
# What Su, Zhang, Tsilivis and Kempe (arXiv 2311.07444) show over training, in our rows.
OVER_EPOCHS = {
    "nc1_unscaled": "NC1 (log scale)",
    "nc2_norm_w": "NC2, norms",
    "nc2_angle_w": "NC2, angles",
    "nc3_w_head_raw": "NC3",
    "alignment_angle": "angle to clean, °",
}
GROUPINGS = {"by true label": "#d55e00", "by nearest vertex": "#029e73"}
_NAMED = {"true": "by true label", "landed": "by nearest vertex"}
MOST_PATHS = 40  # more hide one another
MOST_BANDS = 3  # more cover one another: only the last line keeps its band
DASHES = ("-", "--", ":", "-.")
MOST_EDGES = 10  # vertices with more edges than these give are drawn without


class _Radius(NamedTuple):
    """The collapse radius of one model, mean of its seeds, and the interval that holds them all.

    `high` is None where the interval of a seed is open: beyond the largest eps.
    """

    value: float
    low: float
    high: float | None


@styled
def collapse_over_epochs(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """NC1 (ratio of traces) of the penultimate layer on clean training data, over training."""
    watched = frame[frame["feature"] == ""]  # by training itself; those of `measure.every` name one
    rows = select(watched, RowFilter("nc1_trace", ("clean",), split="train", epochs=True))
    ax = model_lines(rows, ax or new_axes(width), "epoch")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="epoch", ylabel="NC1 by traces (log scale)")
    log_scale(ax)
    return finish(ax, "Collapse over training", note_of(rows))


@styled
def measure_over_epochs(
    frame: pd.DataFrame,
    *,
    measure: str = "nc1_unscaled",
    tap: str = "penultimate",
    split: str = "train",
    ax: Axes | None = None,
    width: Width = "column",
) -> Axes:
    """A measure of one layer over training: clean, attacked, and under noise (`measure.every`).

    Also as the steps of the training saw it, where `train.stream` was set and has this measure.
    """
    here = frame[(frame["tap"] == tap) & (frame["feature"] != "")]
    shown = ("clean", "attacked", "gaussian", "stream")
    rows = select(here, RowFilter(measure, shown, grouping="true", split=split, epochs=True))
    ax = ax or new_axes(width)
    value_lines(rows, ax, "epoch", "input", COLOURS, "input")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="epoch", ylabel=OVER_EPOCHS.get(measure, measure))
    if measure.startswith("nc1") and rows["value"].gt(0).all():
        log_scale(ax)
    return finish(ax, f"{OVER_EPOCHS.get(measure, measure)} over training", note_of(rows))


@styled
def accuracy_against_eps(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Accuracy under attack against the radius of the ball."""
    # Accuracies that name a feature are of the images that the geometry was measured on.
    sweep = frame[frame["feature"] == ""]
    rows = select(sweep, RowFilter("accuracy", ("attacked",), split="test", every_eps=True))
    ax = model_lines(rows, ax or new_axes(width), "eps")
    _label_eps(ax, rows)
    share_axis(ax, "accuracy under attack")
    return finish(ax, "Accuracy against eps", note_of(rows))


@styled
def leap_rate_against_eps(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Leap rate of the deepest tap against the radius of the ball, with the collapse radii."""
    rows = deepest(select(frame, RowFilter("leap_rate", ("sweep",), every_eps=True)))
    ax = model_lines(rows, ax or new_axes(width), "eps")
    colours, hue = model_colours(rows), roles(rows).hue
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
    share_axis(ax, "leap rate")
    note = f"layer {rows['tap'].iloc[0]}; {note_of(rows)}"
    if any(radii.values()):
        note = f"diamond: collapse radius (leap rate 10 %), whisker: its interval; {note}"
    return finish(ax, "Leap rate against eps", note)


@styled
def collapse_against_eps(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """NC1 by traces against the radius, by true label and by nearest vertex; one model.

    The deepest tap; the line and the band that stand upright are the collapse radius.
    """
    wanted = [RowFilter("nc1_trace", ("sweep",), name, every_eps=True) for name in _NAMED]
    found = [part for one in wanted if not (part := optional(frame, one)).empty]
    rows = deepest(pd.concat(found) if found else select(frame, wanted[0]))
    one_model(rows, "collapse against eps")
    rows = rows.assign(input=rows["grouping"].replace(_NAMED))
    ax = value_lines(rows, ax or new_axes(width), "eps", "input", GROUPINGS, "input")
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


@styled
def trajectory_on_edge(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Way from the clean vertex to the attacked one over the steps of the attack.

    One line per layer, dark to light from input to output; of several models one line each, at
    the deepest tap. The line is the mean over examples, the band their middle half.
    """
    wanted = [RowFilter(f"trajectory_t{end}", ("attacked",)) for end in ("", "_low", "_high")]
    rows, low, high = select(frame, wanted[0]), *(optional(frame, one) for one in wanted[1:])
    several = rows["model"].nunique() > 1
    if several:
        rows, low, high = map(deepest, (rows, low, high))
    column = "model" if several else "tap"
    names = in_order(rows["model"]) if several else taps_in_order(rows)
    palette = "colorblind" if several else "viridis"
    banded = names if len(names) <= MOST_BANDS else names[-1:]
    ax = ax or new_axes(width)
    for name, colour in zip(names, sns.color_palette(palette, len(names)), strict=True):
        mean, bottom, top = (
            part[part[column] == name].groupby("i")["value"].mean() for part in (rows, low, high)
        )
        dashes = DASHES[names.index(name) % len(DASHES)] if several else "-"
        ax.plot(mean.index, mean, color=colour, linestyle=dashes, label=name)
        if name in banded and len(bottom) and len(top):
            ax.fill_between(mean.index, bottom, top, color=colour, alpha=0.15, linewidth=0)
    for vertex in (0, 1):
        ax.axhline(vertex, color=GREY, linewidth=0.8, linestyle=":")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="step of the attack", ylabel="position on the edge")
    if len(names) > 1:
        ax.legend(fontsize=6 if len(names) > MOST_INSIDE else None)
    whose = "" if banded == names else f" ({banded[0]})"
    where = f"0: own vertex, 1: the other; line: mean of examples; band{whose}: middle half"
    note = f"{where}; {note_of(rows, spread='means of {seeds}')}"
    return finish(ax, "Leaps along their edge", note)


@styled
def trajectory_in_plane(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Paths of single examples over the attack, in a projection of the simplex to two dimensions.

    One model and seed (the smallest), the deepest tap; vertices are marked by their class. A path
    runs from dark to light and ends in a dot. Of many examples the first `MOST_PATHS` are drawn.
    The plane has no unit: edges are straight and true along themselves, the rest is projection.
    """
    found = [select(frame, RowFilter(f"trajectory_{axis}", ("attacked",))) for axis in "xy"]
    one_model(found[0], "a figure of paths")
    xs, ys = (deepest(rows[rows["seed"] == rows["seed"].min()]) for rows in found)
    x, y = (rows.pivot(index="j", columns="i", values="value") for rows in (xs, ys))
    paths = np.stack([x.to_numpy(), y.to_numpy()], axis=-1)[:MOST_PATHS]
    vertices = _vertices(frame, xs)
    ax = ax or new_axes(width, (3.2, 4.6))
    if len(vertices) <= MOST_EDGES:
        corners = vertices.to_numpy()
        edges = [corners[[a, b]] for a in range(len(corners)) for b in range(a)]
        ax.add_collection(LineCollection(edges, colors="#c0c0c0", linewidths=0.7, zorder=1))
    pieces = np.stack([paths[:, :-1], paths[:, 1:]], axis=2).reshape(-1, 2, 2)
    lines = LineCollection(list(pieces), cmap="viridis", linewidths=0.9, alpha=0.8, zorder=2)
    lines.set_array(np.tile(x.columns.to_numpy()[1:], len(paths)))
    ax.add_collection(lines)
    ax.scatter(paths[:, -1, 0], paths[:, -1, 1], s=6, color=GREY, linewidths=0, zorder=3)
    ax.scatter(vertices["x"], vertices["y"], s=14, color="black", linewidths=0, zorder=4)
    _name_vertices(ax, vertices, class_namer(xs))
    ax.autoscale_view()
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = ax.figure.colorbar(lines, ax=ax, shrink=0.8, ticks=MaxNLocator(5, integer=True))
    bar.set_label("step of the attack")
    seeds = found[0]["seed"].nunique()
    whose = f"seed {xs['seed'].iloc[0]} of {seeds}" if seeds > 1 else "one seed"
    shown = note_of(xs.assign(n=len(paths))).replace("one seed", whose)
    note = f"black: class means; grey: where paths end; layer {xs['tap'].iloc[0]}; {shown}"
    return finish(ax, "Paths of attacked examples", note)


def _name_vertices(ax: Axes, vertices: pd.DataFrame, name: Callable[[int], str]) -> None:
    """Write the name of its class beside each vertex, on the side that faces outward."""
    centre = vertices.mean().to_numpy()
    for label, place in zip(vertices.index, vertices.to_numpy(), strict=True):
        out = (place - centre) / max(float(np.linalg.norm(place - centre)), 1e-12)
        sides = [int(np.sign(round(1.4 * way))) for way in out]
        ax.annotate(
            literal(name(int(label))),
            tuple(place),
            xytext=tuple(5 * out),
            textcoords="offset points",
            ha=("center", "left", "right")[sides[0]],
            va=("center", "bottom", "top")[sides[1]],
            fontsize=6,
            bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0},
            zorder=5,
        )


def _vertices(frame: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Places `(x, y)` of the vertices by class, in the plane of other rows."""
    axes = []
    for axis in "xy":
        rows = select(frame, RowFilter(f"vertex_{axis}"))
        same = rows["seed"].eq(like["seed"].iloc[0]) & rows["tap"].eq(like["tap"].iloc[0])
        axes.append(rows[same].set_index("i")["value"].rename(axis))
    return pd.concat(axes, axis=1).dropna().sort_index()
