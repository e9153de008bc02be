"""Parameters of AutoAttack's attacks by their names there, for the drop-in `AutoAttack`.

>>> [name for name, attack in published("rand", "L2").attacks()]
['apgd-ce', 'apgd-dlr']
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.square import Square
from robust_nc.exceptions import unknown_name
from robust_nc.types import Attack


@dataclass
class ApgdSettings:
    """Parameters of APGD by their names in autoattack; `use_largereps` is for L1."""

    n_restarts: int = 5
    n_iter: int = 100
    eot_iter: int = 1
    rho: float = 0.75
    use_largereps: bool = False
    n_target_classes: int = 9

    def attack(self, loss: str, *, targeted: bool) -> APGD:
        """Return our attack with these parameters."""
        return APGD(
            steps=self.n_iter,
            restarts=self.n_restarts,
            loss=loss,
            rho=self.rho,
            eot=self.eot_iter,
            enlarged=self.use_largereps,
            num_targets=self.n_target_classes if targeted else None,
        )


@dataclass
class FabSettings:
    """Parameters of FAB by their names in autoattack; with targets there is one restart."""

    n_restarts: int = 5
    n_iter: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    n_target_classes: int = 9

    def attack(self, *, targeted: bool) -> FAB:
        """Return our attack with these parameters."""
        return FAB(
            steps=self.n_iter,
            restarts=1 if targeted else self.n_restarts,
            alpha_max=self.alpha_max,
            eta=self.eta,
            beta=self.beta,
            num_targets=self.n_target_classes if targeted else None,
        )


@dataclass
class SquareSettings:
    """Parameters of Square by their names in autoattack."""

    n_restarts: int = 1
    n_queries: int = 5000
    p_init: float = 0.8
    resc_schedule: bool = False

    def attack(self) -> Square:
        """Return our attack with these parameters."""
        return Square(
            queries=self.n_queries,
            restarts=self.n_restarts,
            p_init=self.p_init,
            rescale_schedule=self.resc_schedule,
        )


class Settings(NamedTuple):
    """The attacks to run, by name, and the parameters of all of them."""

    attacks_to_run: tuple[str, ...]
    apgd: ApgdSettings
    apgd_targeted: ApgdSettings
    fab: FabSettings
    square: SquareSettings

    def attacks(self) -> tuple[tuple[str, Attack], ...]:
        """Return our attacks under their names; unknown names are answered with the nearest."""
        for name in self.attacks_to_run:
            if name not in _MAKERS:
                raise unknown_name("attack of AutoAttack", name, _MAKERS)
        return tuple((name, _MAKERS[name](self)) for name in self.attacks_to_run)


_MAKERS: dict[str, Callable[[Settings], Attack]] = {
    "apgd-ce": lambda settings: settings.apgd.attack("ce", targeted=False),
    "apgd-dlr": lambda settings: settings.apgd.attack("dlr", targeted=False),
    "apgd-t": lambda settings: settings.apgd_targeted.attack("dlr", targeted=True),
    "fab": lambda settings: settings.fab.attack(targeted=False),
    "fab-t": lambda settings: settings.fab.attack(targeted=True),
    "square": lambda settings: settings.square.attack(),
}


def published(version: str, norm: str) -> Settings:
    """Return what a version of AutoAttack stands for; "custom" has no attacks yet."""
    settings = Settings(
        (), ApgdSettings(), ApgdSettings(n_restarts=1), FabSettings(), SquareSettings()
    )
    if version not in _VERSIONS:
        raise unknown_name("version of AutoAttack", version, _VERSIONS)
    settings = settings._replace(attacks_to_run=_VERSIONS[version])
    if version == "rand":
        return settings._replace(apgd=ApgdSettings(n_restarts=1, eot_iter=20))
    if version != "standard":
        return settings
    if norm == "L1":
        few = ApgdSettings(n_restarts=1, n_target_classes=5, use_largereps=True)
        return settings._replace(apgd=ApgdSettings(use_largereps=True), apgd_targeted=few)
    return settings._replace(apgd=ApgdSettings(n_restarts=1))


_VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}
