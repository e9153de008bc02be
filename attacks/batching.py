"""How the items of a call fly: all in lockstep, or in a full batch that is refilled.

>>> import torch
>>> class Place(NamedTuple):
...     step: Tensor
>>> _take(Place(torch.tensor([4, 5, 6])), torch.tensor([0, 2])).step.tolist()
[4, 6]
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from robust_nc.attacks.items import Work
from robust_nc.attacks.slots import Slots
from robust_nc.runtime import ran_out, sent
from robust_nc.types import Counts, Flags

_PATIENCE = 10  # most steps between two looks at a device; on a CPU a look costs nothing


@runtime_checkable
class Steps(Protocol):
    """The part of an attack that flies."""

    @property
    def rounds(self) -> int:
        """How many steps an item takes."""

    def start(self, slots: Slots) -> Any:
        """Return the state of new items."""

    def step(self, slots: Slots, state: Any) -> Any:
        """Advance every slot by one step."""

    def finish(self, slots: Slots, state: Any) -> Any:
        """Score the last points."""


class Advanced(NamedTuple):
    """A flight at a look: as it was at the last one, as it is, and which slots have flipped."""

    before: "Flight"
    flight: "Flight"
    flips: Flags


class Flight(NamedTuple):
    """Items in flight with their state and steps so far, and those that wait.

    The state lies on the device, all else on the CPU.
    """

    active: Counts
    state: Any
    steps: Counts
    pending: Counts


def lockstep(attack: Steps, work: Work, width: int) -> None:
    """Run all items to the end, `width` at a time; no step waits for the device."""
    work.oracle.hasty = work.points.device.type != "cpu"
    for items in torch.split(work.queue, width):
        alone = not work.everything.contested and len(items) == work.num_items
        slots = work.everything if alone else work.slots(items)
        state = _to_the_end(attack, slots)
        if work.oracle.hasty and work.oracle.flags(state.flipped) is None:
            state = _to_the_end(attack, slots)
        work.charge(None if alone else items)
        if alone:
            work.points = state.best_points
        else:
            work.settle(items, state)


def _to_the_end(attack: Steps, slots: Slots) -> Any:
    state = attack.start(slots)
    for _ in range(attack.rounds):
        state = attack.step(slots, state)
    return attack.finish(slots, state)


def refilling(attack: Steps, work: Work, width: int) -> None:
    """Step a full batch; retire what flipped or ended, cancel its siblings, fill up.

    Where memory runs out, half of the batch waits, and begins anew, with the same draws.
    """
    work.oracle.hasty = work.points.device.type != "cpu"
    none = work.queue[:0]
    flight = Flight(none, None, none, work.queue)
    while True:
        flight = _filled(attack, work, width, flight)
        if not len(flight.active):
            return
        advanced = _advanced(attack, work, flight)
        if advanced is None:
            width = len(flight.active) // 2
            flight = _halved(work, width, flight)
        else:
            flight = _retired(attack, work, advanced)


def _advanced(attack: Steps, work: Work, flight: Flight) -> Advanced | None:
    """Advance, or return None where memory runs out: the traceback holds tensors, and must go."""
    try:
        return _advance(attack, work, flight, patient=work.points.device.type != "cpu")
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error) or len(flight.active) == 1:
            raise
    return None


def _filled(attack: Steps, work: Work, width: int, flight: Flight) -> Flight:
    """Fill free slots with items of examples that still stand."""
    active, state, steps, pending = flight
    free = width - len(active)
    if not free or not len(pending):
        return flight
    pending = pending[~work.flipped[work.examples(pending)]]
    fresh, pending = _next(work, active, pending, free)
    if len(fresh):
        begun = attack.start(work.slots(fresh))
        work.charge(fresh)
        state = begun if not len(active) else _join(state, begun)
        active = torch.cat([active, fresh])
        steps = torch.cat([steps, torch.zeros_like(fresh)])
    return Flight(active, state, steps, pending)


def _next(work: Work, active: Tensor, pending: Tensor, free: int) -> tuple[Tensor, Tensor]:
    """Split off what begins: first items of examples of which none is in flight.

    Only where there are no others, siblings fly side by side, and one may have been in vain.
    """
    turns = work.num_items // len(work.forwards)
    if turns == 1:
        return pending[:free], pending[free:]
    head = pending[: 2 * turns * (len(active) + free)]  # two windows, or all that is left of them
    rows, places = work.examples(head), torch.arange(len(head))
    first = torch.full_like(work.forwards, len(head)).scatter_reduce(0, rows, places, "amin")
    alone = first.index_fill(0, work.examples(active), -1)[rows] == places
    chosen = torch.cat([alone.nonzero().flatten(), (~alone).nonzero().flatten()])[:free]
    waits = torch.ones_like(pending, dtype=torch.bool).index_fill(0, chosen, False)
    return head[chosen], pending[waits]


def _halved(work: Work, width: int, flight: Flight) -> Flight:
    active, state, steps, pending = flight
    work.oracle.drain()
    if work.referee is not None:
        work.referee.batch_size = width
    if work.points.is_cuda:
        torch.cuda.empty_cache()
    kept = _take(state, torch.arange(width))
    return Flight(active[:width], kept, steps[:width], torch.cat([active[width:], pending]))


def _advance(attack: Steps, work: Work, flight: Flight, *, patient: bool = False) -> Advanced:
    """Step until some slot has flipped or ended.

    A `patient` look at the device comes after 1, 2, 4, 8, 10, 10, ... steps, and where a slot ends.
    What has flipped by then has gone on, but keeps its point. Where haste was wrong, the steps
    since the last look are taken again.
    """
    slots = work.slots(flight.active)
    patience = 1
    while True:
        before, state = flight, flight.state
        count = min(patience, attack.rounds - int(flight.steps.max()))
        for _ in range(count):
            state = attack.step(slots, state)
            work.charge(flight.active)
        flips = work.oracle.flags(state.flipped)
        if flips is None:
            continue
        flight = flight._replace(state=state, steps=flight.steps + count)
        if bool(flips.any()) or int(flight.steps.max()) >= attack.rounds:
            return Advanced(before, flight, flips)
        patience = min(2 * patience, _PATIENCE) if patient else 1


def _retired(attack: Steps, work: Work, advanced: Advanced) -> Flight:
    """Settle what flipped; finish, then settle, what ended, unless a sibling flipped."""
    right = work.confirmed(advanced.flight.active, advanced.flight.state, advanced.flips)
    active, state, steps, pending = _denied(advanced, right)
    rows = right.nonzero().flatten()
    if len(rows):
        work.settle(active[rows], _take(state, rows), right[rows])
    ended = ~right & (steps >= attack.rounds) & ~work.flipped[work.examples(active)]
    rows = ended.nonzero().flatten()
    if len(rows):
        items = active[rows]
        last = attack.finish(work.slots(items), _take(state, rows))
        work.charge(items)
        work.settle(items, last, work.confirmed(items, last, last.flipped.cpu()))
    staying = ~right & ~ended & ~work.flipped[work.examples(active)]
    rows = staying.nonzero().flatten()
    return Flight(active[rows], _take(state, rows), steps[rows], pending)


def _denied(advanced: Advanced, right: Flags) -> Flight:
    """Let slots go on whose flip the referee denied: where that was some steps ago, from before.

    There the next look comes after one step, so that in the end it is asked at each step, as it is
    on a CPU.
    """
    before, flight, flips = advanced
    rows = (flips & ~right).nonzero().flatten()
    if not len(rows):
        return flight
    if int((flight.steps - before.steps).max()) == 1:
        flipped = sent(right, flight.state.flipped.device)
        return flight._replace(state=flight.state._replace(flipped=flipped))
    there = sent(rows, flight.state.step.device)
    state = type(flight.state)._make(
        new.index_copy(0, there, old.index_select(0, there))
        for old, new in zip(before.state, flight.state, strict=True)
    )
    return flight._replace(state=state, steps=flight.steps.index_copy(0, rows, before.steps[rows]))


def _take(state: Any, rows: Tensor) -> Any:
    """Rows, on the CPU, of the state of all slots."""
    if len(rows) == len(state.step):
        return state
    rows = sent(rows, state.step.device)
    return type(state)._make(tensor.index_select(0, rows) for tensor in state)


def _join(first: Any, second: Any) -> Any:
    return type(first)._make(torch.cat(pair) for pair in zip(first, second, strict=True))
