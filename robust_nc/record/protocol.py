"""Which protocol a record's attacks are, whatever it calls itself.

>>> from robust_nc.plugins import find_protocol
>>> parameters_of(find_protocol("fgsm").attacks[0][1])["attack"]
'PGD'
"""

import dataclasses
import functools
import json
from typing import Any

from robust_nc.exceptions import RobustNCError
from robust_nc.plugins import find_protocol
from robust_nc.record.schema import Record
from robust_nc.threat import Ball

CUSTOM = "custom"


def parameters_of(attack: object) -> dict[str, Any]:
    """Return the class of an attack and all its parameters, as a record tells them."""
    found: dict[str, Any] = {"attack": type(attack).__name__}
    if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
        found |= json.loads(json.dumps(dataclasses.asdict(attack), default=repr))
    return found


def judged_protocol(record: Record) -> str:
    """Return the protocol that a record names if all its attacks were run, else "custom".

    Attacks beside it only make the worst case worse.
    """
    threat = record.config.get("threat")
    norm = threat.get("norm") if isinstance(threat, dict) else None
    meant = _attacks(record.protocol, norm) if isinstance(norm, str) else None
    if meant is None:
        return CUSTOM
    run = [(use.name, use.parameters) for use in record.attacks]
    return record.protocol if all(one in run for one in meant) else CUSTOM


@functools.cache
def _attacks(protocol: str, norm: str) -> tuple[tuple[str, dict[str, Any]], ...] | None:
    """Name the attacks of a protocol under a norm with their parameters; None of an unknown one."""
    try:
        plan = find_protocol(protocol).under(Ball(norm, 1.0))
    except (RobustNCError, ValueError):
        return None
    return tuple((name, parameters_of(attack)) for name, attack in plan.attacks)
