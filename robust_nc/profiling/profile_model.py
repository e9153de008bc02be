"""The geometry of one model: every tap, clean, attacked and under noise, on train and test.

>>> import torch
>>> from torch import nn
>>> from robust_nc.config import MeasureConfig
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
>>> batches = [(torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1]))] * 2
>>> found = profile(model, batches, Ball("Linf", 0.1), measure=MeasureConfig(steps=2, radii=()))
>>> found.taps, bool((found.frame["measure"] == "leap_rate").any())
(('2', 'penultimate'), True)
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from robust_nc.checks import check_images, check_labels, check_model
from robust_nc.config import MeasureConfig, RunConfig
from robust_nc.data.base import Split
from robust_nc.data.load import to_unit
from robust_nc.evaluation.evaluate_model import evaluate
from robust_nc.exceptions import InputError
from robust_nc.models.classifier import Classifier
from robust_nc.models.taps import HasTaps, module_taps, read_taps
from robust_nc.profiling.conditions import check_settings, split_conditions, stated
from robust_nc.profiling.measurement import Examples, Measurement, VertexMoments, drawn
from robust_nc.profiling.optional_rows import extra_rows, prefixed
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import ModelExecutor, SplitShards
from robust_nc.profiling.split_rows import SplitRows
from robust_nc.profiling.sweeps import CorruptionSource, corrupted_rows, radius_rows
from robust_nc.record.schema import tidy
from robust_nc.registry import CONTROLS
from robust_nc.runtime.executor import IN_PROCESS, Executor
from robust_nc.runtime.model_outputs import logits_model
from robust_nc.runtime.progress import Report, no_report
from robust_nc.runtime.threads import brief_waits
from robust_nc.runtime.torch_state import check_float64, device_of, full_precision, untouched
from robust_nc.threat import Ball, check_ball
from robust_nc.training.validation import evenly_chosen

CALIBRATION = 1_000  # clean training images that set the scale of the logits
TRAIN, TEST = "train", "test"

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """All measures of one model.

    `frame` has one row per value: tap x condition x grouping x split x measure, with the columns of
    docs/measures.md. `taps` in depth order; `vertices` the clean class means `(K, D)` float64 by
    feature and tap; `logit_scale` the constant that the attack divided logits by.
    """

    frame: pd.DataFrame
    taps: tuple[str, ...]
    vertices: Mapping[tuple[str, str], Tensor]
    logit_scale: float

    def values(self, measure: str, **where: object) -> pd.DataFrame:
        """Return the rows of one measure, e.g. `values("nc1", tap="penultimate")`."""
        rows = self.frame[self.frame["measure"] == measure]
        for column, value in where.items():
            if column not in rows:
                raise InputError(f"there is no column {column!r}; valid: {', '.join(rows.columns)}")
            rows = rows[rows[column] == value]
        return rows


def profile(
    model: nn.Module,
    batches: Batches | Mapping[str, Batches],
    ball: Ball,
    *,
    measure: MeasureConfig | None = None,
    distances: Tensor | None = None,
    initial: nn.Module | None = None,
    seed: int = 0,
    report: Report | None = None,
    executor: Executor = IN_PROCESS,
) -> Profile:
    """Measure collapse, leaps and all that goes with them, over the whole grid of one model.

    `batches` yields pairs of images `(n, C, H, W)` float32 in [0, 1] and labels `(n,)` int64; a
    mapping gives them as `train` (its clean class means are the vertices) and `test`; where only
    some are measured, they are drawn from all. `model` maps
    images to logits `(N, K)` and is left as it was found; it is measured in eval mode, attacked on
    its weights as they are. `measure` chooses taps, conditions and sizes (all examples given are
    measured, whatever it limits). `distances` (K, K) between classes adds severity; `initial`, the
    network before training, adds centred feature matrices. Draws depend on `seed` and on the place
    of an example. `report` is called with a share in [0, 1] and a line.

    `executor` does the passes through the network, shard by shard of the examples: by
    `measure.block`, whose sums are the same to the bit whoever made them, else into as many parts
    as it can do at a time. Only sums and logits come back, and are merged here.

    Raises `InputError` for data or logits that cannot be used, `UnknownNameError` for a tap, and
    `StoppedError` between two conditions, where the process was asked to stop.
    """
    model = logits_model(check_model(model))
    check_ball(ball)
    check_float64(device_of(model))
    settings = measure or MeasureConfig()
    named: Mapping[str, Batches] = batches if isinstance(batches, Mapping) else {TRAIN: batches}
    if TRAIN not in named or set(named) - {TRAIN, TEST}:
        raise InputError(f"batches must be those of train, or train and test, found {set(named)}")
    sets = {name: _gathered(name, named[name]) for name in (TRAIN, TEST) if name in named}
    workers = ModelExecutor(model, executor)
    num_classes = workers.ask(count_classes, sets[TRAIN].images[:2].clone())
    for examples in sets.values():
        check_labels(examples.labels, len(examples.labels), num_classes)
    found = _measure(
        workers,
        sets,
        ball,
        settings,
        num_classes=num_classes,
        distances=distances,
        initial=initial,
        seed=seed,
        report=report or no_report,
    )
    vertices = {(f, tap): m.means for f, r in found.references.items() for tap, m in r.items()}
    return Profile(
        frame=tidy(found.rows),
        taps=found.measurement.taps,
        vertices=vertices,
        logit_scale=found.measurement.attacking.scale,
    )


def profile_cell(
    model: Classifier,
    train: Split,
    test: Split,
    config: RunConfig,
    *,
    given: Tensor | None = None,
    distances: Tensor | None = None,
    corrupted: CorruptionSource | None = None,
    initial: nn.Module | None = None,
    report: Report,
    executor: Executor = IN_PROCESS,
) -> pd.DataFrame:
    """Profile the model of a suite's cell on the examples that its configuration asks for.

    `given` (N,) are the labels that training saw, where some were wrong: `train` has the right
    ones. `corrupted` are corrupted test images, where they are not to be made; `distances` and
    `initial` as for `profile`, `executor` too.
    """
    settings = config.measure
    limit = settings.train_examples or len(train.labels)
    learnt = _unit(TRAIN, evenly_chosen(train, limit))
    if given is not None:
        learnt = learnt._replace(given=evenly_chosen(train._replace(labels=given), limit).labels)
    judged = Split(*(part[: settings.test_examples] for part in test))
    sets = {TRAIN: learnt, TEST: _unit(TEST, judged)}
    found = _measure(
        ModelExecutor(model, executor),
        sets,
        config.threat.ball(),
        settings,
        num_classes=model.num_classes,
        distances=distances,
        corrupted=corrupted,
        initial=initial,
        seed=config.seed,
        report=report,
    )
    return tidy(found.rows)


def measured_at_epochs(measure: MeasureConfig) -> MeasureConfig:
    """Return what is measured after single epochs: clean, attacked, cyclic targets, noise, AGOP."""
    return dataclasses.replace(
        measure,
        targets=tuple(target for target in measure.targets if target == "cyclic"),
        radii=(),
        adaptive=None,
        trajectories=0,
        corruptions=(),
    )


class _Measured(NamedTuple):
    measurement: Measurement
    rows: list[Row]
    references: dict[str, VertexMoments]


def _measure(
    executor: ModelExecutor,
    sets: dict[str, Examples],
    ball: Ball,
    settings: MeasureConfig,
    *,
    num_classes: int,
    distances: Tensor | None,
    corrupted: CorruptionSource | None = None,
    initial: nn.Module | None,
    seed: int,
    report: Report,
) -> _Measured:
    labels, model = sets[TRAIN].labels, executor.model
    enough = int((labels.bincount(minlength=num_classes) >= 2).sum())
    if enough < 2:
        raise InputError(
            f"of the {len(labels)} training examples to measure, {enough} of {num_classes} "
            "classes have two or more, and two such classes are needed; raise data.train_limit or "
            "measure.train_examples"
        )
    # A caller's inference mode would reach the sums.
    with torch.inference_mode(False), untouched(model), full_precision(), brief_waits():
        if settings.taps is None and not isinstance(model, HasTaps):
            running = executor.ask(running_taps, sets[TRAIN].images[:2].clone())
            if idle := [tap for tap in module_taps(model) if tap not in running]:
                report(0.0, f"left out, as no features come of them: {', '.join(idle)}")
            settings = dataclasses.replace(settings, taps=running)
        measurement = Measurement.of(
            model,
            settings,
            ball,
            num_classes=num_classes,
            scale=executor.ask(calibrate, sets[TRAIN].first(CALIBRATION).images),
            seed=seed,
            distances=distances,
        )
        check_settings(measurement)
        rows: list[Row] = []
        references: dict[str, VertexMoments] = {}
        split: SplitShards | None = None
        for examples in sets.values():
            split = None  # not the shards of both at a time
            split = SplitShards(executor, measurement, examples)
            told = prefixed(report, f"geometry, {examples.split}")
            rows += _split_rows(split, references, told)
        assert split is not None
        if settings.radii:
            rows += radius_rows(split, references, told)
        if settings.corruptions:
            rows += corrupted_rows(split, references, told, source=corrupted)
        rows += extra_rows(executor, measurement, examples, references, initial, told)
    return _Measured(measurement, rows, references)


def running_taps(model: nn.Module, images: Tensor, *, report: Report) -> tuple[str, ...]:
    """Return the taps of a model that give features of images."""
    with torch.no_grad():
        return tuple(read_taps(model, images.to(device_of(model))).features)


def count_classes(model: nn.Module, images: Tensor, *, report: Report) -> int:
    """Ask the model for logits, and say so where it gives none."""
    with torch.no_grad():
        try:
            logits = model(images.to(device_of(model)))
        except RuntimeError as error:
            raise InputError(
                f"the model fails on float32 images of shape {tuple(images.shape)}: {error}"
            ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError("the model must return logits (N, K), found another shape or type")
    return logits.shape[1]


def calibrate(model: nn.Module, images: Tensor, *, report: Report) -> float:
    """Find what the attack divides logits by, from clean training images."""
    found: float = CONTROLS.load("logit_scale")(model, images.to(device_of(model)))
    return found


def _split_rows(
    split: SplitShards, references: dict[str, VertexMoments], report: Report
) -> list[Row]:
    """Measure one split through every feature; the first split fills `references`."""
    views = [
        SplitRows(split, feature, references.get(feature)) for feature in split.measurement.features
    ]
    references |= {view.feature: view.vertices for view in views}
    rows: list[Row] = []
    for condition in split_conditions(split, views[0].vertices, report):
        report(0.0, f"measure {condition.name}")
        shared = stated(split.measurement, condition.name)
        for view in views:
            rows += [shared | row for row in view.measure(condition)]
    return rows


def _gathered(split: str, batches: Batches) -> Examples:
    """Join the batches of a split, each checked."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for number, pair in enumerate(batches):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(
                f"batch {number} of {split} must be a pair (images, labels), "
                f"found {type(pair).__name__}"
            )
        images.append(check_images(pair[0], what=f"images of batch {number} of {split}").cpu())
        what = f"labels of batch {number} of {split}"
        labels.append(check_labels(pair[1], len(images[-1]), what=what).cpu())
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise InputError(
                f"all images must have one shape, found {tuple(images[0].shape[1:])} and, in batch "
                f"{number} of {split}, {tuple(images[-1].shape[1:])}"
            )
    if not images or not sum(map(len, images)):
        raise InputError(f"batches of {split} hold no examples")
    return drawn(split, images, labels)


def _unit(name: str, split: Split) -> Examples:
    return Examples(name, to_unit(split.images), split.labels, split.ids)


def sweep_rows(model: Classifier, test: Split, config: RunConfig) -> list[Row]:
    """Accuracy against eps, each under the protocol that the configuration has for the sweep."""
    settings = config.evaluation
    count = min(settings.sweep_examples, len(test.labels))
    rows = []
    for eps in settings.sweep:
        outcome = evaluate(
            model,
            to_unit(test.images[:count]),
            test.labels[:count],
            Ball(config.threat.norm, eps),
            protocol=settings.sweep_protocol,
            seed=config.seed,
            batch_size=settings.batch_size,
            checks=False,
            tune=settings.block is None,
        )
        value = {"measure": "accuracy", "value": outcome.robust_accuracy, "n": count}
        place = {"tap": "output", "condition": "attacked", "split": "test"}
        rows.append(place | value | {"eps": eps, "attack": settings.sweep_protocol})
    return rows
