"""What an attack climbs: one value per example, higher is better for the attacker.

Every loss has one signature: logits `(N, K)`, labels `(N,)`, targets `(N,)` or None for an
untargeted attack, and reference logits `(N, K)` that only some losses read (`NEEDS_REFERENCE`).

>>> import torch
>>> logits = torch.tensor([[2.0, 1.0, -1.0]])
>>> float(LOSSES["margin"](logits, torch.tensor([0]), None, None))
-1.0
>>> float(LOSSES["margin"](logits, torch.tensor([0]), torch.tensor([2]), None))
-3.0
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nc.exceptions import InputError
from robust_nc.types import Labels, Logits, PerExample

AttackLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

_TINY = 1e-12
DLR_CLASSES = 3  # one more where there is a target


def ce(
    logits: Logits, labels: Labels, targets: Labels | None, reference: Logits | None
) -> PerExample:
    """Cross-entropy of the label; targeted: minus the cross-entropy of the target."""
    if targets is None:
        return F.cross_entropy(logits, labels, reduction="none")
    return -F.cross_entropy(logits, targets, reduction="none")


def margin(
    logits: Logits, labels: Labels, targets: Labels | None, reference: Logits | None
) -> PerExample:
    """Largest other logit minus the label's; targeted: the target's logit minus the label's.

    Positive means misclassified (Carlini and Wagner, 2017, without the hinge).
    """
    rival = _largest_other(logits, labels) if targets is None else _pick(logits, targets)
    return rival - _pick(logits, labels)


def dlr(
    logits: Logits, labels: Labels, targets: Labels | None, reference: Logits | None
) -> PerExample:
    """Difference of logits ratio, blind to shift and scale (Croce and Hein, ICML 2020, eq. 6, 7).

    The margin over z_1 - z_3 (logits sorted); targeted over z_1 - (z_3 + z_4) / 2. With fewer than
    3 classes, or 4 if targeted, that ratio does not exist, and the value is the margin itself.
    """
    needed = DLR_CLASSES if targets is None else DLR_CLASSES + 1
    gap = margin(logits, labels, targets, None)
    if logits.shape[1] < needed:
        return gap
    top = logits.topk(needed, dim=1).values
    span = top[:, 0] - top[:, 2:].mean(1)
    return gap / span.clamp_min(_TINY)


def kl(
    logits: Logits, labels: Labels, targets: Labels | None, reference: Logits | None
) -> PerExample:
    """KL(softmax of the reference || softmax of the logits) (TRADES, Zhang et al., 2019, eq. 5)."""
    if targets is not None:
        raise InputError("the loss 'kl' has no targeted form; use 'ce', 'margin' or 'dlr'")
    assert reference is not None
    wanted = reference.log_softmax(1)
    return (wanted.exp() * (wanted - logits.log_softmax(1))).sum(1)


LOSSES: dict[str, AttackLoss] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}

NEEDS_REFERENCE = frozenset({"kl"})


def _pick(logits: Logits, classes: Labels) -> PerExample:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _largest_other(logits: Logits, labels: Labels) -> PerExample:
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1)
