"""Batch means of one epoch, gathered without waiting for the device.

>>> import torch
>>> meter = Meter(epoch=1, first_step=0)
>>> meter.add({"loss": torch.tensor(1.0)}, examples=30)
>>> meter.add({"loss": torch.tensor(2.0)}, examples=10)
>>> meter.means()
{'loss': 1.25}
"""

import torch
from torch import Tensor

from robust_nc.exceptions import TrainingError

CHECK_EVERY = 50


class Meter:
    """Logs of the steps of one epoch; stops the training where a loss is not finite.

    `epoch` and the steps it names are counted from 1; `first_step` is the number of steps before.
    """

    def __init__(self, epoch: int, first_step: int) -> None:
        self.epoch = epoch
        self.first_step = first_step
        self.examples = 0
        self._logs: list[dict[str, Tensor]] = []
        self._sizes: list[int] = []
        self._checked = 0

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
            raise not_finite("the loss", self.epoch, self.first_step + self._checked + bad[0] + 1)
        self._checked = len(self._logs)

    def latest(self) -> dict[str, float]:
        """Logs of the last step, as numbers."""
        return {name: float(value) for name, value in self._logs[-1].items()}

    def means(self) -> dict[str, float]:
        """Mean of each log over the examples of the epoch."""
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        return {
            name: float(torch.stack([logs[name] for logs in self._logs]).cpu().double() @ weights)
            / self.examples
            for name in (self._logs[0] if self._logs else {})
        }


def not_finite(what: str, epoch: int, step: int) -> TrainingError:
    """Say where training broke, and what helps."""
    return TrainingError(
        f"{what} is not finite at epoch {epoch}, step {step}; lower train.lr, or use a schedule "
        "with warm-up; checkpoints of earlier epochs are kept"
    )
