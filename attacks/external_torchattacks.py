"""Attacks of torchattacks by name: `torchattacks:PGD`, `torchattacks:CW`, ...

>>> from robust_nc.exceptions import ConfigError
>>> try:
...     print(torchattacks_attack("CW", {"steps": 20}).label)
... except ConfigError as error:  # where torchattacks is not installed
...     print(str(error)[:12])
torchattacks
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from robust_nc.attacks.external import Call, ExternalAttack, check_colours, make_attack
from robust_nc.runtime.third_party import import_peer
from robust_nc.threat import Ball
from robust_nc.types import Warned

_LIBRARY = "torchattacks"
_REFUSED = {
    "LGV": "it trains the model further, on data of its own",
    "MultiAttack": "it holds other attacks; list those in the protocol instead",
}
_COLOUR_ONLY = {"PIFGSM", "PIFGSMPP", "TIFGSM"}
_PUBLISHED_STEPS = 100  # of APGD and FAB in AutoAttack (arXiv 2003.01690)


def torchattacks_attack(
    name: str, options: Mapping[str, object] = MappingProxyType({})
) -> "TorchAttack":
    """Make an attack of torchattacks; unknown names and options are answered with the nearest."""
    names = import_peer(_LIBRARY, _LIBRARY).__all__
    return make_attack(TorchAttack, name, options, library=_LIBRARY, names=names, refused=_REFUSED)


@dataclass(frozen=True, kw_only=True)
class TorchAttack(ExternalAttack):
    """An attack class of torchattacks."""

    def target(self) -> Any:
        """The class of the library."""
        return self._sibling(self.name)

    def norms(self) -> tuple[str, ...]:
        """Norms that its documentation names; for FAB without L1, in which it crashes."""
        told = re.search(r"Distance Measure\s*:(.*)", inspect.getdoc(self.target()) or "")
        norms = tuple(re.findall(r"L(?:inf|\d)", told[1])) if told else ()
        # In L1 its `perturb` never sets the distance that it then compares with eps.
        return tuple(n for n in norms if n != "L1") if self.name == "FAB" else norms

    def can_target(self) -> bool:
        """Whether the class supports its targeted mode.

        FAB says so, but attacks only what is predicted as its target already.
        """
        return self.name != "FAB" and "targeted" in re.findall(
            r"\w+", _line_of(self.target(), "supported_mode")
        )

    def perturb(self, call: Call) -> Tensor:
        """Build the attack for this model and call it."""
        check_colours(call, self.label, _COLOUR_ONLY)
        given = {
            "norm": call.ball.norm,
            "eps": float(call.ball.eps),
            "max_epsilon": float(call.ball.eps),
            "n_classes": call.num_classes,
            "seed": call.seed,
        }
        attack = self.target()(call.model, **self.filled(given))
        attack.set_device(call.images.device)
        aims = call.aims
        if self.name == "JSMA" and call.targets is None:  # it would aim at (label + 1) % 10
            aims = (call.labels + 1) % call.num_classes
        if call.targets is not None or aims is not call.labels:
            attack.set_mode_targeted_by_label(quiet=True)
        points: Tensor = attack(call.images, aims)
        return points

    def defects(self, ball: Ball) -> tuple[Warned, ...]:
        """What is known, as long as the installed source still shows it."""
        norm, found = ball.norm, [*super().defects(ball)]
        reach = self._reach()
        if reach is not None and reach < ball.eps:
            message = (
                f"{self.label} moves a value by at most {reach:.4g} (alpha times steps), and eps "
                f"is {ball.eps:.4g}; give it options `alpha` and `steps` that reach it"
            )
            found.append(Warned("torchattacks-short-reach", message))
        if self.name == "AutoAttack" and self._steps("APGD") < _PUBLISHED_STEPS:
            found.append(Warned("torchattacks-autoattack", self._about_autoattack()))
        aimed = self.name == "APGDT" or (
            self.name == "AutoAttack" and self.options.get("version", "standard") != "rand"
        )
        if aimed and norm == "L2" and _line_of(self._sibling("APGDT"), "step_size[0]"):
            message = (
                "torchattacks' APGDT takes in L2 the step size of the first image of a batch for "
                "all of them; use the protocol 'standard'"
            )
            found.append(Warned("torchattacks-apgdt-l2", message))
        return tuple(found)

    def _reach(self) -> float | None:
        """How far fixed steps go; None for an attack without them, or with steps of 0 (its own)."""
        parameters = inspect.signature(self.target()).parameters
        if not {"alpha", "steps"} <= set(parameters):
            return None
        alpha, steps = (
            self.options.get(key, parameters[key].default) for key in ("alpha", "steps")
        )
        if not isinstance(alpha, float | int) or not isinstance(steps, int) or steps < 1:
            return None
        return float(alpha) * steps

    def _about_autoattack(self) -> str:
        steps = ", ".join(f"{name} {self._steps(name)}" for name in ("APGD", "APGDT", "FAB"))
        return (
            f"torchattacks' AutoAttack runs fewer steps than AutoAttack ({steps}, not "
            f"{_PUBLISHED_STEPS}; so since 3.3.0) and aims at all K-1 other classes, not at 9; "
            "its verdict is not AutoAttack's: use the protocol 'standard'"
        )

    def _steps(self, name: str) -> int:
        return int(inspect.signature(self._sibling(name)).parameters["steps"].default)

    def _sibling(self, name: str) -> Any:
        return getattr(import_peer(_LIBRARY, _LIBRARY), name)


def _line_of(kind: Any, words: str) -> str:
    """First line of a class's source that holds some words, "" where there is none."""
    lines = inspect.getsource(kind).splitlines()
    return next((line for line in lines if words in line), "")
