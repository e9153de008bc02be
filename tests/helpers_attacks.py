"""Small models, data, balls and verdicts that the tests of attacks and evaluations share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.base import checked_inputs
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.items import Work, lay_out
from robust_nc.attacks.model_calls import Oracle
from robust_nc.attacks.square import Square
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.evidence.collecting import collect
from robust_nc.evidence.file import Evidence
from robust_nc.threat import Ball
from robust_nc.types import Attack, EvaluationProtocol, Goal


class Counted(nn.Module):
    """Counts the examples that pass forward, and back to the images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = 0
        self.forwards = 0
        self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._count)
        logits: Tensor = self.model(images)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def linear(shape: tuple[int, int, int], classes: int, *, seed: int = 0) -> nn.Module:
    """Random linear classifier of images."""
    draws = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    layer = nn.Linear(channels * height * width, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws))
        layer.bias.copy_(torch.randn(classes, generator=draws))
    return nn.Sequential(nn.Flatten(), layer)


def curved(shape: tuple[int, int, int], classes: int, *, seed: int = 0) -> nn.Module:
    """Random convolutional classifier with batch norm and dropout, steep enough to be attacked."""
    draws = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(3 * scale * torch.randn(parameter.shape, generator=draws))
        norm = model[1]
        norm.weight.fill_(1.0)
        norm.running_mean.normal_(generator=draws)
        norm.running_var.uniform_(0.5, 2.0, generator=draws)
    return model.eval()


def pictures(count: int, shape: tuple[int, int, int], *, seed: int = 0) -> Tensor:
    """Random images, some pixels exactly at the bounds."""
    draws = torch.Generator().manual_seed(seed)
    return (torch.rand((count, *shape), generator=draws) * 1.4 - 0.2).clamp(0, 1)


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes in eval mode."""
    with torch.no_grad():
        return model.eval()(images).argmax(1)


def laid_out(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    goal: Goal,
    targets: Tensor | None = None,
    restarts: int = 1,
) -> Work:
    """The items of a call, to look at single steps of an attack."""
    ids = torch.arange(len(images))
    inputs = checked_inputs(model, images, labels, ball, goal, targets, 0, ids)
    return lay_out(Oracle(model), inputs, targets=inputs.target_columns, restarts=restarts)


BALLS = (Ball("Linf", 0.03), Ball("L2", 0.3), Ball("L1", 0.6))


SHAPE = (1, 8, 8)
BALL = Ball("Linf", 0.03)
SHORT = EvaluationProtocol(
    "short",
    (
        ("apgd-ce", APGD(steps=10)),
        ("apgd-t", APGD(loss="dlr", num_targets=3, steps=10)),
        ("fab-t", FAB(num_targets=3, steps=10)),
        ("square", Square(queries=40)),
    ),
)
APGD_ONLY = SHORT._replace(attacks=SHORT.attacks[:2])


def own(attack: Attack, name: str = "own") -> EvaluationProtocol:
    """Return a protocol of one attack."""
    return EvaluationProtocol("own", ((name, attack),))


def examples(
    count: int = 40, *, shape: tuple[int, int, int] = SHAPE, classes: int = 5
) -> tuple[nn.Module, Tensor, Tensor]:
    """A curved model and images, some of them misclassified from the start."""
    model, images = curved(shape, classes), pictures(count, shape)
    labels = predictions(model, images)
    labels[::7] = (labels[::7] + 1) % classes
    return model, images, labels


def differences(first: Outcome, second: Outcome, *, passes: bool = True) -> list[str]:
    """Fields in which two outcomes differ, points and passes included, threads left out."""
    left, right = first._asdict(), second._asdict()
    for fields in (left, right):  # the clock chooses threads
        fields["accelerated"] = [name for name in fields["accelerated"] if "thread" not in name]
    names = [name for name in left if passes or not name.endswith("passes")]
    return [
        name
        for name in names
        if not (
            torch.equal(left[name], right[name])
            if isinstance(left[name], Tensor)
            else left[name] == right[name]
        )
    ]


class Case(NamedTuple):
    """A model, N examples, the verdict on them and its evidence."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    outcome: Outcome
    evidence: Evidence


def with_evidence(ball: Ball = BALL, *, count: int = 30) -> Case:
    """Some examples are misclassified, some broken, some robust."""
    model, images, labels = examples(count)
    protocol = own(APGD(steps=10), "apgd-ce")
    outcome = evaluate(model, images, labels, ball, protocol=protocol, checks=False)
    return Case(model, images, labels, outcome, collected(model, images, labels, outcome, ball))


def collected(
    model: nn.Module, images: Tensor, labels: Tensor, outcome: Outcome, ball: Ball, **other: Any
) -> Evidence:
    about: dict[str, Any] = {"fingerprint": "f" * 64, "seed": 0, "draws": 1} | other
    return collect(model, images, labels, torch.arange(len(images)), outcome, ball, **about)


class Around(nn.Module):
    """A model with something done before and after it."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


class Failing(nn.Module):
    """Raises from one of its calls on; heals when `at` is set to 0."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.model, self.at, self.calls = model, at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if 0 < self.at <= self.calls:
            raise RuntimeError("out of luck")
        logits: Tensor = self.model(images)
        return logits


class Limited(nn.Module):
    """Runs out of memory above so many images."""

    def __init__(
        self, model: nn.Module, most: int, error: type[Exception] = torch.OutOfMemoryError
    ) -> None:
        super().__init__()
        self.model, self.most, self.error = model, most, error
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error("CUDA out of memory")
        logits: Tensor = self.model(images)
        return logits


class Coin(nn.Module):
    """Each pass answers wrongly with probability 0.3, whatever the image."""

    def forward(self, images: Tensor) -> Tensor:
        wrong = (torch.rand(len(images)) < 0.3).float() * 2 - 1
        return torch.stack([-wrong, wrong], 1) + 0 * images.flatten(1).sum(1, keepdim=True)
