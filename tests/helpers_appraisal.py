"""A small trained network in a file of its own, as a user would hand it in."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from robust_nc.data.load import load_dataset
from robust_nc.pipeline.appraise import Appraised, Request, appraise
from robust_nc.threat import Ball

CODE = '''
"""A stranger's network, who prints while it is built."""

from pathlib import Path

from safetensors.torch import load_file
from torch import cat, nn


def layers(inputs=64, classes=10):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(),
        nn.Linear(16, classes),
    )


def make():
    print("a print of the factory")
    model = layers()
    model.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return model


def many():
    return layers(classes=12)


def few():
    return layers(classes=4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.once = layers(classes=5)

    def forward(self, images):
        logits = self.once(images)
        return cat([logits, logits + 1], 1)


def larger():
    return layers(inputs=100)
'''


def write_model(folder: Path) -> str:
    """Train the network on digits for a moment, and return a reference to its factory."""
    images, labels = load_dataset("digits", split="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU()),
            nn.Linear(16, 10),
        )
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(80):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
    (folder / "net.py").write_text(CODE)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return f"{folder / 'net.py'}:make"


def judge(model: str, out: Path, **changed: Any) -> Appraised:
    """Appraise quickly: PGD on 40 digits, without geometry unless it is asked for."""
    said: list[str] = changed.pop("said", [])
    report = changed.pop("report", lambda event: None)
    asked: dict[str, Any] = {"model": model, "dataset": "digits", "ball": Ball("Linf", 0.1)}
    asked |= {"protocol": "pgd", "n": 40, "out": out, "geometry": False}
    return appraise(Request(**(asked | changed)), tell=said.append, report=report)
