"""What a record's attacks say of its verdict, whatever it calls itself: protocol and doubts.

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
from robust_nc.types import DOUBTS

CUSTOM = "custom"
_BLACK_BOX, _WITHOUT_GRADIENTS = "black-box-stronger", ("Square", "RayS")
_POINT = 0.01


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


def doubts(record: Record) -> frozenset[str]:
    """Return the warnings that leave a verdict in doubt, by name.

    That attacks without gradients broke what the others missed is one if it was more than 1 point:
    an audit asks for no more, and many a sound model loses two or three examples in this way.
    """
    found = DOUBTS.intersection(one.name for one in record.warnings)
    broke = sum(u.broke for u in record.attacks if u.parameters.get("attack") in _WITHOUT_GRADIENTS)
    few = broke <= _POINT * record.data.examples
    return found - {_BLACK_BOX} if few else found


@functools.cache
def _attacks(protocol: str, norm: str) -> tuple[tuple[str, dict[str, Any]], ...] | None:
    """Name the attacks of a protocol under a norm with their parameters; None of an unknown one."""
    try:
        plan = find_protocol(protocol).under(Ball(norm, 1.0))
    except (RobustNCError, ValueError):
        return None
    return tuple((name, parameters_of(attack)) for name, attack in plan.attacks)
