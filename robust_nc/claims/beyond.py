"""Quantities beyond the geometry of one tap: verdicts, class trees, epochs, depth, wrong labels.

>>> from robust_nc.record.schema import tidy
>>> at = {"tap": "output", "measure": "verdict", "split": "test", "n": 100, "note": "best"}
>>> rows = tidy([at | {"condition": "clean", "value": 0.9}])
>>> clean_verdict(rows)
0.9
"""

import math
from typing import Literal

import pandas as pd

from robust_nc.claims.rows import (
    Attacked,
    Condition,
    Feature,
    Split,
    UndefinedError,
    difference,
    matching,
    one_row,
    positive,
)
from robust_nc.exceptions import RecordError

Weights = Literal["best", "last"]
_VERDICT = {"tap": "output", "measure": "verdict", "split": "test"}


def clean_verdict(rows: pd.DataFrame, *, weights: Weights = "best") -> float:
    """Clean test accuracy on the examples that were judged."""
    return one_row(rows, _VERDICT | {"condition": "clean", "note": weights}).value


def robust_verdict(
    rows: pd.DataFrame, *, protocol: str = "standard", weights: Weights = "best"
) -> float:
    """Robust test accuracy under a protocol."""
    at = _VERDICT | {"condition": "attacked", "note": weights, "attack": protocol}
    return one_row(rows, at).value


def flattery(rows: pd.DataFrame, *, weaker: str = "pgd_ce", protocol: str = "standard") -> float:
    """By how much a weaker protocol overstates robust accuracy."""
    at = _VERDICT | {"condition": "attacked", "note": "best"}
    return difference(
        one_row(rows, at | {"attack": weaker}), one_row(rows, at | {"attack": protocol})
    )


def accuracy(rows: pd.DataFrame, *, condition: Condition = "clean", split: Split = "test") -> float:
    """Accuracy of the network on its last weights, on the examples that were measured."""
    at = {"tap": "output", "split": split, "condition": condition, "grouping": "none"}
    return one_row(rows, at | {"measure": "accuracy"}).value


def mistake_severity(
    rows: pd.DataFrame, *, condition: Condition = "clean", split: Split = "test"
) -> float:
    """Mean distance in the class tree between label and prediction, over the mistakes."""
    at = {"tap": "output", "split": split, "condition": condition}
    return one_row(rows, at | {"measure": "mistake_severity"}).value


def hd(
    rows: pd.DataFrame,
    *,
    k: Literal[1, 5, 20] = 1,
    condition: Condition = "clean",
    split: Split = "test",
) -> float:
    """Mean distance in the class tree between the label and the k likeliest classes."""
    at = {"tap": "output", "split": split, "condition": condition}
    return one_row(rows, at | {"measure": f"hd_{k}"}).value


def epochs_to(rows: pd.DataFrame, *, accuracy: float) -> float:
    """First epoch whose clean accuracy on held-out images reaches a level."""
    curve = _curve(rows, "accuracy", split="validation")
    reached = curve[curve >= accuracy]
    if reached.empty:
        raise UndefinedError(f"no epoch has a held-out accuracy of {accuracy:g}")
    return float(reached.index[0])


def fall_over_depth(
    rows: pd.DataFrame,
    *,
    first: str = "layer1",
    last: str = "penultimate",
    feature: Feature = "gap",
) -> float:
    """By how many decades the trace form of NC1 changes from a layer to a later one."""
    at = {"feature": feature, "split": "train", "condition": "clean", "grouping": "true"}
    at |= {"vertices": "same", "measure": "nc1_trace"}
    late, early = positive(rows, at | {"tap": last}), positive(rows, at | {"tap": first})
    return math.log10(late / early)


def memorised(rows: pd.DataFrame) -> float:
    """Share of the wrongly labelled examples that the network has fitted at the end."""
    return _last(rows, "memorised", "train")


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
    found = matching(rows, {"measure": name, "condition": condition})
    found = found[found["tap"] != "head"]
    values = found.drop_duplicates(["tap", "value"])["value"].dropna()
    if values.empty:
        raise RecordError(f"no row has measure {name!r}; set measure.agop_examples")
    return float(values.mean())


def memorised_way(rows: pd.DataFrame) -> float:
    """How far wrongly labelled examples came from their class to the wrong one at the end."""
    return _last(rows, "memorised_way", "train")


def dilation_log10(rows: pd.DataFrame) -> float:
    """Decimal logarithm of the trace form of NC1 of test features at the end of the training."""
    return math.log10(_last(rows, "dilation", "test"))


def dilation_with_memorization(
    rows: pd.DataFrame, *, since: Literal["start", "least"] = "start"
) -> float:
    """Rank correlation over epochs of memorization and dilation.

    Over all epochs, or since the one of least dilation: before it, test features gather because the
    network learns.
    """
    dilated = _curve(rows, "dilation", split="test")
    if since == "least":
        dilated = dilated.loc[dilated.idxmin() :]
    both = pd.concat([_curve(rows, "memorised_way", split="train"), dilated], axis=1).dropna()
    found = float(both.rank().corr().to_numpy()[0, 1])
    if math.isnan(found):
        raise UndefinedError("memorization or dilation does not change over the epochs")
    return found


def wrong_over_right(
    rows: pd.DataFrame,
    *,
    which: Literal["memorised", "wrong"] = "memorised",
    condition: Attacked = "attacked",
    tap: str = "penultimate",
    feature: Feature = "gap",
) -> float:
    """Leap rate of training examples with a wrong label, memorised or all, less that of others."""
    at = {"tap": tap, "feature": feature, "split": "train", "condition": condition}
    wrong = one_row(rows, at | {"measure": f"leap_rate_{which}"})
    return wrong.value - one_row(rows, at | {"measure": "leap_rate_right"}).value


def _curve(rows: pd.DataFrame, measure: str, *, split: Split | str) -> "pd.Series[float]":
    """Return a clean curve over the epochs, by epoch."""
    chosen = rows["epoch"].ge(0) & (rows["condition"] == "clean") & (rows["split"] == split)
    found = rows[chosen & (rows["measure"] == measure)]
    if found.empty:
        raise RecordError(f"no row has {measure!r} over the epochs on {split}")
    return found.set_index("epoch")["value"].sort_index()


def _last(rows: pd.DataFrame, measure: str, split: str) -> float:
    return float(_curve(rows, measure, split=split).iloc[-1])
