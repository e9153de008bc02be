"""The figures of a set of results: plots side by side, and all of them as files.

>>> sorted(PLOTS)[:3]
['accuracy_against_eps', 'alignment_angles', 'collapse_against_eps']
"""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_nc.exceptions import InputError
from robust_nc.report.figures.curves import (
    accuracy_against_eps,
    collapse_against_eps,
    collapse_over_epochs,
    leap_rate_against_eps,
)
from robust_nc.report.figures.drawing import in_order, literal, roles, take_note, taps_in_order
from robust_nc.report.figures.geometry_plots import (
    alignment_angles,
    leap_rate_by_target,
    nearest_vertex_accuracy,
)
from robust_nc.report.figures.layout import (
    Draw,
    Groups,
    Made,
    Share,
    one_legend,
    panel_figure,
    write,
)
from robust_nc.report.figures.paths import trajectory_in_plane, trajectory_on_edge
from robust_nc.report.figures.plots import (
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
    "alignment_angles",
    "collapse_against_eps",
    "collapse_over_epochs",
    "collapse_per_layer",
    "landing_fraction",
    "leap_layers",
    "leap_matrices",
    "leap_matrix",
    "leap_rate_against_eps",
    "leap_rate_by_target",
    "leap_rate_per_layer",
    "nearest_vertex_accuracy",
    "panels",
    "save_all",
    "save_each",
    "story",
    "trajectory_in_plane",
    "trajectory_on_edge",
]

PLOTS: dict[str, Draw] = {
    "collapse_per_layer": collapse_per_layer,
    "leap_rate_per_layer": leap_rate_per_layer,
    "nearest_vertex_accuracy": nearest_vertex_accuracy,
    "leap_matrix": leap_matrix,
    "landing_fraction": landing_fraction,
    "leap_layers": leap_layers,
    "trajectory_on_edge": trajectory_on_edge,
    "trajectory_in_plane": trajectory_in_plane,
    "leap_rate_by_target": leap_rate_by_target,
    "leap_rate_against_eps": leap_rate_against_eps,
    "collapse_against_eps": collapse_against_eps,
    "alignment_angles": alignment_angles,
    "collapse_over_epochs": collapse_over_epochs,
    "accuracy_against_eps": accuracy_against_eps,
}
FIGURES = ("story", *PLOTS, "leap_matrices")
_PER_OBJECTIVE = ("collapse_per_layer", "leap_rate_per_layer")
_PER_MODEL = (
    "nearest_vertex_accuracy",
    "leap_matrix",
    "landing_fraction",
    "leap_layers",
    "trajectory_on_edge",
    "trajectory_in_plane",
    "leap_rate_by_target",
    "collapse_against_eps",
    "alignment_angles",
)
_OWN_SCALE = ("leap_matrix", "trajectory_in_plane")
_SMALL = (1.2, 1.3)  # inches of a matrix of many
# Results that differ in one of these are never drawn in one figure.
_APART = ("suite", "dataset", "backbone", "ball")
_log = logging.getLogger(__name__)


class Saved(NamedTuple):
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
    return _story(frame).figure


def leap_matrices(frame: pd.DataFrame) -> Figure:
    """Draw the leap matrix of every layer: wrapped for one model, else one row per model.

    Raises `InputError` where the frame has no leap matrix, or that of one layer only.
    """
    return _matrices(frame).figure


def panels(frame: pd.DataFrame, draw: Draw, *, per_model: bool = False) -> Figure:
    """Draw one plot per objective, or per model, side by side with one legend and one note."""
    return panel_figure([draw], _groups(frame, per_model), wrap=3, share="none").figure


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


def save_each(frame: pd.DataFrame, folder: Path, *, names: Sequence[str] = FIGURES) -> list[Saved]:
    """Write the named figures as `save_all`; say of each where it lies, or why there is none."""
    saved = []
    for prefix, label, part in _parts(frame):
        for name in names:
            file = f"{prefix}{name}"
            try:
                made = _draw(name, part)
            except InputError as reason:
                saved.append(Saved(file, label, "", None, str(reason)))
                continue
            path = folder / f"{file}.png"
            write(made, path, label)
            title = f"{made.title}: {label}" if label else made.title
            saved.append(Saved(file, title, made.caption, path))
    return saved


def _draw(name: str, frame: pd.DataFrame) -> Made:
    if name in _COMPOSED:
        return _COMPOSED[name](frame)
    draw = PLOTS[name]
    if name in _PER_OBJECTIVE:
        return panel_figure([draw], _groups(frame, False), wrap=3, share="all")
    if name in _PER_MODEL and frame["model"].nunique() > 1:
        share: Share = "none" if name in _OWN_SCALE else "all"
        return panel_figure([draw], _groups(frame, True), wrap=3, share=share)
    ax = draw(frame)
    title, figure = ax.get_title(loc="left"), ax.get_figure(root=True)
    assert figure is not None
    caption = take_note(ax)
    ax.set_title("", loc="left")
    one_legend(figure, [ax])
    return Made(figure, title, caption)


def _story(frame: pd.DataFrame) -> Made:
    draws = [collapse_per_layer, leap_rate_per_layer]
    made = panel_figure(draws, _groups(frame, False), wrap=None, share="row")
    return made._replace(title="What an attack does to the geometry, layer by layer")


def _matrices(frame: pd.DataFrame) -> Made:
    rows = frame[frame["measure"] == "leap_matrix"]
    taps, models = taps_in_order(rows), in_order(rows["model"])
    if len(taps) == 1:
        raise InputError("leap_matrix is of one layer, and stands in a figure of its own")
    groups = [(tap, rows[rows["tap"] == tap]) for tap in taps]
    if len(models) == 1:
        made = panel_figure([leap_matrix], groups, wrap=3, share="none")
    elif models:
        draws = [_matrix_of(model) for model in models]
        made = panel_figure(draws, groups, wrap=None, share="none", cell=_SMALL)
    else:
        raise InputError("no rows of leap_matrix")
    # The panels name their layers.
    parts = [part for part in made.caption.split("; ") if not part.startswith("layer ")]
    title = f"{made.title}, layer by layer"
    return made._replace(title=title, caption="; ".join(parts))


def _matrix_of(model: str) -> Draw:
    """Return the small leap matrix of one of several models, named where its row begins."""

    def draw(frame: pd.DataFrame, *, ax: Axes) -> Axes:
        leap_matrix(frame[frame["model"] == model], bar=False, ax=ax)
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
