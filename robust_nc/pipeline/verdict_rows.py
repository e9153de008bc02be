"""The verdicts on one cell and the log of its training, as tidy rows.

>>> curve_rows({"epoch": 2, "train_accuracy": 0.5}, {"train": 100})[0]["value"]
0.5
"""

from typing import Any, NamedTuple

from robust_nc.config import EvaluationConfig
from robust_nc.evaluation.evaluate_model import Outcome


class Verdicts(NamedTuple):
    """On the best and the last weights, and on the best by a weaker protocol, or None."""

    best: Outcome
    last: Outcome
    beside: Outcome | None


def verdict_rows(verdicts: Verdicts, settings: EvaluationConfig) -> list[dict[str, Any]]:
    """Accuracies of each verdict; `attack` is the protocol, `note` says which weights."""
    rows = []
    for which, outcome in verdicts._asdict().items():
        if outcome is None:
            continue
        protocol = settings.beside if which == "beside" else settings.protocol
        note = "last" if which == "last" else "best"
        common = {"tap": "output", "measure": "verdict", "split": "test", "n": len(outcome.robust)}
        clean = {"condition": "clean", "value": outcome.clean_accuracy}
        robust = {"condition": "attacked", "value": outcome.robust_accuracy}
        if which != "beside":
            rows.append(common | clean | {"note": note})
        rows.append(common | robust | {"attack": protocol, "note": note})
    return rows


# Keys of the training log, and where their values stand in the tidy rows.
_CURVES: dict[str, dict[str, Any]] = {
    "nc1_trace": {"tap": "penultimate", "grouping": "true", "measure": "nc1_trace"},
    "nc2_angle": {"tap": "penultimate", "grouping": "true", "measure": "nc2_angle"},
    "train_accuracy": {"measure": "accuracy"},
    "memorization": {"tap": "penultimate", "measure": "memorization"},
    "corruption_bias": {"tap": "penultimate", "measure": "corruption_bias"},
    "memorization_relative": {"tap": "penultimate", "measure": "memorization_relative"},
    "memorised": {"measure": "memorised"},
    "memorised_off_edge": {"tap": "penultimate", "measure": "memorised_off_edge"},
    "memorised_way": {"tap": "penultimate", "measure": "memorised_way"},
    "dilation": {"tap": "penultimate", "split": "test", "measure": "dilation"},
    "validation_clean": {"measure": "accuracy", "split": "validation"},
    "validation_attacked": {
        "measure": "accuracy",
        "split": "validation",
        "condition": "attacked",
    },
}


def curve_rows(entry: dict[str, Any], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Turn one epoch of the training log into rows.

    `sizes` are the examples behind a value: by measure, where it is there, or else by split.
    """
    common = {"tap": "output", "condition": "clean", "split": "train", "epoch": entry["epoch"]}
    rows = [
        common | place | {"value": float(entry[key])}
        for key, place in _CURVES.items()
        if entry.get(key) is not None
    ]
    for row in rows:
        row["n"] = sizes[row["measure"] if row["measure"] in sizes else row["split"]]
    return rows
