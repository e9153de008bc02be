"""Several processes train one model: the same loss curve, weights and statistics as one.

In float64, where the only difference is the order of sums. What the first cannot write ends all.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_together import cases, join, left, names, spawn, train_all, trainer
from torch import distributed as dist

from robust_nc.exceptions import StorageError
from robust_nc.training import saving as keeping
from robust_nc.training.data_parallel import together

pytestmark = pytest.mark.cluster

_ACCURACIES = ("train_clean", "train_attacked")

WORLDS = (2, 3)  # with 3 the last batch, of two, leaves one of them without rows
CASES = [(world, name) for world in WORLDS for name in names(world)]


@pytest.fixture(scope="module")
def apart() -> dict[str, Any]:
    """What one process makes of every case."""
    return {name: left(trainer(case)) for name, case in cases().items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What the processes of groups of some sizes make of the cases, rank by rank."""
    found = {}
    for world in WORLDS:
        folder: Path = tmp_path_factory.mktemp("ranks")
        spawn(train_all, world, folder)
        found[world] = [torch.load(folder / f"rank-{rank}.pt") for rank in range(world)]
    return found


@pytest.mark.parametrize(("world", "name"), CASES)
def test_several_processes_train_as_one(
    world: int, name: str, apart: dict[str, Any], ranks: dict[int, Any]
) -> None:
    wanted, found = apart[name], ranks[world][0][name]
    # mart scores in float32, whose last bits it multiplies
    rtol = 1e-6 if name == "mart" else 1e-9
    for part in ("weights", "best_weights"):
        torch.testing.assert_close(found[part], wanted[part], rtol=rtol, atol=rtol)
    assert found["best_epoch"] == wanted["best_epoch"]
    assert len(found["history"]) == len(wanted["history"]) == 2
    for here, there in zip(found["history"], wanted["history"], strict=True):
        assert here.keys() == there.keys()
        for measure, value in there.items():
            # accuracies of one process are float32
            near = 1e-6 if measure in _ACCURACIES else rtol
            wanted_value = value if value is None else pytest.approx(value, rel=near)
            assert here[measure] == wanted_value, measure


@pytest.mark.parametrize(("world", "name"), CASES)
def test_all_processes_end_with_the_same_model(
    world: int, name: str, ranks: dict[int, Any]
) -> None:
    first = ranks[world][0][name]
    for other in ranks[world][1:]:
        assert other[name]["history"] == first["history"]
        for part, value in first["weights"].items():
            assert torch.equal(other[name]["weights"][part], value), part


def train(rank: int, world: int, folder: str, name: str) -> None:
    """One process: train with a writer that fails, and leave what came of it."""
    join(rank, world, folder)

    def full(path: Path, rows: object) -> None:
        raise StorageError(f"cannot write {path}: no space is left")

    setattr(keeping, name, full)
    try:
        with together():
            home = None if rank else Path(folder, "out")
            trainer({"objective": "standard"}, folder=home).fit()
        told = "nothing"
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    torch.save(told, Path(folder, f"rank-{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["start_log", "append_log"])
def test_a_log_that_cannot_be_written_is_everybodys_error(name: str, tmp_path: Path) -> None:
    spawn(train, 2, tmp_path, name)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert first == second
    assert first.startswith("StorageError: cannot write")
