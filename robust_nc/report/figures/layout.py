"""How a figure is put together: panels, one legend, and room for its title and caption.

>>> from matplotlib.figure import Figure
>>> Made(Figure(), "Collapse per layer", "one seed").title
'Collapse per layer'
"""

import textwrap
from collections.abc import Callable, Sequence
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
from robust_nc.io.files import atomic
from robust_nc.report.figures.drawing import (
    COLUMN_WIDTH,
    literal,
    merge_notes,
    styled,
    take_note,
    wrapped,
)

Draw = Callable[..., Axes]
Share = Literal["row", "all", "none"]
Groups = list[tuple[str, pd.DataFrame]]

DPI = 150
CELL = (2.3, 2.1)  # inches: width and height of one of several panels
_SUBTITLES = frozenset({"input", "head", "model", "objective"})


class Made(NamedTuple):
    """A figure with its title and the caption that says over what it is."""

    figure: Figure
    title: str
    caption: str


@styled
def panel_figure(
    draws: Sequence[Draw],
    groups: Groups,
    *,
    wrap: int | None,
    share: Share,
    cell: tuple[float, float] = CELL,
) -> Made:
    """Draw each plot (a row of axes) for each group (a column, wrapped where one plot allows)."""
    columns = min(len(groups), wrap or len(groups))
    if len(groups) == columns + 1:
        columns -= 1  # 2 + 2 rather than 3 + 1
    rows = len(draws) if wrap is None else -(-len(groups) // columns)
    size = (max(COLUMN_WIDTH, cell[0] * columns + 0.3), cell[1] * rows)
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
    one_legend(figure, list(grid.flat))
    return Made(figure, titles[0], merge_notes(notes))


def _thin_labels(ax: Axes, *, last: bool) -> None:
    # What an axis is stands once per row and once per column.
    place = ax.get_subplotspec()
    assert place is not None
    if not place.is_first_col():
        ax.set_ylabel("")
    if not last:
        ax.set_xlabel("")


@styled
def one_legend(figure: Figure, axes: list[Axes]) -> None:
    """Move all legends into one, which `write` leaves room for below the axes."""
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
        width = float(figure.get_size_inches()[0])
        for columns in range(min(len(entries), int(width / 1.1)), 0, -1):
            legend = figure.legend(list(entries.values()), list(entries), ncols=columns)
            if columns == 1 or _legend_size(legend)[0] <= width:
                break
            legend.remove()


@styled
def write(made: Made, path: Path, label: str) -> None:
    """Add room for the title above, the legend and the caption below, and save."""
    figure = made.figure
    width, height = map(float, figure.get_size_inches())
    title = wrapped(f"{made.title}: {label}" if label else made.title, round(width * 15))
    note = wrapped(made.caption, round(width * 21))
    above, below = 0.17 * len(title) + 0.05, 0.12 * len(note) + 0.06
    legends = sum(_legend_size(legend)[1] for legend in figure.legends)
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


def _legend_size(legend: Legend) -> tuple[float, float]:
    """Inches that a legend of the figure takes: width and height."""
    legend.set(in_layout=False)
    figure = legend.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure)
    extent = legend.get_window_extent()
    return float(extent.width) / figure.dpi, float(extent.height) / figure.dpi
