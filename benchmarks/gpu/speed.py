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

from robust_nc.benchmarks.gpu.passes import CLASSES, SHAPE, Way
from robust_nc.benchmarks.races.timing import spread_of
from robust_nc.config import Component, RunConfig, plain, read
from robust_nc.data.base import numbered
from robust_nc.data.batches import Batches
from robust_nc.evaluation.acceleration import Precision
from robust_nc.exceptions import TrainingError
from robust_nc.models.build import build_model
from robust_nc.runtime import default_device
from robust_nc.runtime.environment import hardware, versions
from robust_nc.training.loop import Trainer
from robust_nc.training.run import build_objective

OBJECTIVES = (
    Component(name="standard"),
    Component(name="pgd", options={"steps": 10, "step_size": "2/255"}),
)


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
    precisions: tuple[Precision, ...] = ("bf16", "float32")
    grid = itertools.product(OBJECTIVES, precisions, compiled)
    for objective, precision, compile_ in grid:
        way = Way(backbone, batch_size, precision, channels_last=True, compiled=compile_)
        config = training_config(objective, way, epochs=repeats + 1)
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
    batches = random_batches(config, steps, SHAPE)
    model = build_model(config.model).to(default_device())
    torch.compiler.reset()
    fitted = Trainer(model, build_objective(config), batches, config.train, seed=0).fit()
    return [row["images_per_second"] for row in fitted.history]


def random_batches(config: RunConfig, steps: int, shape: tuple[int, int, int]) -> Batches:
    """Return `steps` batches per epoch of random images that lie on the device, augmented."""
    source = torch.Generator().manual_seed(0)
    count = steps * config.train.batch_size
    images = torch.randint(256, (count, *shape), generator=source, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=source)
    return Batches(
        numbered(images, labels),
        batch_size=config.train.batch_size,
        device=default_device(),
        augment=config.data.augment,
    )


def training_config(objective: Component, way: Way, *, epochs: int) -> RunConfig:
    """Return the configuration of a training with an objective that computes in a way."""
    values = {
        "data": {"augment": ["crop", "flip"]},
        "model": {
            "backbone": way.backbone,
            "num_classes": CLASSES,
            "image_shape": list(way.image_shape),
        },
        "train": {
            "objective": plain(objective),
            "epochs": epochs,
            "batch_size": way.batch_size,
            "lr": 0.01,
            "schedule": "constant",
            "precision": way.precision,
            "channels_last": way.channels_last,
            "compile": way.compiled,
        },
    }
    return read(RunConfig, values)
