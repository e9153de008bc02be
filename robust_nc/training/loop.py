"""The training loop: SGD on an objective, with validation, collapse over epochs and checkpoints.

`best` is the epoch of highest accuracy on held-out train images, under PGD-10 for a defense and
clean for standard training (`Objective.best_by`); among equals, for a defense, the one of higher
clean accuracy, then the later. `last` is the model itself. Where weights are averaged, all of this
is about their average, which is the model in the end.

>>> import torch
>>> from robust_nc.config import TrainConfig
>>> from robust_nc.data.base import numbered
>>> from robust_nc.data.batches import Batches
>>> from robust_nc.training.losses import cross_entropy
>>> from robust_nc.training.objectives import Standard
>>> data = numbered(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
>>> config = TrainConfig(epochs=2, batch_size=4)
>>> batches = Batches(data, batch_size=4, device="cpu")
>>> fitted = Trainer(model, Standard(cross_entropy), batches, config, seed=0).fit()
>>> [row["epoch"] for row in fitted.history]
[1, 2]
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from robust_nc.config import TrainConfig, build
from robust_nc.data.batches import Batch, Batches
from robust_nc.exceptions import InputError, TrainingError
from robust_nc.registry import AVERAGINGS, SCHEDULES
from robust_nc.runtime import device_of, generator, stream_key, untouched
from robust_nc.training.averaging import STATISTICS_BATCHES, Average
from robust_nc.training.checkpoint import Checkpoints, Snapshot
from robust_nc.training.log import Row, append_log, start_log
from robust_nc.training.meter import Meter, not_finite
from robust_nc.training.objectives import Objective
from robust_nc.training.outer import at_progress
from robust_nc.training.progress import Pace, Report, TrainEvent
from robust_nc.training.schedule import Schedule
from robust_nc.training.state import (
    Tensors,
    finite_logits,
    finite_weights,
    load_momentum,
    load_weights,
    make_optimizer,
    momentum_of,
    seed_modules,
    weights_of,
)
from robust_nc.types import Loss

SAVE_SECONDS = 5.0

Watch = Callable[[nn.Module], dict[str, float | None]]
"""Something measured between epochs: a model -> named numbers. It must leave no trace."""


class Fitted(NamedTuple):
    """What a training leaves beside the model itself, which is `last`."""

    best_weights: Tensors
    best_epoch: int
    history: list[Row]


class Trainer:
    """One training of `model` on `batches`; the model is changed in place.

    `validate` returns `validation_clean` and `validation_attacked`, on which `best` is
    chosen (without it the last epoch is the best); `probe` returns the measures of collapse. With
    `checkpoints` the training resumes from them and saves to them, at the end and after every epoch
    that ends `save_seconds` or more after the last save. A resumed training on the CPU equals one
    that never stopped, to the bit. Raises `TrainingError` where the loss is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        config: TrainConfig,
        *,
        seed: int,
        validate: Watch | None = None,
        probe: Watch | None = None,
        checkpoints: Checkpoints | None = None,
        report: Report | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.objective = objective
        self.batches = batches
        self.config = config
        self.seed = seed
        self.validate = validate
        self.probe = probe
        self.checkpoints = checkpoints
        self.report = report
        self.save_seconds = save_seconds
        self.schedule: Schedule = build(SCHEDULES, config.schedule)
        self.optimizer = make_optimizer(model, config)
        averaging = config.averaging and build(AVERAGINGS, config.averaging)
        self.average = Average(model, averaging) if averaging else None
        self.epoch = 0
        self.step = 0
        self.history: list[Row] = []
        self.best_weights = weights_of(model)
        self.best_epoch = 0
        self.best_score = (-1.0, -1.0)
        self._saved_at = time.monotonic()

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.epochs * len(self.batches)

    @property
    def shown(self) -> nn.Module:
        """The model that is measured and kept: the average of weights, once there is one."""
        return self.average.model if self.average and self.average.count else self.model

    def fit(self) -> Fitted:
        """Train from where the checkpoints stand to the last epoch."""
        self._resume()
        pace = Pace(self.step)
        runner = self._runner() if self.epoch < self.config.epochs else self.model
        with _own_randomness(self.model):
            while self.epoch < self.config.epochs:
                seed_modules(self.model, generator(self.seed, "modules", self.epoch).initial_seed())
                row = self._train_epoch(runner, pace)
                self._end_epoch(row)
        if self.config.epochs == 0 and self.checkpoints:
            self.checkpoints.save(self._snapshot())
        if self.shown is not self.model:
            self.model.load_state_dict(self.shown.state_dict())
        self.model.eval()
        return Fitted(self.best_weights, self.best_epoch, self.history)

    def _train_epoch(self, runner: nn.Module, pace: Pace) -> Row:
        self.model.train()
        started = time.perf_counter()
        meter = Meter(self.epoch + 1, self.step)
        lr = 0.0
        for batch in self.batches.epoch(self.epoch):
            lr = self._step(runner, batch, meter)
            if self.report and pace.due():
                self._say(meter.latest(), meter.examples / (time.perf_counter() - started), pace)
        meter.check()
        means = meter.means()
        seconds = time.perf_counter() - started
        if self.report:
            self._say(means, meter.examples / seconds, pace)
        return {
            "epoch": self.epoch + 1,
            "lr": lr,
            "train_loss": means["loss"],
            "train_clean": means.get("clean_correct"),
            "train_attacked": means.get("attacked_correct"),
            "seconds": seconds,
            "images_per_second": meter.examples / seconds,
        }

    def _step(self, runner: nn.Module, batch: Batch, meter: Meter) -> float:
        lr = self.schedule.lr_at(self.step / self.steps, self.config.lr, epochs=self.config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        loss = self._loss(runner, batch, meter)
        self.optimizer.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        if self.average:
            ends = self.step % len(self.batches) == 0
            self.average.update(self.model, progress=self.step / self.steps, epoch_ends=ends)
        meter.add(loss.logs, len(batch.labels))
        return lr

    def _loss(self, runner: nn.Module, batch: Batch, meter: Meter) -> Loss:
        key = stream_key(self.seed, "train-attack", self.step)
        half = self.config.precision == "bf16"
        objective: Objective = at_progress(self.objective, self.step / self.steps)
        try:
            with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=half):
                return objective(runner, batch.images, batch.labels, seed=key, ids=batch.ids)
        except InputError as error:
            # An inner attack refuses logits that are not finite; say where training broke instead.
            meter.check()
            if finite_logits(self.model, batch.images):
                raise
            raise not_finite("a logit", self.epoch + 1, self.step + 1) from error

    def _end_epoch(self, row: Row) -> None:
        """Measure, choose `best`, log, and save if it is time."""
        self.epoch += 1
        if not finite_weights(self.model):
            raise not_finite("a weight", self.epoch, self.step)
        if self.average and self.average.needs_statistics:
            self._take_statistics(self.average)
        final = self.epoch == self.config.epochs
        if self.validate and (final or self.epoch % self.config.validate_every == 0):
            row |= self._validated(self.validate)
        if self.probe and (final or self.epoch % self.config.collapse_every == 0):
            row |= self.probe(self.shown)
        self._choose(row)
        self.history.append(row)
        if self.checkpoints:
            append_log(self.checkpoints.folder / "log.jsonl", row)
            if final or time.monotonic() - self._saved_at >= self.save_seconds:
                self.checkpoints.save(self._snapshot())
                self._saved_at = time.monotonic()

    def _take_statistics(self, average: Average) -> None:
        """Show the average what training shows, attacked where the objective attacks."""
        meter = Meter(self.epoch, self.step)
        with average.statistics() as model:
            batches = self.batches.epoch(self.epoch)
            for batch in itertools.islice(batches, STATISTICS_BATCHES):
                self._loss(model, batch, meter)

    def _validated(self, validate: Watch) -> Row:
        try:
            return validate(self.shown)
        except InputError as error:
            raise not_finite("a logit of the validation", self.epoch, self.step) from error

    def _choose(self, row: Row) -> None:
        if self.validate and "validation_attacked" not in row:
            return
        clean = float(row.get("validation_clean", 0))
        # Among equally clean epochs the later: the more robust one would be the less trained one.
        attacked = float(row.get("validation_attacked", 0))
        score = (
            (attacked, clean) if self.objective.best_by == "validation_attacked" else (clean, 0.0)
        )
        if score >= self.best_score:
            self.best_weights = weights_of(self.shown)
            self.best_epoch, self.best_score = self.epoch, score

    def _snapshot(self) -> Snapshot:
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
        )

    def _resume(self) -> None:
        if not self.checkpoints:
            return
        snapshot = self.checkpoints.load()
        if snapshot:
            load_weights(self.model, snapshot.weights if snapshot.raw is None else snapshot.raw)
            if self.average and snapshot.raw is not None:
                load_weights(self.average.model, snapshot.weights)
                self.average.count = snapshot.averaged
            load_momentum(self.model, self.optimizer, snapshot.momentum)
            self.epoch, self.step, self.history = snapshot.epoch, snapshot.step, snapshot.history
            self.best_weights = snapshot.best_weights
            self.best_epoch, self.best_score = snapshot.best_epoch, snapshot.best_score
        start_log(self.checkpoints.folder / "log.jsonl", self.history)

    def _runner(self) -> nn.Module:
        """Return the model, compiled if the configuration asks for it."""
        if not self.config.compile:
            return self.model
        images = next(self.batches.ordered()).images
        try:
            compiled = cast(nn.Module, torch.compile(self.model))
            with untouched(self.model), torch.no_grad():
                compiled(images)
        except (RuntimeError, OSError, ImportError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TrainingError(
                f"torch.compile failed ({why}); set train.compile = false"
            ) from error
        return compiled

    def _say(self, logs: dict[str, float], images_per_second: float, pace: Pace) -> None:
        assert self.report is not None
        event = TrainEvent(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            step=self.step,
            steps=self.steps,
            loss=logs["loss"],
            clean=logs.get("clean_correct"),
            attacked=logs.get("attacked_correct"),
            images_per_second=images_per_second,
            seconds_left=pace.left(self.step, self.steps),
        )
        self.report(event)


@contextlib.contextmanager
def _own_randomness(model: nn.Module) -> Iterator[None]:
    """Give back the global generators as they were (a backbone with dropout draws from them)."""
    device = device_of(model)
    devices: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
