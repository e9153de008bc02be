"""Streaming sums of the features of one tap: all that the one-pass measures need.

No D x D matrix is formed and no feature is kept; sums are float64 around a shift near the mean, so
that a common offset of the features changes nothing. On a CPU they are the same to the bit from run
to run; on CUDA, where rows of a group are added in any order, to the rounding of float64 sums.

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
from robust_nc.geometry.portable import Portable

# Values converted to float64 at a time: 2 MiB stay in the cache, and the allocator keeps them,
# where the pages of a larger piece are given back and cleared again for the next.
_BLOCK = 2**18
_PIECE = 2**18  # values of a piece of centred rows: 2 MiB stay in the cache
_ROUNDING = 64 * torch.finfo(torch.float64).eps


def blocks(num_rows: int, dim: int, *, scale: int = 1) -> Iterator[slice]:
    """Cut rows so that a float64 copy of one piece stays small; `scale` times as large."""
    step = max(1, scale * _BLOCK // max(dim, 1))
    return (slice(start, start + step) for start in range(0, num_rows, step))


class Shifted:
    """Cuts features into float64 pieces around a shift, in memory that is used again and again.

    A piece holds until the next is asked for. Fresh memory for each would be cleared by the system
    first, depending on the state of the allocator: that takes up to four times the sums themselves.
    """

    def __init__(self) -> None:
        self._scratch: Tensor | None = None

    def __getstate__(self) -> dict[str, None]:
        """Leave the memory behind where it is pickled or copied."""
        return {"_scratch": None}

    def pieces(self, features: Tensor, shift: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows, and `features[rows] - shift` on the device of the shift `(D,)`."""
        for rows in blocks(*features.shape):
            part = features[rows].to(shift.device)
            scratch = self._scratch
            if scratch is None or len(scratch) < len(part) or scratch.device != shift.device:
                self._scratch = scratch = torch.empty_like(part, dtype=torch.float64)
            yield rows, torch.sub(part, shift, out=scratch[: len(part)])


class Groups(NamedTuple):
    """The K' groups of at least two examples.

    `kept` (K',) which groups they are, out of `num_labels`; `counts` (K',) float64; `centre` =
    mu_U (D,), the unweighted mean of the means; `offset` (D,) = mu_G - mu_U, mu_G the mean of the
    examples of these groups; `within` (K',) sums of squared distances from the group's mean;
    `norms` (K',) of the means centred at mu_U, `weighted_norms` at mu_G: 0 where a row is rounding
    (1e-14 of the largest value), and then the row is zero. `table` (K, D) is shared with who made
    it, and must not change as long as the groups are in use: a thousand means at D = 65,536 take
    500 MiB in float64, so that centred rows are made some columns at a time.

    >>> means = torch.tensor([[0.0, 2], [4, 2], [8, 8]], dtype=torch.float64)
    >>> groups = Groups.of(means, torch.tensor([4, 2, 2]))
    >>> groups.rows[0].tolist(), groups.offset.tolist()
    ([-4.0, -2.0], [-1.0, -0.5])
    >>> torch.equal(groups.gram(), groups.rows @ groups.rows.T)
    True
    """

    kept: Int[Tensor, " k"]
    counts: Float64[Tensor, " k"]
    centre: Float64[Tensor, " d"]
    offset: Float64[Tensor, " d"]
    within: Float64[Tensor, " k"]
    norms: Float64[Tensor, " k"]
    weighted_norms: Float64[Tensor, " k"]
    num_labels: int
    table: Float64[Tensor, "n d"]
    divisors: Float64[Tensor, " k"]
    middle: Float64[Tensor, " d"]

    @classmethod
    def of(
        cls,
        means: Float64[Tensor, "n d"],
        counts: Tensor,
        *,
        within: Float64[Tensor, " n"] | None = None,
        shift: Float64[Tensor, " d"] | None = None,
        sums: bool = False,
    ) -> "Groups":
        """Centre means `(K, D)`, given relative to `shift`, of the groups with counts >= 2.

        `sums`: they are sums, to be divided by the counts.
        """
        kept = (counts >= 2).nonzero().flatten()
        sizes, nothing = counts[kept].double(), torch.zeros_like(means[0])
        groups = cls(
            kept=kept,
            counts=sizes,
            centre=nothing if shift is None else shift,
            offset=nothing,
            within=torch.zeros_like(sizes) if within is None else within[kept],
            norms=torch.ones_like(sizes),
            weighted_norms=torch.ones_like(sizes),
            num_labels=len(counts),
            table=means,
            divisors=sizes if sums else torch.ones_like(sizes),
            middle=nothing,
        )
        return groups._centred(shift) if len(kept) else groups

    def _centred(self, shift: Tensor | None) -> "Groups":
        """Find the mean, then the rows that are rounding, then the offset, then those at mu_G."""
        middle = torch.cat([piece.mean(0) for _, piece in self.pieces()])
        centre = middle if shift is None else shift + middle
        groups = self._replace(middle=middle, centre=centre)
        scale = torch.linalg.vector_norm(centre)
        groups = groups._replace(norms=_without_rounding(groups._sizes(), scale))
        shares = self.counts / self.counts.sum()
        offset = torch.cat([shares @ piece for _, piece in groups.pieces()])
        groups = groups._replace(offset=offset)
        norms = _without_rounding(groups._sizes(weighted=True), torch.zeros_like(scale))
        return groups._replace(weighted_norms=norms)

    def _sizes(self, *, weighted: bool = False) -> Float64[Tensor, " k"]:
        """Norms of the rows as the pieces have them."""
        sizes = [
            torch.linalg.vector_norm(piece, dim=1) for _, piece in self.pieces(weighted=weighted)
        ]
        norms: Tensor = torch.linalg.vector_norm(torch.stack(sizes), dim=0)
        return norms

    @property
    def total(self) -> float:
        """N, the number of examples in these groups."""
        return float(self.counts.sum())

    def pieces(self, *, weighted: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Yield columns and the rows there, `(K', c)`: centred at mu_U, or `weighted` at mu_G."""
        groups, dim = len(self.kept), self.table.shape[1]
        zero = (self.norms == 0).nonzero().flatten()
        zero_weighted = (self.weighted_norms == 0).nonzero().flatten()
        step = max(1, _PIECE // max(groups, 1))
        for start in range(0, dim, step):
            columns = slice(start, start + step)
            rows = self.table[:, columns]
            rows = rows[self.kept] if groups < len(rows) else rows
            rows = (rows / self.divisors[:, None]).sub_(self.middle[columns])
            rows[zero] = 0
            if weighted:
                rows -= self.offset[columns]
                rows[zero_weighted] = 0
            yield columns, rows

    def _whole(self, *, weighted: bool = False) -> Float64[Tensor, "k d"]:
        whole = self.table.new_empty(len(self.kept), self.table.shape[1])
        for columns, piece in self.pieces(weighted=weighted):
            whole[:, columns] = piece
        return whole

    @property
    def rows(self) -> Float64[Tensor, "k d"]:
        """C: the means centred at mu_U, made anew (K' x D float64) at each use."""
        return self._whole()

    def weighted_rows(self) -> Float64[Tensor, "k d"]:
        """C_w: the means centred at the mean of all examples, mu_G; made anew as well."""
        return self._whole(weighted=True)

    def gram(self, *, weighted: bool = False) -> Float64[Tensor, "k k"]:
        """C C^T, or `weighted` C_w C_w^T."""
        gram = self.table.new_zeros(2 * [len(self.kept)])
        for _, piece in self.pieces(weighted=weighted):
            gram.addmm_(piece, piece.T)
        return gram

    def nearest(self, features: Tensor) -> Int[Tensor, " n"]:
        """Return the label of the nearest mean of each row of `(n, D)`, as `nearest_vertex`."""
        logits = -self.norms.square().expand(len(features), -1) / 2
        for columns, piece in self.pieces():
            logits.addmm_(features[:, columns].to(piece.device) - self.centre[columns], piece.T)
        return self.kept[logits.argmax(1)]


def _without_rounding(norms: Tensor, scale: Tensor) -> Float64[Tensor, " k"]:
    """Norms, 0 where one is rounding beside the largest of them and `scale`."""
    largest = torch.maximum(norms.max(), scale)
    return torch.where(norms <= _ROUNDING * largest, 0.0, norms)


class Moments(Portable):
    """Counts, sums and sums of squares of features `(n, D)` in groups 0..K-1.

    `device` None: that of the first features. Groups of fewer than two examples are left out of
    `keep`; they have no vertex (a row of NaN in `means`), and `total`, `global_mean` and
    `unweighted_mean` are of the kept groups. `edition` counts the changes of the sums.
    """

    def __init__(
        self, num_groups: int, dim: int, *, device: torch.device | str | None = None
    ) -> None:
        if num_groups < 1 or dim < 1:
            raise InputError(f"Moments needs num_groups and dim >= 1, found {num_groups}, {dim}")
        self.num_groups = num_groups
        self.dim = dim
        self.edition = 0
        self._follow = device is None
        self._shift: Tensor | None = None
        self._shifted = Shifted()
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
        self.edition += 1
        self._counts += torch.bincount(groups, minlength=self.num_groups)
        for rows, shifted in self._shifted.pieces(features, self._shift):
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
        move = other._shift.to(self.device) - self._shift
        counts, sums = other._counts.to(self.device), other._sums.to(self.device)
        self._squares += other._squares.to(self.device) + _moved(sums, counts, move)
        self._counts += counts
        self._sums.add_(sums).addr_(counts.double(), move)
        self.edition += 1
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return what was added, on the CPU: for `load` of an accumulator that goes on from it."""
        sums = {"counts": self._counts, "sums": self._sums, "squares": self._squares}
        if self._shift is not None:
            sums["shift"] = self._shift
        return {name: tensor.detach().cpu() for name, tensor in sums.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` returned, instead of what was added here."""
        self._counts, self._sums, self._squares = (
            tensors[name].to(self.device, copy=True) for name in ("counts", "sums", "squares")
        )
        shift = tensors.get("shift")
        self._shift = None if shift is None else shift.to(self.device, copy=True)
        self.edition += 1

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
            move = self._shift - common
            self._squares += _moved(self._sums, self._counts, move)
            self._sums.addr_(self._counts.double(), move)
        self._shift = common
        self.edition += 1
        for tensor in (self._counts, self._sums, self._squares):
            dist.all_reduce(tensor)
        return self

    @property
    def device(self) -> torch.device:
        """Where the sums lie."""
        return self._sums.device

    @property
    def nbytes(self) -> int:
        """Bytes of the sums: 8 K D and a little."""
        return sum(part.nbytes for part in (self._counts, self._sums, self._squares))

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
        between = groups.weighted_norms.square() @ groups.counts
        return float((groups.within.sum() + between) / max(groups.total, 1.0))

    def groups(self) -> Groups:
        """Return the kept groups, centred, as the formulas want them; they share the sums."""
        return Groups.of(self._sums, self._counts, within=self.within, shift=self._shift, sums=True)

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


def _moved(sums: Tensor, counts: Tensor, move: Tensor) -> Tensor:
    """Return what sums of squares gain from a shift that lies `move` further back."""
    gain: Tensor = 2 * (sums @ move) + counts * (move @ move)
    return gain
