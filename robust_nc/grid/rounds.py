"""Sweep the parts of many taps over one condition, as many at a time as memory allows.

>>> class Heavy(NamedTuple):
...     nbytes: int
>>> [len(part) for part in rounds([Heavy(3), Heavy(3), Heavy(3)], budget=6)]
[2, 1]
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from robust_nc.grid.meters import Batch, Part
from robust_nc.grid.rows import CLEAN
from robust_nc.grid.tapbank import TapBank, TapBatch

BUDGET = 2**31  # bytes of sums held at a time; a part that needs more has a round of its own


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=_Sized)


class Plan(NamedTuple):
    """One part of the measures of one tap, to be made when its round comes."""

    tap: str
    nbytes: int
    make: Callable[[], Part]


class Job(NamedTuple):
    """A part and the tap whose features it takes."""

    tap: str
    part: Part


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


def sweep(plans: Sequence[Plan], inputs: Inputs) -> list[Job]:
    """Pass the features of a condition through the parts of one round, twice where one needs it."""
    jobs = [Job(plan.tap, plan.make()) for plan in plans]
    for batch in _batches(inputs):
        for job in jobs:
            job.part.first(batch[job.tap])
    for batch in _batches(inputs, second=True):
        for job in jobs:
            job.part.second(batch[job.tap])
    return jobs


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
