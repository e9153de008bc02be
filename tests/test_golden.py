"""The golden run: a small adversarial training that a refactor must reproduce.

Two runs in one process are equal to the bit. Committed values hold to 1e-4 for the torch and the
kind of CPU that they were made with; `python tests/test_golden.py` adds those of this machine.
"""

import json
from pathlib import Path

import pytest
import torch
from helpers_models import same_weights, small_config, small_run, without_times

GOLDEN = Path(__file__).parent / "golden" / "training.json"
CONFIG = {"objective": {"name": "pgd", "steps": 2}, "epochs": 2, "examples": 500}


def machine() -> str:
    version = torch.__version__.split("+")[0]
    return f"torch {version}, {torch.backends.cpu.get_cpu_capability()}"


def values(trained) -> dict[str, float]:
    last = trained.history[-1]
    names = ("train_loss", "train_attacked", "validation_clean", "nc1_trace", "nc2_angle")
    return {name: last[name] for name in names}


@pytest.fixture(scope="module")
def trained():
    return small_run(small_config(**CONFIG))


def test_two_runs_are_equal_to_the_bit(trained):
    first, second = trained, small_run(small_config(**CONFIG))
    assert same_weights(first.last, second.last)
    assert same_weights(first.best, second.best)
    assert without_times(first.history) == without_times(second.history)


def test_the_committed_values_are_reproduced(trained):
    known = json.loads(GOLDEN.read_text())
    if machine() not in known:
        pytest.skip(f"no golden values for {machine()}; known: {', '.join(known)}")
    assert values(trained) == pytest.approx(known[machine()], abs=1e-4)


if __name__ == "__main__":
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    known[machine()] = values(small_run(small_config(**CONFIG)))
    GOLDEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
