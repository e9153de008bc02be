"""Attacks and protocols by name: registered here, from another library, or the user's own.

>>> type(find_attack("pgd", {"steps": 5})).__name__
'PGD'
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from robust_nc.config import Component, build
from robust_nc.exceptions import ConfigError
from robust_nc.files import digest
from robust_nc.registry import ADAPTERS, ATTACKS, PROTOCOLS
from robust_nc.types import Attack, EvaluationProtocol

_OWN = re.compile(r"(?P<place>[^:]+):(?P<name>[A-Za-z_]\w*)")


def find_protocol(name: str) -> EvaluationProtocol:
    """Look a protocol up by name; an unknown one is answered with the nearest."""
    plan = PROTOCOLS.load(name)
    assert isinstance(plan, EvaluationProtocol)
    return plan


def find_attack(reference: str, options: Mapping[str, object] | None = None) -> Attack:
    """Return the attack that `reference` names, made with `options`.

    A registered name (`"pgd"`), an attack of another library (`"torchattacks:CW"`), or a factory of
    the user's own (`"package.module:factory"`, `"path/to/file.py:factory"`). Raises `ConfigError`
    for a name that leads nowhere or options that do not fit.
    """
    options = dict(options or {})
    found = _OWN.fullmatch(reference)
    if found is None:
        return cast(Attack, build(ATTACKS, Component(name=reference, options=options)))
    place, name = found["place"], found["name"]
    if place in ADAPTERS:
        return cast(Attack, ADAPTERS.load(place)(name, options))
    factory = getattr(_module(reference, place), name, None)
    if not callable(factory):
        raise ConfigError(f"{place} has no callable {name!r}, which {reference!r} names")
    return _made(reference, factory, options)


def _made(reference: str, factory: Any, options: dict[str, object]) -> Attack:
    try:
        attack = factory(**options)
    except TypeError as error:
        raise ConfigError(f"{reference} cannot be called with {options}: {error}") from None
    if not callable(attack):
        raise ConfigError(
            f"{reference} must return an attack, a callable as robust_nc.types.Attack says, "
            f"found {type(attack).__name__}"
        )
    return cast(Attack, attack)


def _module(reference: str, place: str) -> ModuleType:
    if place.endswith(".py"):
        return _file(reference, Path(place))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        libraries = ", ".join(ADAPTERS.names())
        raise ConfigError(
            f"{reference!r} names the module {place!r}, which is not found ({error}); valid: a "
            f"module, a .py file, or one of {libraries}"
        ) from None
    except Exception as error:  # a stranger's module may raise anything
        raise _failed(reference, place, error) from error


def _file(reference: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{reference!r} names the file {path}, which does not exist")
    name = f"_robust_nc_user_{path.stem}_{digest(str(path.resolve()))[:8]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a stranger's file may raise anything
        del sys.modules[spec.name]
        raise _failed(reference, str(path), error) from error
    return module


def _failed(reference: str, place: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{reference!r} names {place}, which cannot be run: {type(error).__name__}: {error}"
    )
