"""Streaming sums of the features of one tap: all that the one-pass measures need.

No D x D matrix is formed and no feature is kept; sums are float64 around a shift near the mean, so
that a common offset of the features changes nothing.

>>> import torch
>>> moments = Moments(2, 3)
>>> moments.update(torch.tensor([[0.0, 0, 1], [0, 0, 3], [4, 0, 0]]), torch.tensor([0, 0, 1]))
>>> moments.counts.tolist(), moments.means[0].tolist(), moments.within.tolist()
([2, 1], [0.0, 0.0, 2.0], [2.0, 0.0])
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch import distributed as dist

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import as_features

_BLOCK = 2**19  # values converted to float64 at a time: 4 MiB stay in the cache
_ROUNDING = 64 * torch.finfo(torch.float64).eps


def blocks(num_rows: int, dim: int, *, scale: int = 1) -> Iterator[slice]:
    """Cut rows so that a float64 copy of one piece stays small; `scale` times as large."""
    step = max(1, scale * _BLOCK // max(dim, 1))
    return (slice(start, start + step) for start in range(0, num_rows, step))


class Groups(NamedTuple):
    """The K' groups of at least two examples, as every formula wants them.

    `kept` (K',) which groups they are, out of `num_labels`; `counts` (K',) float64; `rows`
    (K', D) the means centred at `centre` = mu_U (D,), the unweighted mean of the means; `offset`
    (D,) = mu_G - mu_U, mu_G the mean of the examples of these groups; `within` (K',) sums of
    squared distances from the group's mean. A row that is rounding (1e-14 of the largest value)
    is zero.
    """

    kept: Int[Tensor, " k"]
    counts: Float64[Tensor, " k"]
    rows: Float64[Tensor, "k d"]
    centre: Float64[Tensor, " d"]
    offset: Float64[Tensor, " d"]
    within: Float64[Tensor, " k"]
    num_labels: int

    @classmethod
    def of(
        cls,
        means: Float64[Tensor, "k d"],
        counts: Tensor,
        *,
        within: Float64[Tensor, " k"] | None = None,
        shift: Float64[Tensor, " d"] | None = None,
    ) -> "Groups":
        """Centre means `(K, D)`, given relative to `shift`, of the groups with counts >= 2."""
        kept = (counts >= 2).nonzero().flatten()
        rows = means[kept]
        sizes = counts[kept].double()
        middle = rows.mean(0) if len(kept) else torch.zeros_like(means[0])
        rows -= middle
        centre = middle if shift is None else shift + middle
        sizes_of_rows = torch.linalg.vector_norm(rows, dim=1)
        scale = torch.cat([sizes_of_rows, torch.linalg.vector_norm(centre)[None]]).max()
        rows[sizes_of_rows <= _ROUNDING * scale] = 0
        return cls(
            kept=kept,
            counts=sizes,
            rows=rows,
            centre=centre,
            offset=sizes @ rows / sizes.sum().clamp_min(1),
            within=torch.zeros_like(sizes) if within is None else within[kept],
            num_labels=len(counts),
        )

    @property
    def total(self) -> float:
        """N, the number of examples in these groups."""
        return float(self.counts.sum())

    def weighted_rows(self) -> Float64[Tensor, "k d"]:
        """C_w: the means centred at the mean of all examples, mu_G."""
        rows = self.rows - self.offset
        norms = torch.linalg.vector_norm(rows, dim=1)
        largest = torch.linalg.vector_norm(norms, float("inf")) if len(norms) else 0.0
        rows[norms <= _ROUNDING * largest] = 0
        return rows


class Moments:
    """Counts, sums and sums of squares of features `(n, D)` in groups 0..K-1.

    `device` None: that of the first features. Groups of fewer than two examples are left out of
    `keep`; they have no vertex (a row of NaN in `means`), and `total`, `global_mean` and
    `unweighted_mean` are of the kept groups.
    """

    def __init__(
        self, num_groups: int, dim: int, *, device: torch.device | str | None = None
    ) -> None:
        if num_groups < 1 or dim < 1:
            raise InputError(f"Moments needs num_groups and dim >= 1, found {num_groups}, {dim}")
        self.num_groups = num_groups
        self.dim = dim
        self._follow = device is None
        self._shift: Tensor | None = None
        self._counts = torch.zeros(num_groups, dtype=torch.int64, device=device)
        self._sums = torch.zeros(num_groups, dim, dtype=torch.float64, device=device)
        self._squares = torch.zeros(num_groups, dtype=torch.float64, device=device)

    def update(self, features: Tensor, groups: Tensor) -> None:
        """Add features `(n, D)` with their groups `(n,)`."""
        features = as_features(features, "features", dim=self.dim)
        groups = check_labels(groups, len(features), self.num_groups, what="groups")
        if not len(features):
            return
        if self._shift is None:
            self._begin(features)
        assert self._shift is not None
        groups = groups.to(self.device)
        self._counts += torch.bincount(groups, minlength=self.num_groups)
        for rows in blocks(len(features), self.dim):
            shifted = features[rows].to(self.device) - self._shift
            lengths = torch.linalg.vector_norm(shifted, dim=1).square_()
            self._squares.index_add_(0, groups[rows], lengths)
            self._sums.index_add_(0, groups[rows], shifted)

    def merge(self, other: "Moments") -> "Moments":
        """Add what another accumulator has seen; in place, returns self."""
        if (self.num_groups, self.dim) != (other.num_groups, other.dim):
            raise InputError(
                f"cannot merge moments of (groups, dim) {(other.num_groups, other.dim)} "
                f"into {(self.num_groups, self.dim)}"
            )
        if other._shift is None:
            return self
        if self._shift is None:
            self._to(other.device if self._follow else self.device)
            self._shift = other._shift.to(self.device, copy=True)
        counts, sums, squares = other._around(self._shift.to(other.device))
        self._counts += counts.to(self.device)
        self._sums += sums.to(self.device)
        self._squares += squares.to(self.device)
        return self

    def all_reduce(self) -> "Moments":
        """Merge over all processes of torch.distributed; nothing to do where it is not in use."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        seen = self._counts.sum().double()
        place = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        if self._shift is not None:
            place = self._shift * seen
        packed = torch.cat([place, seen[None]])
        dist.all_reduce(packed)
        if float(packed[-1]) == 0:
            return self
        common = packed[:-1] / packed[-1]
        if self._shift is not None:
            self._counts, self._sums, self._squares = self._around(common)
        self._shift = common
        for tensor in (self._counts, self._sums, self._squares):
            dist.all_reduce(tensor)
        return self

    @property
    def device(self) -> torch.device:
        """Where the sums lie."""
        return self._sums.device

    @property
    def counts(self) -> Tensor:
        """Examples per group, `(K,)` int64."""
        return self._counts.clone()

    @property
    def keep(self) -> Tensor:
        """Groups that enter the measures, those of at least two examples: `(K,)` bool."""
        return self._counts >= 2

    @property
    def means(self) -> Tensor:
        """Group means, the vertices, `(K, D)` float64; NaN for groups that are not kept."""
        means = self._sums / self._counts.clamp_min(1)[:, None]
        if self._shift is not None:
            means += self._shift
        means[~self.keep] = torch.nan
        return means

    @property
    def within(self) -> Tensor:
        """Sum of squared distances from the group's mean, `(K,)` float64."""
        sizes = torch.linalg.vector_norm(self._sums, dim=1).square_()
        within: Tensor = self._squares - sizes / self._counts.clamp_min(1)
        return within.clamp_min(0)

    @property
    def total(self) -> int:
        """Number of examples in kept groups."""
        return int(self._counts[self.keep].sum())

    @property
    def global_mean(self) -> Tensor:
        """mu_G, the mean of the examples of the kept groups, `(D,)` float64."""
        groups = self.groups()
        return groups.centre + groups.offset

    @property
    def unweighted_mean(self) -> Tensor:
        """mu_U, the mean of the means of the kept groups, `(D,)` float64."""
        return self.groups().centre

    @property
    def total_variance(self) -> float:
        """Mean squared distance of the kept examples from mu_G, the trace of Sigma_T."""
        groups = self.groups()
        between = torch.linalg.vector_norm(groups.weighted_rows(), dim=1).square() @ groups.counts
        return float((groups.within.sum() + between) / max(groups.total, 1.0))

    def groups(self) -> Groups:
        """Return the kept groups, centred, as the formulas of the measures want them."""
        means = self._sums / self._counts.clamp_min(1)[:, None]
        return Groups.of(means, self._counts, within=self.within, shift=self._shift)

    def lone(self) -> Tensor:
        """Return the examples that are alone in their group, `(m, D)` float64."""
        lone: Tensor = self._sums[self._counts == 1]
        if self._shift is not None:
            lone += self._shift
        return lone

    def _begin(self, features: Tensor) -> None:
        self._to(features.device if self._follow else self.device)
        first = features[next(blocks(len(features), self.dim))]
        self._shift = first.to(self.device).double().mean(0)

    def _to(self, device: torch.device) -> None:
        self._counts = self._counts.to(device)
        self._sums = self._sums.to(device)
        self._squares = self._squares.to(device)

    def _around(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Counts, sums and squares as they would be around another shift."""
        assert self._shift is not None
        move = self._shift - shift
        counts = self._counts.double()
        sums = self._sums + counts[:, None] * move
        squares = self._squares + 2 * (self._sums @ move) + counts * (move @ move)
        return self._counts.clone(), sums, squares
