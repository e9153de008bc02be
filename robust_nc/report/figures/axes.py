"""The axes of a figure: their style, the lines that several plots draw, ticks, title and note.

Nothing here touches the state of pyplot: a figure is an object that its caller owns.

>>> axes = new_axes()
>>> [float(side) for side in axes.figure.get_size_inches()]
[3.4, 2.7]
"""

import functools
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robust_nc.report.figures.selection import in_order, roles, taps_in_order
from robust_nc.statistics.intervals import mean_interval

P = ParamSpec("P")
T = TypeVar("T")

COLUMN_WIDTH = 3.4  # inches: one column of a paper
STYLE: Any = {  # dict of rcParams
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.framealpha": 0.5,
    "legend.edgecolor": "none",
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
NULL = "leap null"
# The palette "colorblind" of seaborn, fixed per condition so that every figure means the same.
COLOURS = {
    "clean": "#0173b2",
    "attacked": "#d55e00",
    "gaussian noise": "#949494",
    "sign noise": "#cc78bc",
    NULL: "#029e73",
}
GREY = "#555555"
MOST_INSIDE = 8  # longer legends stand beside the axes
# Leading digits with a label on a logarithmic axis whose ends are in less than this ratio.
_BETWEEN = ((10, "2346"), (100, "25"))
_NOTE = "note"


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Make a function draw in our style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


@styled
def new_axes(width: float = COLUMN_WIDTH, height: float = 2.7) -> Axes:
    """Return the axes of a new figure of one column's width."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def layer_lines(rows: pd.DataFrame, colours: Mapping[str, str], ax: Axes | None) -> Axes:
    """Draw one line per `input` (colour) and model (dashes) along the layers."""
    taps, style = taps_in_order(rows), "input"
    if rows["model"].nunique() > 1:
        found = roles(rows)
        style = "model" if found.style else found.hue
        if found.style:
            rows = rows.assign(model=rows["objective"] + ", " + rows["head"])
    places = rows.assign(layer=rows["tap"].map({tap: place for place, tap in enumerate(taps)}))
    ax = value_lines(places, ax, "layer", "input", colours_of(rows["input"], colours), style)
    label_taps(ax, taps)
    return ax


def model_lines(rows: pd.DataFrame, ax: Axes | None, x: str) -> Axes:
    """Draw one line per model along `x`, in the colours of `model_colours`."""
    found = roles(rows)
    style = found.style or (found.hue if rows["model"].nunique() > 1 else None)
    return value_lines(rows, ax, x, found.hue, model_colours(rows), style)


def value_lines(
    rows: pd.DataFrame,
    ax: Axes | None,
    x: str,
    hue: str,
    colours: Mapping[str, str],
    style: str | None,
) -> Axes:
    """Draw means over seeds along `x`, coloured by `hue`, with bands of their `mean_interval`.

    They are taken before anything is drawn: on a logarithmic axis seaborn would average logarithms.
    A band that would go below 0, where no value is, begins at the smallest value.
    """
    ax, names = ax or new_axes(), list(colours)
    order = names if style == hue else in_order(rows[style]) if style else None
    lines = list(dict.fromkeys((hue, style or hue)))
    found = rows.dropna(subset="value").groupby([*lines, x], sort=True)["value"].agg(list)
    means = found.map(mean_interval).rename("found").reset_index()
    for end in ("value", "low", "high"):
        means[end] = [getattr(one, end) for one in means["found"]]
    least = found.map(min).to_numpy()
    means["low"] = np.where((means["low"] < 0) & (least >= 0), least, means["low"])
    for (name, *_), band in means.groupby(lines):
        if band["low"].notna().any():
            low, high = band["low"], band["high"]
            ax.fill_between(band[x], low, high, color=colours[str(name)], alpha=0.2, linewidth=0)
    sns.lineplot(
        means,
        x=x,
        y="value",
        hue=hue,
        hue_order=names,
        palette=dict(colours),
        style=style,
        style_order=order,
        markers=style is not None,
        markeredgewidth=0,
        errorbar=None,
        ax=ax,
    )
    untitle(ax)
    return ax


def model_colours(rows: pd.DataFrame) -> dict[str, str]:
    """Give each value of the column that colours models (`roles`) its colour."""
    names = in_order(rows[roles(rows).hue])
    return dict(zip(names, sns.color_palette("colorblind", len(names)).as_hex(), strict=True))


def colours_of(names: pd.Series, colours: Mapping[str, str]) -> dict[str, str]:
    """Return the colours of the names that are at hand, in the order of the colours."""
    return {name: colour for name, colour in colours.items() if name in set(names)}


def label_taps(ax: Axes, taps: list[str]) -> None:
    """Write the names of the taps along the x axis."""
    ax.set_xticks(range(len(taps)), taps)
    if sum(map(len, taps)) > 24:
        slant_labels(ax)
    ax.set_xlabel("layer, input to output")


def slant_labels(ax: Axes) -> None:
    """Turn the labels of the x axis, for which there is no room side by side."""
    ax.tick_params(axis="x", labelrotation=30)
    for label in ax.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")


def percent_axis(ax: Axes) -> None:
    """Label the y axis in percent."""
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(as_percent)


def share_axis(ax: Axes, label: str) -> None:
    """Label the y axis in percent from 0 to 100, with a little room at both ends."""
    ax.set(ylabel=label, ylim=(-0.02, 1.02))
    percent_axis(ax)


def as_percent(share: float, _place: float) -> str:
    """Write a share as the label of a tick.

    >>> as_percent(0.125, 0)
    '12.5%'
    """
    return f"{100 * share:g}%"


def log_scale(ax: Axes) -> None:
    """Make the y axis logarithmic, labelled between powers of ten where it spans few of them."""
    ax.set_yscale("log")

    def power(value: float, _place: float) -> str:
        exponent = round(math.log10(value))
        return f"{value:g}" if abs(exponent) <= 3 else f"$10^{{{exponent}}}$"

    def between(value: float, _place: float) -> str:
        low, high = ax.get_ylim()
        digits = next((shown for most, shown in _BETWEEN if high < most * low), "")
        return f"{value:g}" if f"{value:.0e}"[0] in digits else ""

    ax.yaxis.set_major_formatter(power)
    ax.yaxis.set_minor_formatter(between)


def untitle(ax: Axes) -> None:
    """Take the column's name off a legend: what the entries are is plain from them."""
    legend = ax.get_legend()
    if legend is not None:
        legend.set_title("")
        if len(legend.get_texts()) > MOST_INSIDE:
            sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title="", fontsize=6)


def finish(ax: Axes, title: str, note: str) -> Axes:
    """Put the title and, in small letters below it, the note."""
    inches = ax.get_window_extent().width / ax.figure.dpi
    text = wrapped(note, max(30, round(inches * 23)))
    ax.set_title(title, loc="left", pad=5 + 8 * len(text))
    words = ax.text(0, 1.02, "\n".join(text), transform=ax.transAxes, fontsize=6, color=GREY)
    words.set(gid=_NOTE, verticalalignment="bottom", linespacing=1.15)
    return ax


def take_title_and_note(ax: Axes) -> tuple[str, str]:
    """Remove title and note from the axes, and return them, each in one line."""
    title, notes = ax.get_title(loc="left"), [one for one in ax.texts if one.get_gid() == _NOTE]
    ax.set_title("", loc="left")
    for text in notes:
        text.remove()
    return title, " ".join(notes[0].get_text().split()) if notes else ""


def wrapped(text: str, width: int) -> list[str]:
    """Cut a text into lines, and no name of a model at its hyphens."""
    return textwrap.wrap(text, width, break_on_hyphens=False)
