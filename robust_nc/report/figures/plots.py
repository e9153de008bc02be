"""Plots of the simplex: its collapse and leaps per layer, its angles, its vertices as a classifier.

Each is a function of the tidy frame that `gather.gather_rows` makes. A plot draws on the axes that
it is given, or on those of a new figure of one column's width, and returns them. Each raises
`InputError` where the frame holds no rows for it.

>>> len(LANDING_EDGES), list(TARGETS.values())[:3]
(41, ['untargeted', 'cyclic', 'random'])
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
    Width,
    as_percent,
    colours_of,
    finish,
    inches_across,
    label_taps,
    layer_lines,
    log_scale,
    new_axes,
    percent_axis,
    share_axis,
    slant_labels,
    styled,
    untitle,
)
from robust_nc.report.figures.selection import (
    RowFilter,
    class_namer,
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
_BARS = "bar: mean of {seeds}; whisker: smallest to largest"
CELL = 0.22  # inches of the axes, labels included, that a cell with a number needs
SMALL = 2.2  # inches of a matrix whose ticks have smaller letters
# Accuracies of the nearest-vertex classifier, by what attacked the examples.
ACCURACIES = {"ncc_clean": "clean", "ncc_transferred": "transferred", "ncc_adaptive": "adaptive"}
_KIND_COLOURS = dict(zip(ACCURACIES.values(), ("#0173b2", "#cc78bc", "#d55e00"), strict=True))
NETWORK = "network, attacked"
# How the target of an attack is chosen, by condition.
TARGETS = {
    "attacked": "untargeted",
    "cyclic": "cyclic",
    "random": "random",
    "nearest": "nearest",
    "farthest": "farthest",
    "hierarchy": "hierarchy",
    "severest": "severest",
}
_SHARES = {"leap_rate": "leaped", "landed": "of these, landed"}
_SHARE_COLOURS = dict(zip(_SHARES.values(), ("#d55e00", "#029e73"), strict=True))
STRONGEST = "standard"  # the protocol that is drawn where rows of several are at hand
MOST_DOTS = 20  # more classes than these become boxes


@styled
def collapse_per_layer(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """NC1 by true label per layer: clean, attacked, under noise, and the null of leaping alone."""
    grouped = RowFilter("nc1", ("clean", "attacked", "gaussian"), grouping="true", split="train")
    rows = select(frame, grouped)
    # Rows without leaps have no null either.
    null = optional(frame, RowFilter("nc1_leap_null", ("attacked",), split="train"))
    if not null.empty:
        rows = pd.concat([rows, null.assign(input=NULL)])
    ax = layer_lines(rows, COLOURS, ax or new_axes(width))
    ax.set(ylabel="NC1 (log scale)")
    log_scale(ax)
    note = f"grouped by true label; {note_of(rows)}"
    if NULL in set(rows["input"]):
        note = f"{NULL}: attacked examples put on their nearest vertex; {note}"
    return finish(ax, "Collapse per layer", note)


@styled
def leap_rate_per_layer(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Share of examples whose nearest vertex changes, per layer: attacked, and under noise."""
    rows = select(frame, RowFilter("leap_rate", ("attacked", "gaussian"), split="train"))
    ax = layer_lines(rows, COLOURS, ax or new_axes(width))
    share_axis(ax, "leap rate")
    return finish(ax, "Leap rate per layer", note_of(rows))


@styled
def leap_matrix(
    frame: pd.DataFrame,
    *,
    tap: str | None = None,
    bar: bool = True,
    ax: Axes | None = None,
    width: Width = "column",
) -> Axes:
    """Of the examples nearest to vertex a when clean, the share nearest to b when attacked.

    One model, one tap (the deepest unless it is named), all seeds together; rows sum to 100 %.
    Classes have the names of their data set. Cells too small for their number are left to the
    colour `bar`, or to the note without it.
    """
    wanted = RowFilter("leap_matrix", ("attacked",), split="train")
    if tap is not None:
        taps = set(frame[frame["measure"] == wanted.measure]["tap"])
        if taps and tap not in taps:
            raise unknown_name("tap", tap, taps)
        frame = frame[frame["tap"] == tap]
    rows = deepest(select(frame, wanted))
    one_model(rows, "a leap matrix")
    counts = rows.pivot_table(index="i", columns="j", values="value", aggfunc="sum", fill_value=0)
    sums = counts.sum(axis=1)
    shares = counts.div(sums.where(sums > 0), axis=0)
    name = class_namer(rows)
    shares = shares.rename(index=name, columns=name)
    ax = ax or new_axes(width, (2.9, 4.4))
    side = inches_across(ax)
    roomy = side >= CELL * len(shares)
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
        cbar=bar,
        cbar_ax=ax.inset_axes((1.04, 0.05, 0.05, 0.9)) if bar else None,
        cbar_kws={"format": FuncFormatter(as_percent), "label": "share of row"},
    )
    ax.grid(False)
    if side < SMALL:
        ax.tick_params(labelsize=6, length=1.5)
    ax.tick_params(labelrotation=0)
    if max(map(len, shares.columns)) > 2:
        ax.tick_params(axis="x", labelrotation=90)
    ax.set(xlabel="nearest vertex, attacked", ylabel="nearest vertex, clean")
    scale = "% of row" if roomy or bar else "share of row, from light (0 %) to dark (100 %)"
    note = f"{scale}; layer {rows['tap'].iloc[0]}; {note_of(rows, spread='{seeds} together')}"
    return finish(ax, "Where attacked examples leap to", note)


@styled
def landing_fraction(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """How far along the edge between two vertices examples travel: 0 stayed, 1 the whole edge.

    One model, the deepest tap, all seeds together; values outside [-0.5, 1.5] are in the end bins.
    """
    wanted = RowFilter("landing_histogram", ("attacked", "gaussian"), split="train")
    rows = deepest(select(frame, wanted))
    one_model(rows, "a distribution of landing fractions")
    if not rows["value"].sum() > 0:
        raise InputError("no value of landing_histogram: no example has an edge to travel")
    centres = (LANDING_EDGES[:-1] + LANDING_EDGES[1:]) / 2
    ax = ax or new_axes(width)
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
def leap_layers(frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column") -> Axes:
    """In which layer examples leap for good: share of all that were counted, those without too."""
    rows = select(frame, RowFilter("leap_layer", ("attacked", "gaussian"), split="train"))
    one_model(rows, "a histogram of leap layers")
    totals = rows.groupby(["condition", "seed"])["value"].transform("sum")
    rows = rows.assign(share=rows["value"] / totals.where(totals > 0))
    leaped = rows[rows["tap"] != "none"]
    if leaped.empty:
        raise InputError("no rows of leap_layer that name a layer")
    taps, colours = taps_in_order(leaped), colours_of(leaped["input"], COLOURS)
    ax = _bars(leaped, ax or new_axes(width), ("tap", "share", "input"), taps, colours)
    label_taps(ax, taps)
    ax.set(ylabel="share of examples")
    untitle(ax)
    note = note_of(rows, spread=_BARS)
    return finish(ax, "Where examples leap", note)


@styled
def nearest_vertex_accuracy(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Accuracy of the nearest-vertex classifier per layer: clean, transferred and adaptive attack.

    One model. The dashed line is the robust accuracy of the network itself.
    """
    ours = frame["measure"].isin([*ACCURACIES, "robust_accuracy"])
    if STRONGEST in set(frame[ours]["attack"]):
        frame = frame[~ours | frame["attack"].isin(["", STRONGEST])]
    parts = [
        part.assign(input=name)
        for measure, name in ACCURACIES.items()
        if not (part := optional(frame, RowFilter(measure))).empty
    ]
    rows = pd.concat(parts) if parts else select(frame, RowFilter("ncc_adaptive"))
    one_model(rows, "nearest-vertex accuracy")
    ax = layer_lines(rows, _KIND_COLOURS, ax or new_axes(width))
    network = optional(frame[frame["tap"] == "output"], RowFilter("robust_accuracy"))["value"]
    if len(network):
        ax.axhline(network.mean(), color="#333333", linewidth=1, linestyle="--", label=NETWORK)
        ax.legend()
    share_axis(ax, "accuracy")
    protocols = "/".join(sorted(set(rows["attack"]) - {""}))
    what = "transferred: points made against the network"
    note = f"{what}; protocol {protocols}; {note_of(rows)}"
    return finish(ax, "Accuracy of the nearest vertex", note)


@styled
def alignment_angles(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Angles between attacked and clean class means per layer: mean as a line, classes as dots.

    One model; above 20 classes boxes from quartile to quartile with whiskers to the extremes
    stand for the dots. The line under noise is the control.
    """
    rows = select(frame, RowFilter("alignment_angle", ("attacked", "gaussian"), grouping="true"))
    one_model(rows, "a figure of alignment angles")
    ax, taps = layer_lines(rows, COLOURS, ax or new_axes(width)), taps_in_order(rows)
    each, what = (
        optional(frame, RowFilter("alignment_angle_class", ("attacked",), grouping="true")),
        "",
    )
    if not each.empty:
        many = each["i"].nunique() > MOST_DOTS
        _classes(ax, each, taps, boxes=many)
        what = f"{'boxes' if many else 'dots'}: classes, attacked; "
    label_taps(ax, taps)
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(ylabel="angle (degrees)")
    note = f"line: mean of classes; {what}{note_of(rows, spread='{seeds}: mean, band: {band}')}"
    return finish(ax, "Angles of attacked class means", note)


@styled
def leap_rate_by_target(
    frame: pd.DataFrame, *, ax: Axes | None = None, width: Width = "column"
) -> Axes:
    """Leap rate and share of leaps that land, by how an attack chooses its target.

    One model, the deepest tap.
    """
    leaped = deepest(select(frame, RowFilter("leap_rate", tuple(TARGETS))))
    if set(leaped["condition"]) <= {"attacked"}:
        raise InputError("no rows of leap_rate under a targeted attack")
    landed = optional(frame, RowFilter("landed", tuple(TARGETS)))
    rows = pd.concat([leaped, deepest(landed)]) if len(landed) else leaped
    one_model(rows, "a figure of targets")
    rows = rows.assign(
        target=rows["condition"].replace(TARGETS), share=rows["measure"].replace(_SHARES)
    )
    order = [name for name in TARGETS.values() if name in set(rows["target"])]
    colours = colours_of(rows["share"], _SHARE_COLOURS)
    ax = _bars(rows, ax or new_axes(width), ("target", "value", "share"), order, colours)
    slant_labels(ax)
    ax.set(xlabel="target of the attack", ylabel="share", ylim=(0, 1.15))
    ax.legend(loc="upper center", ncols=len(_SHARES))
    note = note_of(leaped, spread=_BARS)
    return finish(ax, "Leaps by target", f"layer {rows['tap'].iloc[0]}; {note}")


def _classes(ax: Axes, rows: pd.DataFrame, taps: list[str], *, boxes: bool) -> None:
    """Draw one value per class, seed and layer as dots, or as boxes."""
    colour = COLOURS["attacked"]
    for place, tap in enumerate(taps):
        values = rows[rows["tap"] == tap]["value"]
        if boxes:
            line = {"color": colour, "linewidth": 0.7}
            ax.boxplot(
                values,
                positions=[place],
                widths=0.3,
                whis=(0, 100),
                manage_ticks=False,
                boxprops=line,
                whiskerprops=line,
                capprops=line,
                medianprops=line,
            )
        else:
            places = [place] * len(values)
            ax.plot(places, values, "o", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)


def _bars(
    rows: pd.DataFrame,
    ax: Axes,
    columns: tuple[str, str, str],
    order: list[str],
    colours: dict[str, str],
) -> Axes:
    """Draw means over seeds as bars, with whiskers to the extremes; columns: x, y and colour."""
    x, y, hue = columns
    sns.barplot(
        rows,
        x=x,
        y=y,
        order=order,
        hue=hue,
        hue_order=list(colours),
        palette=colours,
        saturation=1,
        errorbar=("pi", 100),
        err_kws={"linewidth": 1},
        ax=ax,
    )
    percent_axis(ax)
    return ax
