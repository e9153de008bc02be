"""Feature sets with known geometry."""

import torch
from torch import Tensor

from robust_nc.geometry.measures import Measure
from robust_nc.geometry.moments import Moments


def simplex(num_classes: int, dim: int, *, seed: int = 0) -> Tensor:
    """Rows of an exact simplex in a random orientation, `(K, dim)` float64."""
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return centred @ rotation(max(dim, num_classes), seed=seed)[:num_classes, :dim]


def rotation(dim: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


def clusters(
    counts: list[int], dim: int, *, noise: float = 0.3, seed: int = 0, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gaussian groups around random means, shuffled: features float64 and labels."""
    generator = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(len(counts), dim, generator=generator, dtype=torch.float64)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    scatter = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    return means[labels] + noise * scatter, labels


def _total(moments: Moments) -> float | None:
    return moments.total_variance or None


# A measure from outside, as another package would register it.
TOTAL = Measure("total_of_ours", None, "total", "mean squared distance from the mean", _total)
