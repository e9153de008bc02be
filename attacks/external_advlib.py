"""Attacks of adv_lib by name: `adv_lib:ddn`, `adv_lib:apgd`, `adv_lib:fmn`, ...

Most of them look for the least perturbation; what lies beyond the ball is projected into it.

>>> NORMS_OF["fmn"]
('Linf', 'L2', 'L1')
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from robust_nc.attacks.external import Call, ExternalAttack, check_colours, make_attack
from robust_nc.runtime.third_party import import_peer

_LIBRARY = "adv_lib"
_ALL = ("Linf", "L2", "L1")
NORMS_OF: dict[str, tuple[str, ...]] = {
    "alma": ("L2", "L1"),
    "apgd": _ALL,
    "apgd_targeted": _ALL,
    "carlini_wagner_l2": ("L2",),
    "carlini_wagner_linf": ("Linf",),
    "ddn": ("L2",),
    "df": ("Linf", "L2"),
    "fab": _ALL,
    "fga": ("L0",),
    "fmn": _ALL,
    "pdgd": ("L2",),
    "pdpgd": _ALL,
    "pgd_linf": ("Linf",),
    "sdf": ("L2",),
    "sigma_zero": ("L0",),
    "tr": ("Linf", "L2"),
    "vfga": ("L0",),
}
_ORDERS = {"Linf": float("inf"), "L2": 2, "L1": 1}
_NEVER_TARGETED = {"apgd_targeted", "df", "fab", "sdf", "sigma_zero", "tr"}
_STEP_NOT_RADIUS = {"tr"}  # its `eps` is the size of its first step
_EPSILON = "\u03b5"


def advlib_attack(
    name: str, options: Mapping[str, object] = MappingProxyType({})
) -> "AdvLibAttack":
    """Make an attack of adv_lib; unknown names and options are answered with the nearest."""
    attacks = import_peer(f"{_LIBRARY}.attacks", _LIBRARY)
    return make_attack(
        AdvLibAttack,
        name,
        options,
        library=_LIBRARY,
        names=[key for key, value in vars(attacks).items() if inspect.isfunction(value)],
        distribution="adv-lib",
        given={"eps": 0.0, "norm": 2, _EPSILON: 0.0, "num_classes": 2},
    )


@dataclass(frozen=True, kw_only=True)
class AdvLibAttack(ExternalAttack):
    """A function of adv_lib."""

    def target(self) -> Any:
        """The function of the library."""
        return getattr(import_peer(f"{_LIBRARY}.attacks", _LIBRARY), self.name)

    def norms(self) -> tuple[str, ...]:
        """As its documentation says; none for a perceptual or structured distance."""
        return NORMS_OF.get(self.name, ())

    def can_target(self) -> bool:
        """Those that cannot would warn and hand the images back, or stop."""
        return self.name not in _NEVER_TARGETED

    def perturb(self, call: Call) -> Tensor:
        """Call the function; where it takes no radius it looks for the least perturbation."""
        check_colours(call, self.label, {"perc_al"})
        order = _ORDERS[call.ball.norm]
        given: dict[str, object] = {
            "norm": order,
            "p": order,
            "distance": call.ball.norm.lower(),
            "num_classes": call.num_classes,
            "targeted": call.targets is not None,
            "use_large_reps": call.ball.norm == "L1",
        }
        if self.name not in _STEP_NOT_RADIUS:
            given |= {"eps": float(call.ball.eps), _EPSILON: float(call.ball.eps)}
        filled = self.filled(given)
        points: Tensor = self.target()(call.model, call.images, call.aims, **filled)
        return points
