"""What is known of every example of an evaluation, on the CPU, while attacks take their turns.

>>> import torch
>>> images, labels, ids = torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2)
>>> state = EvaluationState.of(images, labels, ids, turns=1)
>>> state.robust.tolist()
[False, False]
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.evaluation.scoring import Scores, scaled_margins

# In `broken_by`, beside places of attacks in the protocol: no attack broke it; none was needed; and
# what broke it was found against another model (`profiling.tap_verdict`).
UNBROKEN, WRONG, TRANSFERRED = -1, -2, -3


class Entry(NamedTuple):
    """What a turn left of some examples: a line of the log.

    `moved` are those whose worst point is new, with that point, its margin and its logits.
    """

    rows: Tensor
    robust: Tensor
    broken_by: Tensor
    forwards: Tensor
    backwards: Tensor
    moved: Tensor
    points: Tensor
    margins: Tensor
    worst: Tensor

    def only(self, keep: Tensor) -> "Entry":
        """Return what it says of some of its rows, those that `keep` (R,) bool marks."""
        if bool(keep.all()):
            return self
        moved = torch.isin(self.moved, self.rows[keep])
        common = [part[keep] for part in self[:5]]
        return Entry(*common, *(part[moved] for part in self[5:]))

    def moved_to(self, start: int) -> "Entry":
        """Return it for an evaluation in which its rows begin at `start`."""
        return self._replace(rows=self.rows + start, moved=self.moved + start)


@dataclass
class EvaluationState:
    """N examples: what was given, the verdict so far, and which turns each has behind it."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    logits: Tensor
    clean_correct: Tensor
    robust: Tensor
    broken_by: Tensor
    points: Tensor
    margins: Tensor
    worst: Tensor
    forwards: Tensor
    backwards: Tensor
    finished: Tensor
    unlogged: Tensor

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, ids: Tensor, *, turns: int) -> "EvaluationState":
        """Return the state before anything is known."""
        count = len(images)
        # Copies: what a caller made in inference mode cannot be differentiated.
        images, labels, ids = images.cpu().clone(), labels.cpu().clone(), ids.cpu().clone()
        no = torch.zeros(count, dtype=torch.bool)
        return cls(
            images=images,
            labels=labels,
            ids=ids,
            logits=torch.empty(count, 0),
            clean_correct=no,
            robust=no.clone(),
            broken_by=torch.full_like(labels, WRONG),
            points=images.clone(),
            margins=torch.full((count,), -torch.inf),
            worst=torch.empty(count, 0),
            forwards=torch.zeros_like(labels),
            backwards=torch.zeros_like(labels),
            finished=torch.zeros(count, turns, dtype=torch.bool),
            unlogged=no.clone(),
        )

    def open(self, rows: Tensor, seen: Scores, passes: int) -> None:
        """Note the clean verdict of some examples."""
        seen = seen.on_cpu()
        if not self.logits.shape[1]:
            self.logits = torch.zeros(len(self.images), seen.logits.shape[1])
            self.worst = self.logits.clone()
        self.logits[rows] = self.worst[rows] = seen.logits
        correct = ~seen.flipped
        self.clean_correct[rows] = self.robust[rows] = correct
        self.broken_by[rows] = torch.where(correct, UNBROKEN, WRONG)
        self.margins[rows] = seen.margins
        self.forwards[rows] += passes

    def note(self, rows: Tensor, attack: int, points: Tensor, seen: Scores, passes: int) -> None:
        """Note points of examples that stand: a flip breaks them, a larger margin is kept.

        There may be several points of one example.
        """
        self.forwards.index_add_(0, rows, torch.full_like(rows, passes))
        points, seen = points.cpu(), seen.on_cpu()
        best = _best_of_each(rows, torch.where(seen.flipped, torch.inf, seen.margins))
        rows, points, seen = rows[best], points[best], Scores(*(part[best] for part in seen))
        flipped, scored = seen.flipped, seen.margins
        self.robust[rows[flipped]] = False
        self.broken_by[rows[flipped]] = attack
        kept = flipped | (scored > self.margins[rows])
        self.points[rows[kept]] = points[kept]
        self.margins[rows[kept]] = scored[kept]
        self.worst[rows[kept]] = seen.logits[kept]
        self.unlogged[rows[kept]] = True

    def pending(self, turn: int) -> Tensor:
        """Rows that still stand and have not had this turn."""
        return (self.robust & ~self.finished[:, turn]).nonzero().flatten()

    def reach(self, rows: Tensor, near: float) -> tuple[Tensor, Tensor]:
        """Whether the worst point of each row is another than the image, and whether it is near.

        That is, at most `near` from the boundary, by `scoring.scaled_margins`.
        """
        worst = self.worst[rows]
        moved = (worst != self.logits[rows]).any(1)
        return moved, scaled_margins(worst, self.labels[rows]) >= -near

    def entry(self, rows: Tensor) -> Entry:
        """Return what the log keeps of some examples, and take it as written."""
        moved = rows[self.unlogged[rows]]
        self.unlogged[moved] = False
        return Entry(
            rows,
            self.robust[rows],
            self.broken_by[rows],
            self.forwards[rows],
            self.backwards[rows],
            moved,
            self.points[moved],
            self.margins[moved],
            self.worst[moved],
        )

    def replay(self, turn: int, entry: Entry) -> None:
        """Take over what an earlier run of this evaluation left of some examples.

        What is misclassified as it is stays so, also where another machine once rounded otherwise.
        """
        entry = entry.only(self.clean_correct[entry.rows])
        rows = entry.rows
        self.robust[rows], self.broken_by[rows] = entry.robust, entry.broken_by
        self.forwards[rows], self.backwards[rows] = entry.forwards, entry.backwards
        self.points[entry.moved], self.margins[entry.moved] = entry.points, entry.margins
        self.worst[entry.moved] = entry.worst
        self.finished[rows, turn] = True


def _best_of_each(rows: Tensor, values: Tensor) -> Tensor:
    """Return the place of the largest value of each row, of the first one between equals."""
    order = values.argsort(descending=True, stable=True)
    distinct, which = torch.unique(rows[order], return_inverse=True)
    places = torch.full_like(distinct, len(rows))
    places.scatter_reduce_(0, which, torch.arange(len(rows)), "amin")
    return order[places]
