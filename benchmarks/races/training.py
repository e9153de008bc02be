"""A step of PGD training against its floor: the passes that it cannot do without.

The floor is `steps` times a forward and a gradient by the images (a frozen model in eval mode),
then one forward, backward and optimizer step of the bare model, on one batch. `step` is the
objective with its optimizer step; `loop` is the trainer with shuffling, schedule and log.

    python -m robust_nc.benchmarks.races.training --cases small_cnn-28 --repeats 20
"""

import copy
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.benchmarks.races.timing import Timing, conditions, race, table
from robust_nc.config import Component, ModelConfig, TrainConfig
from robust_nc.data.base import numbered
from robust_nc.data.batches import Batches
from robust_nc.models.build import build_model
from robust_nc.runtime import default_device
from robust_nc.threat import Ball
from robust_nc.training.loop import Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Pgd
from robust_nc.training.state import make_optimizer

BALL = Ball("Linf", 8 / 255)


class Case(NamedTuple):
    """A model and a batch; `steps` of the attack, and how many training steps one call times."""

    backbone: Component
    image_shape: tuple[int, int, int]
    batch_size: int
    steps: int
    calls: int


CASES = {
    "small_cnn-8": Case(
        Component(name="small_cnn", options={"width": 16}), (1, 8, 8), 64, steps=10, calls=10
    ),
    "small_cnn-28": Case(
        Component(name="small_cnn", options={"width": 32}), (1, 28, 28), 128, steps=10, calls=2
    ),
    "preact_resnet18-32": Case(
        Component(name="preact_resnet18"), (3, 32, 32), 16, steps=3, calls=2
    ),
}


def contest(case: Case, *, device: torch.device, repeats: int) -> list[Timing]:
    """Race the floor, the step and the loop; each call does `case.calls` training steps."""
    generator = torch.Generator().manual_seed(0)
    count = case.calls * case.batch_size
    images = torch.rand(count, *case.image_shape, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    first = (images[: case.batch_size].to(device), labels[: case.batch_size].to(device))
    contestants = {
        "floor": _floor(case, *first),
        "step": _step(case, *first),
        "loop": _loop(case, images, labels, device),
    }
    calls = {
        "floor": lambda: [contestants["floor"]() for _ in range(case.calls)],
        "step": lambda: [contestants["step"]() for _ in range(case.calls)],
        "loop": contestants["loop"],
    }
    return race(calls, repeats=repeats)


def _model(case: Case) -> nn.Module:
    return build_model(ModelConfig(backbone=case.backbone, image_shape=case.image_shape))


def _floor(case: Case, images: Tensor, labels: Tensor) -> Callable[[], object]:
    model = _model(case).to(images.device)
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig())

    def call() -> None:
        for _ in range(case.steps):
            leaf = images.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(frozen(leaf), labels), leaf)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


def _step(case: Case, images: Tensor, labels: Tensor) -> Callable[[], object]:
    model = _model(case).to(images.device)
    optimizer = make_optimizer(model, TrainConfig())
    objective = Pgd(BALL, cross_entropy, steps=case.steps)
    ids = torch.arange(len(labels), device=images.device)

    def call() -> None:
        loss = objective(model, images, labels, seed=0, ids=ids)
        optimizer.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


def _loop(case: Case, images: Tensor, labels: Tensor, device: torch.device) -> Callable[[], object]:
    model = _model(case).to(device)
    objective = Pgd(BALL, cross_entropy, steps=case.steps)
    batches = Batches(numbered(images, labels), batch_size=case.batch_size, device=device)
    config = TrainConfig(epochs=1, batch_size=case.batch_size)
    return lambda: Trainer(model, objective, batches, config, seed=0).fit()


def main(
    repeats: int = 20, cases: tuple[str, ...] = tuple(CASES), threads: int | None = None
) -> None:
    """Race the cases and print a table for each.

    Args:
        repeats: Timed rounds per case.
        cases: Which cases.
        threads: Threads of torch (default: as it decides).
    """
    if threads:
        torch.set_num_threads(threads)
    print(conditions())
    for name in cases:
        case = CASES[name]
        timings = contest(case, device=default_device(), repeats=repeats)
        images = case.calls * case.batch_size
        print(f"\n{name}: batch {case.batch_size}, PGD-{case.steps}, {case.calls} steps per call")
        print(table(timings, base=timings[0], items=images))
        sys.stdout.flush()


if __name__ == "__main__":
    tyro.cli(main)
