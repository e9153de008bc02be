"""What a training is at one moment, to and from a checkpoint.

>>> model = nn.Linear(2, 2)
>>> state = TrainerState(model, TrainConfig(epochs=1))
>>> snapshot = state._snapshot()
>>> snapshot.epoch, snapshot.step, snapshot.within
(0, 0, None)
>>> state.restore(snapshot)
>>> state.meter.epoch
1
"""

import torch
from torch import Tensor, nn

from robust_nc.config import TrainConfig, build
from robust_nc.registry import AVERAGINGS
from robust_nc.training.averaging import Average
from robust_nc.training.checkpoint import Snapshot, Within
from robust_nc.training.data_parallel import present
from robust_nc.training.epoch_meter import Meter
from robust_nc.training.progress import EpochRow
from robust_nc.training.state import (
    Tensors,
    draws_of,
    finite_weights,
    load_draws,
    load_momentum,
    load_weights,
    make_optimizer,
    momentum_of,
    weights_of,
)

_DRAWS = "draws."
_METER = "meter."


class TrainerState:
    """Model, optimizer, average, and how far they are; the base of `Trainer`.

    `epoch` epochs and `step` steps are done. Within an epoch, `meter` has its steps so far; once
    they are done, `row` is its row of the log, with the first `parts` of the epoch's end in it.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.config = config
        self.group = present()
        self.optimizer = make_optimizer(model, config)
        averaging = config.averaging and build(AVERAGINGS, config.averaging)
        self.average = Average(model, averaging) if averaging else None
        self.epoch = 0
        self.step = 0
        self.history: list[EpochRow] = []
        self.best_weights = weights_of(model)
        self.best_epoch = 0
        self.best_score = (-1.0, -1.0)
        self.meter = Meter(1, 0)
        self.row: EpochRow | None = None
        self.parts = 0
        self._draws: Tensors | None = None

    @property
    def shown(self) -> nn.Module:
        """The model that is measured and kept: the average of weights, once there is one."""
        return self.average.model if self.average and self.average.count else self.model

    @property
    def finite(self) -> bool:
        """Whether all weights are finite, and their average."""
        return finite_weights(self.model) and (
            self.shown is self.model or finite_weights(self.shown)
        )

    def begin_epoch(self) -> None:
        """Forget the epoch that has ended."""
        self.meter = Meter(self.epoch + 1, self.step)
        self.row, self.parts = None, 0

    def draws(self) -> dict[str, Tensor]:
        """Return the states of torch's generators in all processes, one row for each."""
        return {name: self.group.gathered(state) for name, state in draws_of(self.model).items()}

    def resume_draws(self) -> None:
        """Let torch's generators go on where they were, for the rest of a resumed epoch."""
        group, states = self.group, self._draws or {}
        self._draws = None
        if all(len(rows) == group.size for rows in states.values()) and states:
            # Copies: a row of a file's content may lie where torch crashes for want of alignment.
            own = {name: rows[group.rank].clone() for name, rows in states.items()}
            load_draws(self.model, own)

    def restore(self, snapshot: Snapshot) -> None:
        """Take the state of a checkpoint."""
        load_weights(self.model, snapshot.weights if snapshot.raw is None else snapshot.raw)
        if self.average and snapshot.raw is not None:
            load_weights(self.average.model, snapshot.weights)
            self.average.count = snapshot.averaged
        load_momentum(self.model, self.optimizer, snapshot.momentum)
        self.epoch, self.step, self.history = snapshot.epoch, snapshot.step, snapshot.history
        self.best_weights = snapshot.best_weights
        self.best_epoch, self.best_score = snapshot.best_epoch, snapshot.best_score
        self.begin_epoch()
        if snapshot.within:
            self._restore_within(snapshot.within)

    def _restore_within(self, within: Within) -> None:
        self.meter = Meter(
            self.epoch + 1,
            self.step - within.batches,
            past=_below(_METER, within.tensors),
            seconds=within.seconds,
        )
        self.row, self.parts = within.row, within.parts
        self._draws = _below(_DRAWS, within.tensors)

    def _snapshot(self, draws: Tensors | None = None) -> Snapshot:
        """Copy the state to the CPU; within an epoch with the states of the generators."""
        within = None
        if self.meter.steps:
            states = self.draws() if draws is None else draws
            within = Within(
                batches=self.meter.steps,
                seconds=self.meter.seconds,
                tensors=_above(_METER, self.meter.tensors()) | _above(_DRAWS, states),
                parts=self.parts,
                row=self.row,
            )
        return Snapshot(
            epoch=self.epoch,
            step=self.step,
            weights=weights_of(self.shown),
            momentum=momentum_of(self.model, self.optimizer),
            best_weights=self.best_weights,
            best_epoch=self.best_epoch,
            best_score=self.best_score,
            history=self.history,
            raw=weights_of(self.model) if self.shown is not self.model else None,
            averaged=self.average.count if self.average else 0,
            within=within,
        )


def _above(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Tensors) -> Tensors:
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
