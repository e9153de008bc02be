"""Which cells of a suite a claim is about: dotted keys of a configuration, and their values.

A part needs only those options that tell it from the others of the suite; what its class takes by
default counts as said. Exactly one cell per seed must be left.

>>> from robust_nc.pipeline.suite import read_suite
>>> wanted = {"train.objective": {"name": "trades", "bn_mode": "eval"}, "model.head": "etf"}
>>> {seed: cell.model for seed, cell in choose(read_suite("quickstart"), wanted).items()}
{0: 'small_cnn-etf-trades', 1: 'small_cnn-etf-trades'}
"""

import inspect
from collections.abc import Mapping
from typing import Any

from robust_nc.config import RunConfig, read
from robust_nc.exceptions import ConfigError, unknown_name
from robust_nc.pipeline.suite import Cell, Suite, value_at, with_value
from robust_nc.registry import (
    AVERAGINGS,
    BACKBONES,
    DATASETS,
    HEADS,
    IMBALANCES,
    LABEL_NOISES,
    LOSSES,
    NECKS,
    OBJECTIVES,
    SCHEDULES,
    Registry,
)

_REGISTRIES: dict[str, Registry] = {
    "data.dataset": DATASETS,
    "data.imbalance": IMBALANCES,
    "data.noise": LABEL_NOISES,
    "model.backbone": BACKBONES,
    "model.head": HEADS,
    "model.neck": NECKS,
    "train.averaging": AVERAGINGS,
    "train.loss": LOSSES,
    "train.objective": OBJECTIVES,
    "train.schedule": SCHEDULES,
}


def choose(suite: Suite, wanted: Mapping[str, Any], *, source: str = "of") -> dict[int, Cell]:
    """Return the cells of one model, by seed, whose configuration has the wanted values.

    `source` says in errors where `wanted` stands. Raises `ConfigError` for a key or value that no
    configuration can have, and where no model, or more than one, has them.
    """
    values = {key: _plain(key, value, source) for key, value in wanted.items()}
    found = [
        cell
        for cell in suite.cells
        if all(_fits(key, value, value_at(cell.config, key)) for key, value in values.items())
    ]
    models = sorted({cell.model for cell in found or suite.cells})
    if not found:
        raise ConfigError(
            f"{source}: no cell of the suite {suite.name} has {_text(wanted)}; "
            f"its models: {', '.join(models)}"
        )
    if len(models) > 1:
        raise ConfigError(
            f"{source}: {len(models)} models of the suite {suite.name} have {_text(wanted)} "
            f"({', '.join(models)}); say what tells them apart"
        )
    return {cell.config.seed: cell for cell in sorted(found, key=lambda cell: cell.config.seed)}


def _plain(key: str, value: object, source: str) -> Any:
    """Read a value as a suite would, and return it as a configuration holds it."""
    if key == "seed":
        raise ConfigError(f"{source}: seed is what a claim is averaged over; leave it out")
    config = read(RunConfig, with_value({}, key.split("."), value), source=source)
    found = value_at(config, key)
    if isinstance(found, dict) and "options" not in found:
        raise ConfigError(
            f"{source}: {key!r} is a table; write whole keys in quotes, such as "
            f"'{key}.{min(found)}'"
        )
    if isinstance(found, dict) and key in _REGISTRIES:
        parameters = _parameters(key, found["name"])
        for option in found["options"]:
            if option not in parameters:
                raise unknown_name(f"option of {found['name']!r} in {source}", option, parameters)
    return found


def _fits(key: str, wanted: Any, found: Any) -> bool:
    if not (isinstance(wanted, dict) and isinstance(found, dict)):
        return bool(wanted == found)
    if wanted["name"] != found["name"]:
        return False
    parameters = _parameters(key, found["name"]) if key in _REGISTRIES else {}
    known = {name: parameter.default for name, parameter in parameters.items()} | found["options"]
    return all(name in known and known[name] == value for name, value in wanted["options"].items())


def _parameters(key: str, name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_REGISTRIES[key].load(name)).parameters


def _text(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in wanted.items()) or "no condition"
