"""Attacks of foolbox by name: `foolbox:L2CarliniWagnerAttack`, `foolbox:LinfPGD`, ...

>>> from robust_nc.exceptions import ConfigError
>>> try:
...     print(foolbox_attack("LinfPGD", {"steps": 20}).label[:7])
... except ConfigError as error:  # where foolbox is not installed
...     print(str(error)[:7])
foolbox
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from robust_nc.attacks.external import Call, ExternalAttack, make_attack
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.runtime.third_party import import_peer
from robust_nc.threat import NORMS

_LIBRARY = "foolbox"
_REFUSED = {
    "Attack": "it is the base of the others",
    "BinarizationRefinementAttack": "it refines points that another attack has found",
}
_ORDERS = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0, "L0": 0.0}
_CONSTRAINTS = {"Linf": "linf", "L2": "l2"}  # as HopSkipJumpAttack calls them
_FROM_OUTSIDE = {  # decision-based: they walk towards the image from a point beyond the boundary
    "BoundaryAttack",
    "HopSkipJumpAttack",
    "L0BrendelBethgeAttack",
    "L1BrendelBethgeAttack",
    "L2BrendelBethgeAttack",
    "LinfinityBrendelBethgeAttack",
    "PointwiseAttack",
}


def foolbox_attack(
    name: str, options: Mapping[str, object] = MappingProxyType({})
) -> "FoolboxAttack":
    """Make an attack of foolbox; unknown names and options are answered with the nearest."""
    attacks = import_peer(f"{_LIBRARY}.attacks", _LIBRARY)
    names = [key for key, value in vars(attacks).items() if _is_attack(attacks, value)]
    return make_attack(
        FoolboxAttack, name, options, library=_LIBRARY, names=names, refused=_REFUSED
    )


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(ExternalAttack):
    """An attack class of foolbox; the least perturbation, or one of a given size."""

    def target(self) -> Any:
        """The class of the library."""
        return getattr(import_peer(f"{_LIBRARY}.attacks", _LIBRARY), self.name)

    def norms(self) -> tuple[str, ...]:
        """Norm of its distance; all of ours where the distance is an argument."""
        parameters = inspect.signature(self.target()).parameters
        if "constraint" in parameters:
            return tuple(_CONSTRAINTS)
        if "distance" in parameters or self.name == "PointwiseAttack":
            return tuple(NORMS)
        order = getattr(getattr(self._built("L2"), "distance", None), "p", None)
        return tuple(norm for norm, p in _ORDERS.items() if p == order)

    def can_target(self) -> bool:
        """Only the library knows; it says so by refusing the criterion."""
        return True

    def perturb(self, call: Call) -> Tensor:
        """Wrap the model and call the attack; the points before foolbox's own clipping."""
        foolbox = import_peer(_LIBRARY, _LIBRARY)
        model = foolbox.PyTorchModel(call.model, bounds=call.ball.bounds, device=call.images.device)
        if self.name not in _FROM_OUTSIDE or "init_attack" in self.options:
            return self._attacked(foolbox, model, call)
        starts, found = _starting_points(call)
        points = call.images.clone()
        if bool(found.any()):
            targets = None if call.targets is None else call.targets[found]
            some = call._replace(
                images=call.images[found], labels=call.labels[found], targets=targets
            )
            points[found] = self._attacked(foolbox, model, some, starting_points=starts[found])
        return points

    def _attacked(self, foolbox: Any, model: Any, call: Call, **start: Tensor) -> Tensor:
        attack = self._built(call.ball.norm)
        if hasattr(attack, "feed"):  # it takes other images of the batch
            attack.feed(model, call.images)
        criteria = foolbox.criteria
        criterion = (
            criteria.Misclassification(call.labels)
            if call.targets is None
            else criteria.TargetedMisclassification(call.targets)
        )
        # In L0 it can neither compare with eps nor clip to it.
        eps = None if self.norms() == ("L0",) else float(call.ball.eps)
        try:
            points: Tensor = attack(model, call.images, criterion, epsilons=eps, **start)[0]
        except ValueError as error:
            if "unsupported criterion" not in str(error):
                raise
            told = "needs targets" if call.targets is None else "cannot be aimed at targets"
            raise InputError(f"{self.label} {told}") from None
        return points

    def _built(self, norm: str) -> Any:
        distances = import_peer(f"{_LIBRARY}.distances", _LIBRARY)
        distance = distances.LpDistance(_ORDERS[norm])
        given = {"distance": distance, "constraint": _CONSTRAINTS.get(norm)}
        try:
            attack = self.target()(**self.filled(given))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self.label} needs {error.name}, which is not installed here; "
                "`make peers` builds an environment with it"
            ) from None
        if self.name == "PointwiseAttack":  # its constructor forgets the distance of its base
            attack._distance = distance
        return attack


def _is_attack(attacks: Any, value: object) -> bool:
    return isinstance(value, type) and issubclass(value, attacks.Attack)


@torch.no_grad()
def _starting_points(call: Call) -> tuple[Tensor, Tensor]:
    """For each image the nearest of the batch beyond its boundary, and whether there is one.

    The random starts of the library find none for many images, and then it raises.
    """
    predicted = call.model(call.images).argmax(1)
    usable = (
        predicted[None] != call.labels[:, None]
        if call.targets is None
        else predicted[None] == call.targets[:, None]
    )
    flat = call.images.flatten(1)
    distance = torch.cdist(flat, flat).masked_fill(~usable, torch.inf)
    return call.images[distance.argmin(1)], usable.any(1)
