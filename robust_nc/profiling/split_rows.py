"""One split seen through one way of making rows of features: its rows, condition by condition."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from robust_nc.geometry.alignment import measure_alignment
from robust_nc.geometry.leaps import Leaps
from robust_nc.geometry.projection import Projection
from robust_nc.profiling.accumulators import (
    ClassMeter,
    ExactMeter,
    GroupMeter,
    TapMeter,
    VertexMeter,
    part_bytes,
    rounds,
)
from robust_nc.profiling.leap_rows import layer_rows, leap_rows
from robust_nc.profiling.measurement import ATTACKED, CLEAN, VertexMoments, head_rows
from robust_nc.profiling.rows import (
    Row,
    class_rows,
    group_rows,
    measured_rows,
    output_rows,
    pair_rows,
    valued,
    vertex_rows,
)
from robust_nc.profiling.shards import SplitCondition, SplitShards

_LEAK = "label_leak: the target follows from the label"
_PAIRED = (CLEAN, ATTACKED)  # conditions whose class means are told pair by pair
_LEAKING = ("cyclic", "hierarchy")  # targets that are a function of the true label


class SplitRows:
    """Measures one split; the clean condition comes first.

    Without `vertices`, its own clean features by true label make them.
    """

    def __init__(
        self, split: SplitShards, feature: str, vertices: VertexMoments | None = None
    ) -> None:
        self.feature = feature
        self._split = split
        self._measurement = split.measurement
        self._own = vertices is None
        self.vertices = self._clean_moments() if vertices is None else vertices
        self._clean = torch.empty(0)  # logits, from the clean condition on
        self._means: dict[str, Tensor] = {}
        self._collapse: dict[str, tuple[float | None, ...]] = {}

    def measure(self, condition: SplitCondition) -> list[Row]:
        """Return all rows of one condition, as many meters at a time as memory allows."""
        rows: list[Row] = []
        leaps: dict[str, Leaps] = {}
        noisy: dict[str, Tensor | None] = {}
        chosen = list(rounds(self._meters(condition)))
        logits, gradients = torch.empty(0), (0, 0)
        for done, some in enumerate(chosen, 1):
            swept = self._split.sweep(condition, self.feature, some, self.vertices, last=False)
            logits, gradients = swept.logits, swept.gradients
            exact = self._exact(condition, some, swept.meters, last=done == len(chosen))
            for (tap, *_), meter in zip(some, swept.meters, strict=True):
                if isinstance(meter, GroupMeter):
                    found = self._of_group(tap, meter, exact[tap, meter.grouping], condition.name)
                else:
                    leaped = meter.leaps()
                    if leaped is not None:
                        leaps[tap], noisy[tap] = leaped, meter.noisy()
                    found = vertex_rows(meter, leaped, self.vertices[tap].means)
                rows += [self._place(tap) | row for row in found]
        for tap, leaped in leaps.items():
            found = leap_rows(
                leaped,
                self._collapse[tap],
                distances=self._measurement.distances,
                noisy=noisy[tap],
                given=self._split.examples.given,
                predicted=self._clean.argmax(1),
            )
            rows += [self._place(tap) | row for row in found]
        if leaps:
            rows += layer_rows(leaps, self._measurement.depths)
        rows += self._outputs(condition.name, logits)
        if gradients[1]:
            share = {"value": gradients[1] / gradients[0], "n": gradients[0]}
            rows.append({"tap": "output", "measure": "unusable_gradients"} | share)
        return [self._noted(row, condition.name) for row in rows]

    def _clean_moments(self) -> VertexMoments:
        """Moments of the clean features by true label, for every tap."""
        make = partial(ClassMeter, num_classes=self._measurement.num_classes)
        meters = [TapMeter(tap, make) for tap in self._measurement.taps]
        found = self._split.sweep(self._split.clean(), self.feature, meters).meters
        return {
            tap: meter.moments
            for tap, meter in zip(self._measurement.taps, found, strict=True)
            if meter.moments is not None
        }

    def _meters(self, condition: SplitCondition) -> list[TapMeter]:
        """Plan the meters of every tap: one per grouping, and one against the clean vertices."""
        clean = condition.name == CLEAN
        groupings = ["true", "predicted"] + ["landed"] * (not clean)
        groupings += ["target"] * condition.targeted
        expected = len(self._split.examples.labels)
        meters = []
        for tap, moments in self.vertices.items():
            size = part_bytes(moments.num_groups, moments.dim)
            for grouping in groupings:
                make = partial(GroupMeter, grouping=grouping, expected=expected)
                meters.append(TapMeter(tap, make, size))
            against = partial(VertexMeter, own=self._own and clean, leaping=not clean)
            meters.append(TapMeter(tap, against, size))
        return meters

    def _exact(
        self,
        condition: SplitCondition,
        some: Sequence[TapMeter],
        meters: Sequence[GroupMeter | VertexMeter],
        *,
        last: bool,
    ) -> dict[tuple[str, str], ExactMeter]:
        """Sweep once more for the exact NC1 of the groupings, onto the means of all shards."""
        wanted: dict[tuple[str, str], TapMeter] = {}
        for (tap, *_), meter in zip(some, meters, strict=True):
            if isinstance(meter, GroupMeter):
                onto = Projection(meter.moments)
                own = meter.moments if meter.grouping == "true" else None
                make = partial(ExactMeter, grouping=meter.grouping, onto=onto, own=own)
                wanted[tap, meter.grouping] = TapMeter(tap, make)
        if not wanted and not last:
            return {}
        found = self._split.sweep(
            condition, self.feature, [*wanted.values()], self.vertices, again=True, last=last
        )
        return dict(zip(wanted, found.meters, strict=True))

    def _of_group(
        self, tap: str, meter: GroupMeter, exact: ExactMeter, condition: str
    ) -> list[Row]:
        """Rows of one grouping; by label and by target also against the clean ones."""
        moments, projection = meter.moments, exact.projection
        shape = (moments.num_groups, moments.dim)
        weight, frame = head_rows(self._split.executor.model, self._measurement, tap, shape)
        vertices, seed = self.vertices[tap].means, self._measurement.seed
        rows = group_rows(meter, projection, vertices, weight=weight, frame=frame, seed=seed)
        common: Row = {"grouping": meter.grouping, "vertices": "same"}
        if exact.nearest is not None:
            own = valued("nc4_own", exact.nearest.nc4(), {})
            rows.append(common | own | {"n": exact.nearest.counted[1]})
        if tap == "penultimate" and condition in _PAIRED and meter.grouping == "true":
            rows += pair_rows(common, moments)
        if condition == CLEAN and meter.grouping == "true":
            self._means[tap], self._collapse[tap] = moments.means, projection.per_group()
        if condition == CLEAN or meter.grouping not in {"true", "target"}:
            return rows
        found = measure_alignment(self._means[tap], moments.means)
        common |= {"n": len(self._split.examples.labels)}
        rows += measured_rows(common, found.measures(), found.notes)
        classes = common | {"measure": "alignment_angle_class"}
        return rows + class_rows(classes, found.angles, moments.counts.tolist())

    def _place(self, tap: str) -> Row:
        return {"tap": tap, "depth": self._measurement.depths[tap]}

    def _outputs(self, condition: str, logits: Tensor) -> list[Row]:
        """What the network itself answers on these images."""
        clean = None if condition == CLEAN else self._clean
        if condition == CLEAN:
            self._clean = logits
        labels = self._split.examples.labels
        return output_rows(logits, labels, self._measurement.distances, clean=clean)

    def _noted(self, row: Row, condition: str) -> Row:
        """Add the columns that all rows of a condition share."""
        if condition in _LEAKING and row.get("grouping") == "true" and not row.get("note"):
            row = row | {"note": _LEAK}
        place = {"split": self._split.examples.split, "feature": self.feature}
        return place | {"condition": condition} | row
