"""A real record with evidence: a linear classifier of digits, judged by `appraise`."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robust_nc.config import MeasureConfig, plain
from robust_nc.data.load import load_dataset
from robust_nc.pipeline.appraise import Request, appraise
from robust_nc.pipeline.make_record import score
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

FACTORY = """
from pathlib import Path
from safetensors.torch import load_file
from torch import nn

def net():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    model.load_state_dict(load_file(Path(__file__).with_name("net.safetensors")))
    return model
"""


def write_model(folder: Path) -> str:
    """Fit a small network to digits, and leave a file whose factory returns it; the reference."""
    images, labels = load_dataset("digits", split="train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(120):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "net.safetensors")
    (folder / "net.py").write_text(FACTORY)
    return f"{folder / 'net.py'}:net"


def opened(reference: str) -> nn.Module:
    """Return the model that `write_model` left."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    weights = Path(reference.rpartition(":")[0]).with_name("net.safetensors")
    model.load_state_dict(load_file(weights))
    return model.eval()


def judged(folder: Path, *, protocol: str = "pgd", geometry: bool = False) -> tuple[Stored, str]:
    """Judge that model on the first digits, and return its record and its reference."""
    reference = write_model(folder / "model")
    request = Request(
        model=reference,
        dataset="digits",
        ball=BALL,
        protocol=protocol,
        n=EXAMPLES,
        out=folder / "out",
        geometry=geometry,
        batch_size=128,
    )
    with mock.patch("robust_nc.pipeline.appraise.measure_settings", return_value=MEASURE):
        found = appraise(request, tell=lambda text: None, report=lambda event: None)
    return found.stored, reference


def altered(stored: Stored, change: Callable[[dict[str, Any]], None], *, seal: bool) -> Stored:
    """Change the values of a record in its file; with `seal`, seal them anew as a forger would."""
    values = json.loads(stored.path.read_text())
    change(values)
    stored.path.write_text(json.dumps(values))
    if seal:
        record: Record = sealed(read_record(stored.path).record)
        stored.path.write_text(json.dumps(plain(record)))
    return read_record(stored.path)


def resealed(stored: Stored, **changes: Any) -> Stored:
    """Write a record with other fields, sealed."""
    record = sealed(dataclasses.replace(stored.record, **changes))
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
