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
from robust_nc.grid.tapbank import TapBank

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
    """Pass the features of a condition twice through the parts of one round."""
    jobs = [Job(plan.tap, plan.make()) for plan in plans]
    for batch in _batches(inputs):
        for job in jobs:
            job.part.first(batch[job.tap])
    for batch in _batches(inputs):
        for job in jobs:
            job.part.second(batch[job.tap])
    return jobs


def _batches(inputs: Inputs) -> Iterator[dict[str, Batch]]:
    """Yield batches of a condition beside their clean twins, by tap."""
    bank, here_name = inputs.bank, inputs.condition
    noisy_batches = iter(bank.batches(inputs.noisy)) if inputs.noisy else None
    for clean, here in zip(bank.batches("clean"), bank.batches(here_name), strict=True):
        device = here.predicted.device
        noisy = None if noisy_batches is None else next(noisy_batches).features
        targets = None if inputs.targets is None else inputs.targets[here.rows].to(device)
        yield {
            tap: Batch(
                clean=clean.features[tap],
                here=here.features[tap],
                noisy=None if noisy is None else noisy[tap],
                labels=inputs.labels[here.rows].to(device),
                clean_predicted=clean.predicted,
                predicted=here.predicted,
                target=targets,
            )
            for tap in bank.taps
        }
