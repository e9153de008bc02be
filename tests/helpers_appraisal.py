"""A small trained network in a file of its own, as a user would hand it in, and its records."""

import dataclasses
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from helpers_report import resealed
from safetensors.torch import save_file
from torch import nn

from robust_nc.config import MeasureConfig, plain
from robust_nc.data.load import load_dataset
from robust_nc.pipeline.appraise import Appraised, appraise
from robust_nc.pipeline.make_record import score
from robust_nc.pipeline.request import Request
from robust_nc.record import Record, Stored, pack_flags, read_record, unpack_flags, write_rows
from robust_nc.record.schema import sealed
from robust_nc.threat import Ball

EXAMPLES = 120
BALL = Ball("Linf", 0.06)
MEASURE = MeasureConfig(
    taps=("penultimate",),
    train_examples=200,
    test_examples=80,
    steps=5,
    targets=(),
    radii=(),
    trajectories=0,
)

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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(CODE)
    images, labels = load_dataset("digits", split="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = runpy.run_path(str(folder / "net.py"))["layers"]()
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(80):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return f"{folder / 'net.py'}:make"


def judge(model: str, out: Path, **changed: Any) -> Appraised:
    """Appraise quickly: PGD on 40 digits; geometry only if it is asked for, and then all of it."""
    said: list[str] = changed.pop("said", [])
    report = changed.pop("report", lambda event: None)
    asked: dict[str, Any] = {"model": model, "dataset": "digits", "ball": Ball("Linf", 0.1)}
    asked |= {"protocol": "pgd", "n": 40, "out": out, "geometry": False}
    asked |= {"geometry_budget": float("inf")}
    return appraise(Request(**(asked | changed)), tell=said.append, report=report)


def opened(reference: str) -> nn.Module:
    """Return the network that `write_model` left."""
    model: nn.Module = runpy.run_path(reference.rpartition(":")[0])["make"]()
    return model.eval()


def measured_shortly(given: Any, *_: Any, **__: Any) -> MeasureConfig:
    """Measure little, of all training images that were read, as `evaluate` does."""
    return dataclasses.replace(MEASURE, train_examples=len(given.train.labels))


def record_of(reference: str, out: Path, *, geometry: bool = False) -> Stored:
    """Judge that network on more digits, and return its record."""
    asked: dict[str, Any] = {"ball": BALL, "n": EXAMPLES, "geometry": geometry, "batch_size": 128}
    with mock.patch("robust_nc.pipeline.appraise.measure_settings", measured_shortly):
        return judge(reference, out, **asked).stored


def altered(stored: Stored, change: Callable[[dict[str, Any]], None], *, seal: bool) -> Stored:
    """Change the values of a record in its file; with `seal`, seal them anew as a forger would."""
    values = json.loads(stored.path.read_text())
    change(values)
    stored.path.write_text(json.dumps(values))
    if seal:
        record: Record = sealed(read_record(stored.path).record)
        stored.path.write_text(json.dumps(plain(record)))
    return read_record(stored.path)


def claiming_all(stored: Stored) -> Stored:
    """Forge a record that claims every correct example to be robust, and agrees with itself."""
    record = stored.record
    clean = unpack_flags(record.verdict.clean_correct)
    frame = stored.rows()
    at = (frame["measure"] == "verdict") & (frame["condition"] == "attacked")
    frame.loc[at, "value"] = float(clean.mean())
    return resealed(
        stored,
        verdict=dataclasses.replace(
            record.verdict,
            robust=pack_flags(clean),
            broken_by=tuple(np.where(clean, -1, -2).tolist()),
        ),
        scores=record.scores | {"robust": score(torch.from_numpy(clean))},
        attacks=tuple(dataclasses.replace(use, broke=0) for use in record.attacks),
        evidence=None,
        rows=write_rows(stored.path.parent / record.rows.path, frame),
    )
