"""Adversarial weight perturbation: a step from the worst weights nearby (AWP).

>>> import torch
>>> from robust_nc.training.losses import cross_entropy
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
>>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])
>>> objective = Awp(Ball("Linf", 0.1), cross_entropy, steps=2)
>>> sorted(objective(model, images, labels, seed=0, ids=torch.arange(3)).logs)
['attacked_correct', 'loss']
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robust_nc.exceptions import ConfigError
from robust_nc.threat import Ball
from robust_nc.training.data_parallel import present
from robust_nc.training.losses import FeatureLoss, PerExampleLoss
from robust_nc.training.objectives import BestBy, BnMode, Outer, Pgd, Trades, batch_norm
from robust_nc.types import Images, Labels, Loss

_TINY = 1e-20


@dataclass(frozen=True)
class Awp:
    """`pgd` or `trades` with its weights perturbed (Wu, Xia, Wang, NeurIPS 2020).

    The images are attacked at the weights w. Then w moves once up the loss of the base, each tensor
    w_l of more than one dimension by gamma |w_l| g_l / |g_l| (g_l: its gradient), and the gradient
    there is the gradient of the step, which is taken from w itself; loss and accuracy are those at
    the moved weights. The authors' code has gamma 0.01 for PGD and 0.005 for TRADES, for which it
    begins after ten epochs; here it begins at once. `beta` (default 6) is an option of `trades`
    alone; the rest as for `Pgd`. Of a compiled model only the inner attack runs compiled.
    """

    ball: Ball
    loss: PerExampleLoss | FeatureLoss
    base: Literal["pgd", "trades"] = "pgd"
    gamma: float = 0.005
    beta: float | None = None
    steps: int = 10
    step_size: float | None = None
    bn_mode: BnMode = "eval"
    best_by: ClassVar[BestBy] = "validation_attacked"
    in_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ConfigError(f"gamma must be at least 0, found {self.gamma}")
        if self.base == "pgd" and self.beta is not None:
            raise ConfigError('beta is an option of base = "trades"; leave it out with "pgd"')
        _ = self.of_base  # which checks the rest

    @cached_property
    def of_base(self) -> Pgd | Trades:
        """The objective whose weights are perturbed."""
        if self.base == "pgd":
            return Pgd(self.ball, self.loss, self.steps, self.step_size, True, self.bn_mode)
        beta = 6.0 if self.beta is None else self.beta
        return Trades(self.ball, self.loss, beta, self.steps, self.step_size, self.bn_mode)

    def __call__(
        self, model: nn.Module, images: Images, labels: Labels, *, seed: int, ids: Tensor
    ) -> Loss:
        """Return the loss with `attacked_correct`, and with `clean_correct` for `trades`."""
        # Weights that are no parameters would be compiled again; the module itself takes them.
        plain: nn.Module = getattr(model, "_orig_mod", model)
        with batch_norm(model, self.bn_mode):
            attacked = self.of_base.inner(
                model, images, labels, self.ball, goal="maximise", seed=seed, ids=ids
            )
            moved = self._moved(plain, images, attacked, labels)
            loss: Loss = functional_call(
                _Step(plain, self.of_base), moved, (images, attacked, labels)
            )
        return loss

    def _moved(
        self, model: nn.Module, images: Images, attacked: Images, labels: Labels
    ) -> dict[str, Tensor]:
        """Return the perturbed weights by name, still functions of the model's own."""
        step = _Step(model, self.of_base, observe=False)
        weights = {
            name: parameter
            for name, parameter in step.named_parameters()
            if parameter.requires_grad and parameter.ndim > 1
        }
        here = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        # Batch norm learns from the step that counts, not from this one.
        buffers = {name: buffer.clone() for name, buffer in step.named_buffers()}
        loss: Loss = functional_call(step, here | buffers, (images, attacked, labels))
        slopes = present().slopes(loss.value, list(here.values()))
        return {
            name: weight + self.gamma * _of_its_length(slope, weight.detach())
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
            if slope is not None
        }


class _Step(nn.Module):
    """The outer step of `Pgd` or `Trades` as a module: what to descend, on images once attacked."""

    def __init__(self, model: nn.Module, base: Pgd | Trades, *, observe: bool = True) -> None:
        super().__init__()
        self.outer = Outer(model, base.loss, observe=observe)
        self.base = base

    def forward(self, images: Images, attacked: Images, labels: Labels) -> Loss:
        """Return the base's loss and accuracies."""
        return self.base.outer_loss(self.outer, images, attacked, labels)


def _of_its_length(slope: Tensor, weight: Tensor) -> Tensor:
    """Return the slope, scaled to the length of the weight; zero where the slope is."""
    ratio: Tensor = torch.linalg.vector_norm(weight) / torch.linalg.vector_norm(slope).clamp_min(
        _TINY
    )
    return slope * ratio
