"""Passes that a step of an objective costs, counted while the real objective does one.

>>> from robust_nc.config import RunConfig, read
>>> config = read(RunConfig, {"train": {"objective": {"name": "trades", "steps": 3}}})
>>> objective_passes(config)
Passes(forwards=1.0, gradients=3.0, trained=2.0, steps=0.0)
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.config import Component, ModelConfig, RunConfig
from robust_nc.models.build import build_model
from robust_nc.planning.pieces import Passes
from robust_nc.training.objectives import ClosedForm, Objective, at_progress
from robust_nc.training.run import build_objective

_SHAPE = (1, 8, 8)  # of the images of a stand-in
_BATCH = 4


class Counter:
    """Images that passed a module: forward alone, or with a gradient by images or weights."""

    def __init__(self) -> None:
        self.forwards = 0
        self.gradients = 0
        self.trained = 0

    def passes(self, count: int = 1) -> Passes:
        """Return what was counted, over `count` images."""
        seen = (self.forwards, self.gradients, self.trained)
        return Passes(*(value / count for value in seen))

    def note(self, _module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count a call (a forward hook)."""
        images = inputs[0]
        if not isinstance(images, Tensor):
            return
        if not torch.is_grad_enabled() or not _differentiable(output):
            self.forwards += len(images)
        elif images.requires_grad:
            self.gradients += len(images)
        else:
            self.trained += len(images)


@contextlib.contextmanager
def counted(module: nn.Module) -> Iterator[Counter]:
    """Count the images that pass a module, such as the backbone of a classifier, within."""
    counter = Counter()
    handle = module.register_forward_hook(counter.note)
    try:
        yield counter
    finally:
        handle.remove()


def objective_passes(config: RunConfig) -> Passes:
    """Return the passes of one image in one training step of a configuration.

    The objective itself takes a step on a small stand-in for the model, with the same neck, head
    and loss; an objective in closed form takes none.
    """
    objective = build_objective(config)
    if isinstance(objective, ClosedForm):
        return Passes()
    backbone = Component(name="small_cnn", options={"width": 16})
    hierarchy = config.model.head.options.get("hierarchy")
    head = config.model.head
    if isinstance(hierarchy, dict | list | str) or head.name == "haframe":
        head = Component(name="etf")  # costs the same passes, and needs no tree
    shapes = ModelConfig(
        backbone=backbone, head=head, neck=config.model.neck, num_classes=10, image_shape=_SHAPE
    )
    model = build_model(shapes).train()
    images = torch.rand(_BATCH, *_SHAPE, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(_BATCH)
    now: Objective = at_progress(objective, 0.5)
    with torch.random.fork_rng(devices=[]), counted(model.backbone) as counter:
        now(model, images, ids % 10, seed=0, ids=ids)
    return counter.passes(_BATCH)


def with_steps(objective: Any, steps: int) -> Any:
    """Return an objective or an attack that takes so many inner steps, or None if it has no say."""
    if not dataclasses.is_dataclass(objective) or isinstance(objective, type):
        return None
    for field in dataclasses.fields(objective):
        if field.name in ("steps", "queries") and field.init:
            changed: dict[str, Any] = {field.name: steps}
            return dataclasses.replace(objective, **changed)
    return None


def inner_steps(objective: Any) -> int:
    """Steps of an inner attack that can be set, beyond the first one."""
    return int(objective.steps) - 1 if with_steps(objective, 1) is not None else 0


def _differentiable(output: Any) -> bool:
    return isinstance(output, Tensor) and output.requires_grad
