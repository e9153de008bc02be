"""Plots of the simplex under attack: its angles, its edges, and who still finds its vertices.

Each is a function of the tidy frame, as those of `plots`, and of one model.

>>> list(TARGETS.values())[:3]
['untargeted', 'cyclic', 'random']
"""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from robust_nc.exceptions import InputError
from robust_nc.report.figures.axes import (
    COLOURS,
    GREY,
    finish,
    label_taps,
    layer_lines,
    new_axes,
    percent_axis,
    slant_labels,
    styled,
)
from robust_nc.report.figures.selection import (
    RowFilter,
    deepest,
    note_of,
    one_model,
    optional,
    select,
    taps_in_order,
)

# Accuracies of the nearest-vertex classifier, by what attacked the examples.
ACCURACIES = {
    "ncc_clean": "clean",
    "ncc_transferred": "transferred",
    "ncc_adaptive": "adaptive",
}
_KIND_COLOURS = dict(zip(ACCURACIES.values(), ("#0173b2", "#cc78bc", "#d55e00"), strict=True))
NETWORK = "network, attacked"
# How the target of an attack is chosen, by condition.
TARGETS = {
    "attacked": "untargeted",
    "cyclic": "cyclic",
    "random": "random",
    "nearest": "nearest",
    "farthest": "farthest",
    "hierarchy": "hierarchy",
    "severest": "severest",
}
_SHARES = {"leap_rate": "leaped", "landed": "of these, landed"}
_SHARE_COLOURS = dict(zip(_SHARES.values(), ("#d55e00", "#029e73"), strict=True))
STRONGEST = "standard"  # the protocol that is drawn where rows of several are at hand
MOST_DOTS = 20  # more classes than these become boxes


@styled
def nearest_vertex_accuracy(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy of the nearest-vertex classifier per layer: clean, transferred and adaptive attack.

    One model. The dashed line is the robust accuracy of the network itself.
    """
    frame = _one_protocol(frame)
    parts = [
        part.assign(input=name)
        for measure, name in ACCURACIES.items()
        if not (part := optional(frame, RowFilter(measure))).empty
    ]
    rows = pd.concat(parts) if parts else select(frame, RowFilter("ncc_adaptive"))
    one_model(rows, "nearest-vertex accuracy")
    ax = layer_lines(rows, _KIND_COLOURS, ax)
    network = optional(frame[frame["tap"] == "output"], RowFilter("robust_accuracy"))["value"]
    if len(network):
        ax.axhline(network.mean(), color="#333333", linewidth=1, linestyle="--", label=NETWORK)
        ax.legend()
    ax.set(ylabel="accuracy", ylim=(-0.02, 1.02))
    percent_axis(ax)
    protocols = "/".join(sorted(set(rows["attack"]) - {""}))
    what = "transferred: points made against the network"
    note = f"{what}; protocol {protocols}; {note_of(rows)}"
    return finish(ax, "Accuracy of the nearest vertex", note)


@styled
def alignment_angles(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Angles between attacked and clean class means per layer: mean as a line, classes as dots.

    One model; above 20 classes boxes from quartile to quartile with whiskers to the extremes
    stand for the dots. The line under noise is the control.
    """
    rows = select(frame, RowFilter("alignment_angle", ("attacked", "gaussian")))
    one_model(rows, "a figure of alignment angles")
    ax, taps = layer_lines(rows, COLOURS, ax), taps_in_order(rows)
    each, what = optional(frame, RowFilter("alignment_angle_class", ("attacked",))), ""
    if not each.empty:
        many = each["i"].nunique() > MOST_DOTS
        _classes(ax, each, taps, boxes=many)
        what = f"{'boxes' if many else 'dots'}: classes, attacked; "
    label_taps(ax, taps)
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(ylabel="angle (degrees)")
    note = f"line: mean of classes; {what}{note_of(rows, spread='{seeds}: mean and range')}"
    return finish(ax, "Angles of attacked class means", note)


@styled
def leap_rate_by_target(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Leap rate and share of leaps that land, by how an attack chooses its target.

    One model, the deepest tap.
    """
    leaped = deepest(select(frame, RowFilter("leap_rate", tuple(TARGETS))))
    if set(leaped["condition"]) <= {"attacked"}:
        raise InputError("no rows of leap_rate under a targeted attack")
    landed = optional(frame, RowFilter("landed", tuple(TARGETS)))
    rows = pd.concat([leaped, deepest(landed)]) if len(landed) else leaped
    one_model(rows, "a figure of targets")
    ax = ax or new_axes()
    rows = rows.assign(
        target=rows["condition"].replace(TARGETS), share=rows["measure"].replace(_SHARES)
    )
    sns.barplot(
        rows,
        x="target",
        y="value",
        order=[name for name in TARGETS.values() if name in set(rows["target"])],
        hue="share",
        hue_order=[name for name in _SHARES.values() if name in set(rows["share"])],
        palette=_SHARE_COLOURS,
        saturation=1,
        errorbar=("pi", 100),
        err_kws={"linewidth": 1},
        ax=ax,
    )
    slant_labels(ax)
    ax.set(xlabel="target of the attack", ylabel="share", ylim=(0, 1.15))
    percent_axis(ax)
    ax.legend(loc="upper center", ncols=len(_SHARES))
    note = note_of(leaped, spread="bar: mean of {seeds}; whisker: smallest to largest")
    return finish(ax, "Leaps by target", f"layer {rows['tap'].iloc[0]}; {note}")


def _one_protocol(frame: pd.DataFrame) -> pd.DataFrame:
    """Of several protocols that attacked the classifiers keep the strongest, where it is there."""
    ours = frame["measure"].isin([*ACCURACIES, "robust_accuracy"])
    if STRONGEST not in set(frame[ours]["attack"]):
        return frame
    kept: pd.DataFrame = frame[~ours | frame["attack"].isin(["", STRONGEST])]
    return kept


def _classes(ax: Axes, rows: pd.DataFrame, taps: list[str], *, boxes: bool) -> None:
    """Draw one value per class, seed and layer as dots, or as boxes."""
    colour = COLOURS["attacked"]
    for place, tap in enumerate(taps):
        values = rows[rows["tap"] == tap]["value"]
        if boxes:
            line = {"color": colour, "linewidth": 0.7}
            ax.boxplot(
                values,
                positions=[place],
                widths=0.3,
                whis=(0, 100),
                manage_ticks=False,
                boxprops=line,
                whiskerprops=line,
                capprops=line,
                medianprops=line,
            )
        else:
            places = [place] * len(values)
            ax.plot(places, values, "o", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
