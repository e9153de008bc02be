"""Small models, their data and short trainings that many tests share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robust_nc.config import ModelConfig, RunConfig, component, read
from robust_nc.data.base import Split
from robust_nc.data.load import dataset_info, read_split, to_unit
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.training.progress import TrainEvent, TrainReport, read_log
from robust_nc.training.run import Trained, resolve_model, train_cell


def make(
    backbone: object = "small_cnn",
    head: object = "linear",
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    seed: int = 0,
    normalise_features: bool = False,
) -> Classifier:
    """Build a classifier; `backbone` and `head` are names or tables with `name`."""
    config = ModelConfig(
        backbone=component(backbone),
        head=component(head),
        num_classes=num_classes,
        image_shape=shape,
        normalise_features=normalise_features,
    )
    return build_model(config, seed=seed)


def warmed_up(model: Classifier) -> Classifier:
    """Give batch norm statistics other than its initial ones; return the model in eval mode."""
    with torch.no_grad():
        model.train()(some_images(16, model.image_shape, seed=5))
    return model.eval()


def some_images(count: int, shape: tuple[int, int, int], *, seed: int = 0) -> Tensor:
    """Draw uniform images."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


SMALL = {"backbone": {"name": "small_cnn", "width": 8}}


def small_config(
    *,
    objective: dict[str, Any] | str = "standard",
    epochs: int = 2,
    eps: float = 0.1,
    examples: int = 200,
    train: dict[str, Any] | None = None,
    seed: int = 0,
) -> RunConfig:
    options = {"objective": objective, "epochs": epochs, "batch_size": 50, **(train or {})}
    values = {
        "data": {"dataset": "digits", "train_limit": examples, "validation": 0.2},
        "model": SMALL,
        "train": options,
        "threat": {"eps": eps},
        "seed": seed,
    }
    return read(RunConfig, values)


class StoppedError(Exception):
    """Ends a training from outside."""


def stop_after(epoch: int) -> TrainReport:
    def report(event: TrainEvent) -> None:
        if event.epoch > epoch:
            raise StoppedError

    return report


def resumed_to_the_bit(config: RunConfig, folder: Path, *, epochs: tuple[int, ...]) -> Trained:
    """Stop a training after some epochs; it must end as the one in `whole` that never stopped."""
    whole = small_run(config, folder / "whole", save_seconds=0.0)
    for epoch in epochs:
        with pytest.raises(StoppedError):
            small_run(config, folder / "cut", save_seconds=0.0, report=stop_after(epoch))
        assert len(read_log(folder / "cut" / "log.jsonl")) == epoch
    resumed = small_run(config, folder / "cut", save_seconds=0.0)
    assert same_weights(resumed.last, whole.last)
    assert same_weights(resumed.best, whole.best)
    assert resumed.best_epoch == whole.best_epoch
    assert without_times(resumed.history) == without_times(whole.history)
    return resumed


def small_run(config: RunConfig, folder: Path | None = None, **options: Any) -> Trained:
    return train_cell(config, folder=folder, device="cpu", **options)


def digits(split: str = "train", limit: int = 50) -> Split:
    found = read_split("digits", split, limit=limit)
    return found._replace(images=to_unit(found.images))


def small_model(seed: int = 0) -> Classifier:
    config = small_config(seed=seed)
    return build_model(resolve_model(config.model, dataset_info("digits")), seed=seed)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = {"seconds", "images_per_second"}
    return [{k: v for k, v in row.items() if k not in timed} for row in history]
