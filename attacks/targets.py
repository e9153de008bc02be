"""Which classes a targeted attack aims at.

>>> import torch
>>> logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
>>> likely_targets(logits, torch.tensor([1]), 2)
tensor([[0, 2]])
"""

import torch
from torch import Tensor

from robust_nc.types import Labels, Logits


def likely_targets(logits: Logits, labels: Labels, count: int) -> Tensor:
    """Return the min(count, K - 1) most likely classes beside the label, `(N, T)`, best first.

    The choice of targets of AutoAttack (Croce and Hein, ICML 2020, section 4). Equal logits are
    taken in the order of the classes.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    ranked = others.argsort(dim=1, descending=True, stable=True)
    return ranked[:, : min(count, logits.shape[1] - 1)]


def as_columns(targets: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """Return targets `(N,)` or `(N, T)` as `(N, T)` on the device, or None."""
    if targets is None:
        return None
    return targets.to(device).reshape(count, targets.shape[1] if targets.ndim == 2 else 1)
