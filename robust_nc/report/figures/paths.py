"""Plots of the path of a leap, step by step of the attack: along its edge, and in a plane.

>>> MOST_PATHS
40
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from robust_nc.report.figures.axes import GREY, MOST_INSIDE, finish, new_axes, styled
from robust_nc.report.figures.selection import (
    RowFilter,
    deepest,
    in_order,
    note_of,
    one_model,
    optional,
    select,
    taps_in_order,
)

MOST_PATHS = 40  # more hide one another
MOST_BANDS = 3  # more cover one another: only the last line keeps its band
DASHES = ("-", "--", ":", "-.")
MOST_EDGES = 10  # vertices with more edges than these give are drawn without


@styled
def trajectory_on_edge(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
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
    ax = ax or new_axes()
    for name, colour in zip(names, sns.color_palette(palette, len(names)), strict=True):
        mean, bottom, top = (_over_steps(part[part[column] == name]) for part in (rows, low, high))
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
def trajectory_in_plane(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Paths of single examples over the attack, in a projection of the simplex to two dimensions.

    One model and seed (the smallest), the deepest tap; vertices are marked by their class. A path
    runs from dark to light and ends in a dot. Of many examples the first `MOST_PATHS` are drawn.
    The plane has no unit: edges are straight and true along themselves, the rest is projection.
    """
    found = [select(frame, RowFilter(f"trajectory_{axis}", ("attacked",))) for axis in "xy"]
    one_model(found[0], "a figure of paths")
    xs, ys = map(_one_seed, found)
    x, y = (rows.pivot(index="j", columns="i", values="value") for rows in (xs, ys))
    paths = np.stack([x.to_numpy(), y.to_numpy()], axis=-1)[:MOST_PATHS]
    vertices = _vertices(frame, xs)
    ax = ax or new_axes(height=3.2)
    if len(vertices) <= MOST_EDGES:
        corners = vertices.to_numpy()
        edges = [corners[[a, b]] for a in range(len(corners)) for b in range(a)]
        ax.add_collection(LineCollection(edges, colors="#c0c0c0", linewidths=0.7, zorder=1))
    pieces = np.stack([paths[:, :-1], paths[:, 1:]], axis=2).reshape(-1, 2, 2)
    lines = LineCollection(list(pieces), cmap="viridis", linewidths=0.9, alpha=0.8, zorder=2)
    lines.set_array(np.tile(x.columns.to_numpy()[1:], len(paths)))
    ax.add_collection(lines)
    ax.scatter(paths[:, -1, 0], paths[:, -1, 1], s=6, color=GREY, linewidths=0, zorder=3)
    for label, (across, up) in vertices.iterrows():
        ax.scatter(across, up, s=70, facecolor="white", edgecolor="black", linewidths=0.8, zorder=4)
        ax.text(across, up, str(label), ha="center", va="center", fontsize=6, zorder=5)
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
    note = f"circles: class means; dots: where paths end; layer {xs['tap'].iloc[0]}; {shown}"
    return finish(ax, "Paths of attacked examples", note)


def _over_steps(rows: pd.DataFrame) -> pd.Series:
    means: pd.Series = rows.groupby("i")["value"].mean()
    return means


def _one_seed(rows: pd.DataFrame) -> pd.DataFrame:
    kept: pd.DataFrame = deepest(rows[rows["seed"] == rows["seed"].min()])
    return kept


def _vertices(frame: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Places `(x, y)` of the vertices by class, in the plane of other rows."""
    axes = []
    for axis in "xy":
        rows = select(frame, RowFilter(f"vertex_{axis}"))
        same = rows["seed"].eq(like["seed"].iloc[0]) & rows["tap"].eq(like["tap"].iloc[0])
        axes.append(rows[same].set_index("i")["value"].rename(axis))
    return pd.concat(axes, axis=1).dropna().sort_index()
