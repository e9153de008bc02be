"""Feature sets with known geometry."""

from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

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


def reduce_moments(rank: int, world: int, folder: str) -> None:
    """One process of a group: each sees its share, all must end with the whole."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    features, labels = clusters([9, 20, 0, 5], 4)
    whole = Moments(4, 4)
    whole.update(features + 1e3, labels)
    shares = ([slice(0, 11), slice(11, None)], [slice(None), slice(0, 0)])
    for share in shares:
        own = Moments(4, 4)
        own.update(features[share[rank]] + 1e3, labels[share[rank]])
        own.all_reduce()
        assert torch.equal(own.counts, whole.counts)
        torch.testing.assert_close(own.means, whole.means, equal_nan=True, rtol=1e-13, atol=0)
        torch.testing.assert_close(own.within, whole.within, rtol=1e-11, atol=0)
    assert Moments(2, 2).all_reduce().total == 0
    dist.destroy_process_group()
    Path(folder, f"done-{rank}").touch()


def _total(moments: Moments) -> float | None:
    return moments.total_variance or None


# A measure from outside, as another package would register it.
TOTAL = Measure("total_of_ours", None, "total", "mean squared distance from the mean", _total)
