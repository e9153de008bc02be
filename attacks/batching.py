"""How the items of a call fly: all in lockstep, or in a full batch that is refilled.

>>> import torch
>>> flight = Flight(torch.arange(3), torch.ones(3), torch.arange(3))
>>> _take(flight, torch.tensor([0, 2])).active.tolist()
[0, 2]
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from robust_nc.attacks.items import Work
from robust_nc.attacks.slots import Slots
from robust_nc.runtime import ran_out
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


class Flight(NamedTuple):
    """Items in flight with their state, and those that wait."""

    active: Counts
    state: Any
    pending: Counts


def lockstep(attack: Steps, work: Work, width: int) -> None:
    """Run all items to the end, `width` at a time; no step waits for the device."""
    for items in torch.split(work.queue, width):
        alone = not work.everything.contested and len(items) == work.num_items
        slots = work.everything if alone else work.slots(items)
        state = attack.start(slots)
        for _ in range(attack.rounds):
            state = attack.step(slots, state)
        state = attack.finish(slots, state)
        work.charge(None if alone else items)
        if alone:
            work.points = state.best_points
        else:
            work.settle(items, state)


def refilling(attack: Steps, work: Work, width: int) -> None:
    """Step a full batch; retire what flipped or ended, cancel its siblings, fill up.

    Where memory runs out, half of the batch waits, and begins anew, with the same draws.
    """
    flight = Flight(work.queue[:0], None, work.queue)
    while True:
        flight = _filled(attack, work, width, flight)
        if not len(flight.active):
            return
        advanced = _advanced(attack, work, flight)
        if advanced is None:
            width = len(flight.active) // 2
            flight = _halved(work, width, flight)
        else:
            state, leaving = advanced
            flight = _retired(attack, work, flight._replace(state=state), leaving)


def _advanced(attack: Steps, work: Work, flight: Flight) -> tuple[Any, Flags] | None:
    """Advance, or return None where memory runs out: the traceback holds tensors, and must go."""
    try:
        return _advance(attack, work, flight, patient=flight.active.is_cuda)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error) or len(flight.active) == 1:
            raise
    return None


def _filled(attack: Steps, work: Work, width: int, flight: Flight) -> Flight:
    """Fill free slots with items of examples that still stand."""
    active, state, pending = flight
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
    return Flight(active, state, pending)


def _next(work: Work, active: Tensor, pending: Tensor, free: int) -> tuple[Tensor, Tensor]:
    """Split off what begins: first items of examples of which none is in flight.

    Only where there are no others, siblings fly side by side, and one may have been in vain.
    """
    turns = work.num_items // len(work.points)
    if turns == 1:
        return pending[:free], pending[free:]
    head = pending[: 2 * turns * (len(active) + free)]  # two windows, or all that is left of them
    rows, places = work.examples(head), torch.arange(len(head), device=head.device)
    first = torch.full_like(work.forwards, len(head)).scatter_reduce(0, rows, places, "amin")
    alone = first.index_fill(0, work.examples(active), -1)[rows] == places
    chosen = torch.cat([alone.nonzero().flatten(), (~alone).nonzero().flatten()])[:free]
    waits = torch.ones_like(pending, dtype=torch.bool).index_fill(0, chosen, False)
    return head[chosen], pending[waits]


def _halved(work: Work, width: int, flight: Flight) -> Flight:
    active, state, pending = flight
    work.oracle.drain()
    if work.referee is not None:
        work.referee.batch_size = width
    if active.is_cuda:
        torch.cuda.empty_cache()
    kept = torch.arange(width, device=active.device)
    return Flight(active[:width], _take(state, kept), torch.cat([active[width:], pending]))


def _advance(
    attack: Steps, work: Work, flight: Flight, *, patient: bool = False
) -> tuple[Any, Flags]:
    """Step until some slot has flipped or ended; return the state and which have.

    A `patient` look at the device comes after 1, 2, 4, 8, 10, 10, ... steps.
    """
    slots, state = work.slots(flight.active), flight.state
    leaving = torch.zeros_like(flight.active, dtype=torch.bool)
    patience = 1
    while True:
        for turn in range(patience):
            moved = attack.step(slots, state)
            work.charge(flight.active)
            state = _frozen(state, moved, leaving) if turn else moved
            leaving = state.flipped | (state.step >= attack.rounds)
        if bool(leaving.any()):
            return state, leaving
        patience = min(2 * patience, _PATIENCE) if patient else 1


def _frozen(before: Any, after: Any, ended: Flags) -> Any:
    """Keep the state of slots that ended between two looks."""
    return type(after)._make(
        torch.where(ended.view(-1, *[1] * (old.ndim - 1)), old, new)
        for old, new in zip(before, after, strict=True)
    )


def _retired(attack: Steps, work: Work, flight: Flight, leaving: Flags) -> Flight:
    """Settle what flipped; finish, then settle, what ended, unless a sibling flipped."""
    active, state, pending = flight
    state = state._replace(flipped=work.confirmed(active, state))
    work.settle(active[state.flipped], _take(state, state.flipped))
    ended = leaving & ~state.flipped & (state.step >= attack.rounds)
    ended &= ~work.flipped[work.examples(active)]
    if bool(ended.any()):
        items = active[ended]
        last = attack.finish(work.slots(items), _take(state, ended))
        work.charge(items)
        work.settle(items, last._replace(flipped=work.confirmed(items, last)))
    staying = ~state.flipped & ~ended & ~work.flipped[work.examples(active)]
    if bool(staying.all()):
        return Flight(active, state, pending)
    return Flight(active[staying], _take(state, staying), pending)


def _take(state: Any, rows: Tensor) -> Any:
    return type(state)._make(tensor[rows] for tensor in state)


def _join(first: Any, second: Any) -> Any:
    return type(first)._make(torch.cat(pair) for pair in zip(first, second, strict=True))
