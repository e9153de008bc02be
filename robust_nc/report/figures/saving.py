"""The figures of a set of results: plots side by side, and all of them as files.

>>> FIGURES[0], len(FIGURES)
('story', 16)
"""

import logging
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from robust_nc.exceptions import InputError
from robust_nc.io.files import atomic
from robust_nc.report.figures import curves, plots
from robust_nc.report.figures.axes import COLUMN_WIDTH, GREY, styled, take_title_and_note, wrapped
from robust_nc.report.figures.selection import (
    in_order,
    literal,
    merge_notes,
    named,
    roles,
    taps_in_order,
)

Draw = Callable[..., Axes]
Groups = list[tuple[str, pd.DataFrame]]

PLOTS: dict[str, Draw] = {
    plot.__name__: plot
    for plot in (
        plots.collapse_per_layer,
        plots.leap_rate_per_layer,
        plots.nearest_vertex_accuracy,
        plots.leap_matrix,
        plots.landing_fraction,
        plots.leap_layers,
        curves.trajectory_on_edge,
        curves.trajectory_in_plane,
        plots.leap_rate_by_target,
        curves.leap_rate_against_eps,
        curves.collapse_against_eps,
        plots.alignment_angles,
        curves.collapse_over_epochs,
        curves.accuracy_against_eps,
    )
}
FIGURES = ("story", *PLOTS, "leap_matrices")
_PER_OBJECTIVE = ("collapse_per_layer", "leap_rate_per_layer")
_ALL_MODELS = ("leap_rate_against_eps", "collapse_over_epochs", "accuracy_against_eps")
_OWN_SCALE = ("leap_matrix", "trajectory_in_plane")
# Results that differ in one of these are never drawn in one figure.
_APART = ("suite", "dataset", "backbone", "ball")
_DPI, _SHADES = 150, 256
_PANEL, _SMALL = (2.3, 2.1), (1.2, 1.3)  # inches of one of several panels, of a matrix of many
_SUBTITLES = frozenset({"input", "head", "model", "objective"})
_log = logging.getLogger(__name__)


class _DrawnFigure(NamedTuple):
    """A figure with its title and the caption that says over what it is."""

    figure: Figure
    title: str
    caption: str


class SavedFigure(NamedTuple):
    """One figure: where it lies, or why it was left out (`path` is None)."""

    name: str
    title: str
    caption: str
    path: Path | None
    skipped: str = ""


def story(frame: pd.DataFrame) -> Figure:
    """Draw NC1 per layer above the leap rate per layer, one column per objective.

    One column per model where objective and head do not name the models. Raises `InputError` where
    the frame holds no rows for either.
    """
    return _story(named(frame)).figure


def leap_matrices(frame: pd.DataFrame) -> Figure:
    """Draw the leap matrix of every layer: wrapped for one model, else one row per model.

    Raises `InputError` where the frame has no leap matrix, or that of one layer only.
    """
    return _matrices(named(frame)).figure


def panels(frame: pd.DataFrame, draw: Draw, *, per_model: bool = False) -> Figure:
    """Draw one plot per objective, or per model, side by side with one legend and one note."""
    return _panels([draw], _groups(named(frame), per_model), wrap=3, share="none").figure


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


def save_each(
    frame: pd.DataFrame,
    folder: Path,
    *,
    names: Sequence[str] = FIGURES,
    alone: bool = False,
    spans: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    words: bool = True,
) -> list[SavedFigure]:
    """Write the named figures as `save_all`; say of each where it lies, or why there is none.

    With `alone` each plot has one pair of axes, y from and to what `spans` says of its name, and
    its title does not name the results. Without `words` title and caption are not in the picture.
    """
    saved = []
    for prefix, label, part in _parts(frame):
        for name in names:
            file = f"{prefix}{name}"
            try:
                drawn = _alone(name, part, spans.get(name)) if alone else _draw(name, part)
            except InputError as reason:
                saved.append(SavedFigure(file, label, "", None, str(reason)))
                continue
            if label and not alone:
                drawn = drawn._replace(title=f"{drawn.title}: {label}")
            path = _write_png(drawn, folder / f"{file}.png", words=words)
            saved.append(SavedFigure(file, drawn.title, drawn.caption, path))
    return saved


def _alone(name: str, frame: pd.DataFrame, span: tuple[float, float] | None = None) -> _DrawnFigure:
    """Draw the plot of this name on one pair of axes."""
    ax = PLOTS[name](frame)
    if span is not None:
        ax.set_ylim(span)
    figure = ax.get_figure(root=True)
    assert figure is not None
    drawn = _DrawnFigure(figure, *take_title_and_note(ax))
    _join_legends(figure, [ax])
    return drawn


@styled
def _write_png(drawn: _DrawnFigure, path: Path, *, words: bool) -> Path:
    """Save a figure with its legend below; with `words` its title above, its caption below."""
    figure = drawn.figure
    width, height = map(float, figure.get_size_inches())
    gap = 0.05 / height
    below = gap if figure.legends else 0.0
    for legend in figure.legends:
        legend.set_loc("upper center")
        legend.set_bbox_to_anchor((0.5, below), figure.transFigure)
        below -= _inches(legend)[1] / height
    for y, side, text, letters, size, colour in (
        (1 + gap, "bottom", drawn.title, 15, 9, "black"),
        (below - gap, "top", drawn.caption, 21, 6, GREY),
    ):
        if words:
            lines = literal("\n".join(wrapped(text, round(width * letters))))
            figure.text(0, y, lines, ha="left", va=side, fontsize=size, color=colour)
    with atomic(path) as temporary:
        figure.savefig(
            temporary,
            format="png",
            dpi=_DPI,
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.05,
        )
        with Image.open(temporary) as image:
            few = image.convert("RGB").quantize(_SHADES)  # a third of the bytes
        few.save(temporary, format="png")
    return path


def _draw(name: str, frame: pd.DataFrame) -> _DrawnFigure:
    frame = named(frame)
    if name in _COMPOSED:
        return _COMPOSED[name](frame)
    if name in _PER_OBJECTIVE:
        return _panels([PLOTS[name]], _groups(frame, False), wrap=3, share="all")
    if name not in _ALL_MODELS and frame["model"].nunique() > 1:
        share: Literal["none", "all"] = "none" if name in _OWN_SCALE else "all"
        return _panels([PLOTS[name]], _groups(frame, True), wrap=3, share=share)
    return _alone(name, frame)


def _story(frame: pd.DataFrame) -> _DrawnFigure:
    draws = [plots.collapse_per_layer, plots.leap_rate_per_layer]
    drawn = _panels(draws, _groups(frame, False), wrap=None, share="row")
    return drawn._replace(title="What an attack does to the geometry, layer by layer")


def _matrices(frame: pd.DataFrame) -> _DrawnFigure:
    rows = frame[frame["measure"] == "leap_matrix"]
    taps, models = taps_in_order(rows), in_order(rows["model"])
    if not taps:
        raise InputError("no rows of leap_matrix")
    if len(taps) == 1:
        raise InputError("leap_matrix is of one layer, and stands in a figure of its own")
    groups = [(tap, rows[rows["tap"] == tap]) for tap in taps]
    if len(models) == 1:
        drawn = _panels([plots.leap_matrix], groups, wrap=3, share="none")
    else:
        draws = [_matrix_of(model) for model in models]
        drawn = _panels(draws, groups, wrap=None, share="none", panel=_SMALL)
    # The panels name their layers.
    parts = [part for part in drawn.caption.split("; ") if not part.startswith("layer ")]
    return drawn._replace(title=f"{drawn.title}, layer by layer", caption="; ".join(parts))


def _matrix_of(model: str) -> Draw:
    """Return the small leap matrix of one of several models, named where its row begins."""

    def draw(frame: pd.DataFrame, *, ax: Axes) -> Axes:
        plots.leap_matrix(frame[frame["model"] == model], bar=False, ax=ax)
        ax.set_xlabel("attacked", fontsize=6)
        ax.set_ylabel(f"{literal(model)}\nclean", fontsize=6)
        ax.tick_params(labelsize=5, length=1.5)
        return ax

    return draw


_COMPOSED = {"story": _story, "leap_matrices": _matrices}


def _groups(frame: pd.DataFrame, per_model: bool) -> Groups:
    """Cut a frame by objective where objective and head name the models, else by model."""
    if frame.empty:
        raise InputError("there are no rows to draw")
    column = "model" if per_model or roles(frame).hue == "model" else "objective"
    return [(name, frame[frame[column] == name]) for name in in_order(frame[column])]


@styled
def _panels(
    draws: Sequence[Draw],
    groups: Groups,
    *,
    wrap: int | None,
    share: Literal["row", "all", "none"],
    panel: tuple[float, float] = _PANEL,
) -> _DrawnFigure:
    """Draw each plot (a row of axes) for each group (a column, wrapped where one plot allows)."""
    columns = min(len(groups), wrap or len(groups))
    if len(groups) == columns + 1:
        columns -= 1  # 2 + 2 rather than 3 + 1
    rows = len(draws) if wrap is None else -(-len(groups) // columns)
    size = (max(COLUMN_WIDTH, panel[0] * columns + 0.3), panel[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share)
    cells = [(draw, title, part) for draw in draws for title, part in groups]
    told, reasons = [], []
    for place, (ax, (draw, title, part)) in enumerate(zip(axes.flat, cells, strict=False)):
        try:
            draw(part, ax=ax)
        except InputError as reason:
            reasons.append(str(reason))
            ax.set_axis_off()
            ax.text(0.5, 0.5, literal(textwrap.fill(str(reason), 30)), ha="center", fontsize=6)
            continue
        told.append(take_title_and_note(ax))
        if draw is draws[0]:
            ax.set_title(literal(title), fontsize=8 if len(title) < 24 else 6.5)
        # What an axis is stands once per row, and of several plots once per column.
        if place % columns:
            ax.set_ylabel("")
        if wrap is None and draw is not draws[-1]:
            ax.set_xlabel("")
    if not told:
        raise InputError(reasons[0])
    for ax in axes.flat[len(cells) :]:
        ax.set_axis_off()
    _join_legends(figure, list(axes.flat))
    return _DrawnFigure(figure, told[0][0], merge_notes([note for _, note in told]))


@styled
def _join_legends(figure: Figure, axes: list[Axes]) -> None:
    """Move all legends into one of the figure, in as many columns as there is room for."""
    entries: dict[str, Artist] = {}
    for ax in axes:
        legend = ax.get_legend()
        if legend is None:
            continue
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if text.get_text() not in _SUBTITLES and handle is not None:
                entries.setdefault(text.get_text(), handle)
        legend.remove()
    width = float(figure.get_size_inches()[0])
    for columns in range(min(len(entries), int(width / 1.1)) * (len(entries) > 1), 0, -1):
        legend = figure.legend(list(entries.values()), list(entries), ncols=columns)
        if columns == 1 or _inches(legend)[0] <= width:
            break
        legend.remove()


def _inches(legend: Legend) -> tuple[float, float]:
    """Width and height of a legend of the figure."""
    figure = legend.get_figure(root=True)
    assert figure is not None
    extent = legend.get_window_extent()
    return float(extent.width) / figure.dpi, float(extent.height) / figure.dpi


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
        yield f"{prefix}-" if many else "", ", ".join(names), part
