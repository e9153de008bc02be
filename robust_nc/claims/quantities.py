"""What a claim may be about: one number of one cell, from the tidy rows of its record.

Most quantities are one row, or two, and a difference or a logarithm: these stand in one table, each
with its sentence, its rows and its options. Rows are those of the finished weights (`epoch` -1, no
index); unless an option says otherwise of the penultimate tap, its `gap` features, and train.

>>> from robust_nc.record.schema import tidy
>>> at = {"tap": "penultimate", "feature": "gap", "split": "train", "condition": "attacked"}
>>> rows = tidy([at | {"measure": "landed", "grouping": "none", "value": 0.25}])
>>> quantity_value(Component(name="landed"), rows)
0.25
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import pandas as pd

from robust_nc.config import Component, build, check_options
from robust_nc.exceptions import RecordError
from robust_nc.registry import Registry

Attacked = Literal[
    "attacked",
    "cyclic",
    "random",
    "nearest",
    "farthest",
    "hierarchy",
    "severest",
    "gaussian",
    "sign",
]
Condition = Literal["clean", Attacked]
Feature = Literal["gap", "flatten"]
Split = Literal["train", "test"]


class UndefinedError(RecordError):
    """A quantity that was measured and has no value; the sentence is the reason."""


def quantity_value(part: Component, rows: pd.DataFrame) -> float:
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


def whole(part: Component) -> Component:
    """Return a quantity with the defaults of its options written out, or raise `ConfigError`."""
    given = check_options(QUANTITIES, part, {"rows"})
    parameters = inspect.signature(QUANTITIES.load(part.name)).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.name != "rows"}
    return Component(name=part.name, options=defaults | given)


def taps(part: Component) -> tuple[str, ...]:
    """Name the taps that a quantity reads and that a backbone may not have."""
    options = whole(part).options
    named = [options[name] for name in ("tap", "early", "first", "last") if name in options]
    return (*named, "penultimate") if "early" in options else tuple(named)


def notes(part: Component, rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the distinct notes of the adaptive verdicts that a quantity reads in these rows.

    They name the warnings of each verdict. Other quantities read none. Raises as `quantity_value`.
    """
    quantity = QUANTITIES.load(part.name)
    if not isinstance(quantity, _Quantity) or quantity.where[0]["measure"] != "ncc_adaptive":
        return ()
    read = quantity.read_rows(rows, whole(part).options)
    return tuple(dict.fromkeys(row.note for row in read if row.note))


class _Row(NamedTuple):
    """The value of one row, and what it was measured on and with."""

    measure: str
    value: float
    n: int
    attack: str
    note: str


class _Option(NamedTuple):
    """An option of a quantity, and how it is written in the column that it chooses."""

    name: str
    kind: Any
    default: Any
    text: str = "{}"


_Where = dict[str, "str | _Option"]


def _where(*parts: _Where, **columns: "str | _Option") -> _Where:
    """Join columns and what they hold."""
    joined: _Where = {}
    for part in (*parts, columns):
        joined |= part
    return joined


class _Quantity:
    """A quantity of the table: its sentence, where its rows are, and what is made of them."""

    def __init__(
        self,
        says: str,
        *where: _Where,
        made: Callable[..., float] = lambda row: row.value,
        read: Callable[[pd.DataFrame, dict[str, str]], _Row] | None = None,
    ) -> None:
        self.__doc__ = says
        self.where, self._made, self._read = where, made, read or _one_row
        options = {one.name: one for at in where for one in at.values() if isinstance(one, _Option)}
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.__signature__ = inspect.Signature(
            [inspect.Parameter("rows", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
            + [
                inspect.Parameter(one.name, keyword, default=one.default, annotation=one.kind)
                for one in options.values()
            ]
        )

    def __call__(self, rows: pd.DataFrame, **options: object) -> float:
        """Return the quantity of a cell with these rows."""
        return self._made(*self.read_rows(rows, options))

    def read_rows(self, rows: pd.DataFrame, options: Mapping[str, object]) -> list[_Row]:
        """Find the rows that the quantity is made of."""
        found: list[_Row] = []
        for at in self.where:
            columns = {
                column: one.text.format(options.get(one.name, one.default))
                if isinstance(one, _Option)
                else one
                for column, one in at.items()
            }
            if columns.get("attack") == _OF_THE_FIRST:
                columns["attack"] = found[0].attack
            found.append(self._read(rows, columns))
        return found


def _one_row(rows: pd.DataFrame, where: Mapping[str, str]) -> _Row:
    """Return the one value that matches; copies of it under several features are one."""
    found = _matching(rows, where).drop_duplicates(["value", "n", "attack"])
    stated = ", ".join(f"{column} {value!r}" for column, value in where.items())
    if len(found) == 0:
        named = sorted(set(rows["tap"]) - {"", "none"})
        raise RecordError(f"no row has {stated}; taps that were measured: {', '.join(named)}")
    if len(found) > 1:
        attacks = sorted(set(found["attack"]))
        raise RecordError(f"{len(found)} different rows have {stated}; attacks: {attacks}")
    one: Any = found.iloc[0]
    if pd.isna(one["value"]):
        raise UndefinedError(f"{where['measure']}: {one['note'] or 'no value, without a reason'}")
    value, n = float(one["value"]), int(one["n"])
    return _Row(where["measure"], value, n, str(one["attack"]), str(one["note"]))


def _of_adaptive_verdict(rows: pd.DataFrame, where: dict[str, str]) -> _Row:
    feature = where.pop("feature")
    features = set(_matching(rows, where)["feature"])
    if where["tap"] in {"penultimate", "output"} and features and feature not in features:
        return _one_row(rows, where)  # vectors: pooled or flattened, they are the same
    return _one_row(rows, where | {"feature": feature})


def _at_the_end(rows: pd.DataFrame, where: dict[str, str]) -> _Row:
    measure = where["measure"]
    return _Row(measure, float(_curve(rows, measure, where["split"]).iloc[-1]), 0, "", "")


def _matching(rows: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """Return the scalar rows of the finished weights with these columns."""
    chosen = (rows["epoch"] == -1) & (rows["i"] == -1) & (rows["j"] == -1)
    for column, value in where.items():
        # An accuracy has no groups; whoever wrote it may have left the column empty.
        chosen &= rows[column].isin(["none", ""]) if value == "none" else rows[column] == value
    return rows[chosen]


def _watched(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows training itself took between epochs; those of `measure.every` name a feature."""
    return rows["epoch"].ge(0) & rows["feature"].eq("")


def _curve(rows: pd.DataFrame, measure: str, split: str) -> "pd.Series[float]":
    """Return a clean curve over the epochs, by epoch."""
    chosen = _watched(rows) & (rows["condition"] == "clean") & (rows["split"] == split)
    found = rows[chosen & (rows["measure"] == measure)]
    if found.empty:
        raise RecordError(f"no row has {measure!r} over the epochs on {split}")
    return found.set_index("epoch")["value"].sort_index()


def _log10(row: _Row) -> float:
    if row.value <= 0:
        raise UndefinedError(f"{row.measure} is {row.value:g}, which has no logarithm")
    return math.log10(row.value)


def _log10_ratio(first: _Row, second: _Row) -> float:
    _log10(first), _log10(second)
    return math.log10(first.value / second.value)


def _kept(null: _Row, landed: _Row, clean: _Row) -> float:
    """log(null / landed) / log(null / clean), of `nc1`: 1 as collapsed, 0 no more than noise."""
    kept, all_of_it = _log10_ratio(null, landed), _log10_ratio(null, clean)
    if all_of_it <= 0:
        raise UndefinedError(
            f"clean features are no more collapsed (nc1 {clean.value:.3g}) "
            f"than noise ({null.value:.3g})"
        )
    return kept / all_of_it


def _difference(first: _Row, second: _Row) -> float:
    if first.n != second.n:
        raise RecordError(
            f"values over {first.n} and over {second.n} examples cannot be compared; "
            "measure both on the same"
        )
    return first.value - second.value


_TAP = _Option("tap", str, "penultimate")
_FEATURE = _Option("feature", Feature, "gap")
_TRAIN, _TEST = _Option("split", Split, "train"), _Option("split", Split, "test")
_ATTACKED = _Option("condition", Attacked, "attacked")
_ANY = _Option("condition", Condition, "clean")
_GROUPING = _Option("grouping", Literal["true", "predicted", "target", "landed"], "true")
_WHICH_WRONG = _Option("which", Literal["memorised", "wrong"], "memorised", "leap_rate_{}")
_PROTOCOL = _Option("protocol", str, "standard")
_WEIGHTS = _Option("weights", Literal["best", "last"], "best")
_OF_THE_FIRST = "the attack of the first row"

_AT: _Where = {"tap": _TAP, "feature": _FEATURE, "split": _TRAIN, "condition": _ATTACKED}
_LEAPS = _where(_AT, grouping="none")
_CLEAN = _where(_AT, split="train", condition="clean", grouping="true")
_NC1: _Where = {"measure": "nc1", "vertices": "same"}
_OUTPUT: _Where = {"tap": "output", "split": _TEST, "condition": _ANY}
_VERDICT: _Where = {"tap": "output", "measure": "verdict", "split": "test"}
_BROKEN = _where(_VERDICT, condition="attacked", note="best")
_VERTEX: _Where = {"tap": _TAP, "split": "test", "measure": "ncc_adaptive", "feature": _FEATURE}
_NETWORK = _where(_VERTEX, tap="output", measure="robust_accuracy")

_TABLE = {
    # Leaps of examples under attack, and the collapse of features.
    "landed": _Quantity(
        "Share of leaps that end as near to the new vertex as clean examples lie.",
        _where(_LEAPS, measure="landed"),
    ),
    "landing_fraction": _Quantity(
        "Mean way along the edge to the vertex of the new prediction; 1 is the whole edge.",
        _where(_LEAPS, measure="landing_fraction"),
    ),
    "off_edge": _Quantity(
        "Mean distance from that edge, in edge lengths.", _where(_LEAPS, measure="off_edge")
    ),
    "leap_rate": _Quantity(
        "Share of examples that end at another vertex.", _where(_LEAPS, measure="leap_rate")
    ),
    "displacement": _Quantity(
        "Mean move of the features over the mean distance of two vertices.",
        _where(_LEAPS, measure="displacement"),
    ),
    "leap_severity": _Quantity(
        "Mean distance in the class tree that leaps go.",
        _where(_LEAPS, split=_TEST, measure="severity"),
    ),
    "wrong_over_right": _Quantity(
        "Leap rate of training examples with a wrong label, memorised or all, less that of others.",
        _where(_AT, split="train", measure=_WHICH_WRONG),
        _where(_AT, split="train", measure="leap_rate_right"),
        made=lambda wrong, right: wrong.value - right.value,
    ),
    "nc1_log10": _Quantity(
        "Decimal logarithm of NC1; lower is more collapsed.",
        _where(_AT, _NC1, condition=_ANY, grouping=_GROUPING),
        made=_log10,
    ),
    "nc1_clean": _Quantity(
        "Decimal logarithm of NC1 of the clean features, by true label.",
        _where(_CLEAN, _NC1),
        made=_log10,
    ),
    "nc1_unscaled": _Quantity(
        "NC1 of the clean features as Su et al. have it: not divided by the number of classes.",
        _where(_CLEAN, _NC1, measure="nc1_unscaled"),
    ),
    "nc1_attacked": _Quantity(
        "Decimal logarithm of NC1 of the attacked features, by true label.",
        _where(_CLEAN, _NC1, condition="attacked"),
        made=_log10,
    ),
    "nc1_landed": _Quantity(
        "Decimal logarithm of NC1 of the attacked features, by the vertex where each landed.",
        _where(_CLEAN, _NC1, condition="attacked", grouping="landed"),
        made=_log10,
    ),
    "kept_collapse": _Quantity(
        "Share of the collapse, in decades below isotropic noise, "
        "that is left where examples landed.",
        _where(_AT, measure="nc1_landed_null", grouping="landed"),
        _where(_AT, _NC1, grouping="landed"),
        _where(_AT, _NC1, condition="clean", grouping="true"),
        made=_kept,
    ),
    "fall_over_depth": _Quantity(
        "By how many decades the trace form of NC1 changes from a layer to a later one.",
        _where(_CLEAN, _NC1, measure="nc1_trace", tap=_Option("last", str, "penultimate")),
        _where(_CLEAN, _NC1, measure="nc1_trace", tap=_Option("first", str, "layer1")),
        made=_log10_ratio,
    ),
    "alignment_angle": _Quantity(
        "Mean angle in degrees between the clean and the attacked mean of a class.",
        _where(_AT, measure="alignment_angle", grouping="true"),
    ),
    # The nearest vertex as a classifier.
    "ncc": _Quantity(
        "Accuracy of the nearest vertex on these examples, however they were attacked.",
        _where(_AT, condition=_ANY, grouping="true", measure="ncc"),
    ),
    "ncc_adaptive": _Quantity(
        "Robust test accuracy of the nearest vertex under attacks aimed at it.",
        _VERTEX,
        read=_of_adaptive_verdict,
    ),
    "ncc_transferred": _Quantity(
        "Test accuracy of the nearest vertex under attacks aimed at the network.",
        _where(_VERTEX, measure="ncc_transferred"),
        read=_of_adaptive_verdict,
    ),
    "vertex_over_network": _Quantity(
        "Robust test accuracy of the nearest vertex, attacked adaptively, less the network's own.",
        _VERTEX,
        _where(_NETWORK, attack=_OF_THE_FIRST),
        made=_difference,
        read=_of_adaptive_verdict,
    ),
    "vertex_over_network_at_both": _Quantity(
        "Robust test accuracy of the nearest vertex less the network's, both at both's points.",
        _VERTEX,
        _where(_VERTEX, measure="robust_accuracy_at_both", attack=_OF_THE_FIRST),
        made=_difference,
        read=_of_adaptive_verdict,
    ),
    "early_over_late": _Quantity(
        "Robust test accuracy of the nearest vertex, attacked at each tap: early less penultimate.",
        _where(_VERTEX, tap=_Option("early", str, "block2")),
        _where(_VERTEX, tap="penultimate"),
        made=_difference,
        read=_of_adaptive_verdict,
    ),
    "robust_accuracy": _Quantity(
        "Robust test accuracy of the network, judged beside the nearest vertices of its taps.",
        _NETWORK,
        read=_of_adaptive_verdict,
    ),
    # What the network says.
    "train_accuracy": _Quantity(
        "Clean accuracy of the network on the training examples that were measured.",
        _where(_OUTPUT, split="train", condition="clean", grouping="none", measure="accuracy"),
    ),
    "accuracy": _Quantity(
        "Accuracy of the network on its last weights, on the examples that were measured.",
        _where(_OUTPUT, grouping="none", measure="accuracy"),
    ),
    "clean_verdict": _Quantity(
        "Clean test accuracy on the examples that were judged.",
        _where(_VERDICT, condition="clean", note=_WEIGHTS),
    ),
    "robust_verdict": _Quantity(
        "Robust test accuracy under a protocol.", _where(_BROKEN, note=_WEIGHTS, attack=_PROTOCOL)
    ),
    "flattery": _Quantity(
        "By how much a weaker protocol overstates robust accuracy.",
        _where(_BROKEN, attack=_Option("weaker", str, "pgd_ce")),
        _where(_BROKEN, attack=_PROTOCOL),
        made=_difference,
    ),
    "mistake_severity": _Quantity(
        "Mean distance in the class tree between label and prediction, over the mistakes.",
        _where(_OUTPUT, measure="mistake_severity"),
    ),
    "hd": _Quantity(
        "Mean distance in the class tree between the label and the k likeliest classes.",
        _where(_OUTPUT, measure=_Option("k", Literal[1, 5, 20], 1, "hd_{}")),
    ),
    # Wrong labels, at the end of the training.
    "memorised": _Quantity(
        "Share of the wrongly labelled examples that the network has fitted at the end.",
        {"measure": "memorised", "split": "train"},
        read=_at_the_end,
    ),
    "memorised_way": _Quantity(
        "How far wrongly labelled examples came from their class to the wrong one at the end.",
        {"measure": "memorised_way", "split": "train"},
        read=_at_the_end,
    ),
    "dilation_log10": _Quantity(
        "Decimal logarithm of the trace form of NC1 of test features at the end of the training.",
        {"measure": "dilation", "split": "test"},
        made=_log10,
        read=_at_the_end,
    ),
}


def __getattr__(name: str) -> _Quantity:
    """Return a quantity of the table, where the registry looks for it."""
    if name in _TABLE:
        return _TABLE[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def nc1_trace_log10_at(rows: pd.DataFrame, *, accuracy: float) -> float:
    """log10 of the trace form of NC1 in the first epoch whose train accuracy reaches a level.

    Both are those of the clean training examples that are watched between epochs: models that fit
    their data to different degrees are compared where they fit alike.
    """
    clean = (rows["split"] == "train") & (rows["condition"] == "clean")
    watched = rows[_watched(rows) & clean].sort_values("epoch")
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


def epochs_to(rows: pd.DataFrame, *, accuracy: float) -> float:
    """First epoch whose clean accuracy on held-out images reaches a level."""
    curve = _curve(rows, "accuracy", "validation")
    reached = curve[curve >= accuracy]
    if reached.empty:
        raise UndefinedError(f"no epoch has a held-out accuracy of {accuracy:g}")
    return float(reached.index[0])


def feature_correlation(
    rows: pd.DataFrame,
    *,
    condition: Literal["clean", "attacked"] = "clean",
    root: bool = True,
    centred: bool = False,
) -> float:
    """Correlation of a layer's W^T W with the AGOP (or its root), mean over layers but the last.

    The layer that gives the logits correlates by construction.
    """
    name = f"nfm_agop{'_root' if root else ''}{'_centred' if centred else ''}"
    found = _matching(rows, {"measure": name, "condition": condition})
    found = found[found["tap"] != "head"]
    values = found.drop_duplicates(["tap", "value"])["value"].dropna()
    if values.empty:
        raise RecordError(f"no row has measure {name!r}; set measure.agop_examples")
    return float(values.mean())


def dilation_with_memorization(
    rows: pd.DataFrame, *, since: Literal["start", "least"] = "start"
) -> float:
    """Rank correlation over epochs of memorization and dilation.

    Over all epochs, or since the one of least dilation: before it, test features gather because the
    network learns.
    """
    dilated = _curve(rows, "dilation", "test")
    if since == "least":
        dilated = dilated.loc[dilated.idxmin() :]
    both = pd.concat([_curve(rows, "memorised_way", "train"), dilated], axis=1).dropna()
    found = float(both.rank().corr().to_numpy()[0, 1])
    if math.isnan(found):
        raise UndefinedError("memorization or dilation does not change over the epochs")
    return found


_FUNCTIONS = (nc1_trace_log10_at, epochs_to, feature_correlation, dilation_with_memorization)
QUANTITIES = Registry(
    "quantity",
    "quantities",
    {name: f"{__name__}:{name}" for name in (*_TABLE, *(one.__name__ for one in _FUNCTIONS))},
)
