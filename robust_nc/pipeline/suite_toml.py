"""A suite written out as TOML, with every setting that it leaves to its default.

>>> print(suite_toml("quickstart")[:19])
name = "quickstart"
"""

from collections.abc import Iterator
from typing import Any

from robust_nc.config import Component, RunConfig, component, option_defaults, plain, read
from robust_nc.io.toml import toml_key, toml_value
from robust_nc.pipeline.suite import PARTS, TOGETHER, read_suite, read_tables


def suite_toml(name: str) -> str:
    """Write a suite with all defaults: read back, it has the same cells.

    What is not set, and the options that parts leave to their defaults, are comments. Raises
    `ConfigError` for a suite that cannot be run.
    """
    read_suite(name)
    written = read_tables(name)
    config = read(RunConfig, written.base, source=written.source)
    lines = [f"name = {toml_value(written.name)}"]
    if written.description:
        lines.append(f"description = {toml_value(written.description)}")
    tables = plain(config)
    lines += ["", "[base]", f"seed = {tables.pop('seed')}"]
    for table, values in tables.items():
        lines += ["", f"[base.{table}]"]
        for key, value in values.items():
            if value is None:
                lines.append(f"# {key} is not set")
            elif f"{table}.{key}" in PARTS:
                shown, defaults = _part(f"{table}.{key}", getattr(getattr(config, table), key))
                lines.append(f"{key} = {shown}{defaults}")
            else:
                lines.append(f"{key} = {toml_value(_written(value))}")
    if written.grid:
        lines += ["", "[grid]", *_grid_lines(written.grid)]
    return "\n".join(lines) + "\n"


def _grid_lines(grid: dict[str, Any]) -> Iterator[str]:
    for key, choices in grid.items():
        if key not in PARTS and key != TOGETHER:
            yield f"{toml_key(key)} = {toml_value(choices)}"
            continue
        yield f"{toml_key(key)} = ["
        for choice in choices:
            shown, defaults = toml_value(choice), ""
            if key in PARTS:
                shown, defaults = _part(key, component(choice))
            yield f"  {shown},{defaults}"
        yield "]"


def _part(key: str, part: Component) -> tuple[str, str]:
    """Write a part, and as a comment the options that it leaves to their defaults."""
    registry, given = PARTS[key]
    left = {
        name: value
        for name, value in option_defaults(registry, part.name).items()
        if name not in given and name not in part.options
    }
    told = ", ".join(f"{name} = {_default(value)}" for name, value in left.items())
    return toml_value(_written(plain(part))), f"  # {told}" if told else ""


def _default(value: Any) -> str:
    plainly = isinstance(value, str | int | float | tuple | list)
    return "not set" if value is None else toml_value(value) if plainly else repr(value)


def _written(value: Any) -> Any:
    """Write a part as a name, or as a table of its name and options."""
    if not isinstance(value, dict) or value.keys() != {"name", "options"}:
        return value
    name, options = value["name"], value["options"]
    if not options:
        return name
    return value if {"name", "options"} & options.keys() else {"name": name, **options}
