"""A short protocol with the four attacks of `standard`, examples, and models that misbehave."""

import torch
from helpers_attacks import curved, pictures, predictions
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.square import Square
from robust_nc.evaluation import Outcome
from robust_nc.threat import Ball
from robust_nc.types import Attack, EvaluationProtocol

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
    """Fields in which two outcomes differ, points and passes included."""
    left, right = first._asdict(), second._asdict()
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


class Failing(nn.Module):
    """Raises at one of its calls; heals when `at` is set to 0."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.model, self.at, self.calls = model, at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("out of luck")
        logits: Tensor = self.model(images)
        return logits


class Limited(nn.Module):
    """Runs out of memory above so many images."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most = model, most
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.model(images)
        return logits


class Coin(nn.Module):
    """Each pass answers wrongly with probability 0.3, whatever the image."""

    def forward(self, images: Tensor) -> Tensor:
        wrong = (torch.rand(len(images)) < 0.3).float() * 2 - 1
        return torch.stack([-wrong, wrong], 1) + 0 * images.flatten(1).sum(1, keepdim=True)
