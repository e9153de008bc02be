"""All measures of one tap under one condition, from two sweeps over its features."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.leaps import LeapMeter, Leaps
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import NearestMeter, nearest_vertex
from robust_nc.geometry.nulls import isotropic_null, joint_counts, leap_null
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import TotalScatter
from robust_nc.models.heads import Head

Row = dict[str, Any]

_NO_VERTEX = "undefined: no example of a class with a vertex"
_NO_SPREAD = "undefined: the means coincide, or fewer than two groups have two examples"
_UNDEFINED = {
    "ncc": _NO_VERTEX,
    "nc4": _NO_VERTEX,
    "nc1_cleanref": _NO_SPREAD,
    "nc1_leap_null": _NO_SPREAD,
    "nc1_trace_leap_null": _NO_SPREAD,
    "nc1_landed_null": _NO_SPREAD,
    "nc1_trace_landed_null": _NO_SPREAD,
}

LANDING_BINS, LANDING_RANGE = 40, (-0.5, 1.5)


class Sweep(NamedTuple):
    """One batch at one tap: clean features, features here `(n, D)`, labels, predictions `(n,)`."""

    clean: Tensor
    here: Tensor
    labels: Tensor
    clean_predicted: Tensor
    predicted: Tensor


class TapMeter:
    """Accumulates one tap under one condition; `first` over all batches, then `second`.

    `reference` are the moments of the clean training features by true label: its means are the
    vertices. `condition` is "clean" or what was done to the images; `own` says that the features
    are those that the vertices were made of.
    """

    def __init__(self, reference: Moments, *, condition: str, own: bool) -> None:
        shape = (reference.num_groups, reference.dim)
        self.clean = condition == "clean"
        self._reference = reference
        self._vertices = reference.means
        names = ("true", "predicted") if self.clean else ("true", "predicted", "landed")
        self._moments = {name: Moments(*shape, device=reference.device) for name in names}
        self._projections: dict[str, Projection] = {}
        self._cleanref = Projection(reference)
        self._scatter = TotalScatter(reference.dim)
        self._nearest = NearestMeter(reference, leave_one_out=own)
        self._leaps = None if self.clean else LeapMeter(self._vertices)

    def first(self, batch: Sweep) -> None:
        """Add a batch to everything that needs one pass."""
        for name, groups in self._groups(batch).items():
            self._moments[name].update(batch.here, groups)
        self._nearest.update(batch.here, batch.labels, predictions=batch.predicted)
        self._cleanref.update(batch.here, batch.labels)
        self._scatter.update(batch.here)
        if self._leaps is not None:
            self._leaps.update(
                batch.clean,
                batch.here,
                batch.labels,
                batch.predicted,
                flipped=batch.predicted != batch.clean_predicted,
            )

    def second(self, batch: Sweep) -> None:
        """Add a batch to the exact NC1 of every grouping."""
        for name, groups in self._groups(batch).items():
            if name not in self._projections:
                self._projections[name] = Projection(self._moments[name])
            self._projections[name].update(batch.here, groups)

    def leaps(self) -> Leaps | None:
        """What leaped, or None for clean features."""
        return None if self._leaps is None else self._leaps.compute()

    def rows(self, head: Head | None, *, seed: int) -> list[Row]:
        """All values as rows; `head` is given where its rows live in this feature space."""
        rows = [row for name in self._moments for row in self._collapse_rows(name, head)]
        rows += self._reference_rows()
        leaps = self.leaps()
        if leaps is not None:
            rows += leap_rows(leaps) + self._null_rows(leaps, seed)
        return rows

    def _groups(self, batch: Sweep) -> dict[str, Tensor]:
        groups = {"true": batch.labels, "predicted": batch.predicted}
        if not self.clean:
            groups["landed"] = nearest_vertex(batch.here, self._vertices)
        return groups

    def _collapse_rows(self, grouping: str, head: Head | None) -> list[Row]:
        frame = head.frame() if head is not None else None
        measured = collapse(
            self._moments[grouping],
            projection=self._projections[grouping],
            scatter=self._scatter,
            weight=None if head is None else head.vertices().detach(),
            target=None if frame is None else frame.detach(),
        )
        common = {"grouping": grouping, "vertices": "same", "n": measured.num_examples}
        return [
            common | {"measure": name, "value": value, "note": measured.notes.get(name, "")}
            for name, value in measured.measures().items()
            if name not in {"ncc", "nc4"}
        ]

    def _reference_rows(self) -> list[Row]:
        """Measures against the clean training vertices."""
        common = {"grouping": "true", "vertices": "clean-train", "n": self._cleanref.count}
        values = {
            "ncc": self._nearest.ncc(),
            "nc4": self._nearest.nc4(),
            "nc1_cleanref": self._cleanref.nc1(),
        }
        return [common | _valued(name, value) for name, value in values.items()]

    def _null_rows(self, leaps: Leaps, seed: int) -> list[Row]:
        """NC1 as relabelling alone, and as isotropic noise alone, would make it."""
        landed = self._moments["landed"]
        joint = joint_counts(leaps.labels, leaps.destination, len(self._vertices))
        moved = leap_null(joint, self._vertices)
        noise = isotropic_null(landed, self._vertices, seed=seed)
        common = {"vertices": "clean-train", "n": leaps.num_examples}
        return [
            common | {"grouping": grouping} | _valued(name, value)
            for grouping, name, value in (
                ("true", "nc1_leap_null", moved.nc1),
                ("true", "nc1_trace_leap_null", moved.nc1_trace),
                ("landed", "nc1_landed_null", noise.nc1),
                ("landed", "nc1_trace_landed_null", noise.nc1_trace),
            )
        ]


def _valued(name: str, value: float | None) -> Row:
    return {"measure": name, "value": value, "note": _UNDEFINED[name] if value is None else ""}


def _sizes(leaps: Leaps) -> dict[str, int]:
    """Over how many examples the measures are that are not over all of them."""
    leaped = int((leaps.origin != leaps.destination).sum())
    return dict.fromkeys(("landing_fraction", "landing_median", "off_edge"), len(leaps.t)) | (
        dict.fromkeys(("mean_row_entropy", "nearest_share", "t_selected", "landed"), leaped)
    )


def leap_rows(leaps: Leaps) -> list[Row]:
    """Rates, matrix and landing histogram of one tap."""
    common: Row = {"grouping": "none", "vertices": "clean-train", "n": leaps.num_examples}
    sizes = _sizes(leaps)
    rows = [
        common
        | {"measure": name, "value": value, "note": leaps.notes.get(name, "")}
        | {"n": sizes.get(name, leaps.num_examples)}
        for name, value in leaps.measures().items()
    ]
    rows.append(common | {"measure": "undefined", "value": leaps.undefined})
    for i, line in enumerate(leaps.matrix.tolist()):
        rows += [
            common | {"measure": "leap_matrix", "i": i, "j": j, "value": count}
            for j, count in enumerate(line)
        ]
    low, high = LANDING_RANGE
    counts = torch.histc(leaps.t.double().clamp(low, high), LANDING_BINS, low, high)
    rows += [
        common | {"measure": "landing_histogram", "i": i, "value": count, "n": len(leaps.t)}
        for i, count in enumerate(counts.tolist())
    ]
    return rows
