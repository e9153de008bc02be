"""Images per second of training PreActResNet-18, by objective, precision and compilation.

>>> found = compare_steps(
...     batch_size=4, steps=1, repeats=1, backbone="small_cnn", compiled=(False,)
... )
>>> [(row["objective"], row["precision"]) for row in found["rows"]][:2]
[('standard', 'bf16'), ('standard', 'float32')]
"""

import itertools
from typing import Any

import torch

from robust_nc.benchmarks.races.timing import spread_of
from robust_nc.config import Component, RunConfig, plain, read
from robust_nc.data.base import numbered
from robust_nc.data.batches import Batches
from robust_nc.environment import hardware, versions
from robust_nc.exceptions import TrainingError
from robust_nc.models.build import build_model
from robust_nc.runtime import default_device
from robust_nc.training.loop import Trainer
from robust_nc.training.run import build_objective

OBJECTIVES = (
    Component(name="standard"),
    Component(name="pgd", options={"steps": 10, "step_size": "2/255"}),
)
SHAPE, CLASSES = (3, 32, 32), 10


def compare_steps(
    *,
    batch_size: int,
    steps: int,
    repeats: int,
    backbone: str = "preact_resnet18",
    compiled: tuple[bool, ...] = (False, True),
) -> dict[str, Any]:
    """Train on random images for `repeats` epochs of `steps` steps, after one that is not timed.

    Returns plain values: one row per objective, precision, and with or without `torch.compile`,
    all in channels_last. A row that fails has an `error` in place of its numbers.
    """
    rows = []
    grid = itertools.product(OBJECTIVES, ("bf16", "float32"), compiled)
    for objective, precision, compile_ in grid:
        config = _config(objective, precision, compile_, backbone, batch_size, repeats + 1)
        row = {
            "objective": objective.name,
            "precision": precision,
            "channels_last": True,
            "compile": compile_,
            "batch_size": batch_size,
        }
        try:
            speeds = _speeds(config, steps)[1:]
        except TrainingError as error:
            rows.append(row | {"error": str(error)})
            continue
        low, middle, high = spread_of(speeds)
        rows.append(row | {"images_per_second": middle, "quartiles": [low, high], "n": len(speeds)})
    device = default_device()
    return {
        "hardware": hardware(device),
        "versions": versions(),
        "backbone": backbone,
        "rows": rows,
    }


def _speeds(config: RunConfig, steps: int) -> list[float]:
    """Images per second of every epoch, as the training log says."""
    device = default_device()
    source = torch.Generator().manual_seed(0)
    count = steps * config.train.batch_size
    images = torch.randint(256, (count, *SHAPE), generator=source, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=source)
    batches = Batches(
        numbered(images, labels),
        batch_size=config.train.batch_size,
        device=device,
        augment=config.data.augment,
    )
    model = build_model(config.model).to(device)
    torch.compiler.reset()
    fitted = Trainer(model, build_objective(config), batches, config.train, seed=0).fit()
    return [row["images_per_second"] for row in fitted.history]


def _config(
    objective: Component,
    precision: str,
    compiled: bool,
    backbone: str,
    batch_size: int,
    epochs: int,
) -> RunConfig:
    values = {
        "data": {"augment": ["crop", "flip"]},
        "model": {"backbone": backbone, "num_classes": CLASSES, "image_shape": list(SHAPE)},
        "train": {
            "objective": plain(objective),
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": 0.01,
            "schedule": "constant",
            "precision": precision,
            "channels_last": True,
            "compile": compiled,
        },
    }
    return read(RunConfig, values)
