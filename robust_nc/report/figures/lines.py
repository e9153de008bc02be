"""Lines that several plots draw: along the layers, and along steps, epochs or radii.

>>> as_percent(0.125, 0)
'12.5%'
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from robust_nc.report.figures.drawing import in_order, label_taps, new_axes, roles, taps_in_order

MOST_INSIDE = 8  # longer legends stand beside the axes
# Leading digits with a label on a logarithmic axis whose ends are in less than this ratio.
_BETWEEN = ((10, "2346"), (100, "25"))


def layer_lines(rows: pd.DataFrame, colours: Mapping[str, str], ax: Axes | None) -> Axes:
    """Draw one line per `input` (colour) and model (dashes) along the layers."""
    ax, taps = ax or new_axes(), taps_in_order(rows)
    place = {tap: index for index, tap in enumerate(taps)}
    column = "model" if rows["model"].nunique() > 1 else "input"
    if column == "model":
        found = roles(rows)
        column = found.hue
        if found.style:
            column, rows = "model", rows.assign(model=rows["objective"] + ", " + rows["head"])
    names = inputs(rows, colours)
    sns.lineplot(
        rows.assign(layer=rows["tap"].map(place)),
        x="layer",
        y="value",
        hue="input",
        hue_order=names,
        palette=dict(colours),
        style=column,
        style_order=names if column == "input" else in_order(rows[column]),
        markers=True,
        markeredgewidth=0,
        errorbar=("pi", 100),
        ax=ax,
    )
    label_taps(ax, taps)
    untitle(ax)
    return ax


def model_lines(rows: pd.DataFrame, ax: Axes | None, x: str) -> Axes:
    """Draw one line per model along `x`, in the colours of `model_colours`."""
    ax, found = ax or new_axes(), roles(rows)
    many: dict[str, Any] = {}
    if found.style:
        many = {"style": found.style, "style_order": in_order(rows[found.style])}
    elif rows["model"].nunique() > 1:
        many = {"style": found.hue, "style_order": in_order(rows[found.hue])}
    colours = model_colours(rows)
    sns.lineplot(
        rows,
        x=x,
        y="value",
        hue=found.hue,
        hue_order=list(colours),
        palette=colours,
        markers=bool(many),
        markeredgewidth=0,
        errorbar=("pi", 100),
        ax=ax,
        **many,
    )
    untitle(ax)
    return ax


def model_colours(rows: pd.DataFrame) -> dict[str, str]:
    """Give each value of the column that colours models (`roles`) its colour."""
    names = in_order(rows[roles(rows).hue])
    return dict(zip(names, sns.color_palette("colorblind", len(names)).as_hex(), strict=True))


def inputs(rows: pd.DataFrame, colours: Mapping[str, str]) -> list[str]:
    """Return what of `input` is at hand, in the order of the colours."""
    return [name for name in colours if name in set(rows["input"])]


def as_percent(share: float, _place: float) -> str:
    """Write a share as the label of a tick."""
    return f"{100 * share:g}%"


def percent(ax: Axes) -> None:
    """Label the y axis in percent."""
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(as_percent)


def log_scale(ax: Axes) -> None:
    """Make the y axis logarithmic, labelled between powers of ten where it spans few of them."""
    ax.set_yscale("log")

    def between(value: float, _place: float) -> str:
        low, high = ax.get_ylim()
        digits = next((shown for most, shown in _BETWEEN if high < most * low), "")
        return f"{value:g}" if f"{value:.0e}"[0] in digits else ""

    ax.yaxis.set_major_formatter(as_power)
    ax.yaxis.set_minor_formatter(between)


def as_power(value: float, _place: float) -> str:
    """Write a power of ten as the label of a tick.

    >>> as_power(0.01, 0), as_power(1e6, 0)
    ('0.01', '$10^{6}$')
    """
    exponent = round(math.log10(value))
    return f"{value:g}" if abs(exponent) <= 3 else f"$10^{{{exponent}}}$"


def untitle(ax: Axes) -> None:
    """Take the column's name off a legend: what the entries are is plain from them."""
    legend = ax.get_legend()
    if legend is not None:
        legend.set_title("")
        if len(legend.get_texts()) > MOST_INSIDE:
            sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title="", fontsize=6)
