"""What can be drawn: each plot is a function of the tidy frame that `gather.gather_rows` makes.

A plot draws on the axes that it is given, or on those of a new figure of one column's width, and
returns them. Each raises `InputError` where the frame holds no rows for it.

>>> len(LANDING_EDGES)
41
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from robust_nc.exceptions import InputError
from robust_nc.report.drawing import (
    COLOURS,
    NULL,
    Wanted,
    conditions,
    finish,
    in_order,
    label_taps,
    new_axes,
    note_of,
    one_model,
    roles,
    select,
    styled,
    taps_in_order,
)

# The landing histogram: 40 bins over the edge, from half an edge behind to half an edge beyond.
LANDING_EDGES = np.linspace(-0.5, 1.5, 41)
ANNOTATED_CLASSES = 10
MOST_INSIDE = 8  # longer legends stand beside the axes


@styled
def collapse_per_layer(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """NC1 by true label per layer: clean, attacked, under noise, and the null of leaping alone."""
    grouped = Wanted("nc1", ("clean", "attacked", "gaussian"), grouping="true", split="train")
    rows = conditions(select(frame, grouped))
    try:
        null = select(frame, Wanted("nc1_leap_null", ("attacked",), split="train"))
        rows = pd.concat([rows, null.assign(input=NULL)])
    except InputError:
        pass  # Rows without leaps have no null either.
    ax = _layers(rows, ax)
    ax.set(ylabel="NC1 (log scale)", yscale="log")
    note = f"grouped by true label; {note_of(rows)}"
    if NULL in set(rows["input"]):
        note = f"{NULL}: attacked examples put on their nearest vertex; {note}"
    return finish(ax, "Collapse per layer", note)


@styled
def leap_rate_per_layer(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of examples whose nearest vertex changes, per layer: attacked, and under noise."""
    wanted = Wanted("leap_rate", ("attacked", "gaussian"), split="train")
    rows = conditions(select(frame, wanted))
    ax = _layers(rows, ax)
    ax.set(ylabel="leap rate", ylim=(-0.02, 1.02))
    _percent(ax)
    return finish(ax, "Leap rate per layer", note_of(rows))


@styled
def leap_matrix(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Of the examples nearest to vertex a when clean, the share nearest to b when attacked.

    One model, the deepest tap, all seeds together; rows sum to 100 %.
    """
    rows = _deepest(select(frame, Wanted("leap_matrix", ("attacked",), split="train")))
    one_model(rows, "a leap matrix")
    counts = rows.pivot_table(index="i", columns="j", values="value", aggfunc="sum", fill_value=0)
    sums = counts.sum(axis=1)
    shares = counts.div(sums.where(sums > 0), axis=0)
    few = len(shares) <= ANNOTATED_CLASSES
    ax = ax or new_axes(height=3.2)
    sns.heatmap(
        shares,
        ax=ax,
        vmin=0,
        vmax=1,
        cmap="mako_r",
        square=True,
        annot=(100 * shares) if few else False,
        fmt=".0f",
        annot_kws={"fontsize": 6},
        cbar=not few,
        cbar_kws={
            "format": FuncFormatter(_as_percent),
            "shrink": 0.8,
            "label": "share of row",
        },
    )
    ax.grid(False)
    ax.set(xlabel="nearest vertex, attacked", ylabel="nearest vertex, clean")
    note = f"% of row; layer {rows['tap'].iloc[0]}; {note_of(rows, spread='{seeds} together')}"
    return finish(ax, "Where attacked examples leap to", note)


@styled
def landing_fraction(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How far along the edge between two vertices examples travel: 0 stayed, 1 the whole edge.

    One model, the deepest tap, all seeds together; values outside [-0.5, 1.5] are in the end bins.
    """
    wanted = Wanted("landing_histogram", ("attacked", "gaussian"), split="train")
    rows = conditions(_deepest(select(frame, wanted)))
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
        hue_order=_inputs(rows),
        palette=COLOURS,
        bins=LANDING_EDGES.tolist(),
        element="step",
        stat="probability",
        common_norm=False,
        alpha=0.35,
        ax=ax,
    )
    for vertex in (0, 1):
        ax.axvline(vertex, color="#555555", linewidth=0.8, linestyle=":")
    ax.set(xlabel="landing fraction", ylabel="share of examples")
    ax.set_xticks([-0.5, 0, 0.5, 1, 1.5])
    _percent(ax)
    _untitle(ax)
    where = f"0: stayed, 1: reached the other vertex; layer {rows['tap'].iloc[0]}"
    note = f"{where}; {note_of(rows, spread='{seeds} together')}"
    return finish(ax, "How far examples travel", note)


@styled
def leap_layers(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """In which layer examples leap for good: share of all that were counted, those without too."""
    rows = conditions(select(frame, Wanted("leap_layer", ("attacked", "gaussian"), split="train")))
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
        hue_order=_inputs(leaped),
        palette=COLOURS,
        saturation=1,
        errorbar=("pi", 100),
        err_kws={"linewidth": 1},
        ax=ax,
    )
    label_taps(ax, taps)
    ax.set(ylabel="share of examples")
    _percent(ax)
    _untitle(ax)
    note = note_of(rows, spread="bar: mean of {seeds}; whisker: smallest to largest")
    return finish(ax, "Where examples leap", note)


@styled
def collapse_over_epochs(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """NC1 (ratio of traces) of the penultimate layer on clean training data, over training."""
    wanted = Wanted("nc1_trace", ("clean",), split="train", epochs=True)
    rows = select(frame, wanted)
    ax = _models(rows, ax, "epoch")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="epoch", ylabel="NC1 by traces (log scale)", yscale="log")
    return finish(ax, "Collapse over training", note_of(rows))


@styled
def accuracy_against_eps(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy under attack against the radius of the ball."""
    # Accuracies that name a feature are of the images that the geometry was measured on.
    sweep = frame[frame["feature"] == ""]
    rows = select(sweep, Wanted("accuracy", ("attacked",), split="test", every_eps=True))
    ax = _models(rows, ax, "eps")
    norm = str(rows["ball"].iloc[0]).split(" ")[0] if "ball" in rows else ""
    ax.set(xlabel=f"eps, {norm} radius in pixels of [0, 1]".replace("  ", " "))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.set(ylabel="accuracy under attack", ylim=(-0.02, 1.02))
    _percent(ax)
    return finish(ax, "Accuracy against eps", note_of(rows))


def _layers(rows: pd.DataFrame, ax: Axes | None) -> Axes:
    """Draw one line per input (colour) and model (dashes) along the layers."""
    ax, taps = ax or new_axes(), taps_in_order(rows)
    place = {tap: index for index, tap in enumerate(taps)}
    column = "model" if rows["model"].nunique() > 1 else "input"
    if column == "model":
        found = roles(rows)
        column = found.hue
        if found.style:
            column, rows = "model", rows.assign(model=rows["objective"] + ", " + rows["head"])
    sns.lineplot(
        rows.assign(layer=rows["tap"].map(place)),
        x="layer",
        y="value",
        hue="input",
        hue_order=_inputs(rows),
        palette=COLOURS,
        style=column,
        style_order=_inputs(rows) if column == "input" else in_order(rows[column]),
        markers=True,
        markeredgewidth=0,
        errorbar=("pi", 100),
        ax=ax,
    )
    label_taps(ax, taps)
    _untitle(ax)
    return ax


def _models(rows: pd.DataFrame, ax: Axes | None, x: str) -> Axes:
    """Draw one line per model along `x`."""
    ax, found = ax or new_axes(), roles(rows)
    many: dict[str, Any] = {}
    if found.style:
        many = {"style": found.style, "style_order": in_order(rows[found.style])}
    elif rows["model"].nunique() > 1:
        many = {"style": found.hue, "style_order": in_order(rows[found.hue])}
    names = in_order(rows[found.hue])
    sns.lineplot(
        rows,
        x=x,
        y="value",
        hue=found.hue,
        hue_order=names,
        palette=sns.color_palette("colorblind", len(names)),
        markers=bool(many),
        markeredgewidth=0,
        errorbar=("pi", 100),
        ax=ax,
        **many,
    )
    _untitle(ax)
    return ax


def _as_percent(share: float, _place: float) -> str:
    return f"{100 * share:g}%"


def _percent(ax: Axes) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(_as_percent)


def _inputs(rows: pd.DataFrame) -> list[str]:
    return [name for name in COLOURS if name in set(rows["input"])]


def _deepest(rows: pd.DataFrame) -> pd.DataFrame:
    deepest: pd.DataFrame = rows[rows["depth"] == rows["depth"].max()]
    return deepest


def _untitle(ax: Axes) -> None:
    # seaborn puts the column's name above a legend; what the entries are is plain from them.
    legend = ax.get_legend()
    if legend is not None:
        legend.set_title("")
        if len(legend.get_texts()) > MOST_INSIDE:
            sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title="", fontsize=6)
