"""A suite under torchrun: two processes on one model, and what ends one of them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers_runner import TINY, wait_for

from robust_nc.config import training_id
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import train_stage
from robust_nc.pipeline.suite import Cell, read_suite
from robust_nc.record import Stored, read_record
from robust_nc.record.folder import checkpoint_folder, record_path
from robust_nc.runtime.progress import no_report

pytestmark = pytest.mark.cluster

LONGER = {"epochs = 2": "epochs = 150\nvalidate_every = 150\ncollapse_every = 150"}


class Ended(NamedTuple):
    """How a run under torchrun ended."""

    code: int
    err: str


def suite(folder: Path, changes: dict[str, str]) -> Path:
    """A tiny suite with adversarial training, judged in blocks."""
    text = TINY.replace("examples = 40", "examples = 40\nblock = 10", 1)
    text = text.replace("batch_size", 'objective = { name = "pgd", steps = 2 }\nbatch_size')
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return suite(tmp_path, {})


@pytest.fixture
def longer(tmp_path: Path) -> Path:
    return suite(tmp_path, LONGER)


def start(path: Path, out: Path) -> "subprocess.Popen[str]":
    """Start torchrun with two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", out.name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*command, "-m", "robust_nc", "run", str(path), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ended(run: "subprocess.Popen[str]") -> Ended:
    """Wait for the end of a run."""
    try:
        _, err = run.communicate(timeout=240)
    finally:
        run.kill()
    return Ended(run.returncode, err)


def whole(path: Path, out: Path) -> Stored:
    """Run to the end; returns the record of the only cell."""
    how = ended(start(path, out))
    assert how.code == 0, how.err
    return record(path, out)


def record(path: Path, out: Path) -> Stored:
    cell = cell_of(path)
    return read_record(record_path(out, cell.model, cell.id))


def cell_of(path: Path) -> Cell:
    return read_suite(str(path)).cells[0]


def process(run: "subprocess.Popen[str]", rank: int) -> int:
    """The pid of a rank."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")


def epochs(path: Path, out: Path) -> int:
    """Epochs in the log of the training."""
    log = checkpoint_folder(out, training_id(cell_of(path).config)) / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_trained_cell_is_judged_and_measured_as_by_one_process(
    path: Path, tmp_path: Path
) -> None:
    one, two, cell = tmp_path / "one", tmp_path / "two", cell_of(path)
    train_stage(cell, one, None, report=no_report)
    shutil.copytree(one, two)
    run_cell(cell, "tiny", one, None, report=no_report)
    here, there = whole(path, two), record(path, one)
    assert here.record.verdict == there.record.verdict
    rows, wanted = (stored.rows() for stored in (here, there))
    numbers = ["value"]
    assert rows.drop(columns=numbers).equals(wanted.drop(columns=numbers))
    np.testing.assert_allclose(rows["value"], wanted["value"], rtol=1e-9, atol=1e-12)
    assert not list(two.rglob("cache/*"))


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_all_and_the_same_command_goes_on(
    rank: int, longer: Path, tmp_path: Path
) -> None:
    run = start(longer, tmp_path / "out")
    wait_for(lambda: epochs(longer, tmp_path / "out") > 3)
    os.kill(process(run, rank), signal.SIGKILL)
    how = ended(run)
    assert how.code != 0, how.err
    assert how.err.count("a process of this run ended") == 1
    assert 0 < epochs(longer, tmp_path / "out") < 150
    assert len(whole(longer, tmp_path / "out").record.verdict.robust) > 0


def test_a_wish_to_stop_that_reaches_one_process_stops_all_at_the_same_step(
    longer: Path, tmp_path: Path
) -> None:
    run = start(longer, tmp_path / "out")
    wait_for(lambda: epochs(longer, tmp_path / "out") > 3)
    os.kill(process(run, 1), signal.SIGTERM)
    how = ended(run)
    assert how.code != 0
    assert "stopped as asked with 0 of 1 cells done, 1 under way" in how.err
    assert "go on with: torchrun ... -m robust_nc run" in how.err
    done = epochs(longer, tmp_path / "out")
    assert 0 < done < 150
    whole(longer, tmp_path / "out")
    assert epochs(longer, tmp_path / "out") == 150
