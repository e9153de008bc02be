"""Suites: a TOML grid of experiments, expanded into cells.

`[base]` is a configuration, `[grid]` lists values for dotted keys; a cell is one point of the grid.
`grid.together` lists tables of dotted keys that change together.

>>> suite = read_suite("quickstart")
>>> sorted({cell.config.model.head.name for cell in suite.cells})
['etf', 'linear']
"""

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.config import (
    Component,
    RunConfig,
    allow_code,
    build,
    cell_id,
    check_options,
    plain,
    read,
)
from robust_nc.data.corruptions import check_corruptions
from robust_nc.data.hierarchy.tree import embedded
from robust_nc.exceptions import ConfigError, unknown_name
from robust_nc.io.files import digest
from robust_nc.io.user_code import split_code
from robust_nc.pipeline.changes import SOURCE, apply_changes, changed_name, grid_of
from robust_nc.pipeline.suite_files import suite_names as suite_names
from robust_nc.pipeline.suite_files import suite_text
from robust_nc.plugins import find_attack, find_protocol
from robust_nc.registry import (
    ATTACKS,
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
from robust_nc.threat import Ball

TOGETHER = "together"
_TABLES = tuple(field.name for field in dataclasses.fields(RunConfig) if field.name != "seed")
_KEYS = ("name", "description", "base", "grid")
# The parts of a configuration that come by name: their tables, and what the run gives to them.
PARTS: dict[str, tuple[Registry, set[str]]] = {
    "data.dataset": (DATASETS, set()),
    "data.imbalance": (IMBALANCES, set()),
    "data.noise": (LABEL_NOISES, set()),
    "model.backbone": (BACKBONES, {"image_shape"}),
    "model.neck": (NECKS, {"num_classes", "dim"}),
    "model.head": (HEADS, {"num_classes", "dim", "seed", "normalise_features", "temperature"}),
    "train.objective": (OBJECTIVES, {"ball", "loss"}),
    "train.loss": (LOSSES, {"logits", "seen", "labels", "progress"}),
    "train.schedule": (SCHEDULES, set()),
    "train.averaging": (AVERAGINGS, set()),
    "measure.attack": (ATTACKS, set()),
}
_LONGEST = 120  # characters of a model's name: it becomes a folder
_NAMED = ("model.backbone", "model.head", "train.objective")


class Cell(NamedTuple):
    """One point of a suite: its digest, the folder of its model (all seeds), its configuration."""

    id: str
    model: str
    config: RunConfig


class Suite(NamedTuple):
    """A named grid, expanded."""

    name: str
    description: str
    cells: tuple[Cell, ...]


class SuiteTables(NamedTuple):
    """A suite as it is written: what it is, `[base]` and `[grid]`; `source` is for errors."""

    name: str
    description: str
    base: dict[str, Any]
    grid: dict[str, Any]
    source: str


def read_suite(name: str, changes: Mapping[str, Any] | None = None) -> Suite:
    """Read a suite by name, or from a path that ends with `.toml`, and check every cell of it.

    `changes` are values by dotted key for a copy of it, under a name of its own (`pipeline.changes`
    says how they are read). Raises `ConfigError` that names the file, the key, what was found and
    what is valid.
    """
    written = read_tables(name)
    source, grid = written.source, written.grid
    configs = [read(RunConfig, point, source=source) for point in _points(written)]
    together = [key for choice in grid.get(TOGETHER, []) for key in choice]
    varied = [*together, *(key for key in grid if key != TOGETHER)]
    if not changes:
        return suite_of(configs, written.name, written.description, varied, source)
    registries = {key: registry for key, (registry, _) in PARTS.items()}
    points = grid_of(configs[0], changes, registries)
    configs = [apply_changes(config, point) for config in configs for point in points]
    varied += [key for key in changes if len({repr(point[key]) for point in points}) > 1]
    title, told = changed_name(written.name, changes), ", ".join(map(str, changes))
    description = f"{written.description} Changed: {told}.".strip()
    return suite_of(configs, title, description, varied, SOURCE)


def suite_of(
    configs: Iterable[RunConfig],
    name: str,
    description: str = "",
    varied: Iterable[str] | None = None,
    source: str = "configurations",
) -> Suite:
    """Make a suite of configurations, and check every one; equal ones are one cell.

    Models are named by the `varied` keys, without them by all in which the configurations differ.
    """
    configs = [_with_trees(config, source) for config in configs]
    for config in configs:
        allow_code(config)
        _check_names(config, source)
    keys = _differing(configs) if varied is None else tuple(dict.fromkeys(varied))
    return Suite(name, description, _cells(configs, keys))


def _differing(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """Name the keys that configurations do not agree in."""
    tables = {name: [plain(getattr(one, name)) for one in configs] for name in _TABLES}
    return tuple(
        f"{name}.{key}"
        for name, found in tables.items()
        for key in (found[0] if found else ())
        if len({repr(one[key]) for one in found}) > 1
    )


def read_tables(name: str) -> SuiteTables:
    """Read a suite as it is written; raises `ConfigError` where it is none."""
    text, source = suite_text(name)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    for key in values:
        if key not in _KEYS:
            raise unknown_name(f"key in {source}", key, _KEYS)
    title = values.get("name", Path(name).stem)
    if not isinstance(title, str) or not title or "/" in title or title[0] == ".":
        raise ConfigError(f"{source}: name must be a plain word, found {title!r}")
    base, grid = values.get("base", {}), values.get("grid", {})
    if not isinstance(base, dict) or not isinstance(grid, dict):
        raise ConfigError(f"{source}: base and grid must be tables")
    return SuiteTables(title, str(values.get("description", "")), base, grid, source)


def _points(written: SuiteTables) -> list[dict[str, Any]]:
    """Expand the grid: the last key varies fastest."""
    _, _, base, grid, source = written
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{source}: grid.{key} must be a list of values, found {choices!r}")
    inside = {
        key for choice in grid.get(TOGETHER, []) if isinstance(choice, dict) for key in choice
    }
    for key in inside & set(grid):
        raise ConfigError(
            f"{source}: grid.{TOGETHER} and grid both set {key!r}; give it in one of them"
        )
    axes = [_axis(key, choices, source) for key, choices in grid.items()]
    points = []
    for combination in itertools.product(*axes):
        point = base
        for changes in combination:
            for key, value in changes.items():
                point = with_value(point, key.split("."), value)
        points.append(point)
    return points


def _axis(key: str, choices: list[Any], source: str) -> list[dict[str, Any]]:
    """Return what each choice of one entry of the grid sets: dotted keys and values."""
    if key != TOGETHER:
        return [{key: choice} for choice in choices]
    for choice in choices:
        whole = isinstance(choice, dict) and choice and not set(choice) & set(_TABLES)
        if not whole:
            raise ConfigError(
                f"{source}: grid.{TOGETHER} must list tables of dotted keys in quotes, such as "
                f"{{ 'model.head' = 'etf', 'train.loss' = 'mse' }}, found {choice!r}"
            )
    return choices


def with_value(values: Mapping[str, Any], path: list[str], value: object) -> dict[str, Any]:
    """Return a copy of nested tables with one value set.

    >>> with_value({"train": {"epochs": 3}}, ["train", "lr"], 0.1)
    {'train': {'epochs': 3, 'lr': 0.1}}

    A part that is there by its name alone becomes a table, for its option.
    """
    if len(path) == 1:
        return {**values, path[0]: value}
    inner = values.get(path[0], {})
    if isinstance(inner, str):
        inner = {"name": inner}
    return {
        **values,
        path[0]: with_value(inner if isinstance(inner, dict) else {}, path[1:], value),
    }


def _with_trees(config: RunConfig, source: str) -> RunConfig:
    """Put trees of classes that are files into the configuration, which then needs no file."""
    data = config.data
    try:
        if data.hierarchy is not None:
            data = dataclasses.replace(data, hierarchy=embedded(data.hierarchy))
        head, loss = _with_text(config.model.head), _with_text(config.train.loss)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    model = dataclasses.replace(config.model, head=head)
    return dataclasses.replace(
        config, data=data, model=model, train=dataclasses.replace(config.train, loss=loss)
    )


def _with_text(part: Component) -> Component:
    named = part.options.get("hierarchy")
    if not isinstance(named, str):
        return part
    return dataclasses.replace(part, options={**part.options, "hierarchy": embedded(named)})


def _check_names(config: RunConfig, source: str) -> None:
    """Refuse unknown names, options and balls now, not after an hour of training."""
    try:
        for key, (registry, given) in PARTS.items():
            part: Component | None = attrgetter(key)(config)
            if part is not None and given:
                check_options(registry, part, given)
            elif part is not None:
                build(registry, part)  # made of its options alone: their values are checked too
        asked = config.evaluation
        protocols = (asked.protocol, asked.beside, asked.sweep_protocol, config.measure.adaptive)
        for protocol in protocols:
            if protocol is not None:
                find_protocol(protocol)
        if asked.beside == asked.protocol:
            raise ConfigError(
                f"evaluation.beside and evaluation.protocol are both {asked.beside!r}; "
                "let beside name a weaker protocol, such as 'pgd_ce', or leave it out"
            )
        if asked.attack is not None:
            find_attack(asked.attack.name, asked.attack.options)
        check_corruptions(config.measure.corruptions)
        for eps in (config.threat.eps, *asked.sweep):
            Ball(config.threat.norm, eps)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _cells(configs: list[RunConfig], keys: tuple[str, ...]) -> tuple[Cell, ...]:
    """Name the cells; configurations that differ in more than the seed get names of their own."""
    told = tuple(dict.fromkeys((*_NAMED, *(key for key in keys if key != "seed"))))
    varying = _varying_options(configs, told)
    names: dict[str, str] = {}
    cells: dict[str, Cell] = {}
    for config in configs:
        group = digest({**plain(config), "seed": 0})
        name = "-".join(filter(None, (_word(config, key, varying) for key in told)))
        if len(name) > _LONGEST:
            name = f"{name[: _LONGEST - 7]}-{group[:6]}"
        if names.setdefault(name, group) != group:
            name = f"{name}-{group[:6]}"
        cells.setdefault(cell_id(config), Cell(cell_id(config), name, config))
    return tuple(cells.values())


def _varying_options(configs: list[RunConfig], keys: tuple[str, ...]) -> dict[str, list[str]]:
    """Find, per part and name, the options in which the grid's choices differ."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for config in configs:
        for key in keys:
            value = value_at(config, key)
            if isinstance(value, dict) and "options" in value:
                seen.setdefault(f"{key}/{value['name']}", []).append(value["options"])
    return {
        place: sorted(
            option
            for option in {name for options in choices for name in options}
            if len({repr(options.get(option)) for options in choices}) > 1
        )
        for place, choices in seen.items()
    }


def _word(config: RunConfig, key: str, varying: Mapping[str, list[str]]) -> str:
    """Say what a key is set to: the name of a part with the options that tell it from others.

    Nothing where it is not set.
    """
    value = value_at(config, key)
    if value is None:
        return ""
    if isinstance(value, dict) and "options" in value:
        options = value["options"]
        told = [f"-{o}={options[o]}" for o in varying[f"{key}/{value['name']}"] if o in options]
        code = split_code(value["name"])  # of the user's own: by its name alone
        text = (value["name"] if code is None else code.name) + "".join(told)
    else:
        text = f"{key.split('.')[-1]}={value}"
    return re.sub(r"[^\w.=-]+", "_", text)


def value_at(config: RunConfig, key: str) -> Any:
    """Return the plain value at a dotted key, or None where there is no such key.

    >>> value_at(RunConfig(), "train.objective")
    {'name': 'standard', 'options': {}}
    """
    value: Any = plain(config)
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
