"""More defenses to compare: FGSM with a random start, and MART.

>>> import torch
>>> from robust_nc.threat import Ball
>>> from robust_nc.training.losses import cross_entropy
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
>>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])
>>> objective = Mart(Ball("Linf", 0.1), cross_entropy, steps=2)
>>> sorted(objective(model, images, labels, seed=0, ids=torch.arange(3)).logs)
['attacked_correct', 'clean_correct', 'loss']
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from robust_nc.exceptions import ConfigError
from robust_nc.training.losses import (
    cross_entropy,
    kl_divergence,
)
from robust_nc.training.objectives import (
    Outer,
    Pgd,
    Trades,
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
