"""The work of one call: its items, the passes they cost, and the best point of each example.

>>> import torch
>>> from robust_nc.attacks.base import checked_inputs
>>> from robust_nc.threat import Ball
>>> inputs = checked_inputs(
...     torch.nn.Flatten(), torch.rand(3, 1, 1, 2), torch.tensor([0, 1, 0]), Ball("L2", 0.1),
...     "flip", None, 0, torch.tensor([7, 8, 9]),
... )
>>> work = lay_out(
...     Oracle(inputs.model), inputs, targets=None, restarts=2, window=2
... )
>>> slots = work.slots(work.queue)
>>> slots.ids.tolist(), slots.restarts.tolist()
([7, 8, 7, 8, 9, 9], [0, 0, 1, 1, 0, 1])
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robust_nc.attacks.base import AttackInputs
from robust_nc.attacks.model_calls import Oracle
from robust_nc.attacks.slots import Slots, State
from robust_nc.types import Attacked, Counts, Flags, Labels, Logits, Referee


@dataclass
class Work:
    """All items of one call, and what is known of each example so far.

    Item i stands for example i % N; i // N counts its (restart, target) pairs, targets fastest.
    `queue` is the order in which items begin: window by window of examples, so that the items of
    one example are not far apart.
    """

    everything: Slots
    targets: Tensor | None
    queue: Counts
    points: Tensor
    best_loss: Tensor
    remaining: Tensor
    forwards: Tensor
    backwards: Tensor
    referee: Referee | None = None

    @property
    def oracle(self) -> Oracle:
        """The oracle that all items ask."""
        return self.everything.oracle

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.queue)

    @property
    def flipped(self) -> Flags:
        """Whether each example has left with a misclassified point (`goal="flip"` only)."""
        return self.best_loss == torch.inf

    def examples(self, items: Counts) -> Counts:
        """The example that each item is about."""
        return items % len(self.points)

    def slots(self, items: Counts) -> Slots:
        """Gather the rows of some items."""
        whole, count = self.everything, len(self.points)
        rows, turn = items % count, items // count
        columns = 1 if self.targets is None else self.targets.shape[1]
        return replace(
            whole,
            images=whole.images[rows],
            labels=whole.labels[rows],
            targets=None if self.targets is None else self.targets[rows, turn % columns],
            ids=whole.ids[rows],
            restarts=turn // columns,
        )

    def charge(self, items: Counts | None) -> None:
        """Book the passes since the last call to the examples of these items (None: to each)."""
        spent = self.oracle.drain()
        if items is None:
            self.forwards += spent.forwards
            self.backwards += spent.backwards
            return
        rows = self.examples(items)
        self.forwards.index_add_(0, rows, torch.full_like(items, spent.forwards))
        self.backwards.index_add_(0, rows, torch.full_like(items, spent.backwards))
        if self.referee is not None:
            self.referee.tick(spent.forwards * len(items), spent.backwards * len(items))

    def confirmed(self, items: Counts, state: State) -> Flags:
        """Which of these items have flipped, in the eyes of the referee if there is one."""
        if self.referee is None or not bool(state.flipped.any()):
            return state.flipped
        flips = state.flipped.nonzero().flatten()
        right = self.referee.confirm(self.examples(items[flips]), state.best_points[flips])
        return torch.zeros_like(state.flipped).index_put((flips,), right)

    def settle(self, items: Counts, state: State) -> None:
        """Take over the points of items that left, where they beat what the example had.

        A flip beats any loss. Between equals the lowest item wins, so that a device that writes
        duplicates in any order changes nothing. Examples that are finished go to the referee.
        """
        rows = self.examples(items)
        loss = torch.where(state.flipped, torch.inf, state.best_loss)
        top = self.best_loss.scatter_reduce(0, rows, loss, "amax")
        wins = (loss == top[rows]) & (loss > self.best_loss[rows])
        claims = torch.where(wins, items, self.num_items)
        first = torch.full_like(self.forwards, self.num_items)
        chosen = wins & (first.scatter_reduce(0, rows, claims, "amin")[rows] == items)
        self.points[rows[chosen]] = state.best_points[chosen]
        before, self.best_loss = self.flipped, top
        self.remaining.index_add_(0, rows, torch.full_like(rows, -1))
        if self.referee is not None:
            mine = torch.zeros_like(before).index_fill(0, rows, True)
            ended = (mine & ~before & (self.flipped | (self.remaining == 0))).nonzero().flatten()
            if len(ended):
                told = (self.points[ended], self.forwards[ended], self.backwards[ended])
                self.referee.settle(ended, Attacked(*told))


def lay_out(
    oracle: Oracle,
    inputs: AttackInputs,
    *,
    targets: Tensor | None,
    restarts: int,
    window: int | None = None,
    referee: Referee | None = None,
) -> Work:
    """Lay out the items of a call; `targets` is None or `(N, T)`."""
    images, labels = inputs.images, inputs.labels
    count, device = len(images), images.device
    columns = 1 if targets is None else targets.shape[1]
    everything = Slots(
        images=images.detach(),
        labels=labels,
        targets=None if targets is None else targets[:, 0],
        ids=inputs.ids,
        restarts=torch.zeros_like(labels),
        ball=inputs.ball,
        seed=inputs.seed,
        goal=inputs.goal,
        contested=restarts * columns > 1,
        oracle=oracle,
    )
    return Work(
        everything=everything,
        targets=targets,
        queue=_queue(count, restarts * columns, window or max(count, 1), device),
        points=images.detach().clone(),
        best_loss=torch.full((count,), -torch.inf, device=device),
        remaining=torch.full_like(labels, restarts * columns),
        forwards=torch.zeros_like(labels),
        backwards=torch.zeros_like(labels),
        referee=referee,
    )


def _queue(count: int, turns: int, window: int, device: torch.device) -> Counts:
    """Items window by window; within a window turn by turn."""
    items = torch.arange(count * turns, device=device)
    place = items % max(count, 1) // window * turns + items // max(count, 1)
    return place.argsort(stable=True)


def likely_targets(logits: Logits, labels: Labels, count: int) -> Tensor:
    """Return the min(count, K - 1) most likely classes beside the label, `(N, T)`, best first.

    The choice of targets of AutoAttack (Croce and Hein, ICML 2020, section 4). Equal logits are
    taken in the order of the classes.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    ranked = others.argsort(dim=1, descending=True, stable=True)
    return ranked[:, : min(count, logits.shape[1] - 1)]
