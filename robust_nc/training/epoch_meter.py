"""Batch means of one epoch, gathered without waiting for the device.

>>> import torch
>>> meter = Meter(epoch=1, first_step=0)
>>> meter.add({"loss": torch.tensor(1.0)}, examples=30)
>>> meter.add({"loss": torch.tensor(2.0)}, examples=10)
>>> meter.means()
{'loss': 1.25}
>>> again = Meter(epoch=1, first_step=0, past=meter.tensors())
>>> again.steps, again.means()
(2, {'loss': 1.25})
"""

import time

import torch
from torch import Tensor

from robust_nc.exceptions import TrainingError

CHECK_EVERY = 50

_SIZES = "sizes"
_LOG = "log."


class NotFiniteError(TrainingError):
    """A training that broke: a loss, a logit or a weight is not finite."""


class Meter:
    """Logs of the steps of one epoch; stops the training where a loss is not finite.

    `epoch` and the steps it names are counted from 1; `first_step` is the number of steps before.
    It goes on from what another meter of the same epoch left: `past`, its `tensors()`, and its
    `seconds`.
    """

    def __init__(
        self,
        epoch: int,
        first_step: int,
        *,
        past: dict[str, Tensor] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.epoch = epoch
        self.first_step = first_step
        past = past or {}
        # One value per step: a sum so far would be rounded otherwise than the sum of all.
        self._past = {k.removeprefix(_LOG): v for k, v in past.items() if k.startswith(_LOG)}
        self._sizes: list[int] = past[_SIZES].tolist() if past else []
        self._past_steps = len(self._sizes)
        self._logs: list[dict[str, Tensor]] = []
        self._checked = 0
        self.examples = sum(self._sizes)
        self._seconds = seconds
        self._since: float | None = None

    @property
    def steps(self) -> int:
        """Steps that were added."""
        return len(self._sizes)

    @property
    def seconds(self) -> float:
        """Seconds between `start` and `stop`, up to now."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

    @property
    def running(self) -> bool:
        """Whether the clock runs."""
        return self._since is not None

    def start(self) -> None:
        """Let the clock run."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock."""
        self._seconds, self._since = self.seconds, None

    def add(self, logs: dict[str, Tensor], examples: int) -> None:
        """Take the logs of one step; every 50 steps look whether the losses are finite."""
        self._logs.append(logs)
        self._sizes.append(examples)
        self.examples += examples
        if len(self._logs) - self._checked >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Raise `TrainingError` that names the first step since the last look with a bad loss."""
        losses = [logs["loss"].float() for logs in self._logs[self._checked :]]
        if not losses:
            return
        bad = (~torch.isfinite(torch.stack(losses))).nonzero().flatten().tolist()
        if bad:
            step = self.first_step + self._past_steps + self._checked + bad[0] + 1
            raise not_finite("the loss", self.epoch, step)
        self._checked = len(self._logs)

    def latest(self) -> dict[str, float]:
        """Logs of the last step, as numbers."""
        return {name: float(value) for name, value in self._logs[-1].items()}

    def means(self) -> dict[str, float]:
        """Mean of each log over the examples of the epoch."""
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        return {
            name: float(values.double() @ weights) / self.examples
            for name, values in self._values().items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """What was added, step by step, on the CPU: for a meter that goes on from here."""
        logs = {f"{_LOG}{name}": values for name, values in self._values().items()}
        return logs | {_SIZES: torch.tensor(self._sizes, dtype=torch.int64)}

    def _values(self) -> dict[str, Tensor]:
        """Each log as one tensor, a value per step."""
        if not self._logs:
            return self._past
        new = {
            name: torch.stack([logs[name].detach() for logs in self._logs]).cpu()
            for name in self._logs[0]
        }
        return {
            name: torch.cat([self._past[name], values]) if self._past else values
            for name, values in new.items()
        }


def not_finite(what: str, epoch: int, step: int) -> NotFiniteError:
    """Say where training broke, and what helps."""
    return NotFiniteError(
        f"{what} is not finite at epoch {epoch}, step {step}; lower train.lr, or use a schedule "
        "with warm-up"
    )
