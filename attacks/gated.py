"""An attack for those examples only that the attacks before it have brought near the boundary.

>>> from robust_nc.attacks.pgd import PGD
>>> Gated(PGD(steps=50), above=-0.3).cost(10)
100
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_nc.attacks.base import AttackInputs, BaseRefereedAttack
from robust_nc.attacks.losses import dlr
from robust_nc.attacks.pool import PooledAttack
from robust_nc.exceptions import InputError
from robust_nc.runtime import sent
from robust_nc.types import Attacked, Referee


@dataclass(frozen=True)
class Gated(BaseRefereedAttack):
    """Run `attack` where the DLR loss of the worst point so far is above `above`.

    The loss is blind to the scale of the logits: 0 is the boundary, and -1 as far from it as can be
    with three classes or more. Whether an example passes depends on that example alone. It takes a
    protocol: on its own there is no attack before it, and every example passes.
    """

    attack: PooledAttack[Any]
    above: float

    def __post_init__(self) -> None:
        if not self.above < 0:
            raise InputError(f"above must be below 0, the boundary, found {self.above}")

    @property
    def gradient_free(self) -> bool:
        """Whether the attack asks for no gradients."""
        return self.attack.gradient_free

    def cost(self, num_classes: int) -> int:
        """Passes of an example that passes the gate and that nothing breaks."""
        return self.attack.cost(num_classes)

    def compute_under(self, referee: Referee | None, inputs: AttackInputs) -> Attacked:
        """Try to flip the examples that pass and spare the others; without a referee, all pass."""
        if referee is None:
            return self.attack.compute(inputs)
        near = dlr(referee.worst_logits, inputs.labels, None, None) > self.above
        chosen = near.nonzero().flatten()
        referee.spare((~near).nonzero().flatten())
        mine = _Chosen(referee, chosen.cpu())
        found = self.attack.compute_under(mine, inputs.at(chosen))
        points, none = inputs.images.clone(), torch.zeros_like(inputs.labels)
        return Attacked(
            points.index_copy_(0, chosen, found.points),
            none.index_copy(0, chosen, found.forwards),
            none.index_copy(0, chosen, found.backwards),
        )


def _rows(logits: Tensor, rows: Tensor) -> Tensor:
    return logits.index_select(0, sent(rows, logits.device))


class _Chosen:
    """The referee, for some of the rows of a call, told on the CPU."""

    def __init__(self, referee: Referee, chosen: Tensor) -> None:
        self._referee = referee
        self._chosen = chosen

    @property
    def batch_size(self) -> int:
        return self._referee.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._referee.batch_size = size

    @property
    def logits(self) -> Tensor:
        return _rows(self._referee.logits, self._chosen)

    @property
    def worst_logits(self) -> Tensor:
        return _rows(self._referee.worst_logits, self._chosen)

    def confirm(self, rows: Tensor, points: Tensor) -> Tensor:
        return self._referee.confirm(self._chosen[rows], points)

    def settle(self, rows: Tensor, attacked: Attacked) -> None:
        self._referee.settle(self._chosen[rows], attacked)

    def spare(self, rows: Tensor) -> None:
        self._referee.spare(self._chosen[rows])

    def tick(self, forwards: int, backwards: int) -> None:
        self._referee.tick(forwards, backwards)
