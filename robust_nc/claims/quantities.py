"""What a claim may be about: one number of one cell, from the tidy rows of its record.

Rows are those of the finished weights (`epoch` -1, no index); unless an option says otherwise of
the penultimate tap, its `gap` features, and train. The first line of a quantity's docstring is what
the answers say that it is. Options are checked as those of every registered part.

>>> from robust_nc.record.schema import tidy
>>> at = {"tap": "penultimate", "feature": "gap", "split": "train", "condition": "attacked"}
>>> landed(tidy([at | {"measure": "landed", "grouping": "none", "value": 0.25}]))
0.25
"""

import inspect
import math
from collections.abc import Callable

import pandas as pd

from robust_nc.claims.rows import (
    Attacked,
    Condition,
    Feature,
    Grouping,
    Row,
    Split,
    UndefinedError,
    difference,
    matching,
    one_row,
    positive,
)
from robust_nc.config import Component, build, check_options
from robust_nc.registry import Registry

_GEOMETRY = (
    *("kept_collapse", "landed", "landing_fraction", "off_edge", "leap_rate", "displacement"),
    *("leap_severity", "nc1_log10", "nc1_clean", "nc1_attacked", "nc1_landed", "alignment_angle"),
    *("ncc", "ncc_adaptive", "ncc_transferred", "vertex_over_network", "early_over_late"),
    *("train_accuracy", "robust_accuracy", "nc1_trace_log10_at"),
)
_BEYOND = (
    *("accuracy", "clean_verdict", "robust_verdict", "flattery", "mistake_severity", "hd"),
    *("epochs_to", "fall_over_depth", "feature_correlation", "wrong_over_right"),
    *("memorised", "memorised_way", "dilation_log10", "dilation_with_memorization"),
)
QUANTITIES = Registry(
    "quantity",
    "quantities",
    {name: f"robust_nc.claims.quantities:{name}" for name in _GEOMETRY}
    | {name: f"robust_nc.claims.beyond:{name}" for name in _BEYOND},
)


def measure(part: Component, rows: pd.DataFrame) -> float:
    """Return the quantity `part` of a cell with these rows (columns `record.COLUMNS`).

    Raises `UndefinedError` where the cell has no value, and `RecordError` where it was not measured
    or its rows do not say which of several is meant.
    """
    return float(build(QUANTITIES, part, rows=rows))


def meaning(part: Component) -> str:
    """Say what a quantity is, in one sentence.

    >>> meaning(Component(name="landed"))
    'share of leaps that end as near to the new vertex as clean examples lie'
    """
    text = str(QUANTITIES.load(part.name).__doc__).splitlines()[0].rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def kept_collapse(
    rows: pd.DataFrame,
    *,
    condition: Attacked = "attacked",
    tap: str = "penultimate",
    feature: Feature = "gap",
    split: Split = "train",
) -> float:
    """Share of the collapse, in decades below isotropic noise, that is left where examples landed.

    log(null / landed) / log(null / clean), of `nc1` grouped by the vertex where each example
    landed, of its null, and of `nc1` of the clean features by true label. 1: as collapsed as they;
    0: no more than noise of the same variance; below 0: less.
    """
    at = {"tap": tap, "feature": feature, "split": split}
    there = at | {"condition": condition, "grouping": "landed"}
    null = positive(rows, there | {"measure": "nc1_landed_null"})
    found = positive(rows, there | _NC1)
    clean = positive(rows, at | _NC1 | {"condition": "clean", "grouping": "true"})
    whole = math.log10(null / clean)
    if whole <= 0:
        raise UndefinedError(
            f"clean features are no more collapsed (nc1 {clean:.3g}) than noise ({null:.3g})"
        )
    return math.log10(null / found) / whole


def _of_leaps(measure: str, says: str, *, on: Split = "train") -> Callable[..., float]:
    """Make the quantity that is one measure of the leaps of a tap."""

    def quantity(
        rows: pd.DataFrame,
        *,
        condition: Attacked = "attacked",
        tap: str = "penultimate",
        feature: Feature = "gap",
        split: Split = on,
    ) -> float:
        at = {"tap": tap, "feature": feature, "split": split, "condition": condition}
        return one_row(rows, at | {"grouping": "none", "measure": measure}).value

    quantity.__doc__ = says
    return quantity


landed = _of_leaps(
    "landed", "Share of leaps that end as near to the new vertex as clean examples lie."
)
landing_fraction = _of_leaps(
    "landing_fraction",
    "Mean way along the edge to the vertex of the new prediction; 1 is the whole edge.",
)
off_edge = _of_leaps("off_edge", "Mean distance from that edge, in edge lengths.")
leap_rate = _of_leaps("leap_rate", "Share of examples that end at another vertex.")
displacement = _of_leaps(
    "displacement", "Mean move of the features over the mean distance of two vertices."
)


leap_severity = _of_leaps("severity", "Mean distance in the class tree that leaps go.", on="test")


def nc1_log10(
    rows: pd.DataFrame,
    *,
    condition: Condition = "clean",
    grouping: Grouping = "true",
    tap: str = "penultimate",
    feature: Feature = "gap",
    split: Split = "train",
) -> float:
    """Decimal logarithm of NC1; lower is more collapsed."""
    at = {"tap": tap, "feature": feature, "split": split, "condition": condition}
    return math.log10(positive(rows, at | _NC1 | {"grouping": grouping}))


def nc1_clean(rows: pd.DataFrame, *, tap: str = "penultimate", feature: Feature = "gap") -> float:
    """Decimal logarithm of NC1 of the clean features, by true label."""
    return nc1_log10(rows, tap=tap, feature=feature)


def nc1_attacked(
    rows: pd.DataFrame, *, tap: str = "penultimate", feature: Feature = "gap"
) -> float:
    """Decimal logarithm of NC1 of the attacked features, by true label."""
    return nc1_log10(rows, condition="attacked", tap=tap, feature=feature)


def nc1_landed(rows: pd.DataFrame, *, tap: str = "penultimate", feature: Feature = "gap") -> float:
    """Decimal logarithm of NC1 of the attacked features, by the vertex where each landed."""
    return nc1_log10(rows, condition="attacked", grouping="landed", tap=tap, feature=feature)


def alignment_angle(
    rows: pd.DataFrame,
    *,
    condition: Attacked = "attacked",
    tap: str = "penultimate",
    feature: Feature = "gap",
    split: Split = "train",
) -> float:
    """Mean angle in degrees between the clean and the attacked mean of a class."""
    at = {"tap": tap, "feature": feature, "split": split, "condition": condition}
    return one_row(rows, at | {"measure": "alignment_angle"}).value


def ncc(
    rows: pd.DataFrame,
    *,
    condition: Condition = "clean",
    tap: str = "penultimate",
    feature: Feature = "gap",
    split: Split = "train",
) -> float:
    """Accuracy of the nearest vertex on these examples, however they were attacked."""
    at = {"tap": tap, "feature": feature, "split": split, "condition": condition}
    return one_row(rows, at | {"grouping": "true", "measure": "ncc"}).value


def ncc_adaptive(
    rows: pd.DataFrame, *, tap: str = "penultimate", feature: Feature = "gap"
) -> float:
    """Robust test accuracy of the nearest vertex under attacks aimed at it."""
    return vertex_row(rows, "ncc_adaptive", tap, feature).value


def ncc_transferred(
    rows: pd.DataFrame, *, tap: str = "penultimate", feature: Feature = "gap"
) -> float:
    """Test accuracy of the nearest vertex under attacks aimed at the network."""
    return vertex_row(rows, "ncc_transferred", tap, feature).value


def vertex_over_network(
    rows: pd.DataFrame, *, tap: str = "penultimate", feature: Feature = "gap"
) -> float:
    """Robust test accuracy of the nearest vertex, attacked adaptively, less the network's own."""
    vertex = vertex_row(rows, "ncc_adaptive", tap, feature)
    network = vertex_row(rows, "robust_accuracy", "output", feature, attack=vertex.attack)
    return difference(vertex, network)


def early_over_late(
    rows: pd.DataFrame, *, early: str = "block2", feature: Feature = "gap"
) -> float:
    """Robust test accuracy of the nearest vertex, attacked at each tap: early less penultimate."""
    first = vertex_row(rows, "ncc_adaptive", early, feature)
    return difference(first, vertex_row(rows, "ncc_adaptive", "penultimate", feature))


def train_accuracy(rows: pd.DataFrame) -> float:
    """Clean accuracy of the network on the training examples that were measured."""
    at = {"tap": "output", "condition": "clean", "split": "train", "grouping": "none"}
    return one_row(rows, at | {"measure": "accuracy"}).value


def nc1_trace_log10_at(rows: pd.DataFrame, *, accuracy: float) -> float:
    """log10 of the trace form of NC1 in the first epoch whose train accuracy reaches a level.

    Both are those of the clean training examples that are watched between epochs: models that fit
    their data to different degrees are compared where they fit alike.
    """
    clean = (rows["split"] == "train") & (rows["condition"] == "clean")
    watched = rows[rows["epoch"].ge(0) & clean].sort_values("epoch")
    right = (watched["tap"] == "output") & (watched["measure"] == "accuracy")
    reached = watched[right & watched["value"].ge(accuracy)]
    if reached.empty:
        raise UndefinedError(f"no epoch has a train accuracy of {accuracy:g}")
    there = watched["epoch"] == reached["epoch"].iloc[0]
    there &= (watched["tap"] == "penultimate") & (watched["grouping"] == "true")
    found = watched[there & (watched["measure"] == "nc1_trace")]
    if len(found) != 1 or not found["value"].iloc[0] > 0:
        raise UndefinedError(f"nc1_trace was not measured in epoch {reached['epoch'].iloc[0]}")
    return math.log10(found["value"].iloc[0])


def robust_accuracy(rows: pd.DataFrame, *, feature: Feature = "gap") -> float:
    """Robust test accuracy of the network, judged beside the nearest vertices of its taps."""
    return vertex_row(rows, "robust_accuracy", "output", feature).value


_NC1 = {"measure": "nc1", "vertices": "same"}


def vertex_row(rows: pd.DataFrame, name: str, tap: str, feature: str, attack: str = "") -> Row:
    """Return a value of an adaptive verdict; `attack` where it must be of one protocol."""
    at = {"tap": tap, "split": "test", "measure": name} | ({"attack": attack} if attack else {})
    features = set(matching(rows, at)["feature"])
    if tap in {"penultimate", "output"} and features and feature not in features:
        return one_row(rows, at)  # vectors: pooled or flattened, they are the same
    return one_row(rows, at | {"feature": feature})


_VERDICTS = ("ncc_adaptive", "vertex_over_network", "early_over_late")


def whole(part: Component) -> Component:
    """Return a quantity with the defaults of its options written out, or raise `ConfigError`."""
    given = check_options(QUANTITIES, part, {"rows"})
    parameters = inspect.signature(QUANTITIES.load(part.name)).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.name != "rows"}
    return Component(name=part.name, options=defaults | given)


def taps(part: Component) -> tuple[str, ...]:
    """Name the taps that a quantity reads and that a backbone may not have."""
    options = whole(part).options
    if "early" in options:
        return (options["early"], "penultimate")
    if "first" in options:
        return (options["first"], options["last"])
    return (options["tap"],) if "tap" in options else ()


def notes(part: Component, rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the distinct notes of the adaptive verdicts that a quantity reads in these rows.

    They name the warnings of each verdict. Other quantities read none. Raises as `measure` does.
    """
    if part.name not in _VERDICTS:
        return ()
    feature = whole(part).options["feature"]
    read = [vertex_row(rows, "ncc_adaptive", tap, feature) for tap in taps(part)]
    if part.name == "vertex_over_network":
        attack = read[0].attack
        read.append(vertex_row(rows, "robust_accuracy", "output", feature, attack=attack))
    return tuple(dict.fromkeys(row.note for row in read if row.note))
