"""Training losses, one value per example: `(logits (N, K), labels (N,)) -> (N,)`.

>>> import torch
>>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == [torch.tensor(4.0).log()] * 2
True
"""

import functools
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from robust_nc.config import Component, check_options
from robust_nc.registry import LOSSES
from robust_nc.types import Labels, Logits, PerExample

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """-log softmax(logits)_y, in nats; float32 whatever the precision of the logits."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def squared_error(logits: Logits, labels: Labels) -> PerExample:
    """Mean over the K classes of (logit - one-hot)^2, in float32."""
    target = F.one_hot(labels, logits.shape[1]).float()
    return (logits.float() - target).square().mean(1)


def kl_divergence(logits: Logits, reference: Logits) -> PerExample:
    """KL(softmax(reference) || softmax(logits)) in nats; gradients flow into both."""
    p = F.log_softmax(reference.float(), 1)
    return (p.exp() * (p - F.log_softmax(logits.float(), 1))).sum(1)


def build_loss(part: Component) -> PerExampleLoss:
    """Return the registered loss with its options fixed; raises `ConfigError` for a wrong one."""
    options = check_options(LOSSES, part, ("logits", "labels"))
    loss: PerExampleLoss = functools.partial(LOSSES.load(part.name), **options)
    return loss
