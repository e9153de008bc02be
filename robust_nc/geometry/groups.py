"""The groups of one tap as every formula wants them: means around their mean, piece by piece.

A thousand means at D = 65,536 take 500 MiB in float64, so the table that they come from is shared
and its centred rows are made some columns at a time.

>>> import torch
>>> means = torch.tensor([[0.0, 2], [4, 2], [8, 8]], dtype=torch.float64)
>>> groups = Groups.of(means, torch.tensor([4, 2, 2]))
>>> groups.rows[0].tolist(), groups.offset.tolist()
([-4.0, -2.0], [-1.0, -0.5])
>>> torch.equal(groups.gram(), groups.rows @ groups.rows.T)
True
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

_PIECE = 2**18  # values of a piece of centred rows: 2 MiB stay in the cache
_ROUNDING = 64 * torch.finfo(torch.float64).eps


class Groups(NamedTuple):
    """The K' groups of at least two examples.

    `kept` (K',) which groups they are, out of `num_labels`; `counts` (K',) float64; `centre` =
    mu_U (D,), the unweighted mean of the means; `offset` (D,) = mu_G - mu_U, mu_G the mean of the
    examples of these groups; `within` (K',) sums of squared distances from the group's mean;
    `norms` (K',) of the means centred at mu_U, `weighted_norms` at mu_G: 0 where a row is rounding
    (1e-14 of the largest value), and then the row is zero. `table` (K, D) is shared with who made
    it, and must not change as long as the groups are in use.
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
