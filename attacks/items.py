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
from robust_nc.runtime import sent
from robust_nc.types import Attacked, Counts, Flags, Labels, Logits, Referee


@dataclass
class Work:
    """All items of one call, and what is known of each example so far.

    Item i stands for example i % N; i // N counts its (restart, target) pairs, targets fastest.
    `queue` is the order in which items begin: window by window of examples, so that the items of
    one example are not far apart. Points and losses lie on the device; what is counted, which items
    there are and who has flipped, on the CPU, so that nobody waits to read it.
    """

    everything: Slots
    targets: Tensor | None
    queue: Counts
    points: Tensor
    best_loss: Tensor
    flipped: Tensor
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
    def attacked(self) -> Attacked:
        """The points, and the passes, on the device of the images."""
        device = self.points.device
        points = self.points[: len(self.forwards)]
        return Attacked(points, sent(self.forwards, device), sent(self.backwards, device))

    def examples(self, items: Counts) -> Counts:
        """The example that each item is about."""
        return items % len(self.forwards)

    def slots(self, items: Counts) -> Slots:
        """Gather the rows of some items."""
        whole, count = self.everything, len(self.forwards)
        items = sent(items, whole.images.device)
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

    def confirmed(self, items: Counts, state: State, flips: Flags) -> Flags:
        """Which of the items that have flipped did so in the eyes of the referee, if there is one.

        `flips` (S,) are the state's, on the CPU.
        """
        if self.referee is None or not bool(flips.any()):
            return flips
        rows = flips.nonzero().flatten()
        points = state.best_points.index_select(0, sent(rows, state.best_points.device))
        right = self.referee.confirm(self.examples(items[rows]), points)
        return torch.zeros_like(flips).index_put((rows,), right.cpu())

    def settle(self, items: Counts, state: State, flips: Flags | None = None) -> None:
        """Take over the points of items that left, where they beat what the example had.

        A flip (S,) beats any loss. Between equals the lowest item wins, so that a device that
        writes duplicates in any order changes nothing. Examples that are finished go to the
        referee.
        """
        rows, device = self.examples(items), self.points.device
        places, claimed, loss = sent(rows, device), sent(items, device), state.best_loss
        if flips is not None:
            loss = torch.where(sent(flips, device), torch.inf, loss)
        top = self.best_loss.scatter_reduce(0, places, loss, "amax")
        wins = (loss == top[places]) & (loss > self.best_loss[places])
        claims = torch.where(wins, claimed, self.num_items)
        first = places.new_full((len(top),), self.num_items)
        chosen = wins & (first.scatter_reduce(0, places, claims, "amin")[places] == claimed)
        # What loses goes to a row that nobody reads: choosing by a mask would wait for the device.
        self.points.index_copy_(0, torch.where(chosen, places, len(top)), state.best_points)
        self.best_loss = top
        before = self.flipped.clone()
        if flips is not None:
            self.flipped[rows[flips]] = True
        self.remaining.index_add_(0, rows, torch.full_like(rows, -1))
        if self.referee is not None:
            mine = torch.zeros_like(before).index_fill(0, rows, True)
            ended = (mine & ~before & (self.flipped | (self.remaining == 0))).nonzero().flatten()
            if len(ended):
                points = self.points.index_select(0, sent(ended, device))
                told = (points, self.forwards[ended], self.backwards[ended])
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
    none = torch.zeros(count, dtype=torch.int64)
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
        queue=_queue(count, restarts * columns, window or max(count, 1)),
        points=torch.cat([images.detach(), images.detach()[:1]]),
        best_loss=torch.full((count,), -torch.inf, device=device),
        flipped=none.bool(),
        remaining=none + restarts * columns,
        forwards=none.clone(),
        backwards=none.clone(),
        referee=referee,
    )


def _queue(count: int, turns: int, window: int) -> Counts:
    """Items window by window; within a window turn by turn."""
    items = torch.arange(count * turns)
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
