"""Settings that somebody changes in a copy of a suite: dotted keys and values.

>>> read_changes(["train.epochs=5", "threat.eps=8/255", "seed=[0, 1]", "train.objective=pgd"])
{'train.epochs': 5, 'threat.eps': '8/255', 'seed': [0, 1], 'train.objective': 'pgd'}
>>> config = RunConfig()
>>> apply_changes(config, {"model.backbone.width": 32}).model.backbone
Component(name='small_cnn', options={'width': 32})
>>> [point["seed"] for point in grid_of(config, {"seed": [0, 1], "measure.targets": ["cyclic"]})]
[0, 1]
"""

import dataclasses
import difflib
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from robust_nc.config import Component, RunConfig, option_types, plain, read
from robust_nc.exceptions import ConfigError
from robust_nc.io.files import digest
from robust_nc.registry import Registry

SOURCE = "--set"
_LONGEST = 120  # characters of a suite's name: it becomes a folder


def read_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE`, each value as TOML or as bare text; none at all is None: not set.

    Raises `ConfigError` for what is no such thing.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = (part.strip() for part in text.partition("="))
        if not sign or not key or not all(key.split(".")):
            raise ConfigError(f"{SOURCE} takes KEY=VALUE, such as train.epochs=5, found {text!r}")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def grid_of(
    config: RunConfig, changes: Mapping[str, Any], registries: Mapping[str, Registry] | None = None
) -> list[dict[str, Any]]:
    """Return the changes point by point: a list is a value each, where its key takes no list.

    Where it does, a list of lists is. `registries` by the key of their part, whose options say
    what they take. The last key varies fastest.
    """
    axes: list[list[tuple[str, Any]]] = []
    for key, value in changes.items():
        kind = _kind(config, key, registries or {})
        several = isinstance(value, list) and (
            not _takes_list(kind) or (value != [] and all(isinstance(each, list) for each in value))
        )
        if several and not value:
            raise ConfigError(f"{SOURCE} {key}: found an empty list; give at least one value")
        axes.append([(key, each) for each in (value if several else [value])])
    return [dict(point) for point in itertools.product(*axes)]


def apply_changes(config: RunConfig, point: Mapping[str, Any]) -> RunConfig:
    """Return a configuration with some keys set, those of a part's options too.

    Raises `ConfigError` for an unknown key, and for a value that the key does not take.
    """
    values: dict[str, Any] = plain(config)
    for key, value in point.items():
        if key not in values and "." not in key:
            raise ConfigError(
                f"{SOURCE}: unknown key {key!r}{_whole_keys(key)}; keys are those of a suite's "
                "TOML, such as train.epochs; `robust-nc suites show NAME` prints them all"
            )
        values = _with_value(values, key.split("."), value, key)
    return read(RunConfig, values, source=SOURCE)


def changed_name(name: str, changes: Mapping[str, Any]) -> str:
    """Name the changed suite, whose folder must not be that of the other; seeds are no change.

    >>> changed_name("quickstart", {"seed": [5], "threat.eps": "8/255", "train.epochs": 5})
    'quickstart-threat.eps=8_255-train.epochs=5'
    """
    told = [f"-{key}={_told(changes[key])}" for key in sorted(changes) if key != "seed"]
    found = re.sub(r"[^\w.=-]+", "_", "".join([name, *told]))
    if len(found) <= _LONGEST:
        return found if told else name
    return f"{found[: _LONGEST - 7]}-{digest(found)[:6]}"


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _with_value(values: dict[str, Any], path: list[str], value: Any, key: str) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return {**values, first: value}
    inner = values.get(first, {})  # `read` says which keys there are
    if inner is None:
        raise ConfigError(
            f"{SOURCE} {key}: no {first} is set; name one first, with its options, such as "
            f"{'.'.join(key.split('.')[:-1])}='{{ name = \"...\", {rest[-1]} = ... }}'"
        )
    if isinstance(inner, str):  # a part that was named just before
        inner = {"name": inner}
    if _is_part(inner) and rest[0] not in inner:
        rest = ["options", *rest]
    inside = _with_value(inner if isinstance(inner, dict) else {}, rest, value, key)
    return {**values, first: inside}


def _is_part(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"name", "options"}


def _kind(config: RunConfig, key: str, registries: Mapping[str, Registry]) -> Any:
    """Return the type of a key, None where it cannot be told."""
    table, _, rest = key.partition(".")
    field, _, option = rest.partition(".")
    if not field:
        return _types(RunConfig).get(table)
    kind = _types(_types(RunConfig).get(table)).get(field)
    if not option:
        return kind
    part = getattr(getattr(config, table, None), field, None)
    registry = registries.get(f"{table}.{field}")
    if registry is None or not isinstance(part, Component):
        return Any
    return option_types(registry, part.name).get(option)


def _types(kind: Any) -> dict[str, Any]:
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return {field.name: field.type for field in fields}


def _takes_list(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _takes_list(get_args(kind)[0])
    inner: Iterable[Any] = () if get_origin(kind) in (tuple, list) else get_args(kind)
    return kind is Any or get_origin(kind) in (tuple, list) or any(map(_takes_list, inner))


def _whole_keys(key: str) -> str:
    """Say which whole keys end like a short one, for whoever left their table out."""
    known = [
        f"{table}.{name}" for table, kind in _types(RunConfig).items() for name in _types(kind)
    ]
    near = difflib.get_close_matches(key, sorted({each.split(".")[-1] for each in known}), n=1)
    found = [each for each in known if near and each.endswith(f".{near[0]}")]
    return f" (did you mean {' or '.join(found)}?)" if found else ""
