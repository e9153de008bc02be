"""What races attack: a model by name, with the images, labels and ball that go with it.

>>> subject = load("digits", examples=4)
>>> subject.images.shape, str(subject.ball)
(torch.Size([4, 1, 8, 8]), 'Linf 0.15')
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.config import Component
from robust_nc.data.load import load_dataset
from robust_nc.exceptions import ConfigError, unknown_name
from robust_nc.io.files import sha256_of
from robust_nc.runtime import generator
from robust_nc.threat import Ball
from robust_nc.training.run import load_classifier


class Subject(NamedTuple):
    """A model in eval mode on the CPU, N examples, a ball, and where the weights come from."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    ball: Ball
    about: str


def load(
    name: str, *, examples: int, path: Path | None = None, data: Path | None = None
) -> Subject:
    """Return a subject with the first `examples` of its test set.

    `digits`: a small network, fitted here, to try a race. `resnet18`: the model in pyautoattack's
    examples, on CIFAR-10. `checkpoint`: the folder `path` that a training of ours wrote, with its
    data set and ball. `lenet`: an advertorch 0.2.3 weight file `path` (`mnist_lenet5_*.pt`) with
    MNIST as the `.npz` file `data`. Raises `ConfigError` for what is not there.
    """
    if name not in _SUBJECTS:
        raise unknown_name("model of a race", name, _SUBJECTS)
    return _SUBJECTS[name](examples, path, data)


def _digits(examples: int, path: Path | None, data: Path | None) -> Subject:
    images, labels = load_dataset("digits", split="train", limit=500)
    draws = generator(0, "race", "digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    tested = load_dataset("digits", split="test", limit=examples)
    optimizer.zero_grad()
    return Subject(model.eval(), *tested, Ball("Linf", 0.15), "a perceptron fitted to digits")


def _resnet18(examples: int, path: Path | None, data: Path | None) -> Subject:
    found = importlib.util.find_spec("pyautoattack")
    if found is None or found.origin is None:
        raise ConfigError("resnet18 comes with pyautoattack; install pyautoattack==0.2.0")
    folder = Path(found.origin).parent / "examples"
    weights = folder / "model_test.pt"
    model: nn.Module = _from_file(folder / "resnet.py").ResNet18()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    tested = load_dataset("cifar10", split="test", limit=examples)
    return Subject(model.eval(), *tested, Ball("Linf", 8 / 255), _told(weights))


def _checkpoint(examples: int, path: Path | None, data: Path | None) -> Subject:
    folder = _given(path, "checkpoint needs --path, the folder that a training wrote")
    model = load_classifier(folder)
    config = json.loads((folder / "best.json").read_text())["config"]
    part, threat = config["data"]["dataset"], config["threat"]
    dataset = Component(name=part["name"], options=part["options"])
    tested = load_dataset(dataset, split="test", limit=examples)
    told = f"checkpoint {folder.name}, {config['train']['objective']['name']}, {part['name']}"
    return Subject(model, *tested, Ball(threat["norm"], threat["eps"]), told)


class LeNet5(nn.Module):
    """The network of advertorch's MNIST weights, with their names of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = nn.Linear(7 * 7 * 64, 200)
        self.linear2 = nn.Linear(200, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, 10)` of images `(N, 1, 28, 28)`."""
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        logits: Tensor = self.linear2(F.relu(self.linear1(hidden.flatten(1))))
        return logits


def _lenet(examples: int, path: Path | None, data: Path | None) -> Subject:
    weights = _given(path, "lenet needs --path, a weight file of advertorch 0.2.3")
    mnist = _given(data, "lenet needs --data, MNIST as .npz with x_train, y_train, x_test, y_test")
    model = LeNet5()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    tested = load_dataset({"name": "npz", "path": str(mnist)}, split="test", limit=examples)
    return Subject(model.eval(), *tested, Ball("Linf", 0.3), _told(weights))


_SUBJECTS: dict[str, Callable[[int, Path | None, Path | None], Subject]] = {
    "checkpoint": _checkpoint,
    "digits": _digits,
    "lenet": _lenet,
    "resnet18": _resnet18,
}
NAMES = tuple(_SUBJECTS)


def _given(path: Path | None, message: str) -> Path:
    if path is None or not path.exists():
        raise ConfigError(message if path is None else f"{message}; {path} does not exist")
    return path


def _told(weights: Path) -> str:
    return f"{weights.name}, SHA-256 {sha256_of(weights)[:16]}"


def _from_file(path: Path) -> Any:
    """Import one file of a package without the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
