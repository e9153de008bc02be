"""Train the model of a configuration, in memory or with checkpoints in a folder.

>>> from robust_nc.config import RunConfig, read
>>> config = read(RunConfig, {"train": {"epochs": 0}})
>>> train(config).training
False
"""

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from robust_nc.config import ModelConfig, RunConfig, build, plain, read, training_part
from robust_nc.data.base import DatasetInfo, Split
from robust_nc.data.batches import Batches, hold_out
from robust_nc.data.load import dataset_info, read_split
from robust_nc.exceptions import CheckpointError, ConfigError, InputError
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.registry import OBJECTIVES
from robust_nc.runtime import default_device
from robust_nc.training.checkpoint import (
    Checkpoints,
    TensorFile,
    damaged,
    read_manifest,
    read_tensors,
)
from robust_nc.training.log import Row
from robust_nc.training.loop import SAVE_SECONDS, Trainer
from robust_nc.training.losses import build_loss
from robust_nc.training.objectives import Objective
from robust_nc.training.progress import Bars, Report
from robust_nc.training.state import load_weights
from robust_nc.training.watch import CollapseProbe, Validator, spread


class Trained(NamedTuple):
    """A finished training. `best` and `last` are in eval mode, on the device of the training.

    `history` has one row per epoch; `train` is what the model learnt from, `validation` what was
    held out of the train split to choose `best`; `model` is the configuration with its sizes;
    `seconds` is what the training steps took, over all sessions and without the validation.
    """

    best: Classifier
    last: Classifier
    best_epoch: int
    history: list[Row]
    seconds: float
    train: Split
    validation: Split
    info: DatasetInfo
    model: ModelConfig


def train(config: RunConfig) -> Classifier:
    """Train in memory and return the best epoch's model, in eval mode.

    The device is the accelerator if there is one. Raises `ConfigError` for options that do not fit,
    `DataError` for missing data, `TrainingError` where the loss is not finite.
    """
    if not isinstance(config, RunConfig):
        raise InputError(f"train takes a RunConfig, found {type(config).__name__}")
    with Bars() as bars:
        name = f"{config.data.dataset.name}/{config.train.objective.name}"
        return train_cell(config, report=functools.partial(bars.show, name)).best


def train_cell(
    config: RunConfig,
    *,
    root: Path | str | None = None,
    folder: Path | None = None,
    device: torch.device | str | None = None,
    report: Report | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Trained:
    """Train one cell; with `folder`, resume from its checkpoints and leave them and `log.jsonl`.

    `root` is where data sets lie. Raises as `train`, `CheckpointError` for a folder of another
    configuration or a damaged one, `StorageError` for one that cannot be written.
    """
    place = torch.device(device) if device is not None else default_device()
    info = dataset_info(config.data.dataset, root)
    shapes = resolve_model(config.model, info)
    model = build_model(shapes, seed=config.seed).to(place)
    objective = build_objective(config)
    everything = read_split(config.data.dataset, "train", root=root, limit=config.data.train_limit)
    learnt, held_out = hold_out(everything, config.data.validation, seed=config.seed)
    facts = {"model": plain(shapes)}
    trainer = Trainer(
        model,
        objective,
        Batches(
            learnt,
            batch_size=config.train.batch_size,
            device=place,
            augment=config.data.augment,
            seed=config.seed,
        ),
        config.train,
        seed=config.seed,
        validate=_validator(held_out, config, place),
        probe=CollapseProbe(spread(learnt, config.train.collapse_examples), device=place),
        checkpoints=Checkpoints(folder, training_part(config), facts=facts) if folder else None,
        report=report,
        save_seconds=save_seconds,
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
        train=learnt,
        validation=held_out,
        info=info,
        model=shapes,
    )


def build_objective(config: RunConfig) -> Objective:
    """Return the objective of a configuration, with its ball and loss."""
    objective: Objective = build(
        OBJECTIVES,
        config.train.objective,
        ball=config.threat.ball(),
        loss=build_loss(config.train.loss),
    )
    return objective


def resolve_model(model: ModelConfig, info: DatasetInfo) -> ModelConfig:
    """Fill in the sizes that the data set gives; raises `ConfigError` where they contradict it.

    Data of one class are refused: there is nothing to tell apart.
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
    return dataclasses.replace(model, num_classes=info.num_classes, image_shape=info.image_shape)


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
        raise damaged(path, f"it lacks or garbles {error}") from error
    model = build_model(read(ModelConfig, config, source=str(path)), seed=seed)
    load_weights(model, weights)
    return model.eval()


def _validator(held_out: Split, config: RunConfig, device: torch.device) -> Validator | None:
    if not len(held_out.labels):
        return None
    return Validator(held_out, config.threat.ball(), seed=config.seed, device=device)
