"""One split seen through one way of making rows of features: its rows, condition by condition."""

from functools import partial

from torch import Tensor

from robust_nc.geometry.alignment import measure_alignment
from robust_nc.geometry.leaps import Leaps
from robust_nc.geometry.moments import Moments
from robust_nc.grid.leap_rows import Context, Given, layer_rows, leap_rows
from robust_nc.grid.meters import GroupPart, ReferencePart, part_bytes
from robust_nc.grid.outputs import Outputs, output_rows
from robust_nc.grid.rounds import Inputs, Plan, rounds, sweep
from robust_nc.grid.rows import CLEAN, Row, class_rows
from robust_nc.grid.subject import Condition, Examples, Reference, Subject
from robust_nc.grid.tapbank import TapBank

_NOISY = "noisy"
_LEAK = "label_leak: the target follows from the label"
_LEAKING = ("cyclic", "hierarchy")  # targets that are a function of the true label


class Side:
    """Measures one split; the clean condition comes first.

    Without `reference`, its own clean features by true label make the vertices.
    """

    def __init__(
        self, subject: Subject, examples: Examples, feature: str, reference: Reference | None
    ) -> None:
        self.bank = TapBank(
            subject.model,
            {CLEAN: examples.images},
            feature=feature,
            batch_size=subject.settings.batch_size,
            taps=subject.taps,
        )
        self.feature = feature
        self._subject = subject
        self._examples = examples
        self._own = reference is None
        self.reference = self._vertices() if reference is None else reference
        self._means: dict[str, Tensor] = {}
        self._collapse: dict[str, tuple[float | None, ...]] = {}

    def measure(self, condition: Condition) -> list[Row]:
        """Return all rows of one condition."""
        inputs = self._enter(condition)
        rows: list[Row] = []
        leaps: dict[str, Leaps] = {}
        noisy: dict[str, Tensor | None] = {}
        for chosen in rounds(self._plans(condition)):
            for tap, part in sweep(chosen, inputs):
                rows += [self._place(tap) | row for row in part.rows()]
                if isinstance(part, GroupPart) and part.grouping == "true":
                    rows += self._of_classes(tap, part, condition.name)
                found = part.leaps() if isinstance(part, ReferencePart) else None
                if isinstance(part, ReferencePart) and found is not None:
                    leaps[tap], noisy[tap] = found, part.noisy()
        for tap, found in leaps.items():
            context = Context(
                self._subject.distances, noisy[tap], self._collapse[tap], self._given()
            )
            rows += [self._place(tap) | row for row in leap_rows(found, context)]
        if leaps:
            rows += layer_rows(leaps, self._subject.depths)
        rows += self._outputs(condition.name)
        self._leave(condition)
        return [self._noted(row, condition.name) for row in rows]

    def _vertices(self) -> Reference:
        """Moments of the clean features by true label, for every tap."""
        shape = self.bank.dims()
        moments = {tap: Moments(self._subject.num_classes, dim) for tap, dim in shape.items()}
        for batch in self.bank.batches(CLEAN):
            for tap, features in batch.features.items():
                moments[tap].update(features, self._examples.labels[batch.rows])
        return moments

    def _enter(self, condition: Condition) -> Inputs:
        if condition.name != CLEAN:
            self.bank.add(condition.name, condition.images)
        if condition.noisy is not None:
            self.bank.add(_NOISY, condition.noisy)
        noisy = None if condition.noisy is None else _NOISY
        labels = self._examples.labels
        return Inputs(self.bank, condition.name, labels, condition.targets, noisy)

    def _leave(self, condition: Condition) -> None:
        if condition.name != CLEAN:
            self.bank.drop({condition.name, *([_NOISY] if condition.noisy is not None else [])})

    def _plans(self, condition: Condition) -> list[Plan]:
        """Plan the parts of every tap: one per grouping, and one against the clean vertices."""
        clean = condition.name == CLEAN
        groupings = ["true", "predicted"] + ["landed"] * (not clean)
        groupings += ["target"] * (condition.targets is not None)
        plans = []
        for tap, moments in self.reference.items():
            head = self._subject.head(tap, moments.dim)
            size = part_bytes(moments.num_groups, moments.dim)
            seed = self._subject.seed
            plans += [
                Plan(tap, size, partial(GroupPart, grouping, moments, head, seed=seed))
                for grouping in groupings
            ]
            whole = partial(ReferencePart, moments, own=self._own and clean, leaping=not clean)
            plans.append(Plan(tap, size, whole))
        return plans

    def _of_classes(self, tap: str, part: GroupPart, condition: str) -> list[Row]:
        """Keep what later conditions are compared with, or compare with it."""
        if condition == CLEAN:
            self._means[tap], self._collapse[tap] = part.means, part.per_class
            return []
        found = measure_alignment(self._means[tap], part.means)
        common: Row = self._place(tap) | {"grouping": "true", "vertices": "same"}
        common |= {"n": len(self._examples.labels)}
        rows = [
            common | {"measure": name, "value": value, "note": found.notes.get(name, "")}
            for name, value in found.measures().items()
        ]
        classes = common | {"measure": "alignment_angle_class"}
        return rows + class_rows(classes, found.angles, part.counts)

    def _given(self) -> Given | None:
        """What training saw, where some labels were wrong."""
        given = self._examples.given
        return None if given is None else Given(given, self.bank.predicted(CLEAN))

    def _place(self, tap: str) -> Row:
        return {"tap": tap, "depth": self._subject.depths[tap]}

    def _outputs(self, condition: str) -> list[Row]:
        """What the network itself answers on these images."""
        clean = None if condition == CLEAN else self.bank.logits(CLEAN)
        outputs = Outputs(self.bank.logits(condition), clean)
        return output_rows(outputs, self._examples.labels, self._subject.distances)

    def _noted(self, row: Row, condition: str) -> Row:
        """Add the columns that all rows of a condition share."""
        if condition in _LEAKING and row.get("grouping") == "true" and not row.get("note"):
            row = row | {"note": _LEAK}
        place = {"split": self._examples.split, "feature": self.feature, "condition": condition}
        return place | row
