"""What the user's own model says of points: which alone decides on a flip, in float32 proper.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
>>> seen = Scorer(model).look(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
>>> seen.logits.shape
torch.Size([2, 3])
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError
from robust_nc.runtime.torch_state import full_precision, private_draws, ran_out, stream_key


class Scores(NamedTuple):
    """Logits `(n, K)`, whether each point is misclassified `(n,)`, and its margin `(n,)`."""

    logits: Tensor
    flipped: Tensor
    margins: Tensor

    def on_cpu(self) -> "Scores":
        """Bring them to the CPU, in one copy."""
        if self.logits.device.type == "cpu":
            return self
        beside = torch.stack([self.margins, self.flipped.to(self.margins)], 1)
        found = torch.cat([self.logits, beside], 1).cpu()
        return Scores(found[:, :-2], found[:, -1] > 0, found[:, -2])


class Scorer:
    """Scores points by the user's own model; where it is random, by the majority of `draws`.

    A point is misclassified if more than half of the passes say so; logits and margins are means.
    """

    def __init__(self, model: nn.Module, *, draws: int = 1, seed: int = 0) -> None:
        self.model = model
        self.draws = draws
        self.seed = seed

    def naming(self, what: str) -> "Scorer":
        """Return a scorer that says, where the model fails, on which batch of `what`."""
        return Scorer(Guarded(self.model, what), draws=self.draws, seed=self.seed)

    def look(self, points: Tensor, labels: Tensor) -> Scores:
        """Score points `(n, C, H, W)`; `InputError` for logits that cannot be used."""
        with full_precision(), torch.no_grad():
            if self.draws == 1:
                logits = checked_logits(self.model, points, labels)
                return Scores(logits, logits.argmax(1) != labels, margins(logits, labels))
            passes = torch.stack([self._pass(draw, points, labels) for draw in range(self.draws)])
        wrong = (passes.argmax(2) != labels).sum(0)
        logits = passes.mean(0)
        return Scores(logits, 2 * wrong > self.draws, margins(logits, labels))

    def _pass(self, draw: int, points: Tensor, labels: Tensor) -> Tensor:
        with private_draws(stream_key(self.seed, "verdict", draw), points.device):
            return checked_logits(self.model, points, labels)


def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return float32 logits `(n, K)`, or raise `InputError` that says what the model returned."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"the model must return logits (N, K) for images (N, ...), found {found}")
    if logits.shape[1] < 2:
        raise InputError("the model must have at least two classes, found logits of one column")
    highest = labels.max() if len(labels) else labels.new_zeros(())
    usable = logits.isfinite().all() & (highest < logits.shape[1])
    if not bool(usable):  # one look at the device for both
        if int(highest) >= logits.shape[1]:
            raise InputError(
                f"label {int(highest)} is out of range: the model has {logits.shape[1]} classes"
            )
        raise InputError("the model returned logits that are not finite; a verdict needs numbers")
    return logits.float()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit minus that of the label: above 0 is misclassified."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return others - own[:, 0]


def scaled_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return margins over the largest logit minus the third, blind to shift and scale.

    The DLR loss (Croce and Hein, ICML 2020, eq. 6); three classes or more.
    """
    top = logits.topk(3, dim=1).values
    return margins(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


class Guarded(nn.Module):
    """A model that, when it fails, says in which batch of what; `InputError` passes through."""

    def __init__(self, model: nn.Module, what: str) -> None:
        super().__init__()
        self.model = model
        self.what = what
        self.batches = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits."""
        self.batches += 1
        try:
            logits: Tensor = self.model(images)
        except InputError:
            raise
        except Exception as error:  # a stranger's model may raise anything
            if ran_out(error):
                raise
            shape = "x".join(str(size) for size in images.shape[1:])
            raise InputError(
                f"the model failed on batch {self.batches} of {self.what}, {len(images)} images of "
                f"{shape}: {type(error).__name__}: {error}"
            ) from error
        return logits


def halving(work: Callable[[Tensor], None], rows: Tensor, size: int) -> int:
    """Do `work` on batches of `rows`; where memory runs out, halve them. Return the last size."""
    while len(rows):
        try:
            work(rows[:size])
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error) or size == 1:
                raise
            size = max(1, min(size, len(rows)) // 2)
            continue
        rows = rows[size:]
    return size
