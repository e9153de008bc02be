"""RobustBench's published models as rows of our board, so that it is not empty on its first day.

Source: the files of `model_info` in RobustBench's repository (github.com/RobustBench/robustbench)
as of 2025-03-31, all 236, one JSON a line in `robustbench_model_info.jsonl`, each behind the three
parts of its path. Nothing of it was checked here: every row has the state "unverified" and no rank.

>>> rows = published_rows()
>>> len(published_models()), len(rows), set(rows["state"])
(236, 188, {'unverified'})
"""

import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import pandas as pd

from robust_nc.exchange.robustbench_json import THREATS, ModelInfo, from_fields, to_fields
from robust_nc.io.files import digest
from robust_nc.io.untrusted import parse_json
from robust_nc.record.schema import Card
from robust_nc.report.board.table import COLUMNS
from robust_nc.threat import Ball

SOURCE, AS_OF = "https://github.com/RobustBench/robustbench", "2025-03-31"
UNVERIFIED, SUITE, PROTOCOL = "unverified", "robustbench", "AutoAttack"

# How many test images an accuracy is over, as RobustBench states it.
_EXAMPLES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_TEXTS = (
    *("model", "backbone", "head", "objective", "suite", "dataset", "ball", "norm", "protocol"),
    *("interval", "beside", "warnings", "images", "recipe", "state", "unranked"),
)
_COUNTS = ("seeds", "examples", "parameters", "challenged")
_PLACE = ("dataset_folder", "threat_folder", "key")


@cache
def published_models() -> tuple[ModelInfo, ...]:
    """Return all published models, also those of corruptions, in the order of their paths."""
    text = files(__package__).joinpath("robustbench_model_info.jsonl").read_text("utf-8")
    models = []
    for line in text.splitlines():
        fields = parse_json(line, what="robustbench_model_info.jsonl")
        dataset, threat, key = (fields.pop(name) for name in _PLACE)
        models.append(from_fields(fields, dataset=dataset, threat=threat, key=key))
    return tuple(models)


def published_rows() -> pd.DataFrame:
    """Return the published models of balls as rows with the columns of `report.table.COLUMNS`.

    `robust` is AutoAttack's accuracy or the external one where that is lower (25 rows have one):
    the lowest known, as RobustBench ranks. `model` is its key, `backbone` its architecture;
    `recipe` is what `published_cards` knows it by. What is not stated is NaN, "" or 0 (also
    `parameters`; `seeds` is 1). Models of corruptions have no ball, and no row. Best first within a
    data set and ball.
    """
    rows = [_row(info) for info in published_models() if info.threat != "corruptions"]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    order = ["dataset", "norm", "eps", "robust", "model"]
    return frame.sort_values(
        order, ascending=[True, True, True, False, True], ignore_index=True
    ).astype(dict.fromkeys(_COUNTS, "int64"))


def published_cards() -> Mapping[str, Card]:
    """Return the card of every published row, by the row's `recipe`."""
    rows = [info for info in published_models() if info.threat != "corruptions"]
    return MappingProxyType({recipe(info): info.card() for info in rows})


def recipe(info: ModelInfo) -> str:
    """Name a published model: the digest of its place and fields."""
    return digest([info.dataset, info.threat, info.key, to_fields(info)])


def _row(info: ModelInfo) -> dict[str, Any]:
    assert info.threat in THREATS
    assert info.eps is not None
    assert info.robust is not None
    known = {
        "model": info.key,
        "backbone": info.architecture,
        "suite": SUITE,
        "dataset": info.dataset,
        "norm": info.threat,
        "eps": info.eps,
        "ball": str(Ball(info.threat, info.eps)),
        "protocol": PROTOCOL,
        "seeds": 1,
        "examples": _EXAMPLES[info.dataset],
        "clean": info.clean,
        "robust": info.robust,
        "interval": "none",
        "warnings": "unreliable" if info.unreliable else "",
        "recipe": recipe(info),
        "state": UNVERIFIED,
        "unranked": "published, not checked here",
    }
    unstated = dict.fromkeys(_TEXTS, "") | dict.fromkeys(_COUNTS, 0)
    return dict.fromkeys(COLUMNS, math.nan) | unstated | known
