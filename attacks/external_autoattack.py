"""Attacks of pyautoattack, or of the original autoattack, by name: `pyautoattack:SquareAttack`, ...

Whichever of the two is installed answers to both names; the record says which one it was.

>>> sorted(_MODULES)
['APGDAttack', 'APGDAttack_targeted', 'AutoAttack', 'FABAttack_PT', 'SquareAttack']
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from torch import Tensor

from robust_nc.attacks.external import OURS, Call, ExternalAttack, arguments, make_attack
from robust_nc.exceptions import ConfigError
from robust_nc.runtime.third_party import import_peer

_LIBRARIES = ("pyautoattack", "autoattack")
_MODULES = {
    "APGDAttack": "autopgd_base",
    "APGDAttack_targeted": "autopgd_base",
    "AutoAttack": "autoattack",
    "FABAttack_PT": "fab_pt",
    "SquareAttack": "square",
}
_MOST_TARGETS = 9
_TARGETS_L1 = 5


def autoattack_part(
    name: str, options: Mapping[str, object] = MappingProxyType({})
) -> "AutoAttackPart":
    """Make an attack of (py)autoattack; unknown names and options are answered with the nearest."""
    library = _installed(name) if name in _MODULES else _LIBRARIES[0]
    return make_attack(AutoAttackPart, name, options, library=library, names=_MODULES)


@dataclass(frozen=True, kw_only=True)
class AutoAttackPart(ExternalAttack):
    """A class of pyautoattack or autoattack."""

    def target(self) -> Any:
        """The class of the library."""
        return getattr(_module(self.library, self.name), self.name)

    def norms(self) -> tuple[str, ...]:
        """All of them serve all three."""
        return ("Linf", "L2", "L1")

    def can_target(self) -> bool:
        """Only Square takes targets from outside; the others choose their own."""
        return self.name == "SquareAttack"

    def filled(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Arguments of the constructor; `targeted` of FAB is an option: it picks targets itself."""
        ours = OURS if self.can_target() else OURS - {"targeted"}
        return arguments(self.label, self.target(), given, self.options, ours=ours)

    def perturb(self, call: Call) -> Tensor:
        """Build the attack for this model and call it."""
        targets = _TARGETS_L1 if call.ball.norm == "L1" else _MOST_TARGETS
        given: dict[str, object] = {
            "norm": call.ball.norm,
            "eps": float(call.ball.eps),
            "seed": call.seed,
            "device": call.images.device,
            "n_target_classes": min(targets, call.num_classes - 1),
            "use_largereps": call.ball.norm == "L1",
        }
        if self.can_target():
            given["targeted"] = call.targets is not None
        attack = self.target()(call.model, **self.filled(given))
        if self.name == "AutoAttack":
            return _evaluated(attack, call)
        points: Tensor = attack.perturb(call.images, call.aims)
        return points


def _evaluated(attack: Any, call: Call) -> Tensor:
    """Run the whole ensemble, with no more targets than there are other classes."""
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, call.num_classes - 1)
    found = attack.run_standard_evaluation(call.images, call.labels)
    points: Tensor = found[0] if isinstance(found, tuple) else found
    return points


def _installed(name: str) -> str:
    """The library that has the class; our own stand-in for autoattack has only some."""
    problems = []
    for library in _LIBRARIES:
        try:
            _module(library, name)
        except ConfigError as error:
            problems.append(error)
        else:
            return library
    raise problems[0]


def _module(library: str, name: str) -> ModuleType:
    return import_peer(f"{library}.{_MODULES[name]}", library)
