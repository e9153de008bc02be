"""The figures of a set of results: plots side by side, and all of them as files.

>>> FIGURES[0], len(FIGURES)
('story', 17)
"""

import logging
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator
from PIL import Image

from robust_nc.exceptions import InputError, unknown_name
from robust_nc.io.files import atomic, write_text
from robust_nc.io.text import escape_latex
from robust_nc.report.figures import curves, plots
from robust_nc.report.figures.axes import (
    GREY,
    WIDTHS,
    DrawnFigure,
    Width,
    inches_of,
    join_legends,
    styled,
    take_title_and_note,
    wrapped,
)
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
Format = Literal["png", "pdf", "svg"]

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
FIGURES = ("story", *PLOTS, "over_epochs", "leap_matrices")
_PER_OBJECTIVE = ("collapse_per_layer", "leap_rate_per_layer")
_ALL_MODELS = ("leap_rate_against_eps", "collapse_over_epochs", "accuracy_against_eps")
_OWN_SCALE = ("leap_matrix", "trajectory_in_plane")
# Results that differ in one of these are never drawn in one figure.
_APART = ("suite", "dataset", "backbone", "ball")
_DPI, _SHADES = 150, 256
# Inches of one of several panels, of one of many rows of them, of a matrix of many.
_PANEL, _LOW, _SMALL = (2.3, 2.1), (2.3, 1.5), (1.2, 1.3)
_NARROWEST = WIDTHS["column"]
_LEAST = 0.6  # of its width, that a panel is narrowed to
_SIDE = 3.6  # inches: a wider figure does not fit a column
# No date, so that the same figure is the same file.
_METADATA = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_log = logging.getLogger(__name__)


class SavedFigure(NamedTuple):
    """One figure: where it lies, or why it was left out (`path` is None)."""

    name: str
    title: str
    caption: str
    path: Path | None
    skipped: str = ""
    width: float = 0.0  # inches


def story(frame: pd.DataFrame, *, width: Width | None = None) -> DrawnFigure:
    """Draw NC1 per layer above the leap rate per layer, one column per objective.

    One column per model where objective and head do not name the models; one row each, where the
    `width` ("column" or "page" of a paper, or inches) has no room for so many columns. Raises
    `InputError` where the frame holds no rows for either.
    """
    return _story(named(frame), width)


def over_epochs(
    frame: pd.DataFrame, *, split: Literal["train", "test"] = "train", width: Width | None = None
) -> DrawnFigure:
    """Draw NC1, NC2, NC3 and the angle to the clean means over training, clean and attacked.

    One column per objective, of the rows of `measure.every` on one `split`. Raises `InputError`
    without any.
    """
    return _over_epochs(named(frame), width, split)


def leap_matrices(frame: pd.DataFrame, *, width: Width | None = None) -> DrawnFigure:
    """Draw the leap matrix of every layer: wrapped for one model, else one row per model.

    Raises `InputError` where the frame has no leap matrix, or that of one layer only.
    """
    return _matrices(named(frame), width)


def panels(
    frame: pd.DataFrame, draw: Draw, *, per_model: bool = False, width: Width | None = None
) -> DrawnFigure:
    """Draw one plot per objective, or per model, side by side with one legend and one note."""
    groups = _groups(named(frame), per_model)
    return _panels([draw], groups, wrap=3, share="none", width=width)


def save_all(
    frame: pd.DataFrame, folder: Path, *, format: Format = "png", width: Width | None = None
) -> list[Path]:
    """Write every figure that the frame has rows for, and return their paths.

    Results of different data sets, backbones, balls or suites go to different files. What is left
    out is logged with the reason. PDF and SVG are for papers: as wide as said (of one plot a
    column, of several panels the page), title and caption beside them in `figures.tex`.
    """
    saved = save_each(frame, folder, format=format, width=width, words=format == "png")
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
    format: Format = "png",
    width: Width | None = None,
) -> list[SavedFigure]:
    """Write the named figures as `save_all`; say of each where it lies, or why there is none.

    With `alone` each plot has one pair of axes, y from and to what `spans` says of its name, and
    its title does not name the results. Without `words` title and caption are not in the picture.
    Raises `UnknownNameError` for a name or format that there is not, `InputError` for a width.
    """
    for kind, valid, asked in (
        ("figure", FIGURES, names),
        ("format", get_args(Format), (format,)),
    ):
        for name in asked:
            if name not in valid:
                raise unknown_name(kind, name, valid)
    wide = width
    if width is not None:
        inches_of(width)
    elif format != "png":
        width, wide = "column", "page"
    saved = []
    for prefix, label, part in _parts(frame):
        for name in names:
            file = f"{prefix}{name}"
            try:
                if alone:
                    figure = _alone(name, part, width, spans.get(name))
                else:
                    figure = _draw(name, part, width, wide)
            except InputError as reason:
                saved.append(SavedFigure(file, label, "", None, str(reason)))
                continue
            if label and not alone:
                figure.title += f": {label}"
            path = folder / f"{file}.{format}"
            inches = float(figure.get_size_inches()[0])
            _write(figure, path, format, words=words)
            saved.append(SavedFigure(file, figure.title, figure.caption, path, width=inches))
    if format == "pdf":
        write_text(folder / "figures.tex", _latex(saved))
    return saved


def _alone(
    name: str,
    frame: pd.DataFrame,
    width: Width | None,
    span: tuple[float, float] | None = None,
) -> DrawnFigure:
    """Draw the plot of this name on one pair of axes."""
    ax = PLOTS[name](frame, width=width or "column")
    if span is not None:
        ax.set_ylim(span)
    take_title_and_note(ax)
    figure = ax.get_figure(root=True)
    assert isinstance(figure, DrawnFigure)
    return figure


@styled
def _write(figure: DrawnFigure, path: Path, format: Format, *, words: bool) -> None:
    """Save a figure; with `words` its title above, its caption below."""
    width, height = map(float, figure.get_size_inches())
    gap = 0.05 / height
    # Laid out once, or a legend would move to the edge of a canvas that words have made larger.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
    for y, side, text, letters, size, colour in (
        (1 + gap, "bottom", figure.title, 15, 9, "black"),
        (-gap, "top", figure.caption, 21, 6, GREY),
    ):
        if words:
            lines = literal("\n".join(wrapped(text, round(width * letters))))
            figure.text(0, y, lines, ha="left", va=side, fontsize=size, color=colour)
    tight = {"bbox_inches": "tight", "pad_inches": 0.05} if words or format == "png" else {}
    with atomic(path) as temporary:
        figure.savefig(
            temporary,
            format=format,
            dpi=_DPI,
            facecolor="white",
            metadata=_METADATA.get(format),
            **tight,
        )
        if format == "png":
            with Image.open(temporary) as image:
                few = image.convert("RGB").quantize(_SHADES)  # a third of the bytes
            few.save(temporary, format="png")


def _latex(saved: Sequence[SavedFigure]) -> str:
    """Return what puts the figures into a paper, each with its caption and label."""
    told = [r"% needs \usepackage{graphicx}; figures have their size, and letters of at least 6 pt"]
    for one in saved:
        if one.path is not None:
            kind = "figure*" if one.width > _SIDE else "figure"
            told += [
                "",
                rf"\begin{{{kind}}}",
                r"\centering",
                rf"\includegraphics{{{one.path.name}}}",
                rf"\caption{{{escape_latex(f'{one.title}. {one.caption}.')}}}",
                rf"\label{{fig:{one.name}}}",
                rf"\end{{{kind}}}",
            ]
    return "\n".join([*told, ""])


def _draw(name: str, frame: pd.DataFrame, width: Width | None, wide: Width | None) -> DrawnFigure:
    """Draw the figure of this name: one plot at one width, several panels at another."""
    frame = named(frame)
    if name in _COMPOSED:
        return _COMPOSED[name](frame, wide)
    if name in _PER_OBJECTIVE:
        groups = _groups(frame, False)
        return _panels([PLOTS[name]], groups, wrap=3, share="all", width=wide)
    if name not in _ALL_MODELS and frame["model"].nunique() > 1:
        share: Literal["none", "all"] = "none" if name in _OWN_SCALE else "all"
        return _panels([PLOTS[name]], _groups(frame, True), wrap=3, share=share, width=wide)
    return _alone(name, frame, width)


def _story(frame: pd.DataFrame, width: Width | None) -> DrawnFigure:
    draws = [plots.collapse_per_layer, plots.leap_rate_per_layer]
    figure = _panels(draws, _groups(frame, False), wrap=None, share="row", width=width)
    figure.title = "What an attack does to the geometry, layer by layer"
    return figure


def _over_epochs(
    frame: pd.DataFrame, width: Width | None, split: Literal["train", "test"] = "train"
) -> DrawnFigure:
    of_split = partial(curves.measure_over_epochs, split=split)
    draws = [partial(of_split, measure=name) for name in curves.OVER_EPOCHS]
    figure = _panels(draws, _groups(frame, False), wrap=None, share="row", width=width, panel=_LOW)
    figure.title = "Neural collapse over training, clean and attacked"
    return figure


def _matrices(frame: pd.DataFrame, width: Width | None) -> DrawnFigure:
    rows = frame[frame["measure"] == "leap_matrix"]
    taps, models = taps_in_order(rows), in_order(rows["model"])
    if not taps:
        raise InputError("no rows of leap_matrix")
    if len(taps) == 1:
        raise InputError("leap_matrix is of one layer, and stands in a figure of its own")
    groups = [(tap, rows[rows["tap"] == tap]) for tap in taps]
    if len(models) == 1:
        figure = _panels([plots.leap_matrix], groups, wrap=3, share="none", width=width)
    else:
        draws = [_matrix_of(model) for model in models]
        figure = _panels(draws, groups, wrap=None, share="none", width=width, panel=_SMALL)
    # The panels name their layers.
    parts = [part for part in figure.caption.split("; ") if not part.startswith("layer ")]
    figure.title, figure.caption = f"{figure.title}, layer by layer", "; ".join(parts)
    return figure


def _matrix_of(model: str) -> Draw:
    """Return the small leap matrix of one of several models, named where its row begins."""

    def draw(frame: pd.DataFrame, *, ax: Axes) -> Axes:
        plots.leap_matrix(frame[frame["model"] == model], ax=ax)
        ax.set_xlabel("nearest vertex, attacked", fontsize=6)
        name = literal("\n".join(textwrap.wrap(model, 20)))
        ax.set_ylabel(f"{name}\nclean", fontsize=6)
        return ax

    return draw


_COMPOSED = {"story": _story, "over_epochs": _over_epochs, "leap_matrices": _matrices}


def _groups(frame: pd.DataFrame, per_model: bool) -> Groups:
    """Cut a frame by objective where objective and head name the models, else by model."""
    if frame.empty:
        raise InputError("there are no rows to draw")
    column = "model" if per_model or roles(frame).hue == "model" else "objective"
    return [(name, frame[frame[column] == name]) for name in in_order(frame[column])]


class _Grid(NamedTuple):
    """How panels are set: rows and columns, inches of the figure, groups as rows."""

    rows: int
    columns: int
    size: tuple[float, float]
    upright: bool


def _grid(
    draws: int, groups: int, *, wrap: int | None, width: Width | None, panel: tuple[float, float]
) -> _Grid:
    """Set `draws` plots of `groups` groups within a width, or at their natural size."""
    inches, most = math.inf if width is None else inches_of(width), groups
    room = max(1, int(inches / (_LEAST * panel[0]))) if width is not None else groups
    upright = wrap is None and groups > room
    if wrap is not None:
        most = min(groups, wrap, room)
        if 1 < most == groups - 1:
            most -= 1  # 2 + 2 rather than 3 + 1
    elif upright:
        most = draws
        if panel is _SMALL:  # a row is one model's
            need = _LEAST * panel[0] * groups
            raise InputError(
                f"{groups} panels side by side need {need:.1f} inches, found {inches:g}"
            )
    rows = -(-(draws * groups) // most)
    if width is None:
        return _Grid(rows, most, (max(_NARROWEST, panel[0] * most + 0.3), panel[1] * rows), upright)
    high = panel[1] * min(1.0, max(0.75, inches / most / panel[0]))
    return _Grid(rows, most, (inches, high * rows), upright)


@styled
def _panels(
    draws: Sequence[Draw],
    groups: Groups,
    *,
    wrap: int | None,
    share: Literal["row", "col", "all", "none"],
    width: Width | None,
    panel: tuple[float, float] = _PANEL,
) -> DrawnFigure:
    """Draw each plot (a row of axes) for each group (a column, wrapped where one plot allows).

    Where the width has no room for so many columns, groups are rows.
    """
    grid = _grid(len(draws), len(groups), wrap=wrap, width=width, panel=panel)
    figure = DrawnFigure(figsize=grid.size, layout="constrained")
    share = "col" if grid.upright and share == "row" else share
    axes = figure.subplots(grid.rows, grid.columns, squeeze=False, sharey=share)
    cells = [(draw, title, part) for draw in draws for title, part in groups]
    if grid.upright:
        cells = [(draw, title, part) for title, part in groups for draw in draws]
    letters = round(grid.size[0] / grid.columns * 14)
    notes, drawn = [], {}
    for place, (ax, (draw, title, part)) in enumerate(zip(axes.flat, cells, strict=False)):
        try:
            draw(part, ax=ax)
        except InputError as reason:
            ax.set_axis_off()
            ax.text(0.5, 0.5, literal(textwrap.fill(str(reason), 24)), ha="center", fontsize=6)
            notes.append((str(reason), ""))
            continue
        drawn[place] = ax
        notes.append(take_title_and_note(ax))
        if draw is draws[0]:
            size, side = 8 if len(title) < letters else 6.5, "left" if grid.upright else "center"
            text = title if grid.upright else textwrap.fill(title, round(1.2 * letters))
            ax.set_title(literal(text), fontsize=size, loc=side)
        # What an axis is stands once per row, and of several plots once per column.
        if place % grid.columns and not grid.upright:
            ax.set_ylabel("")
    if not drawn:
        raise InputError(notes[0][0])
    for ax in axes.flat[len(cells) :]:
        ax.set_axis_off()
    for place, ax in drawn.items():
        _drop_labels(ax.yaxis, [drawn.get(place - place % grid.columns, ax).yaxis])
        _drop_labels(ax.xaxis, [one.xaxis for one in [drawn.get(place + grid.columns)] if one])
    _join_labels(figure, list(drawn.values()))
    _join_bars(figure, list(drawn.values()))
    join_legends(figure, list(axes.flat))
    figure.title = next(title for title, note in notes if note)
    figure.caption = merge_notes([note for _, note in notes if note])
    return figure


def _drop_labels(axis: Axis, others: Sequence[Axis]) -> None:
    """Leave out the labels of ticks that another panel of the row or column shows."""

    def labels(of: Axis) -> list[str]:
        fixed = isinstance(of.get_major_locator(), FixedLocator)
        return [one.get_text() for one in of.get_ticklabels()] if fixed else []

    for other in others:
        if other is not axis and labels(axis) and labels(axis) == labels(other):
            axis.set_tick_params(labelleft=False, labelbottom=False)


def _join_labels(figure: DrawnFigure, axes: Sequence[Axes]) -> None:
    """Write once what all panels have along an axis."""
    for of, write in (("xaxis", figure.supxlabel), ("yaxis", figure.supylabel)):
        labels = [getattr(ax, of).label for ax in axes]
        shown = {label.get_text() for label in labels} - {""}
        if len(axes) > 1 and len(shown) == 1:
            write(shown.pop(), fontsize=8)
            for label in labels:
                label.set_text("")


def _join_bars(figure: DrawnFigure, axes: Sequence[Axes]) -> None:
    """Let one colour bar stand for all, where colours mean the same in all panels."""
    shown = [one for ax in axes for one in ax.collections if one.colorbar is not None]
    bars = [one.colorbar for one in shown if one.colorbar is not None]
    if len(bars) < 2 or len({(*one.get_clim(), one.get_cmap().name) for one in shown}) > 1:
        return
    label, form = bars[0].ax.get_ylabel(), bars[0].formatter
    for bar in bars:
        bar.remove()
    shrink = min(0.8, 3 / float(figure.get_size_inches()[1]))
    bar = figure.colorbar(
        shown[0], ax=list(axes), format=form, label=label, shrink=shrink, aspect=30
    )
    bar.outline.set_visible(False)


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
