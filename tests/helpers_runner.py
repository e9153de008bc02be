"""A tiny suite, and the command line called in this process or in its own."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.cli.main import main
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.record import Record, read_record
from robust_nc.record.folder import NOT_RECORDS

TINY = """
name = "tiny"
[base.data]
dataset = "digits"
train_limit = 120
test_limit = 60
validation = 0.2
[base.model]
backbone = { name = "small_cnn", width = 8 }
[base.train]
epochs = 2
batch_size = 50
[base.threat]
eps = 0.1
[base.evaluation]
protocol = "fgsm"
examples = 40
sweep = [0.05]
sweep_examples = 20
[base.measure]
train_examples = 60
test_examples = 40
steps = 2
targets = []
radii = []
trajectories = 0
"""
GRID = """
[grid]
"model.head" = ["linear", "etf"]
"evaluation.examples" = [40, 30]
"""


class Ran(NamedTuple):
    """What a call of the command line left."""

    code: int
    out: str
    err: str


def write_suite(folder: Path, grid: str = GRID) -> Path:
    """Write the tiny suite with a grid; two trainings of two cells each by default."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.toml"
    path.write_text(TINY + grid)
    return path


def tiny(folder: Path, grid: str = GRID) -> Suite:
    return read_suite(str(write_suite(folder, grid)))


def cli(*arguments: object) -> Ran:
    """Call the command line in this process (workers are processes of their own)."""
    before, argv = signal.getsignal(signal.SIGTERM), sys.argv
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["robust-nc", *map(str, arguments)]
    code: Any = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, before)
    return Ran(code or 0, out.getvalue(), err.getvalue())


def start(
    *arguments: object, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE
) -> "subprocess.Popen[str]":
    """Start the command line in a process group of its own.

    Tests that run in the background of a shell ignore Ctrl-C, and so would what they start.
    """
    return subprocess.Popen(
        [sys.executable, "-c", "from robust_nc.cli.main import main; main()", *map(str, arguments)],
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def signalled(number: int, when: Callable[[], bool], *arguments: object) -> Ran:
    """Call the command line in this process, and send it a signal once `when` holds."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.02):
            if when():
                os.kill(os.getpid(), number)
                return

    handlers = (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_IGN)
    before = [(each, signal.signal(each, handler)) for each, handler in handlers]
    sender = threading.Thread(target=send)
    sender.start()
    try:
        return cli(*arguments)
    finally:
        ended.set()
        sender.join()
        for each, handler in before:
            signal.signal(each, handler)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def living() -> dict[int, int]:
    """Process groups of all processes that are not zombies, by process (from /proc)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                found[int(path.parent.name)] = int(group)
    return found


def group_is_gone(leader: int) -> bool:
    """Whether no process of a group is left."""
    return leader not in living().values()


def records(out: Path) -> dict[str, Record]:
    """Read all records and their rows, by cell; half a file would raise."""
    found = {}
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
        if not NOT_RECORDS & set(path.relative_to(out).parts):
            stored = read_record(path)
            assert len(stored.rows())
            found[stored.record.cell] = stored.record
    return found


def times(out: Path, pattern: str) -> dict[str, int]:
    """When files were written; hidden ones, such as the lock, are left out."""
    paths = [path for path in out.rglob(pattern) if not path.name.startswith(".")]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in paths}


def record_times(out: Path) -> dict[str, int]:
    """When records were written; what a cell has only begun leaves none."""
    paths = [path for path in out.glob("*/*.json") if path.parent.name not in NOT_RECORDS]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in paths}
