"""The work of one call: its items, the passes they cost, and the best point of each example.

>>> import torch
>>> work = lay_out(
...     torch.nn.Flatten(), torch.rand(3, 1, 1, 2), torch.tensor([0, 1, 0]), Ball("L2", 0.1),
...     goal="flip", targets=None, seed=0, ids=torch.tensor([7, 8, 9]), restarts=2,
... )
>>> slots = work.slots(work.items(2, 5))
>>> slots.ids.tolist(), slots.restarts.tolist()
([9, 7, 8], [0, 1, 1])
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robust_nc.attacks.oracle import Oracle
from robust_nc.attacks.slots import Slots, State
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball
from robust_nc.types import Counts, Flags, Goal


@dataclass
class Work:
    """All items of one call, restart-major, and what is known of each example so far.

    Item i stands for example i % N; i // N counts its (restart, target) pairs, targets fastest.
    """

    everything: Slots
    targets: Tensor | None
    num_items: int
    points: Tensor
    best_loss: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def oracle(self) -> Oracle:
        """The oracle that all items ask."""
        return self.everything.oracle

    @property
    def flipped(self) -> Flags:
        """Whether each example has left with a misclassified point (`goal="flip"` only)."""
        return self.best_loss == torch.inf

    def items(self, first: int, last: int) -> Counts:
        """Items `first` to `last`, or to the end of the work."""
        return torch.arange(first, min(last, self.num_items), device=self.points.device)

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

    def settle(self, items: Counts, state: State) -> None:
        """Take over the points of items that left, where they beat what the example had.

        A flip beats any loss. Between equals the lowest item wins, so that a device that writes
        duplicates in any order changes nothing.
        """
        rows = self.examples(items)
        loss = torch.where(state.flipped, torch.inf, state.best_loss)
        top = self.best_loss.scatter_reduce(0, rows, loss, "amax")
        wins = (loss == top[rows]) & (loss > self.best_loss[rows])
        claims = torch.where(wins, items, self.num_items)
        first = torch.full_like(self.forwards, self.num_items)
        chosen = wins & (first.scatter_reduce(0, rows, claims, "amin")[rows] == items)
        self.points[rows[chosen]] = state.best_points[chosen]
        self.best_loss = top


def lay_out(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    goal: Goal,
    targets: Tensor | None,
    seed: int,
    ids: Tensor,
    restarts: int,
) -> Work:
    """Check the inputs of a call and lay out its items; `InputError` for what cannot be used."""
    check_inputs(images, labels, goal=goal, targets=targets, ids=ids)
    count, device = len(images), images.device
    images, labels = images.detach(), labels.to(device)
    classes = labels
    if targets is not None:
        targets = targets.to(device).reshape(count, targets.shape[1] if targets.ndim == 2 else 1)
        classes = torch.cat([labels, targets.flatten()])
    columns = 1 if targets is None else targets.shape[1]
    everything = Slots(
        images=images,
        labels=labels,
        targets=None if targets is None else targets[:, 0],
        ids=ids.to(device),
        restarts=torch.zeros_like(labels),
        ball=ball,
        seed=seed,
        goal=goal,
        contested=restarts * columns > 1,
        oracle=Oracle(model, classes),
    )
    return Work(
        everything=everything,
        targets=targets,
        num_items=restarts * columns * count,
        points=images.clone(),
        best_loss=torch.full((count,), -torch.inf, device=device),
        forwards=torch.zeros_like(labels),
        backwards=torch.zeros_like(labels),
    )


def check_inputs(
    images: Tensor, labels: Tensor, *, goal: Goal, targets: Tensor | None, ids: Tensor
) -> None:
    """Raise `InputError` for images, labels, ids, targets or a goal that no attack can use."""
    if images.ndim != 4 or images.dtype != torch.float32:
        raise InputError(
            f"images must be float32 (N, C, H, W), found {images.dtype} {tuple(images.shape)}"
        )
    if goal not in ("flip", "maximise"):
        raise InputError(f"goal must be 'flip' or 'maximise', found {goal!r}")
    _check_classes("labels", labels, len(images))
    _check_classes("ids", ids, len(images))
    if targets is not None:
        first = targets[:, 0] if targets.ndim == 2 and targets.shape[1] else targets
        _check_classes("targets", first, len(images))


def _check_classes(name: str, values: Tensor, count: int) -> None:
    if values.dtype != torch.int64 or values.shape != (count,):
        raise InputError(
            f"{name} must be int64 of shape ({count},), one per image, "
            f"found {values.dtype} {tuple(values.shape)}"
        )
