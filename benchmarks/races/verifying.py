"""How long it takes to check the evidence of 10,000 images: `robust-nc verify` with the model.

    python -m robust_nc.benchmarks.races.verifying --examples 10000

A small CNN is trained for one epoch on CIFAR-10 and judged by one attack step (what is checked does
not depend on how an example was broken); its record is then verified several times.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import tyro
from safetensors.torch import save_file

import robust_nc
from robust_nc.config import plain, read
from robust_nc.record import Stored
from robust_nc.runtime import default_device
from robust_nc.runtime.environment import hardware, versions
from robust_nc.verification.check import Wanted, check

BALL = robust_nc.Ball("Linf", 8 / 255)


def main(examples: int = 10_000, dataset: str = "cifar10", times: int = 3) -> None:
    """Print the times as JSON.

    Args:
        examples: Test images.
        dataset: Where they are from.
        times: Checks that are timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = _trained(dataset, Path(folder) / "model")
        request = robust_nc.Request(
            model=str(model),
            dataset=dataset,
            ball=BALL,
            protocol="fgsm",
            n=examples,
            out=Path(folder) / "out",
            geometry=False,
        )
        stored = robust_nc.appraise(request).stored
        seconds = [_verified(stored, str(model)) for _ in range(times)]
    assert stored.record.evidence is not None
    print(
        json.dumps(
            {
                "examples": stored.record.data.examples,
                "broken": stored.record.evidence.broken,
                "evidence_bytes": stored.record.evidence.bytes,
                "parameters": stored.record.weights.parameters,
                "seconds": [round(one, 2) for one in seconds],
                "median": round(median(seconds), 2),
                "hardware": hardware(default_device()),
                "versions": versions(),
            },
            indent=1,
        )
    )


def _trained(dataset: str, folder: Path) -> Path:
    """Train for one epoch, and leave the model as a folder of the Hub's layout."""
    settings = {"data": {"dataset": dataset}, "train": {"epochs": 1}}
    model = robust_nc.train(read(robust_nc.RunConfig, settings)).cpu()
    parts = robust_nc.ModelConfig(num_classes=model.num_classes, image_shape=model.image_shape)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"robust_nc": {"model": plain(parts), "seed": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _verified(stored: Stored, model: str) -> float:
    began = time.perf_counter()
    wanted = Wanted(model=model, audit=None, seed=0, root=None)
    found = check(stored, wanted, tell=lambda text: None, show=lambda stage, share, text: None)
    assert not found.wrong, found.wrong
    assert "upper bound proven" in found.badges
    return time.perf_counter() - began


if __name__ == "__main__":
    tyro.cli(main)
