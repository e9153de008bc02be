"""Figures of the geometry under attack, drawn from the tidy rows of records.

A plot draws on the axes that it is given, or on those of a new `DrawnFigure`, and returns them; it
raises `InputError` where the frame holds no rows for it. `width` is "column" (3.25 inches, of a
paper in two columns), "page" (6.75) or inches; letters have 6 to 9 points at every width.
`save_all` writes all.

>>> sorted(PLOTS)[:3]
['accuracy_against_eps', 'alignment_angles', 'collapse_against_eps']
"""

from robust_nc.report.figures.axes import DrawnFigure, take_title_and_note
from robust_nc.report.figures.curves import (
    accuracy_against_eps,
    collapse_against_eps,
    collapse_over_epochs,
    leap_rate_against_eps,
    measure_over_epochs,
    trajectory_in_plane,
    trajectory_on_edge,
)
from robust_nc.report.figures.plots import (
    alignment_angles,
    collapse_per_layer,
    landing_fraction,
    leap_layers,
    leap_matrix,
    leap_rate_by_target,
    leap_rate_per_layer,
    nearest_vertex_accuracy,
)
from robust_nc.report.figures.saving import (
    PLOTS,
    SavedFigure,
    leap_matrices,
    over_epochs,
    panels,
    save_all,
    save_each,
    story,
)

__all__ = [
    "PLOTS",
    "DrawnFigure",
    "SavedFigure",
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
    "measure_over_epochs",
    "nearest_vertex_accuracy",
    "over_epochs",
    "panels",
    "save_all",
    "save_each",
    "story",
    "take_title_and_note",
    "trajectory_in_plane",
    "trajectory_on_edge",
]
