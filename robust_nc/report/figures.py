"""The figures of a set of results: plots side by side, and all of them as files.

>>> sorted(PLOTS)[:3]
['accuracy_against_eps', 'collapse_over_epochs', 'collapse_per_layer']
"""

import logging
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend

from robust_nc.exceptions import InputError
from robust_nc.files import atomic
from robust_nc.report.drawing import (
    COLUMN_WIDTH,
    in_order,
    literal,
    merge_notes,
    roles,
    styled,
    take_note,
)
from robust_nc.report.plots import (
    accuracy_against_eps,
    collapse_over_epochs,
    collapse_per_layer,
    landing_fraction,
    leap_layers,
    leap_matrix,
    leap_rate_per_layer,
)

__all__ = [
    "PLOTS",
    "Saved",
    "accuracy_against_eps",
    "collapse_over_epochs",
    "collapse_per_layer",
    "landing_fraction",
    "leap_layers",
    "leap_matrix",
    "leap_rate_per_layer",
    "panels",
    "save_all",
    "save_each",
    "story",
]

Draw = Callable[..., Axes]
Share = Literal["row", "all", "none"]

PLOTS: dict[str, Draw] = {
    "collapse_per_layer": collapse_per_layer,
    "leap_rate_per_layer": leap_rate_per_layer,
    "leap_matrix": leap_matrix,
    "landing_fraction": landing_fraction,
    "leap_layers": leap_layers,
    "collapse_over_epochs": collapse_over_epochs,
    "accuracy_against_eps": accuracy_against_eps,
}
DPI = 150
_PER_OBJECTIVE = ("collapse_per_layer", "leap_rate_per_layer")
_PER_MODEL = ("leap_matrix", "landing_fraction", "leap_layers")
# Results that differ in one of these are never drawn in one figure.
_APART = ("suite", "dataset", "backbone", "ball")
_SUBTITLES = frozenset({"input", "head", "model", "objective"})
_log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """One figure: where it lies, or why it was left out (`path` is None)."""

    name: str
    title: str
    caption: str
    path: Path | None
    skipped: str = ""


class Made(NamedTuple):
    """A figure with its title and the caption that says over what it is."""

    figure: Figure
    title: str
    caption: str


def story(frame: pd.DataFrame) -> Figure:
    """Draw NC1 per layer above the leap rate per layer, one column per objective.

    One column per model where objective and head do not name the models. Raises `InputError` where
    the frame holds no rows for either.
    """
    return _story(frame).figure


def panels(frame: pd.DataFrame, draw: Draw, *, per_model: bool = False) -> Figure:
    """Draw one plot per objective, or per model, side by side with one legend and one note."""
    return _panels(frame, [draw], _groups(frame, per_model), wrap=3, share="none").figure


def save_all(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write every figure that the frame has rows for as PNG, and return their paths.

    Results of different data sets, backbones, balls or suites go to different files. What is left
    out is logged with the reason.
    """
    saved = save_each(frame, folder)
    for one in saved:
        if one.path is None:
            _log.info("no figure %s: %s", one.name, one.skipped)
    return [one.path for one in saved if one.path is not None]


def save_each(frame: pd.DataFrame, folder: Path) -> list[Saved]:
    """Write every figure as `save_all`; say of each where it lies, or why there is none."""
    saved = []
    for prefix, label, part in _parts(frame):
        for name in ("story", *PLOTS):
            file = f"{prefix}{name}"
            try:
                made = _draw(name, part)
            except InputError as reason:
                saved.append(Saved(file, label, "", None, str(reason)))
                continue
            path = folder / f"{file}.png"
            _write(made, path, label)
            title = f"{made.title}: {label}" if label else made.title
            saved.append(Saved(file, title, made.caption, path))
    return saved


def _draw(name: str, frame: pd.DataFrame) -> Made:
    if name == "story":
        return _story(frame)
    draw = PLOTS[name]
    if name in _PER_OBJECTIVE:
        return _panels(frame, [draw], _groups(frame, False), wrap=3, share="all")
    if name in _PER_MODEL and frame["model"].nunique() > 1:
        share: Share = "none" if name == "leap_matrix" else "all"
        return _panels(frame, [draw], _groups(frame, True), wrap=3, share=share)
    ax = draw(frame)
    title, figure = ax.get_title(loc="left"), ax.get_figure(root=True)
    assert figure is not None
    caption = take_note(ax)
    ax.set_title("", loc="left")
    _one_legend(figure, [ax])
    return Made(figure, title, caption)


def _story(frame: pd.DataFrame) -> Made:
    draws = [collapse_per_layer, leap_rate_per_layer]
    made = _panels(frame, draws, _groups(frame, False), wrap=None, share="row")
    return made._replace(title="What an attack does to the geometry, layer by layer")


@styled
def _panels(
    frame: pd.DataFrame,
    draws: list[Draw],
    groups: list[tuple[str, pd.DataFrame]],
    *,
    wrap: int | None,
    share: Share,
) -> Made:
    """Draw each plot (a row of axes) for each group (a column, wrapped where one plot allows)."""
    columns = min(len(groups), wrap or len(groups))
    if len(groups) == columns + 1:
        columns -= 1  # 2 + 2 rather than 3 + 1
    rows = len(draws) if wrap is None else -(-len(groups) // columns)
    size = (max(COLUMN_WIDTH, 2.3 * columns + 0.3), 2.1 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share)
    cells = [(i, title, part) for i in range(len(draws)) for title, part in groups]
    titles, notes, reasons = [], [], []
    for ax, (i, title, part) in zip(grid.flat, cells, strict=False):
        try:
            draws[i](part, ax=ax)
        except InputError as reason:
            reasons.append(str(reason))
            ax.set_axis_off()
            ax.text(0.5, 0.5, literal(textwrap.fill(str(reason), 30)), ha="center", fontsize=6)
            continue
        titles.append(ax.get_title(loc="left"))
        notes.append(take_note(ax))
        ax.set_title("", loc="left")
        if i == 0:
            ax.set_title(literal(title), fontsize=8 if len(title) < 24 else 6.5)
        _thin_labels(ax, last=wrap is not None or i + 1 == rows)
    if not notes:
        raise InputError(reasons[0])
    for ax in list(grid.flat)[len(cells) :]:
        ax.set_axis_off()
    _one_legend(figure, list(grid.flat))
    return Made(figure, titles[0], merge_notes(notes))


def _groups(frame: pd.DataFrame, per_model: bool) -> list[tuple[str, pd.DataFrame]]:
    """Cut a frame by objective where objective and head name the models, else by model."""
    if frame.empty:
        raise InputError("there are no rows to draw")
    column = "model" if per_model or roles(frame).hue == "model" else "objective"
    return [(name, frame[frame[column] == name]) for name in in_order(frame[column])]


def _thin_labels(ax: Axes, *, last: bool) -> None:
    # What an axis is stands once per row and once per column.
    place = ax.get_subplotspec()
    assert place is not None
    if not place.is_first_col():
        ax.set_ylabel("")
    if not last:
        ax.set_xlabel("")


@styled
def _one_legend(figure: Figure, axes: list[Axes]) -> None:
    """Move all legends into one, which `_write` leaves room for below the axes."""
    entries: dict[str, Artist] = {}
    for ax in axes:
        legend = ax.get_legend()
        if legend is None:
            continue
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if text.get_text() not in _SUBTITLES and handle is not None:
                entries.setdefault(text.get_text(), handle)
        legend.remove()
    if len(entries) > 1:
        columns = min(len(entries), int(figure.get_size_inches()[0] / 1.1))
        figure.legend(list(entries.values()), list(entries), ncols=columns)


def _parts(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Cut a frame into what may share a figure: prefix of file names, label, rows."""
    apart = [column for column in _APART if column in frame]
    if not apart:
        yield "", "", frame
        return
    many = [column for column in apart if frame[column].nunique() > 1]
    taken: set[str] = set()
    for values, part in frame.groupby(apart, sort=True):
        facts = dict(zip(apart, map(str, values), strict=True))
        prefix = "-".join(re.sub(r"[^A-Za-z0-9]+", "_", facts[column]) for column in many)
        while prefix in taken:
            prefix += "_"
        taken.add(prefix)
        names = [facts[column] for column in apart if column != "suite" and facts[column]]
        if part["model"].nunique() == 1:
            names.append(str(part["model"].iloc[0]))
        label = ", ".join(names)
        yield f"{prefix}-" if many else "", label, part


@styled
def _write(made: Made, path: Path, label: str) -> None:
    """Add room for the title above, the legend and the caption below, and save."""
    figure = made.figure
    width, height = map(float, figure.get_size_inches())
    title = textwrap.wrap(f"{made.title}: {label}" if label else made.title, round(width * 16))
    note = textwrap.wrap(made.caption, round(width * 21))
    above, below = 0.17 * len(title) + 0.05, 0.12 * len(note) + 0.06
    legends = sum(map(_legend_height, figure.legends))
    total = height + above + below + legends
    figure.set_size_inches(width, total)
    for legend in figure.legends:
        legend.set_loc("lower center")
        legend.set_bbox_to_anchor((0.5, below / total), figure.transFigure)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, (below + legends) / total, 1, height / total))
    margin = 0.05
    for y, side, lines, size, colour in (
        (total - margin, "top", title, 9, "black"),
        (margin, "bottom", note, 6, "#555555"),
    ):
        text = literal("\n".join(lines))
        words = figure.text(margin / width, y / total, text, va=side, fontsize=size, color=colour)
        words.set(in_layout=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")


def _legend_height(legend: Legend) -> float:
    """Inches that a legend of the figure takes."""
    legend.set(in_layout=False)
    figure = legend.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure)
    return float(legend.get_window_extent().height) / figure.dpi
