"""What one sweep can measure, for conditions of which there are many: radii, corruptions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.leaps import LeapMeter
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import nearest_vertex
from robust_nc.geometry.portable import moved
from robust_nc.profiling.accumulators import part_bytes
from robust_nc.profiling.measurement import Condition, Examples, Reference, Subject
from robust_nc.profiling.rows import CLEAN, Row
from robust_nc.profiling.shards import Crew, Sent, Shard, at_work
from robust_nc.profiling.split_rows import Made, clean_bank
from robust_nc.profiling.two_passes import rounds, twins
from robust_nc.runtime.progress import Report
from robust_nc.runtime.torch_state import device_of


class Tap(NamedTuple):
    """One tap of the sweep."""

    name: str
    reference: Moments

    @property
    def nbytes(self) -> int:
        """Most bytes that its sums hold at a time."""
        return part_bytes(self.reference.num_groups, self.reference.dim)


class TapSums(NamedTuple):
    """What the sweep leaves of one tap: leaps, and moments by true label and where it landed."""

    meter: LeapMeter
    true: Moments
    landed: Moments

    def merge(self, other: "TapSums") -> None:
        """Add the sums of other examples; in place."""
        self.meter.merge(other.meter)
        self.true.merge(other.true)
        self.landed.merge(other.landed)


class Swept(NamedTuple):
    """Sums by tap, and how many examples the network gets right."""

    sums: dict[str, TapSums]
    right: int


class Cheap(NamedTuple):
    """Rows of all taps under one condition, and the network's accuracy."""

    rows: list[Row]
    accuracy: float


def cheap_measures(
    subject: Subject,
    examples: Examples,
    feature: str,
    reference: Reference,
    made: Made,
    crew: Crew,
    measures: tuple[str, ...],
) -> Cheap:
    """Measure one condition, as many taps at a time as memory allows.

    Collapse (trace form) by true label and by the vertex where examples landed; `measures` are
    names of `Leaps`.
    """
    who, vertices = crew.keep(subject), crew.keep(reference)
    pairs = list(zip(crew.shards(subject, examples), made.shards, strict=True))
    chosen = list(rounds([Tap(tap, moments) for tap, moments in reference.items()]))
    rows: list[Row] = []
    right = 0
    for done, taps in enumerate(chosen):
        names, last = [tap.name for tap in taps], done + 1 == len(chosen)
        parts = [(who, shard, vertices, images, feature, names, last) for shard, images in pairs]
        found = crew.each(cheap_shard, parts)
        sums, right = next(found)
        for other in found:
            right += other.right
            for tap, part in other.sums.items():
                sums[tap].merge(part)
        rows += tap_rows(sums, measures)
    return Cheap(rows, right / len(examples.labels))


def cheap_shard(
    sent: Sent,
    subject: Subject,
    shard: Shard,
    reference: Reference,
    condition: Condition,
    feature: str,
    taps: Sequence[str],
    last: bool,
    *,
    report: Report,
) -> Swept:
    """Sweep some taps of a shard, clean and under a condition, which is let go after the last."""
    subject = subject.of(sent.model)
    with at_work(sent):
        bank = clean_bank(subject, shard, feature)
        if condition.images is not None:
            bank.hold(condition.name, condition.images)
        reference = moved(reference, device_of(subject.model))
        sums = {tap: _no_sums(reference[tap]) for tap in taps}
        labels = shard.examples.labels
        for clean, here in twins(bank, condition.name):
            mine = labels[here.rows].to(here.predicted.device)
            for tap, (meter, true, landed) in sums.items():
                features = here.features[tap]
                meter.update(clean.features[tap], features, mine)
                true.update(features, mine)
                landed.update(features, nearest_vertex(features, meter.vertices))
        right = int((bank.predicted(condition.name) == labels).sum())
        if last and condition.name != CLEAN:
            bank.drop({condition.name})
        bare = {tap: each._replace(meter=each.meter.bare()) for tap, each in sums.items()}
        return Swept(bare, right)


def _no_sums(reference: Moments) -> TapSums:
    groups, dim, device = reference.num_groups, reference.dim, reference.device
    true, landed = (Moments(groups, dim, device=device) for _ in range(2))
    return TapSums(LeapMeter(reference.means), true, landed)


def tap_rows(sums: Mapping[str, TapSums], measures: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of all taps: collapse of each, then measures of leaps of each."""
    for tap, part in sums.items():
        for name, moments in (("true", part.true), ("landed", part.landed)):
            found = collapse(moments)
            place = {"tap": tap, "grouping": name, "vertices": "same", "measure": "nc1_trace"}
            note = found.notes.get("nc1_trace", "")
            yield place | {"value": found.nc1_trace, "n": found.num_examples, "note": note}
    for tap, part in sums.items():
        leaps = part.meter.compute()
        common: Row = {"tap": tap, "grouping": "none", "vertices": "clean-train"}
        for name in measures:
            value = {"measure": name, "value": getattr(leaps, name)}
            count = leaps.counts.get(name, leaps.num_examples)
            yield common | value | {"n": count, "note": leaps.notes.get(name, "")}
