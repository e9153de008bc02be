"""Sweep the parts of many taps over one condition, as many at a time as memory allows.

>>> class Heavy(NamedTuple):
...     nbytes: int
>>> [len(part) for part in rounds([Heavy(3), Heavy(3), Heavy(3)], budget=6)]
[2, 1]
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from robust_nc.geometry.moments import Moments
from robust_nc.geometry.projection import Projection
from robust_nc.profiling.accumulators import Batch, Exact, Grouping, GroupPart, Part, ReferencePart
from robust_nc.profiling.feature_cache import TapBank, TapBatch
from robust_nc.profiling.measurement import Reference
from robust_nc.profiling.rows import CLEAN

BUDGET = 2**31  # bytes of sums held at a time; a part that needs more has a round of its own


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=_Sized)


class Plan(NamedTuple):
    """One part of the measures of one tap: that of a grouping, or (None) against the vertices.

    `own`: these features made the vertices; `leaping`: they have clean twins.
    """

    tap: str
    nbytes: int
    grouping: str | None
    own: bool = False
    leaping: bool = False

    def make(self, reference: Moments, *, seed: int, expected: int) -> Part:
        """Make the part, when its round comes; `expected` examples there will be in all."""
        if self.grouping is None:
            return ReferencePart(reference, own=self.own, leaping=self.leaping)
        return GroupPart(self.grouping, reference, None, seed=seed, expected=expected)


class Job(NamedTuple):
    """A part and the tap whose features it takes."""

    tap: str
    part: Part


class Asked(NamedTuple):
    """What the second sweep is to fill: the exact NC1 of a tap and grouping."""

    tap: str
    grouping: str
    projection: Projection


class Inputs(NamedTuple):
    """The examples of a condition: names of their images in the bank, and `(N,)` each.

    `noisy` names the images with noise on top of the attack; `targets` are those of the attack.
    """

    bank: TapBank
    condition: str
    labels: Tensor
    targets: Tensor | None
    noisy: str | None


def rounds(jobs: Sequence[S], *, budget: int = BUDGET) -> Iterator[list[S]]:
    """Cut jobs, in order, into rounds within the budget."""
    chosen: list[S] = []
    for job in jobs:
        if chosen and sum(each.nbytes for each in (*chosen, job)) > budget:
            yield chosen
            chosen = []
        chosen.append(job)
    if chosen:
        yield chosen


def first_sweep(
    plans: Sequence[Plan], inputs: Inputs, reference: Reference, *, seed: int, expected: int
) -> list[Part]:
    """Pass the features of a condition through the parts of one round; they come back bare."""
    jobs = [
        Job(plan.tap, plan.make(reference[plan.tap], seed=seed, expected=expected))
        for plan in plans
    ]
    for batch in _batches(inputs):
        for job in jobs:
            job.part.first(batch[job.tap])
    return [job.part.bare() for job in jobs]


def second_sweep(asked: Sequence[Asked], inputs: Inputs, reference: Reference) -> list[Projection]:
    """Pass the features once more, for those parts that need it; returns bare projections."""
    exact = [
        (ask.tap, Exact(Grouping.by(ask.grouping, reference[ask.tap]), ask.projection.fresh()))
        for ask in asked
    ]
    for batch in _batches(inputs, second=True):
        for tap, each in exact:
            each.second(batch[tap])
    return [each.projection.bare() for _, each in exact]


def twins(bank: TapBank, condition: str) -> Iterator[tuple[TapBatch, TapBatch]]:
    """Yield the batches of the clean images, each beside that of a condition."""
    if condition == CLEAN:
        yield from ((batch, batch) for batch in bank.batches(CLEAN))
    else:
        yield from zip(bank.batches(CLEAN), bank.batches(condition), strict=True)


def _batches(inputs: Inputs, *, second: bool = False) -> Iterator[dict[str, Batch]]:
    """Yield batches of a condition by tap; in the second sweep with nothing beside them."""
    bank = inputs.bank
    pairs: Iterator[tuple[TapBatch, TapBatch]]
    if second:
        pairs = ((here, here) for here in bank.batches(inputs.condition))
    else:
        pairs = twins(bank, inputs.condition)
    if second or inputs.noisy is None:
        for clean, here in pairs:
            yield _by_tap(inputs, clean, here, None)
    else:
        for (clean, here), noisy in zip(pairs, bank.batches(inputs.noisy), strict=True):
            yield _by_tap(inputs, clean, here, noisy)


def _by_tap(
    inputs: Inputs, clean: TapBatch, here: TapBatch, noisy: TapBatch | None
) -> dict[str, Batch]:
    device = here.predicted.device
    targets = None if inputs.targets is None else inputs.targets[here.rows].to(device)
    labels = inputs.labels[here.rows].to(device)
    return {
        tap: Batch(
            clean=clean.features[tap],
            here=here.features[tap],
            noisy=None if noisy is None else noisy.features[tap],
            labels=labels,
            clean_predicted=clean.predicted,
            predicted=here.predicted,
            target=targets,
        )
        for tap in inputs.bank.taps
    }
