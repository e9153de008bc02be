"""One split seen through one way of making rows of features: its rows, condition by condition.

What passes the network is done shard by shard, in functions that an executor can call anywhere
(`vertices_of`, `swept_once`, `swept_twice`); a `Side` merges what comes back and makes the rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.geometry.alignment import measure_alignment
from robust_nc.geometry.leaps import Leaps
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.portable import moved
from robust_nc.geometry.projection import Projection
from robust_nc.profiling.accumulators import GroupPart, Part, ReferencePart, part_bytes
from robust_nc.profiling.feature_cache import TapBank
from robust_nc.profiling.leap_rows import Context, Given, layer_rows, leap_rows
from robust_nc.profiling.measurement import Condition, Examples, Reference, Subject
from robust_nc.profiling.output_rows import Outputs, output_rows
from robust_nc.profiling.rows import CLEAN, Row, class_rows
from robust_nc.profiling.shards import Crew, Sent, Shard, at_work
from robust_nc.profiling.two_passes import (
    Asked,
    Inputs,
    Job,
    Plan,
    first_sweep,
    rounds,
    second_sweep,
)
from robust_nc.runtime.progress import Report
from robust_nc.runtime.torch_state import device_of

_NOISY = "noisy"
_LEAK = "label_leak: the target follows from the label"
_LEAKING = ("cyclic", "hierarchy")  # targets that are a function of the true label


class Made(NamedTuple):
    """A condition as whoever merges knows it: handles of its `Condition` by shard."""

    name: str
    shards: Sequence[object]
    targeted: bool = False


class Swept(NamedTuple):
    """What the first sweep over a shard leaves: sums, and the network's logits `(n, K)`."""

    parts: list[Part]
    logits: Tensor


def clean_bank(subject: Subject, shard: Shard, feature: str) -> TapBank:
    """Return the shard's bank of clean images, to which conditions are added one at a time."""

    def make() -> TapBank:
        return TapBank(
            subject.model,
            {CLEAN: shard.examples.images},
            feature=feature,
            batch_size=subject.settings.batch_size,
            taps=subject.taps,
            among=shard.among,
        )

    return shard.bank(feature, make)


def vertices_of(
    sent: Sent, subject: Subject, shard: Shard, feature: str, *, report: Report
) -> Reference:
    """Sum up the moments of a shard's clean features by true label, for every tap."""
    subject = subject.of(sent.model)
    with at_work(sent):
        moments: Reference = {}
        for batch in clean_bank(subject, shard, feature).batches(CLEAN):
            for tap, features in batch.features.items():
                if tap not in moments:
                    moments[tap] = Moments(subject.num_classes, features.shape[1])
                moments[tap].update(features, shard.examples.labels[batch.rows])
        return moments


def swept_once(
    sent: Sent,
    subject: Subject,
    shard: Shard,
    reference: Reference,
    condition: Condition,
    feature: str,
    plans: Sequence[Plan],
    expected: int,
    *,
    report: Report,
) -> Swept:
    """Make the first sweep of one round over a shard, of `expected` examples in all."""
    subject = subject.of(sent.model)
    with at_work(sent):
        inputs = _enter(subject, shard, condition, feature)
        reference = moved(reference, device_of(subject.model))
        parts = first_sweep(plans, inputs, reference, seed=subject.seed, expected=expected)
        return Swept(parts, inputs.bank.logits(condition.name))


def swept_twice(
    sent: Sent,
    subject: Subject,
    shard: Shard,
    reference: Reference,
    condition: Condition,
    feature: str,
    asked: Sequence[Asked],
    last: bool,
    *,
    report: Report,
) -> list[Projection]:
    """Make the second sweep of one round; after the last the condition is let go."""
    subject = subject.of(sent.model)
    with at_work(sent):
        inputs = _enter(subject, shard, condition, feature)
        device = device_of(subject.model)
        found = []
        if asked:
            asked = [ask._replace(projection=ask.projection.on(device)) for ask in asked]
            found = second_sweep(asked, inputs, moved(reference, device))
        if last and condition.name != CLEAN:
            inputs.bank.drop({condition.name, *([] if inputs.noisy is None else [_NOISY])})
        return found


def _enter(subject: Subject, shard: Shard, condition: Condition, feature: str) -> Inputs:
    """Put a condition into the shard's bank, where it is not there yet."""
    bank = clean_bank(subject, shard, feature)
    if condition.images is not None:
        bank.hold(condition.name, condition.images)
    if condition.noisy is not None:
        bank.hold(_NOISY, condition.noisy)
    noisy = None if condition.noisy is None else _NOISY
    return Inputs(bank, condition.name, shard.examples.labels, condition.targets, noisy)


class Side:
    """Measures one split; the clean condition comes first.

    Without `reference`, its own clean features by true label make the vertices.
    """

    def __init__(
        self,
        subject: Subject,
        examples: Examples,
        feature: str,
        reference: Reference | None,
        crew: Crew,
    ) -> None:
        self.feature = feature
        self._subject = subject
        self._examples = examples
        self._crew = crew
        self._own = reference is None
        self.reference = self._vertices() if reference is None else reference
        self._clean = torch.empty(0)  # logits, from the clean condition on
        self._means: dict[str, Tensor] = {}
        self._collapse: dict[str, tuple[float | None, ...]] = {}

    def measure(self, made: Made) -> list[Row]:
        """Return all rows of one condition."""
        rows: list[Row] = []
        leaps: dict[str, Leaps] = {}
        noisy: dict[str, Tensor | None] = {}
        chosen = list(rounds(self._plans(made)))
        logits = torch.empty(0)
        for done, plans in enumerate(chosen):
            jobs, logits = self._sweep(plans, made, last=done + 1 == len(chosen))
            for tap, part in jobs:
                rows += [self._place(tap) | row for row in part.rows()]
                if isinstance(part, GroupPart) and part.grouping == "true":
                    rows += self._of_classes(tap, part, made.name)
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
        rows += self._outputs(made.name, logits)
        return [self._noted(row, made.name) for row in rows]

    def _vertices(self) -> Reference:
        """Moments of the clean features by true label, for every tap."""
        shards = self._crew.shards(self._subject, self._examples)
        subject = self._crew.keep(self._subject)
        found = self._crew.each(vertices_of, [(subject, each, self.feature) for each in shards])
        whole: Reference = next(found)
        for moments in found:
            for tap, other in moments.items():
                whole[tap].merge(other)
        return whole

    def _sweep(self, plans: list[Plan], made: Made, *, last: bool) -> tuple[list[Job], Tensor]:
        """Sweep one round over all shards, twice where a part needs it; the logits come along."""
        crew, subject = self._crew, self._crew.keep(self._subject)
        reference = crew.keep(self.reference)
        shards = crew.shards(self._subject, self._examples)
        heads = [
            (subject, shard, reference, condition, self.feature)
            for shard, condition in zip(shards, made.shards, strict=True)
        ]
        expected = len(self._examples.labels)
        parts: list[Part] = []
        logits = []
        for found in crew.each(swept_once, [(*head, plans, expected) for head in heads]):
            logits.append(found.logits)
            if not parts:
                parts = found.parts
                continue
            for whole, other in zip(parts, found.parts, strict=True):
                whole.merge(other)
        jobs = [Job(plan.tap, part) for plan, part in zip(plans, parts, strict=True)]
        self._complete(jobs, heads, last=last)
        return jobs, torch.cat(logits)

    def _complete(
        self, jobs: list[Job], heads: Sequence[tuple[object, ...]], *, last: bool
    ) -> None:
        """Make the second sweep with the means of all shards, and ready the parts for rows."""
        asked: list[Asked] = []
        for tap, part in jobs:
            moments = self.reference[tap]
            part.beside(moments, self._subject.head(tap, moments.dim))
            if isinstance(part, GroupPart):
                asked.append(Asked(tap, part.grouping, part.exact()))
        if asked or last:
            sent = self._crew.lend(asked)
            for found in self._crew.each(swept_twice, [(*head, sent, last) for head in heads]):
                for ask, projection in zip(asked, found, strict=True):
                    ask.projection.merge(projection)

    def _plans(self, made: Made) -> list[Plan]:
        """Plan the parts of every tap: one per grouping, and one against the clean vertices."""
        clean = made.name == CLEAN
        groupings = ["true", "predicted"] + ["landed"] * (not clean)
        groupings += ["target"] * made.targeted
        plans = []
        for tap, moments in self.reference.items():
            size = part_bytes(moments.num_groups, moments.dim)
            plans += [Plan(tap, size, grouping) for grouping in groupings]
            plans.append(Plan(tap, size, None, own=self._own and clean, leaping=not clean))
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
        return None if given is None else Given(given, self._clean.argmax(1))

    def _place(self, tap: str) -> Row:
        return {"tap": tap, "depth": self._subject.depths[tap]}

    def _outputs(self, condition: str, logits: Tensor) -> list[Row]:
        """What the network itself answers on these images."""
        clean = None if condition == CLEAN else self._clean
        if condition == CLEAN:
            self._clean = logits
        return output_rows(Outputs(logits, clean), self._examples.labels, self._subject.distances)

    def _noted(self, row: Row, condition: str) -> Row:
        """Add the columns that all rows of a condition share."""
        if condition in _LEAKING and row.get("grouping") == "true" and not row.get("note"):
            row = row | {"note": _LEAK}
        place = {"split": self._examples.split, "feature": self.feature, "condition": condition}
        return place | row
