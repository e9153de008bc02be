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

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from robust_nc.config import Compile, TrainConfig, build
from robust_nc.data.batches import Batch, Batches
from robust_nc.exceptions import InputError, StoppedError, TrainingError
from robust_nc.registry import SCHEDULES
from robust_nc.runtime.threads import brief_waits
from robust_nc.runtime.torch_state import (
    counted_gradients,
    device_of,
    fixed_shapes,
    float32_products,
    generator,
    kept_draws,
    seed_generators,
    stream_key,
    untouched,
)
from robust_nc.training.averaging import STATISTICS_BATCHES, Average
from robust_nc.training.callbacks import Callbacks
from robust_nc.training.checkpoint import Checkpoints, Tensors
from robust_nc.training.data_parallel import check_alone, check_objective
from robust_nc.training.epoch_meter import Meter, NotFiniteError, not_finite
from robust_nc.training.objectives import Objective, at_progress
from robust_nc.training.progress import EpochRow, StepPace, TrainEvent, TrainReport
from robust_nc.training.schedule import Schedule
from robust_nc.training.state import (
    SAVE_SECONDS,
    SAVE_SECONDS_WITHIN,
    Keeper,
    TrainerState,
    finite_logits,
    finite_weights,
    weights_of,
)
from robust_nc.training.stream import Stream
from robust_nc.training.sync_batchnorm import synced, unshared
from robust_nc.types import Loss

Watch = Callable[[nn.Module], dict[str, float | None]]
"""Something measured between epochs: a model -> named numbers. It must leave no trace."""


class Fitted(NamedTuple):
    """What a training leaves beside the model itself, which is `last`."""

    best_weights: Tensors
    best_epoch: int
    history: list[EpochRow]


class Trainer(TrainerState):
    """One training of `model` on `batches`; the model is changed in place.

    `validate` returns `validation_clean` and `validation_attacked`, on which `best` is
    chosen (without it the last epoch is the best); `probe` returns the measures of collapse. With
    `checkpoints` the training resumes from them and saves to them: at the end, after every epoch
    that ends `save_seconds` or more after the last save, within an epoch every
    `save_seconds_within`, and where it was asked to stop, which is heeded after each step and
    raises `StoppedError`. `callbacks` hear of every epoch, in the first process alone. A resumed
    training on the CPU equals one that never stopped, to the bit.
    Raises `TrainingError` where the loss is not finite, and says which state is kept.
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
        report: TrainReport | None = None,
        callbacks: Callbacks | None = None,
        save_seconds: float = SAVE_SECONDS,
        save_seconds_within: float = SAVE_SECONDS_WITHIN,
    ) -> None:
        super().__init__(model, config)
        self.objective = objective
        self.batches = batches
        self.seed = seed
        self.validate = validate
        self.probe = probe
        self.report = report
        self.callbacks = callbacks or Callbacks()
        check_objective(objective, self.group)
        moves = bool(getattr(getattr(model, "head", None), "gradient", False))
        check_alone({"train.stream": config.stream, "model.head.gradient": moves}, self.group)
        self.schedule: Schedule = build(SCHEDULES, config.schedule)
        self.keeper = Keeper(
            self, checkpoints, save_seconds=save_seconds, save_seconds_within=save_seconds_within
        )

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.epochs * len(self.batches)

    def fit(self) -> Fitted:
        """Train from where the checkpoints stand to the last epoch."""
        self.keeper.resume()
        if self.epoch < self.config.epochs:
            self._tell_callbacks()
        elif self.config.epochs == 0:
            self.keeper.save(final=True)
        if self.shown is not self.model:
            self.model.load_state_dict(self.shown.state_dict())
        self.model.eval()
        return Fitted(self.best_weights, self.best_epoch, self.history)

    def _tell_callbacks(self) -> None:
        """Go on, between the first and the last word to the callbacks."""
        failed = True
        try:
            self.group.lead(lambda: self.callbacks.start(self.history))
            self._go_on()
            failed = False
        finally:
            self.callbacks.close(failed=failed)

    def _go_on(self) -> None:
        pace = StepPace(self.step)
        if self.report and self.keeper.note:
            self._say({}, None, pace)
        runner = self._runner()
        models = [self.model, *([self.average.model] if self.average else [])]
        try:
            with kept_draws(device_of(self.model)), synced(self.group, *models):
                while self.epoch < self.config.epochs:
                    with brief_waits():
                        self._one_epoch(runner, pace)
        except NotFiniteError as error:
            raise TrainingError(f"{error}; {self.keeper.kept()}") from error

    def _one_epoch(self, runner: nn.Module, pace: StepPace) -> None:
        draws = generator(self.seed, "modules", self.epoch, *self.group.stream)
        seed_generators(draws.initial_seed(), device_of(self.model))
        self.resume_draws()
        if self.row is None:
            precise = products(self.config.precision, device_of(self.model))
            with precise, fixed_shapes(), counted_gradients() as count:
                self.row = self._train_epoch(runner, pace)
            if count.unusable:
                self.row["unusable_gradients"] = count.unusable / count.seen
        self._end_epoch(self.row)

    def _train_epoch(self, runner: nn.Module, pace: StepPace) -> EpochRow:
        self.model.train()
        meter = self.meter
        meter.start()
        for batch in self.batches.epoch(self.epoch, first=meter.steps):
            self._step(runner, batch, meter)
            if self.report and pace.due():
                self._say(meter.latest(), meter.examples / meter.seconds, pace)
            self.keeper.pause()
        meter.check()
        means = meter.means()
        meter.stop()
        if self.report:
            self._say(means, meter.examples / meter.seconds, pace)
        return {
            "epoch": self.epoch + 1,
            "lr": self._rate(self.step - 1),
            "train_loss": means["loss"],
            "train_clean": means.get("clean_correct"),
            "train_attacked": means.get("attacked_correct"),
            "seconds": meter.seconds,
            "images_per_second": meter.examples / meter.seconds,
        } | (self.stream.measures() if self.stream else {})

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        return self.schedule.lr_at(step / self.steps, self.config.lr, epochs=self.config.epochs)

    def _step(self, runner: nn.Module, batch: Batch, meter: Meter) -> None:
        lr = self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        loss = self._loss(runner, self.group.share(batch), meter, self.stream)
        self.optimizer.zero_grad(set_to_none=True)
        logs = self.group.backward(loss, self.model)
        self.optimizer.step()
        self.step += 1
        if self.average:
            ends = self.step % len(self.batches) == 0
            self.average.update(self.model, progress=self.step / self.steps, epoch_ends=ends)
        meter.add(logs, len(batch.labels))

    def _loss(
        self, runner: nn.Module, batch: Batch, meter: Meter, stream: Stream | None = None
    ) -> Loss:
        key = stream_key(self.seed, "train-attack", self.step)
        half = self.config.precision == "bf16"
        objective: Objective = at_progress(self.objective, self.step / self.steps)
        seen = stream.step(batch.labels) if stream else nullcontext()
        try:
            with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=half), seen:
                return objective(runner, batch.images, batch.labels, seed=key, ids=batch.ids)
        except InputError as error:
            # An inner attack refuses logits that are not finite; say where training broke instead.
            meter.check()
            with unshared():
                finite = finite_logits(self.model, batch.images)
            if finite:
                raise
            raise not_finite("a logit", self.epoch + 1, self.step + 1) from error

    def _end_epoch(self, row: EpochRow) -> None:
        """Measure, choose `best`, log, and save if it is time; resumed, the parts that are left."""
        parts = (self._settle, self._validate, self._probe)
        for part in parts[self.parts :]:
            self._done(row, part)
            if self.parts < len(parts):
                self.keeper.pause()
        self.epoch += 1
        self._choose(row)
        self.history.append(row)
        self.begin_epoch()
        try:
            self.group.lead(lambda: self.callbacks.end_epoch(self.shown, row))
        except TrainingError as error:
            self.keeper.end_epoch(save=True)
            saved = self.keeper.checkpoints is not None
            kept = "; that epoch is saved, and the same command goes on behind it" if saved else ""
            raise TrainingError(f"{error}{kept}") from error
        self.keeper.end_epoch()

    def _done(self, row: EpochRow, part: Callable[[int], EpochRow]) -> None:
        try:
            row |= part(self.epoch + 1)
        except StoppedError:  # a part that heeds the wish has changed nothing
            self.keeper.save()
            raise
        self.parts += 1

    def _settle(self, epoch: int) -> EpochRow:
        """Refuse weights that are not finite, and make the average ready to be measured."""
        if not finite_weights(self.model):
            raise not_finite("a weight", epoch, self.step)
        if self.average and self.average.needs_statistics:
            self._take_statistics(self.average, epoch)
        return {}

    def _validate(self, epoch: int) -> EpochRow:
        if not self.validate or not self._is_due(epoch, self.config.validate_every):
            return {}
        try:
            return self.validate(self.shown)
        except InputError as error:
            raise not_finite("a logit of the validation", epoch, self.step) from error

    def _probe(self, epoch: int) -> EpochRow:
        due = self.probe and self._is_due(epoch, self.config.collapse_every)
        return self.probe(self.shown) if self.probe and due else {}

    def _is_due(self, epoch: int, every: int) -> bool:
        return epoch == self.config.epochs or epoch % every == 0

    def _take_statistics(self, average: Average, epoch: int) -> None:
        """Show the average what training shows, attacked where the objective attacks."""
        meter = Meter(epoch, self.step)
        precise = products(self.config.precision, device_of(self.model))
        with average.statistics() as model, precise:
            batches = self.batches.epoch(epoch)
            for batch in itertools.islice(batches, STATISTICS_BATCHES):
                self._loss(model, self.group.share(batch), meter)

    def _choose(self, row: EpochRow) -> None:
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

    def _runner(self) -> nn.Module:
        """Return the model, compiled if the configuration asks for it."""
        if not self.config.compile:
            return self.model
        images = next(self.batches.ordered()).images
        precise = products(self.config.precision, images.device)
        try:
            runner = compiled(self.model, self.config.compile)
            with untouched(self.model), torch.no_grad(), precise:
                runner(images)
        except (RuntimeError, OSError, ImportError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TrainingError(
                f"torch.compile failed ({why}); set train.compile = false"
            ) from error
        return runner

    def _say(self, logs: dict[str, float], images_per_second: float | None, pace: StepPace) -> None:
        assert self.report is not None
        event = TrainEvent(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            step=self.step,
            steps=self.steps,
            loss=logs.get("loss"),
            clean=logs.get("clean_correct"),
            attacked=logs.get("attacked_correct"),
            images_per_second=images_per_second,
            seconds_left=pace.left(self.step, self.steps) if logs else None,
            note=self.keeper.note,
        )
        self.report(event)


def products(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Let CUDA round the factors of float32 products to 10 bits if `precision` is "tf32".

    Restored on the way out. Any other precision, and any other device, stay as they are.
    """
    if precision == "tf32" and device.type == "cuda":
        return float32_products("tf32")
    return nullcontext()


def compiled(model: nn.Module, how: Compile) -> nn.Module:
    """Return a model under `torch.compile`, or itself if `how` is False.

    "reduce-overhead" replays CUDA graphs. What they answer lies in memory that the next replay
    writes over, so its logits are copied: an inner attack keeps those of the clean images.
    """
    if how is False:
        return model
    if how is True:
        return cast(nn.Module, torch.compile(model))
    graph = cast(nn.Module, torch.compile(model, mode=how))
    graph.register_forward_hook(_copied)
    return graph


def _copied(model: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    return logits.clone()
