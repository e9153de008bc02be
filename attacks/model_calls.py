"""What an attack may ask a model: logits, and gradients with respect to the images.

>>> import torch
>>> oracle = Oracle(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
>>> answer = oracle.gradient(torch.rand(2, 1, 8, 8), lambda logits: logits[:, 0])
>>> answer.gradient.shape, oracle.drain()
(torch.Size([2, 1, 8, 8]), PassCount(forwards=1, backwards=1))
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError, NoGradientError
from robust_nc.runtime import usable_gradient
from robust_nc.types import Flags, Images, Logits

_STEP_ASIDE = 1e-3  # a quarter of a level of a pixel
_MANY = 64  # numbers that wait until they are added up


class Gradient(NamedTuple):
    """Losses `(S,)`, logits `(S, K)`, and the gradient of each loss by its image."""

    values: Tensor
    logits: Tensor
    gradient: Tensor


class PassCount(NamedTuple):
    """Passes through the model, per slot."""

    forwards: int
    backwards: int


class Oracle:
    """A model that answers for one point per slot, and counts: a gradient is one pass each way.

    The shape of the logits is checked when they first come; that all were finite, in `check`.
    Where looking at values waits for a device, whoever steps an attack may make it `hasty`: what
    only a look can show to be needed is left out, and the doubts that remain are added up until
    `flags` looks at them.
    """

    def __init__(self, model: nn.Module, labels: Tensor | None = None) -> None:
        self._model = model
        self._labels = labels
        self.hasty = False
        self._fits = False  # the shape of the logits, which is checked once
        self._seen = 0.0  # the sum of all logits that have been looked at
        self._sums: list[Tensor] = []  # of those that have not
        self._doubts: list[Tensor] = []
        self._forwards = 0
        self._backwards = 0

    def logits(self, points: Images) -> Logits:
        """Logits of the points, without a graph."""
        with torch.no_grad():
            return self._forward(points)

    def gradient(self, points: Images, loss: Callable[[Tensor], Tensor]) -> Gradient:
        """Losses of the points, and their gradients by the points (never by the parameters).

        `loss` maps logits `(S, K)` to values `(S,)`. Entries that are NaN or infinite are asked for
        again a small step off the nearer bound of their pixels, in a pass that is counted. What is
        left of them leads away from that bound (`usable_gradient`). In haste they are zero, and
        raise a doubt.
        """
        found = self._gradient(points, loss)
        if self.hasty:
            self.doubt(found.gradient.sum())
            return found._replace(gradient=found.gradient.nan_to_num(0.0, 0.0, 0.0))
        if math.isfinite(found.gradient.sum()):
            return found
        usable = found.gradient.isfinite()
        step = torch.full_like(points, _STEP_ASIDE).copysign(0.5 - points)
        aside = self._gradient(torch.where(usable, points, points + step), loss).gradient
        found = found._replace(gradient=torch.where(usable, found.gradient, aside))
        return found._replace(gradient=usable_gradient(found.gradient, points))

    def doubt(self, value: Tensor) -> None:
        """Take note of a number that is NaN or infinite where haste has left out what matters."""
        self._doubts = _few([*self._doubts, value])

    def flags(self, flags: Flags) -> Flags | None:
        """Bring flags `(S,)` to the CPU, or None where haste was wrong: it then ends.

        Waits for the device, once.
        """
        if not self._doubts:
            return flags.cpu()
        found = torch.cat([torch.stack([*self._sums, *self._doubts]), flags.float()]).tolist()
        sums, doubts = len(self._sums), len(self._sums) + len(self._doubts)
        self._seen += sum(found[:sums])
        self._sums, self._doubts = [], []
        self.hasty = math.isfinite(sum(found[sums:doubts]))
        return torch.tensor(found[doubts:]).bool() if self.hasty else None

    def _gradient(self, points: Tensor, loss: Callable[[Tensor], Tensor]) -> Gradient:
        leaf = points.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._forward(leaf)
            values = loss(logits)
            gradient = None
            if values.requires_grad:
                # Given ones, torch loads sympy (0.3 s); a sum is one kernel more on a device.
                on_cpu = points.device.type == "cpu"
                whole, ones = (values.sum(), None) if on_cpu else (values, torch.ones_like(values))
                (gradient,) = torch.autograd.grad(whole, leaf, ones, allow_unused=True)
        if gradient is None:
            raise NoGradientError(
                "the logits do not depend on the images in a way that can be differentiated; "
                "remove detach, no_grad or rounding from the model, or use an attack without "
                "gradients"
            )
        self._backwards += 1
        return Gradient(values.detach(), logits.detach(), gradient)

    def drain(self) -> PassCount:
        """Return the passes since the last call."""
        passes = PassCount(self._forwards, self._backwards)
        self._forwards = self._backwards = 0
        return passes

    def count_once(self) -> None:
        """Count the forwards since the last `drain` as one: batches of one pass over everything."""
        self._forwards = min(self._forwards, 1)

    def check(self) -> None:
        """Raise `InputError` if any logit was not finite (waits for the device)."""
        if self._sums:
            self._seen += float(torch.stack(self._sums).sum())
            self._sums = []
        if not math.isfinite(self._seen):
            raise InputError(
                "the model returned logits that are NaN or infinite; "
                "check its weights and the range of the images"
            )

    def _forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self._model(points)
        if not self._fits:
            self._check_shape(logits, len(points))
            self._fits = True
        logits = logits.float()
        # A sum passes NaN and infinity on, and is one small kernel.
        self._sums = _few([*self._sums, logits.detach().sum()])
        self._forwards += 1
        return logits

    def _check_shape(self, logits: object, count: int) -> None:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
            raise InputError(f"the model must return logits (N, K), N = {count}, found {shape}")
        if logits.shape[1] < 2:
            raise InputError(f"the model must return 2 logits or more per image, found {shape}")
        if self._labels is not None and self._labels.numel():
            low, high = torch.stack(self._labels.aminmax()).tolist()
            if low < 0 or high >= logits.shape[1]:
                raise InputError(
                    f"labels and targets must lie in 0..{logits.shape[1] - 1}, the model's "
                    f"classes, found {low}..{high}"
                )


def _few(values: list[Tensor]) -> list[Tensor]:
    """Add numbers up once they are many: one by one that would be a kernel each."""
    return values if len(values) < _MANY else [torch.stack(values).sum()]
