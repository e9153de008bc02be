"""A disk that is full where the first process writes ends the training in all of them at once."""

from pathlib import Path

import pytest
import torch
from helpers_ranks import join, spawn, trainer
from torch import distributed as dist

from robust_nc.exceptions import StorageError
from robust_nc.training import saving as keeping
from robust_nc.training.data_parallel import together

pytestmark = pytest.mark.cluster


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
