"""Parts by name: registered here, from another library, or the user's own code.

>>> type(find_attack("pgd", {"steps": 5})).__name__
'PGD'
"""

from collections.abc import Mapping
from typing import Any, cast

from robust_nc.config import Component, build
from robust_nc.exceptions import ConfigError
from robust_nc.io.user_code import lacks, load_code, split_code
from robust_nc.registry import ADAPTERS, ATTACKS, PROTOCOLS
from robust_nc.types import Attack, EvaluationProtocol


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
    code = split_code(reference)
    if code is None:
        return cast(Attack, build(ATTACKS, Component(name=reference, options=options)))
    if code.place in ADAPTERS:
        return cast(Attack, ADAPTERS.load(code.place)(code.name, options))
    libraries = ", ".join(ADAPTERS.names())
    factory = load_code(code, valid=f"a module, a .py file, or one of {libraries}")
    if not callable(factory):
        raise lacks(code)
    return _made(reference, factory, options)


def _made(reference: str, factory: Any, options: dict[str, object]) -> Attack:
    try:
        attack = factory(**options)
    except TypeError as error:
        raise ConfigError(f"{reference} cannot be called with {options}: {error}") from None
    except (Exception, SystemExit) as error:  # a stranger's factory may raise anything
        raise ConfigError(f"{reference} failed: {type(error).__name__}: {error}") from None
    if not callable(attack):
        raise ConfigError(
            f"{reference} must return an attack, a callable as robust_nc.types.Attack says, "
            f"found {type(attack).__name__}"
        )
    return cast(Attack, attack)
