"""A suite under torchrun: two processes on one model, and what ends one of them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_runner import TINY, wait_for

from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import train_stage
from robust_nc.pipeline.suite import read_suite
from robust_nc.record import Stored, read_record
from robust_nc.record.folder import record_path
from robust_nc.runtime.progress import no_report

pytestmark = pytest.mark.cluster


def suite(folder: Path, epochs: int = 2) -> Path:
    """A tiny suite with adversarial training, judged in blocks."""
    text = TINY.replace("examples = 40", "examples = 40\nblock = 10", 1)
    every = f"epochs = {epochs}\nvalidate_every = {epochs}\ncollapse_every = {epochs}"
    text = text.replace("epochs = 2", f'{every}\nobjective = {{ name = "pgd", steps = 2 }}')
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


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


def ended(run: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for the end of a run; returns its code and what it said."""
    try:
        _, err = run.communicate(timeout=240)
    finally:
        run.kill()
    return run.returncode, err


def whole(path: Path, out: Path) -> Stored:
    """Run to the end; returns the record of the only cell."""
    code, err = ended(start(path, out))
    assert code == 0, err
    return record(path, out)


def record(path: Path, out: Path) -> Stored:
    (cell,) = read_suite(str(path)).cells
    return read_record(record_path(out, cell.model, cell.id))


def process(run: "subprocess.Popen[str]", rank: int) -> int:
    """The pid of a rank."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")


def epochs(out: Path) -> int:
    """Epochs in the log of the training."""
    logs = out.glob("checkpoints/*/log.jsonl")
    return sum(len(log.read_text().splitlines()) for log in logs)


def test_a_trained_cell_is_judged_and_measured_as_by_one_process(tmp_path: Path) -> None:
    one, two, path = tmp_path / "one", tmp_path / "two", suite(tmp_path)
    (cell,) = read_suite(str(path)).cells
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


def test_one_process_that_is_told_to_stop_or_killed_ends_all_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    path, out = suite(tmp_path, 150), tmp_path / "out"
    run = start(path, out)
    wait_for(lambda: epochs(out) > 3)
    os.kill(process(run, 1), signal.SIGTERM)
    code, err = ended(run)
    assert code != 0
    assert "stopped as asked with 0 of 1 cells done, 1 under way" in err
    assert "go on with: torchrun ... -m robust_nc run" in err
    stopped = epochs(out)
    assert 3 < stopped < 150
    run = start(path, out)
    wait_for(lambda: epochs(out) > stopped + 3)
    os.kill(process(run, 0), signal.SIGKILL)
    code, err = ended(run)
    assert code != 0, err
    assert err.count("a process of this run ended") == 1
    assert stopped < epochs(out) < 150
    assert len(whole(path, out).record.verdict.robust) > 0
    assert epochs(out) == 150
