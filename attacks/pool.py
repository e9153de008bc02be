"""The one loop of all attacks: it fills slots, steps them, retires them, and counts passes.

An attack says how one item of work begins, steps and finishes; an item is an (example, target,
restart), and the state of all items in flight is a NamedTuple of tensors whose first axis is the
slot. With `goal="maximise"` all items run to the end, in lockstep. With `goal="flip"` an example
leaves at its first misclassification, its other items are cancelled, and the free slots are
filled with the next items, so that batches stay full.

>>> import torch
>>> from robust_nc.attacks.pgd import PGD
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> attack = PGD(steps=4)
>>> result = attack.run(
...     model, images, labels, Ball("L2", 0.5), goal="maximise", seed=0, ids=torch.arange(5)
... )
>>> result.forwards.tolist(), result.backwards.tolist()
([5, 5, 5, 5, 5], [4, 4, 4, 4, 4])
"""

import contextlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from robust_nc.attacks.slots import Slots, State
from robust_nc.attacks.work import Work, lay_out
from robust_nc.exceptions import InputError
from robust_nc.runtime import untouched
from robust_nc.threat import Ball
from robust_nc.types import Attacked, Counts, Flags, Goal

Mode = Literal["eval", "as_is"]

S = TypeVar("S", bound=State)


@dataclass(frozen=True, kw_only=True)
class PooledAttack(Generic[S]):
    """Base of the attacks that the pool drives.

    `restarts` per example (and target); `slots` is the batch size of the model passes (None: as
    many as examples are handed in). `mode="eval"` attacks the model in eval mode without a trace;
    `mode="as_is"` leaves its training flags as they are, and lets its buffers change (batch norm
    in train mode): for the inner attack of training, with `bn_mode = "train"`.
    """

    restarts: int = 1
    num_targets: int | None = None
    slots: int | None = None
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise InputError(f"restarts must be at least 1, found {self.restarts}")
        if self.num_targets is not None and self.num_targets < 1:
            raise InputError(f"num_targets must be at least 1, or None, found {self.num_targets}")
        if self.slots is not None and self.slots < 1:
            raise InputError(f"slots must be at least 1, or None, found {self.slots}")
        if self.mode not in ("eval", "as_is"):
            raise InputError(f"mode must be 'eval' or 'as_is', found {self.mode!r}")

    @property
    @abstractmethod
    def rounds(self) -> int:
        """How many steps an item takes."""

    @abstractmethod
    def start(self, slots: Slots) -> S:
        """Return the state of new items."""

    @abstractmethod
    def step(self, slots: Slots, state: S) -> S:
        """Advance every slot by one step."""

    @abstractmethod
    def finish(self, slots: Slots, state: S) -> S:
        """Score the last points of items that have done all their steps."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        *,
        goal: Goal = "flip",
        targets: Tensor | None = None,
        seed: int,
        ids: Tensor,
    ) -> Tensor:
        """Return perturbed images, `(N, C, H, W)`; see `run`."""
        return self.run(
            model, images, labels, ball, goal=goal, targets=targets, seed=seed, ids=ids
        ).points

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        *,
        goal: Goal = "flip",
        targets: Tensor | None = None,
        seed: int,
        ids: Tensor,
    ) -> Attacked:
        """Attack images `(N, C, H, W)` with labels `(N,)`, and count passes per example.

        `targets` is None, `(N,)`, or `(N, T)` to try T targets per example; `ids` `(N,)` key the
        draws. Raises `InputError` for inputs or logits that cannot be used.
        """
        work = lay_out(
            model,
            images,
            labels,
            ball,
            goal=goal,
            targets=targets,
            seed=seed,
            ids=ids,
            restarts=self.restarts,
        )
        width = self.slots or max(len(images), 1)
        with untouched(model) if self.mode == "eval" else contextlib.nullcontext():
            if len(images):
                (_lockstep if goal == "maximise" else _refilling)(self, work, width)
            work.oracle.check()
        return Attacked(work.points, work.forwards, work.backwards)


def _lockstep(attack: PooledAttack[Any], work: Work, width: int) -> None:
    """Run all items to the end, `width` at a time; no step waits for the device."""
    for first in range(0, work.num_items, width):
        items = work.items(first, first + width)
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


def _refilling(attack: PooledAttack[Any], work: Work, width: int) -> None:
    """Step a full batch; retire what flipped or ended, cancel its siblings, fill up."""
    pending = work.items(0, work.num_items)
    active, state, slots = pending[:0], None, work.everything
    while True:
        pending = pending[~work.flipped[work.examples(pending)]]
        fresh, pending = pending[: width - len(active)], pending[width - len(active) :]
        if len(fresh):
            begun = attack.start(work.slots(fresh))
            work.charge(fresh)
            state = begun if state is None else _join(state, begun)
            active = torch.cat([active, fresh])
        if not len(active):
            return
        slots = work.slots(active)
        leaving: Tensor = torch.zeros_like(active, dtype=torch.bool)
        while not leaving.any():
            state = attack.step(slots, state)
            work.charge(active)
            leaving = state.flipped | (state.step >= attack.rounds)
        _retire(attack, work, active[leaving], _take(state, leaving))
        staying = ~leaving & ~work.flipped[work.examples(active)]
        active, state = active[staying], _take(state, staying)


def _retire(attack: PooledAttack[Any], work: Work, items: Counts, state: Any) -> None:
    """Settle items that flipped; finish, then settle, the others unless a sibling flipped."""
    work.settle(items[state.flipped], _take(state, state.flipped))
    ended = ~work.flipped[work.examples(items)]
    items, state = items[ended], _take(state, ended)
    if len(items):
        state = attack.finish(work.slots(items), state)
        work.charge(items)
        work.settle(items, state)


def _take(state: Any, rows: Flags) -> Any:
    return type(state)._make(tensor[rows] for tensor in state)


def _join(first: Any, second: Any) -> Any:
    return type(first)._make(torch.cat(pair) for pair in zip(first, second, strict=True))
