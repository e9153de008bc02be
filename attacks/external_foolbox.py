"""Attacks of foolbox by name: `foolbox:L2CarliniWagnerAttack`, `foolbox:LinfPGD`, ...

>>> from robust_nc.exceptions import ConfigError
>>> try:
...     print(make("LinfPGD", {"steps": 20}).label[:7])
... except ConfigError as error:  # where foolbox is not installed
...     print(str(error)[:7])
foolbox
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from robust_nc.attacks.external import (
    Call,
    ExternalAttack,
    arguments,
    check_name,
    imported,
    version_of,
)
from robust_nc.exceptions import InputError
from robust_nc.threat import NORMS

_LIBRARY = "foolbox"
_REFUSED = {
    "Attack": "it is the base of the others",
    "BinarizationRefinementAttack": "it refines points that another attack has found",
}
_ORDERS = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0, "L0": 0.0}
_CONSTRAINTS = {"Linf": "linf", "L2": "l2"}  # as HopSkipJumpAttack calls them
_ONLY_TARGETED = {"GenAttack"}
_NEVER_TARGETED = {
    "DatasetAttack",
    "L2DeepFoolAttack",
    "LinfDeepFoolAttack",
    "NewtonFoolAttack",
    "VirtualAdversarialAttack",
}


def make(name: str, options: Mapping[str, object] = MappingProxyType({})) -> "FoolboxAttack":
    """Make an attack of foolbox; unknown names and options are answered with the nearest."""
    attacks = imported(f"{_LIBRARY}.attacks", _LIBRARY)
    names = [key for key, value in vars(attacks).items() if _is_attack(attacks, value)]
    check_name(f"{_LIBRARY}:{name}", names, _REFUSED)
    attack = FoolboxAttack(
        library=_LIBRARY, version=version_of(_LIBRARY), name=name, options=dict(options)
    )
    arguments(attack.label, attack.kind(), {}, attack.options)
    return attack


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(ExternalAttack):
    """An attack class of foolbox; the least perturbation, or one of a given size."""

    def kind(self) -> Any:
        """The class of the library."""
        return getattr(imported(f"{_LIBRARY}.attacks", _LIBRARY), self.name)

    def norms(self) -> tuple[str, ...]:
        """Norm of its distance; all of ours where the distance is an argument."""
        parameters = inspect.signature(self.kind()).parameters
        if "constraint" in parameters:
            return tuple(_CONSTRAINTS)
        if "distance" in parameters or self.name == "PointwiseAttack":
            return tuple(NORMS)
        order = getattr(getattr(self._built("L2"), "distance", None), "p", None)
        return tuple(norm for norm, p in _ORDERS.items() if p == order)

    def can_target(self) -> bool:
        """Whether it takes another criterion than misclassification."""
        return self.name not in _NEVER_TARGETED

    def perturb(self, call: Call) -> Tensor:
        """Wrap the model, build the attack and call it; the point before foolbox's clipping."""
        foolbox = imported(_LIBRARY, _LIBRARY)
        model = foolbox.PyTorchModel(call.model, bounds=call.ball.bounds, device=call.images.device)
        attack = self._built(call.ball.norm)
        if hasattr(attack, "feed"):  # it takes other images of the batch
            attack.feed(model, call.images)
        if call.targets is not None:
            criterion = foolbox.criteria.TargetedMisclassification(call.targets)
        elif self.name in _ONLY_TARGETED:
            raise InputError(f"{self.label} needs targets, one class per image")
        else:
            criterion = foolbox.criteria.Misclassification(call.labels)
        points: Tensor = attack(model, call.images, criterion, epsilons=float(call.ball.eps))[0]
        return points

    def _built(self, norm: str) -> Any:
        distances = imported(f"{_LIBRARY}.distances", _LIBRARY)
        distance = distances.LpDistance(_ORDERS[norm])
        given = {"distance": distance, "constraint": _CONSTRAINTS.get(norm)}
        kind = self.kind()
        attack = kind(**arguments(self.label, kind, given, self.options))
        if self.name == "PointwiseAttack":  # its constructor forgets the distance of its base
            attack._distance = distance
        return attack


def _is_attack(attacks: Any, value: object) -> bool:
    return isinstance(value, type) and issubclass(value, attacks.Attack)
