"""What can be drawn: each plot is a function of the tidy frame that `gather.gather_rows` makes.

A plot draws on the axes that it is given, or on those of a new figure of one column's width, and
returns them. Each raises `InputError` where the frame holds no rows for it.

>>> len(LANDING_EDGES)
41
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from robust_nc.exceptions import InputError, unknown_name
from robust_nc.report.figures.axes import (
    COLOURS,
    GREY,
    NULL,
    as_percent,
    colours_of,
    finish,
    label_taps,
    layer_lines,
    log_scale,
    new_axes,
    percent_axis,
    styled,
    untitle,
)
from robust_nc.report.figures.selection import (
    RowFilter,
    deepest,
    note_of,
    one_model,
    optional,
    select,
    taps_in_order,
)

# The landing histogram: 40 bins over the edge, from half an edge behind to half an edge beyond.
LANDING_EDGES = np.linspace(-0.5, 1.5, 41)
TICKS = 10  # labels that fit along the side of a matrix
CELL = 0.15  # inches that a number needs in a cell of a matrix


@styled
def collapse_per_layer(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """NC1 by true label per layer: clean, attacked, under noise, and the null of leaping alone."""
    grouped = RowFilter("nc1", ("clean", "attacked", "gaussian"), grouping="true", split="train")
    rows = select(frame, grouped)
    # Rows without leaps have no null either.
    null = optional(frame, RowFilter("nc1_leap_null", ("attacked",), split="train"))
    if not null.empty:
        rows = pd.concat([rows, null.assign(input=NULL)])
    ax = layer_lines(rows, COLOURS, ax)
    ax.set(ylabel="NC1 (log scale)")
    log_scale(ax)
    note = f"grouped by true label; {note_of(rows)}"
    if NULL in set(rows["input"]):
        note = f"{NULL}: attacked examples put on their nearest vertex; {note}"
    return finish(ax, "Collapse per layer", note)


@styled
def leap_rate_per_layer(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of examples whose nearest vertex changes, per layer: attacked, and under noise."""
    wanted = RowFilter("leap_rate", ("attacked", "gaussian"), split="train")
    rows = select(frame, wanted)
    ax = layer_lines(rows, COLOURS, ax)
    ax.set(ylabel="leap rate", ylim=(-0.02, 1.02))
    percent_axis(ax)
    return finish(ax, "Leap rate per layer", note_of(rows))


@styled
def leap_matrix(
    frame: pd.DataFrame, *, tap: str | None = None, bar: bool = True, ax: Axes | None = None
) -> Axes:
    """Of the examples nearest to vertex a when clean, the share nearest to b when attacked.

    One model, one tap (the deepest unless it is named), all seeds together; rows sum to 100 %.
    Cells too small for their number are left to a colour bar, or to the note without `bar`.
    """
    wanted = RowFilter("leap_matrix", ("attacked",), split="train")
    rows = select(frame if tap is None else _at_tap(frame, tap, wanted), wanted)
    rows = deepest(rows)
    one_model(rows, "a leap matrix")
    counts = rows.pivot_table(index="i", columns="j", values="value", aggfunc="sum", fill_value=0)
    sums = counts.sum(axis=1)
    shares = counts.div(sums.where(sums > 0), axis=0)
    ax = ax or new_axes(height=3.2)
    roomy = ax.get_window_extent().width / ax.figure.dpi >= CELL * len(shares)
    every = -(-len(shares) // TICKS)
    sns.heatmap(
        shares,
        ax=ax,
        vmin=0,
        vmax=1,
        cmap="mako_r",
        square=True,
        annot=(100 * shares) if roomy else False,
        fmt=".0f",
        annot_kws={"fontsize": 6},
        xticklabels=every,
        yticklabels=every,
        cbar=bar and not roomy,
        cbar_kws={
            "format": FuncFormatter(as_percent),
            "shrink": 0.8,
            "label": "share of row",
        },
    )
    ax.grid(False)
    ax.tick_params(labelrotation=0)
    ax.set(xlabel="nearest vertex, attacked", ylabel="nearest vertex, clean")
    scale = "% of row" if roomy or bar else "share of row, from light (0 %) to dark (100 %)"
    note = f"{scale}; layer {rows['tap'].iloc[0]}; {note_of(rows, spread='{seeds} together')}"
    return finish(ax, "Where attacked examples leap to", note)


@styled
def landing_fraction(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How far along the edge between two vertices examples travel: 0 stayed, 1 the whole edge.

    One model, the deepest tap, all seeds together; values outside [-0.5, 1.5] are in the end bins.
    """
    wanted = RowFilter("landing_histogram", ("attacked", "gaussian"), split="train")
    rows = deepest(select(frame, wanted))
    one_model(rows, "a distribution of landing fractions")
    if not rows["value"].sum() > 0:
        raise InputError("no value of landing_histogram: no example has an edge to travel")
    centres = (LANDING_EDGES[:-1] + LANDING_EDGES[1:]) / 2
    ax = ax or new_axes()
    sns.histplot(
        rows.assign(fraction=centres[rows["i"].to_numpy()]),
        x="fraction",
        weights="value",
        hue="input",
        hue_order=list(colours_of(rows["input"], COLOURS)),
        palette=COLOURS,
        bins=LANDING_EDGES.tolist(),
        element="step",
        stat="probability",
        common_norm=False,
        alpha=0.35,
        ax=ax,
    )
    for vertex in (0, 1):
        ax.axvline(vertex, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel="landing fraction", ylabel="share of examples")
    ax.set_xticks([-0.5, 0, 0.5, 1, 1.5])
    percent_axis(ax)
    untitle(ax)
    where = f"0: stayed, 1: reached the other vertex; layer {rows['tap'].iloc[0]}"
    note = f"{where}; {note_of(rows, spread='{seeds} together')}"
    return finish(ax, "How far examples travel", note)


@styled
def leap_layers(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """In which layer examples leap for good: share of all that were counted, those without too."""
    rows = select(frame, RowFilter("leap_layer", ("attacked", "gaussian"), split="train"))
    one_model(rows, "a histogram of leap layers")
    totals = rows.groupby(["condition", "seed"])["value"].transform("sum")
    rows = rows.assign(share=rows["value"] / totals.where(totals > 0))
    leaped = rows[rows["tap"] != "none"]
    if leaped.empty:
        raise InputError("no rows of leap_layer that name a layer")
    ax = ax or new_axes()
    taps = taps_in_order(leaped)
    sns.barplot(
        leaped,
        x="tap",
        y="share",
        order=taps,
        hue="input",
        hue_order=list(colours_of(leaped["input"], COLOURS)),
        palette=COLOURS,
        saturation=1,
        errorbar=("pi", 100),
        err_kws={"linewidth": 1},
        ax=ax,
    )
    label_taps(ax, taps)
    ax.set(ylabel="share of examples")
    percent_axis(ax)
    untitle(ax)
    note = note_of(rows, spread="bar: mean of {seeds}; whisker: smallest to largest")
    return finish(ax, "Where examples leap", note)


def _at_tap(frame: pd.DataFrame, tap: str, wanted: RowFilter) -> pd.DataFrame:
    taps = set(frame[frame["measure"] == wanted.measure]["tap"])
    if taps and tap not in taps:
        raise unknown_name("tap", tap, taps)
    found: pd.DataFrame = frame[frame["tap"] == tap]
    return found
