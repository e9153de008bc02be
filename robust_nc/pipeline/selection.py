"""Cells of a suite that a user asks for: by number, and by what their configurations say.

>>> from robust_nc.pipeline.suite import read_suite
>>> suite = read_suite("quickstart")
>>> [cell.config.seed for cell in select_cells(suite, [0, 1, 2], ["seed=0"]).cells]
[0, 0]
>>> len(select_cells(suite, where=["train.objective=pgd", "head=etf"]).cells)
2
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robust_nc.config import RunConfig, plain
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.pipeline.suite import Cell, Suite
from robust_nc.threat import parse_eps

_MOST = 8  # values that a sentence names


def select_cells(suite: Suite, numbers: Sequence[int] = (), where: Sequence[str] = ()) -> Suite:
    """Return the suite with the cells of these numbers (none: all) that meet all conditions.

    Numbers count from 0 in the order of the suite. A condition is `key=value`: a dotted key of the
    configuration, or its last part where that is clear, and a value as TOML or as bare text; a part
    such as the objective is met by its name, and by its table. Raises `ConfigError` for a number, a
    key or a condition that cannot be, and where no cell is left.
    """
    for number in numbers:
        if not 0 <= number < len(suite.cells):
            raise ConfigError(
                f"{suite.name} has cells 0 to {len(suite.cells) - 1}, found number {number}"
            )
    chosen = [suite.cells[number] for number in sorted(set(numbers))] if numbers else suite.cells
    conditions = [_condition(suite, text) for text in where]
    cells = tuple(
        cell
        for cell in chosen
        if all(_meets(_flat(cell.config).get(key), value) for key, value in conditions)
    )
    if not cells:
        there = "; ".join(f"{key} is {_values(chosen, key)}" for key, _ in conditions)
        among = f" among numbers {' '.join(map(str, numbers))}" if numbers else ""
        raise ConfigError(f"no cell of {suite.name}{among} has {' and '.join(where)}; {there}")
    return suite._replace(cells=cells)


def cell_titles(suite: Suite) -> dict[str, str]:
    """Say which cell is which, by id: model, seed and number in the suite."""
    return {
        cell.id: f"{cell.model} seed {cell.config.seed}, cell {number}"
        for number, cell in enumerate(suite.cells)
    }


def cell_numbers(suite: Suite, cells: Sequence[Cell]) -> dict[str, list[int]]:
    """Return the numbers that some cells have in a suite, by model."""
    number = {cell.id: place for place, cell in enumerate(suite.cells)}
    found: dict[str, list[int]] = {}
    for cell in cells:
        found.setdefault(cell.model, []).append(number[cell.id])
    return found


def _condition(suite: Suite, text: str) -> tuple[str, str]:
    """Read a condition; returns the full key, and the value as it was written."""
    key, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not key or not value:
        raise ConfigError(f"--where takes KEY=VALUE, such as train.objective=pgd, found {text!r}")
    keys = {found for cell in suite.cells for found in _flat(cell.config)}
    ends = sorted(found for found in keys if found.endswith(f".{key}"))
    if key not in keys and not ends:
        words = sorted(keys | {found.split(".")[-1] for found in keys})
        near = difflib.get_close_matches(key, words, n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ConfigError(
            f"--where: no cell of {suite.name} has the key {key!r}{hint}; keys are those of a "
            "suite's TOML, such as train.objective, train.epochs or seed"
        )
    if key not in keys and len(ends) > 1:
        raise ConfigError(f"--where {key} may be {' or '.join(ends)}; write the whole key")
    return (key if key in keys else ends[0]), value


def _flat(config: RunConfig) -> dict[str, Any]:
    """Return all values of a configuration by dotted key, those of options and of parts too."""
    return dict(_entries(plain(config), ""))


def _entries(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value.keys() == {"name", "options"}:
            yield key, {"name": value["name"], **value["options"]}
            yield from _entries(value["options"], f"{key}.")
        elif isinstance(value, dict):
            yield from _entries(value, f"{key}.")
        else:
            yield key, value


def _meets(found: Any, text: str) -> bool:
    """Whether a value of a configuration is what was written: as TOML, text, or a fraction.

    >>> _meets({"name": "pgd", "steps": 3}, "pgd"), _meets(8 / 255, "8/255"), _meets(True, "1")
    (True, True, False)
    """
    if found is None:
        return False
    if isinstance(found, dict):
        return text == found["name"] or _same(found, _toml(text))
    if isinstance(found, float):
        try:
            return found == parse_eps(text)
        except InputError:
            return False
    return found == text or _same(found, _toml(text))


def _values(cells: Sequence[Cell], key: str) -> str:
    """Say what a key is set to, in a few words."""
    values = [_flat(cell.config).get(key) for cell in cells]
    names = [value["name"] if isinstance(value, dict) else value for value in values]
    told = sorted({"not set" if name is None else str(name) for name in names})
    return ", ".join(told[:_MOST]) + (", ..." if len(told) > _MOST else "")


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None


def _same(found: Any, value: Any) -> bool:
    return isinstance(found, bool) == isinstance(value, bool) and bool(found == value)
