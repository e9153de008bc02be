"""Models that are not plain modules of logits, made so: of Hugging Face, or exported.

>>> from types import SimpleNamespace
>>> class Answers(nn.Module):
...     def forward(self, images):
...         return SimpleNamespace(logits=images.flatten(1))
>>> LogitsOf(Answers())(torch.ones(2, 1, 1, 3)).shape
torch.Size([2, 3])
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LogitsOf(nn.Module):
    """A model whose answer has `.logits`, which are all that this one gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)` of images `(N, C, H, W)`."""
        logits: Tensor = self.model(images).logits
        return logits


class ExportedModel(nn.Module):
    """The module of a `torch.export` program, which has one mode and refuses `train()`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "ExportedModel":
        """Change nothing but the flag."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return what the program gives."""
        logits: Tensor = self.model(images)
        return logits


def logits_model(model: nn.Module) -> nn.Module:
    """Return a model that gives logits alone: itself, or around a classifier of Hugging Face."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    return LogitsOf(model) if "PreTrainedModel" in kinds else model


def first_tensor(output: Any) -> Any:
    """Return the first tensor of a tuple, list or table that a layer gives; else the output."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((part for part in output if isinstance(part, torch.Tensor)), None)
    return output
