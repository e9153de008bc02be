"""What names a cell and its weights: digests of the configuration.

>>> from robust_nc.config import RunConfig
>>> len(cell_id(RunConfig())), training_id(RunConfig()) == training_id(RunConfig(seed=1))
(16, False)
"""

from typing import Any

from robust_nc.config import RunConfig, plain
from robust_nc.io.files import digest

# Fields that came later: at their default they are no part of an identity, so that results and
# weights of earlier versions keep their names.
_LATER: dict[str, dict[str, object]] = {
    "data": {"imbalance": None, "noise": None, "hierarchy": None},
    "model": {"neck": None},
    "train": {"backbone_lr": 1.0, "averaging": None},
    "evaluation": {"beside": None, "block": None},
    "measure": {"corruptions": [], "severities": [1, 2, 3, 4, 5], "block": None},
}


def identifying(config: RunConfig) -> dict[str, Any]:
    """Return what names a cell: its configuration as plain values, without later defaults."""
    values = plain(config)
    for table, fields in _LATER.items():
        for name, default in fields.items():
            if values[table][name] == default:
                del values[table][name]
    return values


def cell_id(config: RunConfig) -> str:
    """Name a cell: the first 16 hexadecimal digits of the digest of its configuration."""
    return digest(identifying(config))[:16]


def training_part(config: RunConfig) -> dict[str, Any]:
    """Return what the weights depend on: all but how they are judged and measured."""
    values = identifying(config)
    data = {key: value for key, value in values["data"].items() if key != "test_limit"}
    return {"data": data} | {key: values[key] for key in ("model", "train", "threat", "seed")}


def training_id(config: RunConfig) -> str:
    """Name the weights of a cell: cells that differ only in how they are judged share them."""
    return digest(training_part(config))[:16]
