"""What a training is at one moment, when it saves that, and how it goes on from there.

It saves at the ends of epochs, every minute within a longer one, and at once when it was asked to
stop (`robust_nc.runtime.stopping`). See docs/adr/0013-state-within-an-epoch.md.

>>> import pathlib, tempfile, torch
>>> from robust_nc.config import TrainConfig
>>> state = TrainerState(torch.nn.Linear(1, 1), TrainConfig(epochs=1))
>>> keeper = Keeper(state, Checkpoints(pathlib.Path(tempfile.mkdtemp()), {}))
>>> keeper.resume()
>>> keeper.save(final=True)
>>> keeper.checkpoints.load().step
0
>>> first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
>>> load_weights(second, weights_of(first))
>>> torch.equal(first.weight, second.weight)
True
"""

import time
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.config import TrainConfig, build
from robust_nc.exceptions import CheckpointError, ConfigError, StoppedError
from robust_nc.models.backbones import Backbone
from robust_nc.models.necks import without_neck
from robust_nc.registry import AVERAGINGS
from robust_nc.runtime import stopping
from robust_nc.runtime.torch_state import device_of, untouched
from robust_nc.training.averaging import Average
from robust_nc.training.checkpoint import Checkpoints, Snapshot, Tensors, Within
from robust_nc.training.data_parallel import present
from robust_nc.training.epoch_meter import Meter, not_finite
from robust_nc.training.progress import EpochRow, append_log, start_log
from robust_nc.training.stream import Stream

_DRAWS = "draws."
_METER = "meter."
_STREAM = "stream."


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
        self.stream = Stream(model) if config.stream else None
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
        if self.stream:
            self.stream.begin()

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
        if self.stream:
            self.stream.moments.load(_below(_STREAM, within.tensors))
        self._draws = _below(_DRAWS, within.tensors)

    def _snapshot(self, draws: Tensors | None = None) -> Snapshot:
        """Copy the state to the CPU; within an epoch with the states of the generators."""
        within = None
        if self.meter.steps:
            states = self.draws() if draws is None else draws
            seen = self.stream.moments.tensors() if self.stream else {}
            within = Within(
                batches=self.meter.steps,
                seconds=self.meter.seconds,
                tensors=_above(_METER, self.meter.tensors())
                | _above(_DRAWS, states)
                | _above(_STREAM, seen),
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


SAVE_SECONDS = 5.0
SAVE_SECONDS_WITHIN = 60.0

_SHARE = 0.05  # of the time that saving within epochs may take


class Keeper:
    """Saves a training and resumes it; without `checkpoints` it only heeds the wish to stop.

    `save_seconds` are between saves at the ends of epochs, `save_seconds_within` between those
    within an epoch: 0 saves after each step, and anything else waits longer where a save takes
    long. Where several processes train one model, all of them call the same methods, and the first
    one saves.
    """

    def __init__(
        self,
        state: TrainerState,
        checkpoints: Checkpoints | None,
        *,
        save_seconds: float = SAVE_SECONDS,
        save_seconds_within: float = SAVE_SECONDS_WITHIN,
    ) -> None:
        self.state = state
        self.checkpoints = checkpoints
        self.save_seconds = save_seconds
        self.save_seconds_within = save_seconds_within
        self._saved_at = time.monotonic()
        self._cost = 0.0

    @property
    def note(self) -> str | None:
        """What a status line should say of the checkpoints: that one was damaged."""
        if self.checkpoints is None or self.checkpoints.recovered is None:
            return None
        return "(the last checkpoint was damaged; went on from the one before)"

    def resume(self) -> None:
        """Take the state on disk, if there is one, and clear away what a kill left behind.

        Raises `StoppedError` where there is something to do and the process was asked to stop.
        """
        saved = self.checkpoints
        snapshot = self.state.group.lead(lambda: saved.load() if saved else None)
        if snapshot:
            self.state.restore(snapshot)
        finished = self.state.epoch >= self.state.config.epochs

        def tidy() -> None:
            if self.checkpoints:
                self.checkpoints.tidy(finished=finished)
                start_log(self.checkpoints.folder / "log.jsonl", self.state.history)

        self.state.group.lead(tidy)
        if not finished and self.state.group.agree(stopping.wished()):
            self.stop()

    def pause(self) -> None:
        """Save within an epoch if it is time, or if the training was asked to stop.

        Raises `StoppedError` then, and `TrainingError` instead of saving what is not finite.
        """
        seconds = self.save_seconds_within
        wished, due = self._asked(seconds and max(seconds, self._cost / _SHARE))
        if wished or due:
            self.save()
        if wished:
            self.stop()

    def end_epoch(self, *, save: bool = False) -> None:
        """Log an epoch that has just ended, and save if it is time or if the training stops."""
        state = self.state
        final = state.epoch == state.config.epochs

        def log() -> None:
            if self.checkpoints:
                append_log(self.checkpoints.folder / "log.jsonl", state.history[-1])
                self.checkpoints.keep(state.epoch, lambda: weights_of(state.shown))

        state.group.lead(log)
        wished, due = self._asked(self.save_seconds)
        if final or wished or due or save:
            self.save(final=final)
        if wished and not final:
            self.stop()

    def save(self, *, final: bool = False) -> None:
        """Save the state as it is. Raises `TrainingError` where it is not finite."""
        began = time.monotonic()
        meter = self.state.meter
        running = meter.running
        meter.check()
        meter.stop()
        if not self.state.finite:
            raise not_finite("a weight", meter.epoch, self.state.step)
        draws = self.state.draws() if meter.steps else None

        def write() -> None:
            if self.checkpoints:
                self.checkpoints.save(self.state._snapshot(draws), going_on=not final)

        self.state.group.lead(write)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began
        if running:
            meter.start()

    def stop(self) -> None:
        """Raise `StoppedError`, with what became of the state."""
        if self.checkpoints is None and self.state.group.rank == 0:
            raise StoppedError(
                "stopped as asked; this training keeps no checkpoints, so it begins anew next time"
            )
        raise StoppedError

    def kept(self) -> str:
        """Say which state is on disk, for a training that broke."""
        if self.checkpoints is None or self.checkpoints.saved is None:
            return "no state was saved before"
        return (
            f"the last good state, of {self.checkpoints.saved}, is kept in "
            f"{self.checkpoints.folder}: the same command goes on from there, "
            "and another train.lr trains anew"
        )

    def _asked(self, seconds: float) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether the last save was `seconds` ago."""
        late = self.checkpoints is not None and time.monotonic() - self._saved_at >= seconds
        wished, due = self.state.group.total(int(stopping.wished()), int(late))
        return wished > 0, due > 0


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum and weight decay on all learnable parameters.

    A group's `factor` times the scheduled rate is its rate. With `backbone_lr = 0` the parameters
    of the backbone stop being learnable.
    """
    if config.nesterov and config.momentum == 0:
        raise ConfigError("train.nesterov needs train.momentum above 0, found 0")
    return torch.optim.SGD(
        _groups(model, config.backbone_lr),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _groups(model: nn.Module, backbone_lr: float) -> list[dict[str, Any]]:
    """Return the learnable parameters in groups of one rate."""
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if backbone_lr == 1:
        return [{"params": learnable, "factor": 1.0}]
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"train.backbone_lr needs a model with a backbone, and {type(model).__name__} has "
            "none; leave it out"
        )
    if isinstance(backbone, Backbone):
        backbone = without_neck(backbone)
    if backbone_lr == 0:
        backbone.requires_grad_(False)
    inside = {id(parameter) for parameter in backbone.parameters()}
    groups = [
        {"params": [p for p in learnable if id(p) not in inside], "factor": 1.0},
        {"params": [p for p in learnable if id(p) in inside], "factor": backbone_lr},
    ]
    groups = [group for group in groups if group["params"] and group["factor"]]
    if not groups:
        raise ConfigError(
            "train.backbone_lr is 0 and the head has nothing to learn, so that no parameter is "
            "left; choose a learnable head, or a backbone_lr above 0"
        )
    return groups


def weights_of(model: nn.Module) -> Tensors:
    """Copy a model's parameters and buffers to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, weights: Tensors) -> None:
    """Put weights into a model, or raise `CheckpointError` where they are not of its shape."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint's weights are not of this model: {' '.join(str(error).split())}"
        ) from error


def momentum_of(model: nn.Module, optimizer: torch.optim.SGD) -> Tensors:
    """Copy the momentum of each parameter that has one to the CPU."""
    buffers = {
        name: optimizer.state.get(parameter, {}).get("momentum_buffer")
        for name, parameter in model.named_parameters()
    }
    return {
        name: buffer.detach().cpu().clone()
        for name, buffer in buffers.items()
        if buffer is not None
    }


def load_momentum(model: nn.Module, optimizer: torch.optim.SGD, momentum: Tensors) -> None:
    """Give the optimizer the momentum of a checkpoint."""
    for name, parameter in model.named_parameters():
        if name in momentum:
            # In the parameter's own memory layout, so that sums keep their order.
            buffer = torch.empty_like(parameter.detach()).copy_(momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def finite_weights(model: nn.Module) -> bool:
    """Whether all parameters and buffers are finite (waits for the device)."""
    floats = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.detach().isfinite().all() for tensor in floats]).all())


def finite_logits(model: nn.Module, images: Tensor) -> bool:
    """Whether the model's logits for these images are finite, in train and in eval mode."""
    for training in (True, False):
        with untouched(model, training=training), torch.no_grad():
            if not bool(torch.isfinite(model(images)).all()):
                return False
    return True


def draws_of(model: nn.Module) -> Tensors:
    """Return the states of the global generators from which modules such as dropout draw."""
    states = {"cpu": torch.default_generator.get_state()}
    device = device_of(model)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_draws(model: nn.Module, states: Tensors) -> None:
    """Put the global generators into these states; one that has none here is left as it is."""
    torch.default_generator.set_state(states["cpu"])
    device = device_of(model)
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
