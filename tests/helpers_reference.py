"""Models, folders and files that the tests of references share."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from robust_nc.zoo.reference import OpenedModel, open_model

SHAPE = (1, 8, 8)
CODE = '''
"""Somebody's models: a class, a function, and one that is there already."""

import sys

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=6, classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.out = nn.Linear(width, classes)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.out(self.drop(self.body(images)))


class Configured(Net):
    def __init__(self, config):
        super().__init__(config["width"], config["classes"])


class Tied(Net):
    def __init__(self):
        super().__init__(10, 10)
        self.first = nn.Linear(10, 10)
        self.out.weight = self.first.weight


class Plain(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :10]


def make():
    print("building")
    net = Net()
    net.out.bias.requires_grad_(False)
    return net


READY = Net(4)
LIMIT = 3


def five():
    return Net(classes=5)


def needs(width):
    return Net(width)


def pair():
    return Net(), "transform"


def weights():
    return Net().state_dict()


def nothing():
    return None


def same():
    return Net


def raises():
    raise ZeroDivisionError("by hand")


def leaves():
    sys.exit("no GPU, no fun")


def interrupted():
    raise KeyboardInterrupt
'''


def write_code(folder: Path) -> Path:
    path = folder / "net.py"
    path.write_text(CODE)
    return path


def opened(reference: object, classes: int = 10, **options: Any) -> OpenedModel:
    return open_model(str(reference), num_classes=classes, image_shape=SHAPE, **options)


def hub_folder(
    folder: Path, state: dict[str, torch.Tensor], config: object = None, text: str | None = None
) -> Path:
    """A folder as the mixin of huggingface_hub writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None or text is not None:
        (folder / "config.json").write_text(json.dumps(config) if text is None else text)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def net_state(width: int = 6, classes: int = 10) -> dict[str, torch.Tensor]:
    """Weights of `Net`."""
    layers = {"body.1": nn.Linear(64, width), "out": nn.Linear(width, classes)}
    return {
        f"{name}.{part}": value
        for name, layer in layers.items()
        for part, value in layer.state_dict().items()
    }
