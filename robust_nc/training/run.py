"""Train the model of a configuration, in memory or with checkpoints in a folder.

>>> from robust_nc.config import RunConfig, read
>>> config = read(RunConfig, {"train": {"epochs": 0}})
>>> train(config).training
False
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console

from robust_nc.config import (
    Component,
    ModelConfig,
    RunConfig,
    allow_code,
    build,
    option_names,
    plain,
    read,
    training_part,
)
from robust_nc.data.alter import Altered, alter
from robust_nc.data.base import DatasetInfo, Split
from robust_nc.data.batches import Batches, hold_out
from robust_nc.data.hierarchy.tree import embedded, hierarchy_names, tree_of
from robust_nc.data.load import dataset_info, read_split
from robust_nc.data.noise import LabelNoise
from robust_nc.exceptions import CheckpointError, ConfigError, InputError
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.registry import HEADS, LABEL_NOISES, LOSSES, OBJECTIVES, Registry
from robust_nc.runtime.progress import progress_report
from robust_nc.runtime.screen import Screen
from robust_nc.runtime.torch_state import check_float64, default_device
from robust_nc.training.callbacks import Callbacks, EpochCallback
from robust_nc.training.checkpoint import (
    Checkpoints,
    DamagedError,
    TensorFile,
    read_manifest,
    read_tensors,
)
from robust_nc.training.loop import Trainer, Watch
from robust_nc.training.losses import FeatureLoss, PerExampleLoss, Seen, build_loss
from robust_nc.training.objectives import ClosedForm, Objective
from robust_nc.training.progress import EpochRow, TrainReport
from robust_nc.training.state import SAVE_SECONDS, SAVE_SECONDS_WITHIN, load_weights, make_optimizer
from robust_nc.training.validation import CollapseProbe, MemorizationProbe, Validator, evenly_chosen


class Trained(NamedTuple):
    """A finished training. `best` and `last` are in eval mode, on the device of the training.

    `history` has one row per epoch; `train` is what the model learnt from, with the labels it was
    given, and `altered` what was done to them; `validation` is what was held out of the train split
    to choose `best`; `model` is the configuration with its sizes; `seconds` is what the training
    steps took, over all sessions and without the validation.
    """

    best: Classifier
    last: Classifier
    best_epoch: int
    history: list[EpochRow]
    seconds: float
    train: Split
    altered: Altered
    validation: Split
    info: DatasetInfo
    model: ModelConfig


def train(config: RunConfig, *, callbacks: Sequence[EpochCallback] = ()) -> Classifier:
    """Train in memory and return the best epoch's model, in eval mode.

    The device is the accelerator if there is one. `callbacks` are objects whose
    `on_epoch(model, epoch, log)` is called after each epoch with a copy of the model and the row of
    the log; ready-made ones are in `robust_nc.callbacks`. They change nothing of the training.
    Raises `ConfigError` for options that do not fit, `DataError` for missing data, `TrainingError`
    where the loss is not finite or a callback fails.
    """
    if not isinstance(config, RunConfig):
        raise InputError(f"train takes a RunConfig, found {type(config).__name__}")
    name = f"{config.data.dataset.name}/{config.train.objective.name}"
    with Screen(Console(stderr=True), side_by_side=True) as screen:
        report = progress_report(screen.report(name))
        return train_cell(config, report=report, callbacks=callbacks).best


def train_cell(
    config: RunConfig,
    *,
    root: Path | str | None = None,
    folder: Path | None = None,
    device: torch.device | str | None = None,
    report: TrainReport | None = None,
    callbacks: Sequence[EpochCallback] = (),
    save_seconds: float = SAVE_SECONDS,
    save_seconds_within: float = SAVE_SECONDS_WITHIN,
) -> Trained:
    """Train one cell; with `folder`, resume from its checkpoints and leave them and `log.jsonl`.

    `root` is where data sets lie. Raises as `train`, `CheckpointError` for a folder of another
    configuration or a damaged one, `StorageError` for one that cannot be written.
    """
    allow_code(config)
    heard = Callbacks(callbacks)
    place = torch.device(device) if device is not None else default_device()
    check_float64(place)
    info = dataset_info(config.data, root)
    shapes = resolve_model(
        config.model, info, hierarchy=config.data.hierarchy, classes=config.data.classes
    )
    model = build_model(shapes, seed=config.seed).to(place)
    objective = build_objective(config)
    altered, held_out = training_data(config, info, root)
    checkpoints = None
    if folder:
        checkpoints = Checkpoints(folder, training_part(config), facts={"model": plain(shapes)})
    if isinstance(objective, ClosedForm):
        _check_closed(config)
        if checkpoints is None or checkpoints.load() is None:
            objective.solve(model, altered.split, seed=config.seed, report=report)
    validate = None
    if len(held_out.labels):
        validate = Validator(held_out, config.threat.ball(), seed=config.seed, device=place)
    trainer = Trainer(
        model,
        objective,
        Batches(
            altered.split,
            batch_size=config.train.batch_size,
            device=place,
            augment=config.data.augment,
            seed=config.seed,
        ),
        config.train,
        seed=config.seed,
        validate=validate,
        probe=_probe(altered, config, root, place),
        checkpoints=checkpoints,
        report=report,
        callbacks=heard,
        save_seconds=save_seconds,
        save_seconds_within=save_seconds_within,
    )
    fitted = trainer.fit()
    best = copy.deepcopy(model)
    load_weights(best, fitted.best_weights)
    return Trained(
        best=best.eval(),
        last=model.eval(),
        best_epoch=fitted.best_epoch,
        history=fitted.history,
        seconds=sum(row["seconds"] for row in fitted.history),
        train=altered.split,
        altered=altered,
        validation=held_out,
        info=info,
        model=shapes,
    )


def check_training(config: RunConfig, info: DatasetInfo) -> Classifier:
    """Refuse what could only fail later, and return the untrained model.

    Builds all parts and asks the loss for two examples; reads no data.
    """
    data = config.data
    shapes = resolve_model(config.model, info, hierarchy=data.hierarchy, classes=data.classes)
    model = build_model(shapes, seed=config.seed)
    objective = build_objective(config)
    make_optimizer(model, config.train)
    if config.data.noise is not None:
        noise: LabelNoise = build(LABEL_NOISES, config.data.noise)
        noise.effective_rate(torch.arange(info.num_classes), info.num_classes)
    if isinstance(objective, ClosedForm):
        _check_closed(config)
        objective.check(model)
        return model
    loss = _loss(config)
    if config.train.compile and (isinstance(loss, FeatureLoss) or model.head.observes):
        raise ConfigError(
            f"train.compile does not go with the loss {config.train.loss.name!r} and the head "
            f"{config.model.head.name!r}, which read the features before the head; set it to false"
        )
    if config.train.compile and config.train.stream:
        raise ConfigError("train.stream reads what the head reads, and train.compile hides it")
    if isinstance(loss, FeatureLoss):
        features = torch.zeros(2, model.head.dim)
        loss(Seen(model.head(features), features, model.head), torch.tensor([0, 1]))
    return model


def _check_closed(config: RunConfig) -> None:
    name, settings = config.train.objective.name, config.train
    if settings.epochs:
        raise ConfigError(
            f"objective {name!r} has a closed form and takes no steps: set train.epochs = 0, "
            f"found {settings.epochs}"
        )
    unused = {
        "loss": settings.loss.name != "ce",
        "averaging": settings.averaging is not None,
        "feature_decay": settings.feature_decay > 0,
        "stream": settings.stream,
    }
    for option, given in unused.items():
        if given:
            raise ConfigError(
                f"objective {name!r} has a closed form: leave out train.{option}, which it would "
                "not use"
            )


def training_data(
    config: RunConfig, info: DatasetInfo, root: Path | str | None
) -> tuple[Altered, Split]:
    """Read what a cell learns from, thinned out and mislabelled as it says, and the validation."""
    data = config.data
    everything = read_split(data, "train", root=root, limit=data.train_limit)
    learnt, held_out = hold_out(everything, data.validation, seed=config.seed)
    altered = alter(
        learnt,
        imbalance=data.imbalance,
        noise=data.noise,
        num_classes=info.num_classes,
        seed=config.seed,
    )
    return altered, held_out


def build_objective(config: RunConfig) -> Objective:
    """Return the objective of a configuration, with its ball and loss."""
    objective: Objective = build(
        OBJECTIVES,
        config.train.objective,
        ball=config.threat.ball(),
        loss=_loss(config),
    )
    return objective


def resolve_model(
    model: ModelConfig,
    info: DatasetInfo,
    *,
    hierarchy: str | None = None,
    classes: Sequence[int] | None = None,
) -> ModelConfig:
    """Fill in what the data set gives; raises `ConfigError` where the model contradicts it.

    That is sizes, and for a head with an option `hierarchy` the tree of the classes: `hierarchy`,
    or the data set's own, cut to the `classes` that `info` is of. Data of one class are refused:
    there is nothing to tell apart.
    """
    if info.num_classes < 2:
        raise InputError(f"{info.name} has one class only; at least two are needed")
    for name, found in (("num_classes", info.num_classes), ("image_shape", info.image_shape)):
        wanted = getattr(model, name)
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"model.{name} is {wanted}, but {info.name} has {found}; leave it out to take the "
                "data set's"
            )
    return dataclasses.replace(
        model,
        head=_with_tree(model.head, HEADS, info.name, hierarchy, classes, info.class_names),
        num_classes=info.num_classes,
        image_shape=info.image_shape,
    )


def _with_tree(
    part: Component,
    registry: Registry,
    dataset: str,
    hierarchy: str | None,
    classes: Sequence[int] | None,
    names: Sequence[str] | None = None,
) -> Component:
    """Give a head or loss the tree of the classes where it takes one and names none."""
    if "hierarchy" not in option_names(registry, part.name):
        return part
    own = dataset if dataset in hierarchy_names() else None
    name = part.options.get("hierarchy") or hierarchy or own
    if name is None:
        raise ConfigError(
            f"{registry.kind} {part.name!r} needs a tree of the classes, and {dataset} has none of "
            "its own; set data.hierarchy to a TOML or JSON file"
        )
    tree = tree_of(name, dataset, classes)
    assert tree is not None, "it is named"
    if names is not None:
        tree.check_classes(names)
    text = embedded(name) if classes is None else tree.text()
    return Component(name=part.name, options={**part.options, "hierarchy": text})


def _loss(config: RunConfig) -> PerExampleLoss | FeatureLoss:
    data = config.data
    part = _with_tree(config.train.loss, LOSSES, data.dataset.name, data.hierarchy, data.classes)
    return build_loss(part, feature_decay=config.train.feature_decay)


def load_classifier(folder: Path, *, which: Literal["best", "last"] = "best") -> Classifier:
    """Return the model of a folder's checkpoint, on the CPU in eval mode.

    Raises `CheckpointError` where there is none, or where it is damaged.
    """
    path = folder / f"{which}.json"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; give the folder that a training wrote")
    about = read_manifest(path)
    try:
        config, seed = about["facts"]["model"], int(about["config"]["seed"])
        weights = read_tensors(folder, TensorFile(**about["tensors"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(path, f"it lacks or garbles {error}") from error
    model = build_model(read(ModelConfig, config, source=str(path)), seed=seed)
    load_weights(model, weights)
    return model.eval()


def _probe(
    altered: Altered, config: RunConfig, root: Path | str | None, device: torch.device
) -> Watch:
    """Collapse after each epoch, by the right labels; where some are wrong, memorization too."""
    right = altered.split._replace(labels=altered.original)
    examples = evenly_chosen(right, config.train.collapse_examples)
    collapse = CollapseProbe(examples, device=device)
    if config.data.noise is None:
        return collapse
    test = read_split(config.data, "test", root=root)
    memorization = MemorizationProbe(altered.split, altered.original, test, device=device)
    return lambda model: collapse(model) | memorization(model)
