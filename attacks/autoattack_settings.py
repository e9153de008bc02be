"""Parameters of AutoAttack's attacks by their names there, for the drop-in `AutoAttack`.

>>> FabSettings(n_restarts=2).attack(targeted=False).restarts
2
"""

from dataclasses import dataclass

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.square import Square


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
