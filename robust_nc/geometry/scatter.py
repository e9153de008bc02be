"""Total scatter, for the variability collapse index: the one place with a D x D matrix.

>>> TotalScatter(4096).reason
'needs D <= 2,048, found 4,096'
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import check_features
from robust_nc.geometry.moments import Groups, Moments, blocks
from robust_nc.geometry.portable import Portable

MAX_DIM = 2048
EXAMPLES_PER_DIM = 10


class TotalScatter(Portable):
    """Sum of (h - s)(h - s)^T in float64 around a shift s; holds nothing where D > 2,048.

    Nor where `expected`, the number of examples that there will be, is too few for `vci`: then it
    only counts them.
    """

    def __init__(self, dim: int, *, expected: int | None = None) -> None:
        self.dim = dim
        self.count = 0
        self._holds = dim <= MAX_DIM and (expected is None or expected >= EXAMPLES_PER_DIM * dim)
        self._shift: Tensor | None = None
        self._sums = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(*(2 * [dim if self._holds else 0]), dtype=torch.float64)

    @property
    def reason(self) -> str | None:
        """Why `vci` has no value here, or None if it has."""
        if self.dim > MAX_DIM:
            return f"needs D <= {MAX_DIM:,}, found {self.dim:,}"
        if self.count < EXAMPLES_PER_DIM * self.dim:
            # With N <= D the total scatter spans every example and the index is 0 for any features.
            return (
                f"needs N >= {EXAMPLES_PER_DIM} D examples, found {self.count:,} for {self.dim:,}"
            )
        return None

    def update(self, features: Tensor) -> None:
        """Add features `(n, D)`."""
        check_features(features, dim=self.dim)
        self.count += len(features)
        if not self._holds or not len(features):
            return
        features = features.detach()
        if self._shift is None:
            self._sums = self._sums.to(features.device)
            self._outer = self._outer.to(features.device)
            self._shift = features[next(blocks(len(features), self.dim))].double().mean(0)
        for rows in blocks(len(features), self.dim):
            shifted = features[rows].to(self._outer.device) - self._shift
            self._sums += shifted.sum(0)
            self._outer.addmm_(shifted.T, shifted)

    def merge(self, other: "TotalScatter") -> "TotalScatter":
        """Add what another accumulator has seen; in place, returns self."""
        if self.dim != other.dim:
            raise InputError(f"cannot merge scatter of dim {other.dim} into {self.dim}")
        if self._holds != other._holds:
            raise InputError("cannot merge a scatter that only counts with one that sums")
        self.count += other.count
        if other._shift is None:
            return self
        if self._shift is None:
            self._sums, self._outer = other._sums.clone(), other._outer.clone()
            self._shift = other._shift
            return self
        device = self._outer.device
        move = other._shift.to(device) - self._shift
        sums = other._sums.to(device)
        cross = torch.outer(sums, move)
        self._outer += other._outer.to(device) + cross + cross.T
        self._outer += other.count * torch.outer(move, move)
        self._sums += sums + other.count * move
        return self

    def around(self, centre: Tensor, without: Tensor) -> Float64[Tensor, "d d"]:
        """Sum of (h - centre)(h - centre)^T over all examples but those in the rows `without`."""
        assert self._shift is not None
        rest = without - self._shift
        sums = self._sums - rest.sum(0)
        move = self._shift - centre
        cross = torch.outer(sums, move)
        count = self.count - len(without)
        return self._outer - rest.T @ rest + cross + cross.T + count * torch.outer(move, move)


def variability_indices(groups: Groups, total: Float64[Tensor, "d d"]) -> dict[str, float]:
    """1 - Tr(Sigma_T^+ Sigma_B) / min(D, K'-1) (Xu and Liu, 2023: VCI).

    `total` is N Sigma_T over the examples of the groups. In `vci` Sigma_B weighs classes by their
    examples, around the global mean, as Sigma_T does: it lies in [0, 1], and 0 is full collapse. In
    `vci_unweighted` classes count alike, around the mean of their means: the same on balanced
    classes; on others full collapse is not 0.
    """
    weighted, plain = groups.weighted_rows(), groups.rows
    most = min(weighted.shape[1], len(weighted) - 1)
    values, vectors = torch.linalg.eigh(total)
    large = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
    if most < 1 or not bool((values[-1] > 0) & weighted.any()):
        return dict.fromkeys(("vci", "vci_unweighted"), float("nan"))
    alike = torch.full_like(groups.counts, float(groups.counts.mean()))
    shares = {}
    for name, rows, counts in (
        ("vci", weighted, groups.counts),
        ("vci_unweighted", plain, alike),
    ):
        inside = (rows @ vectors[:, large]).square() / values[large]
        shares[name] = 1 - float(counts @ inside.sum(1)) / most
    return shares | {"vci": min(max(shares["vci"], 0.0), 1.0)}


def vci(moments: Moments, scatter: TotalScatter) -> dict[str, float]:
    """Variability indices of the kept groups; lone examples are taken out of the scatter."""
    lone, groups = moments.lone(), moments.groups()
    if int(moments.counts.sum()) != scatter.count:
        raise InputError(
            f"the scatter has seen {scatter.count} examples and the moments "
            f"{int(moments.counts.sum())}; update both with the same features"
        )
    return variability_indices(groups, scatter.around(groups.centre + groups.offset, lone))
