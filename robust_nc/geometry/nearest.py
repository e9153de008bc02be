"""The nearest vertex of each example, and how good a classifier that makes.

>>> import torch
>>> vertices = torch.tensor([[0.0, 0], [2, 0]], dtype=torch.float64)
>>> nearest_vertex(torch.tensor([[0.9, 5.0], [1.1, 5.0]]), vertices).tolist()
[0, 1]
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.inputs import check_features
from robust_nc.geometry.moments import Moments, blocks
from robust_nc.geometry.portable import Portable
from robust_nc.types import Features, Labels, Vertices


class Centred(NamedTuple):
    """Vertices around their mean: `shift` s (D,), `rows` mu_k - s (K, D), `bias` -|row|^2/2 (K,).

    A class without a vertex has a row of zeros and a bias of -inf.
    """

    shift: Float[Tensor, " d"]
    rows: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]


def centre(vertices: Vertices) -> Centred:
    """Centre vertices `(K, D)` at their mean; a class without one is a row of NaN."""
    absent = torch.isnan(vertices).any(1)
    shift = vertices.nanmean(0)
    rows = vertices - shift  # the one copy: K x D is large at a thousand classes
    rows[absent] = 0
    bias = -torch.linalg.vector_norm(rows, dim=1).square() / 2
    return Centred(shift, rows, bias.masked_fill(absent, -torch.inf))


def vertex_logits(features: Features, vertices: Vertices) -> Float[Tensor, "n k"]:
    """Logits (h - s).(mu_k - s) - |mu_k - s|^2 / 2 with s the mean vertex.

    They order the classes as -|h - mu_k|^2 does, which loses 0.1 of margin in float32 at
    D = 65,536. A class without a vertex (a row of NaN) gets -inf. Differentiable in the features;
    the caller chooses the precision of both.
    """
    centred = centre(vertices)
    return (features - centred.shift) @ centred.rows.T + centred.bias


def nearest_vertex(features: Features, vertices: Vertices) -> Labels:
    """Index of the nearest vertex of each example, `(n,)` int64, computed in float64."""
    centred = centre(vertices.double())
    pieces = [
        ((features[rows] - centred.shift) @ centred.rows.T + centred.bias).argmax(1)
        for rows in blocks(len(features), features.shape[1], scale=4)
    ]
    nobody = torch.zeros(0, dtype=torch.int64, device=features.device)
    return torch.cat([*pieces, nobody])


def leave_one_out(
    logits: Float64[Tensor, "n k"],
    own_squared: Float64[Tensor, " n"],
    labels: Labels,
    counts: Float64[Tensor, " k"],
) -> Float64[Tensor, "n k"]:
    """Vertex logits as if each example had not entered the mean of its own class.

    Without h the mean of its class of n lies n/(n-1) times as far from h; `own_squared` is its
    squared distance from the full mean. Otherwise pure noise scores 100 % where D exceeds N.
    """
    counts = counts[labels]
    further = (counts / (counts - 1)).square() - 1
    change = torch.zeros_like(logits)
    change.scatter_(1, labels[:, None], (own_squared * further / 2)[:, None])
    return logits - change


class NearestMeter(Portable):
    """Counts where the nearest vertex is the label (`ncc`) or not what the network says (`nc4`).

    `leave_one_out` is for features that the moments have seen: then `ncc` leaves each example out
    of its own vertex, and examples of groups that are not kept out of the count.
    """

    against = ("_centred",)

    def __init__(self, moments: Moments, *, leave_one_out: bool) -> None:
        self._centred: Centred | None = centre(moments.means)
        self._counts = moments.counts.double()
        self._present = moments.keep
        self._leave_one_out = leave_one_out
        self._seen = self._correct = self._compared = self._differ = 0

    def update(
        self, features: Tensor, labels: Tensor, *, predictions: Tensor | None = None
    ) -> None:
        """Add features `(n, D)`, labels `(n,)` and, for `nc4`, the network's predictions `(n,)`."""
        centred = self._centred
        if centred is None:
            raise InputError("a bare meter has no vertices; it can be merged and read only")
        groups, dim = centred.rows.shape
        check_features(features, dim=dim)
        device = centred.rows.device
        labels = check_labels(labels, len(features), groups, what="labels").to(device)
        if predictions is not None:
            predictions = check_labels(predictions, len(features), what="predictions").to(device)
        if not bool(self._present.any()):
            return
        for rows in blocks(len(features), dim, scale=4):
            shifted = features[rows].detach().to(device) - centred.shift
            logits = shifted @ centred.rows.T + centred.bias
            if predictions is not None:
                self._compared += len(logits)
                self._differ += int((logits.argmax(1) != predictions[rows]).sum())
            sizes = torch.linalg.vector_norm(shifted, dim=1).square()
            self._count(sizes, logits, labels[rows])

    def _count(self, sizes: Tensor, logits: Tensor, labels: Tensor) -> None:
        if self._leave_one_out:
            kept = self._present[labels]
            sizes, logits, labels = sizes[kept], logits[kept], labels[kept]
            own = sizes - 2 * logits.gather(1, labels[:, None])[:, 0]
            logits = leave_one_out(logits, own.clamp_min(0), labels, self._counts)
        self._seen += len(labels)
        self._correct += int((logits.argmax(1) == labels).sum())

    def merge(self, other: "NearestMeter") -> "NearestMeter":
        """Add what another meter of the same vertices has counted; in place, returns self."""
        if self._leave_one_out != other._leave_one_out:
            raise InputError("cannot merge a leave-one-out count with a plain one")
        self._seen += other._seen
        self._correct += other._correct
        self._compared += other._compared
        self._differ += other._differ
        return self

    @property
    def counted(self) -> tuple[int, int]:
        """Examples behind `ncc` and behind `nc4`."""
        return self._seen, self._compared

    def ncc(self) -> float | None:
        """Accuracy of the nearest-vertex classifier; None without examples."""
        return self._correct / self._seen if self._seen else None

    def nc4(self) -> float | None:
        """Rate at which nearest vertex and network disagree; None without predictions."""
        return self._differ / self._compared if self._compared else None
