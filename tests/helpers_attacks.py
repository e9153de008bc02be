"""Small models and data that the tests of the attacks share."""

import torch
from torch import Tensor, nn

from robust_nc.attacks.base import checked_inputs
from robust_nc.attacks.items import Work, lay_out
from robust_nc.attacks.model_calls import Oracle
from robust_nc.threat import Ball
from robust_nc.types import Goal


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
