"""More defenses to compare: FGSM with a random start, MART, and adversarial weight perturbation.

>>> import torch
>>> from robust_nc.threat import Ball
>>> from robust_nc.training.losses import cross_entropy
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
>>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])
>>> objective = Mart(Ball("Linf", 0.1), cross_entropy, steps=2)
>>> sorted(objective(model, images, labels, seed=0, ids=torch.arange(3)).logs)
['attacked_correct', 'clean_correct', 'loss']
>>> objective = Awp(Ball("Linf", 0.1), cross_entropy, steps=2)
>>> sorted(objective(model, images, labels, seed=0, ids=torch.arange(3)).logs)
['attacked_correct', 'loss']
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robust_nc.exceptions import ConfigError
from robust_nc.threat import Ball
from robust_nc.training.data_parallel import present
from robust_nc.training.losses import (
    FeatureLoss,
    PerExampleLoss,
    cross_entropy,
    kl_divergence,
)
from robust_nc.training.objectives import (
    BestBy,
    BnMode,
    Outer,
    Pgd,
    Trades,
    batch_norm,
    correct,
    inner_attack,
    logged,
)
from robust_nc.types import Attack, Images, Labels, Logits, Loss, PerExample

_FGSM_STEP = 1.25  # in units of eps, as in the paper


@dataclass(frozen=True)
class Fgsm(Pgd):
    """FGSM from a random start, the one-step case of `Pgd` (Wong, Rice, Kolter, ICLR 2020).

    `step_size` None stands for 1.25 eps; `bn_mode` as for `Pgd`.
    """

    steps: int = field(default=1, init=False)
    random_start: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.step_size is None and self.ball.eps > 0:
            object.__setattr__(self, "step_size", _FGSM_STEP * self.ball.eps)
        super().__post_init__()


@dataclass(frozen=True)
class Mart(Trades):
    """Misclassification-aware training (Wang et al., ICLR 2020).

    BCE(attacked) + beta (1 - p_y(clean)) KL(p(clean) || p(attacked)), with BCE as in
    `boosted_cross_entropy`; gradients flow into every part. The inner attack ascends the
    cross-entropy from 0.001 N(0, 1) around the image, as the authors' code does. There beta is 5
    for ResNet-18 and 6 for WideResNets. MART is a loss itself: any other `loss` than plain
    cross-entropy is refused. `step_size` and `bn_mode` as for `Pgd`.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # What `build_loss` returns is a partial of the function.
        if getattr(self.loss, "func", self.loss) is not cross_entropy:
            raise ConfigError('mart brings its own loss; set train.loss = "ce", or leave it out')

    @cached_property
    def inner(self) -> Attack:
        """The inner attack."""
        return inner_attack("ce", "gaussian", self.steps, self.step_size, self.bn_mode)

    def outer_loss(self, outer: Outer, images: Images, attacked: Images, labels: Labels) -> Loss:
        """Return the loss with `clean_correct` and `attacked_correct`."""
        clean, logits = outer(images, labels), outer.model(attacked)
        doubt = -torch.expm1(-clean.losses)  # 1 - p_y, from the cross-entropy
        divergence = kl_divergence(logits, clean.logits)
        value = boosted_cross_entropy(logits, labels) + self.beta * doubt * divergence
        accuracies = {
            "clean_correct": correct(clean.logits, labels),
            "attacked_correct": correct(logits, labels),
        }
        return logged(value.mean(), accuracies)


def boosted_cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """-log p_y - log(1 - max p_k over k != y), in nats; finite for any finite logits."""
    log_p = logits.float().log_softmax(1)
    label = labels[:, None]
    runner_up = log_p.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    rest = log_p.scatter(1, runner_up, -torch.inf).logsumexp(1)  # log(1 - p of the runner-up)
    return -log_p.gather(1, label)[:, 0] - rest


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
