"""The axes of a figure: their style, the lines that several plots draw, ticks, title and note.

Nothing here touches the state of pyplot: a figure is an object that its caller owns.

>>> axes = new_axes("page")
>>> [float(side) for side in axes.figure.get_size_inches()]
[6.75, 3.2]
"""

import functools
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from robust_nc.exceptions import InputError
from robust_nc.report.figures.selection import in_order, roles, taps_in_order
from robust_nc.statistics.intervals import mean_interval

P = ParamSpec("P")
T = TypeVar("T")

Width = Literal["column", "page"] | float
# Inches: one column and the whole page of a paper in two columns (ICML, CVPR).
WIDTHS: dict[str, float] = {"column": 3.25, "page": 6.75}
_WIDTHS = (1.5, 30.0)  # inches that make a figure
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
# Letters in a file are TrueType (not Type 3, which some publishers refuse) and can be searched.
_FILE: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "robust_nc"}
_DPI = 300  # of a file of pixels, unless the caller or matplotlib's settings say otherwise
NULL = "leap null"
# The palette "colorblind" of seaborn, fixed per condition so that every figure means the same.
COLOURS = {
    "clean": "#0173b2",
    "attacked": "#d55e00",
    "gaussian noise": "#949494",
    "sign noise": "#cc78bc",
    "in training": "#ca9161",
    NULL: "#029e73",
}
GREY = "#555555"
# Of lines that colour and style tell apart alike: by place among all names, whichever are at hand.
_MARKERS = ("o", "X", "s", "P", "D", "^")
_DASHES: Any = ("", (4, 1.5), (1, 1), (3, 1.25, 1.5, 1.25), (5, 1, 1, 1), (8, 2))
MOST_INSIDE = 8  # longer legends stand beside the axes
# Leading digits with a label on a logarithmic axis whose ends are in less than this ratio.
_BETWEEN = ((10, "2346"), (100, "25"))
_NOTE, _OWN = "note", "own"
_SUBTITLES = frozenset({"input", "head", "model", "objective"})


class DrawnFigure(Figure):
    """A figure in our style, however it is shown or saved, and what a caption is to say of it.

    Files hold TrueType fonts. `title` and `caption` (over what the figure is) are plain text.
    """

    title: str = ""
    caption: str = ""

    def draw(self, renderer: RendererBase) -> None:
        """Draw as matplotlib does. Ticks that are made only now have our sizes, too."""
        with matplotlib.rc_context(STYLE):
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save as matplotlib does, with TrueType fonts; its own settings stay as they were."""
        if matplotlib.rcParams["savefig.dpi"] == "figure":
            options.setdefault("dpi", _DPI)
        with matplotlib.rc_context(STYLE | _FILE):
            super().savefig(fname, **options)


def inches_of(width: Width) -> float:
    """Return a width in inches.

    Raises `InputError` for what is none.

    >>> inches_of("column"), inches_of(5.5)
    (3.25, 5.5)
    """
    found = WIDTHS.get(width, width) if isinstance(width, str) else width
    if isinstance(found, str) or not _WIDTHS[0] <= found <= _WIDTHS[1]:
        low, high = _WIDTHS
        raise InputError(
            f"width is 'column', 'page' or inches from {low:g} to {high:g}, found {width!r}"
        )
    return float(found)


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Make a function draw in our style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


@styled
def new_axes(width: Width = "column", heights: tuple[float, float] = (2.4, 3.2)) -> Axes:
    """Return the axes of a new figure; heights in inches up to 4.5 inches of width, and beyond."""
    inches = inches_of(width)
    figure = DrawnFigure(figsize=(inches, heights[inches > 4.5]), layout="constrained")
    axes = figure.subplots()
    axes.set_gid(_OWN)
    return axes


def layer_lines(rows: pd.DataFrame, colours: Mapping[str, str], ax: Axes) -> Axes:
    """Draw one line per `input` (colour) and model (dashes) along the layers."""
    taps, style = taps_in_order(rows), "input"
    if rows["model"].nunique() > 1:
        found = roles(rows)
        style = "model" if found.style else found.hue
        if found.style:
            rows = rows.assign(model=rows["objective"] + ", " + rows["head"])
    places = rows.assign(layer=rows["tap"].map({tap: place for place, tap in enumerate(taps)}))
    ax = value_lines(places, ax, "layer", "input", colours, style)
    label_taps(ax, taps)
    return ax


def model_lines(rows: pd.DataFrame, ax: Axes, x: str) -> Axes:
    """Draw one line per model along `x`, in the colours of `model_colours`."""
    found = roles(rows)
    style = found.style or (found.hue if rows["model"].nunique() > 1 else None)
    return value_lines(rows, ax, x, found.hue, model_colours(rows), style)


def value_lines(
    rows: pd.DataFrame,
    ax: Axes,
    x: str,
    hue: str,
    colours: Mapping[str, str],
    style: str | None,
) -> Axes:
    """Draw means over seeds along `x`, coloured by `hue`, with bands of their `mean_interval`.

    `colours` has all names that `hue` may have, so that one name looks the same in every panel.
    They are taken before anything is drawn: on a logarithmic axis seaborn would average logarithms.
    A band that would go below 0, where no value is, begins at the smallest value.
    """
    names = list(colours_of(rows[hue], colours))
    markers, dashes = (dict(zip(colours, looks, strict=False)) for looks in (_MARKERS, _DASHES))
    alike = style == hue and len(colours) <= len(_MARKERS)
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
        markers=markers if alike else style is not None,
        dashes=dashes if alike else True,
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
    if sum(map(len, taps)) > 13 * inches_across(ax):
        slant_labels(ax)
    ax.set_xlabel("layer, input to output")


def inches_across(ax: Axes) -> float:
    """Width of axes, as far as it is known before the figure is laid out."""
    return float(ax.get_window_extent().width) / float(ax.figure.dpi)


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
    """Put the title and, in small letters below it, the note; the legend below a figure of ours."""
    text = wrapped(note, max(30, round(inches_across(ax) * 23)))
    ax.set_title(title, loc="left", pad=5 + 8 * len(text))
    words = ax.text(0, 1.02, "\n".join(text), transform=ax.transAxes, fontsize=6, color=GREY)
    words.set(gid=_NOTE, verticalalignment="bottom", linespacing=1.15)
    figure = ax.get_figure(root=True)
    if ax.get_gid() == _OWN and isinstance(figure, DrawnFigure):
        figure.title, figure.caption = title, note
        _grow(figure, _words_height(ax))
        join_legends(figure, [ax])
    return ax


def take_title_and_note(ax: Axes) -> tuple[str, str]:
    """Remove title and note from the axes, and return them, each in one line."""
    title, notes = ax.get_title(loc="left"), [one for one in ax.texts if one.get_gid() == _NOTE]
    figure = ax.get_figure(root=True)
    if notes and ax.get_gid() == _OWN and isinstance(figure, DrawnFigure):
        _grow(figure, -_words_height(ax))
    ax.set_title("", loc="left")
    for text in notes:
        text.remove()
    return title, " ".join(notes[0].get_text().split()) if notes else ""


def _grow(figure: Figure, inches: float) -> None:
    width, height = map(float, figure.get_size_inches())
    figure.set_size_inches(width, height + inches)


def _words_height(ax: Axes) -> float:
    """Inches that title and note take."""
    lines = [one.get_text().count("\n") + 1 for one in ax.texts if one.get_gid() == _NOTE]
    return (14 + 8 * sum(lines)) / 72


@styled
def join_legends(figure: Figure, axes: list[Axes]) -> None:
    """Move all legends into one outside the axes, in as many columns as there is room for.

    It stands below, or above what is written below all axes. The figure grows by its height.
    """
    entries: dict[str, Artist] = {}
    for ax in axes:
        legend = ax.get_legend()
        if legend is None:
            continue
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if text.get_text() not in _SUBTITLES and handle is not None:
                entries.setdefault(text.get_text(), handle)
        legend.remove()
    if len(entries) < 2:
        return
    width = float(figure.get_size_inches()[0])
    above = bool(figure.get_supxlabel())
    names = ["\n".join(wrapped(name, round(17 * width) - 8)) for name in entries]
    for columns in range(max(1, min(len(entries), int(width / 1.1))), 0, -1):
        legend = figure.legend(
            list(entries.values()),
            names,
            ncols=columns,
            loc="outside upper center" if above else "outside lower center",
        )
        across, up = _inches(legend)
        if columns == 1 or across <= width:
            _grow(figure, up)
            break
        legend.remove()


def _inches(legend: Legend) -> tuple[float, float]:
    """Width and height of a legend of the figure."""
    figure = legend.get_figure(root=True)
    assert figure is not None
    extent = legend.get_window_extent()
    return float(extent.width) / figure.dpi, float(extent.height) / figure.dpi


def wrapped(text: str, width: int) -> list[str]:
    """Cut a text into lines, and no name of a model at its hyphens."""
    return textwrap.wrap(text, width, break_on_hyphens=False)
