"""SIGTERM as a scheduler sends it to the command line: the state is saved, 143, and one sentence.

`test_runner.py` sends it to the driver of a suite, `test_local.py` to drivers, workers
and process groups whose tasks say when they heed it.
"""

import os
import signal
from pathlib import Path

import pytest
from helpers_appraisal import write_model
from helpers_faults import assert_tidy, left_by
from helpers_runner import cli, group_is_gone, start, wait_for, write_suite

from robust_nc.cli.stopping import INTERRUPTED, TERMINATED, heeding
from robust_nc.exceptions import StoppedError

LONG = '[grid]\n"train.epochs" = [400]\n"train.objective" = [{ name = "pgd", steps = 20 }]\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_an_evaluation_flushes_its_log_and_goes_on_from_it(model, tmp_path):
    out = tmp_path / "out"
    arguments = ["evaluate", model, "--dataset", "digits", "--eps", "8/255", "--n", "120"]
    arguments += ["--no-geometry"]
    process = start(*arguments, "--out", out)

    def logged() -> int:
        return sum(path.read_bytes().count(b"\n") for path in out.rglob("*.jsonl"))

    try:
        wait_for(lambda: process.poll() is not None or logged() >= 2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, err
    *_, last = err.splitlines()
    assert last.startswith("stopped as asked; what was finished is saved, and the same command")
    assert last.endswith(
        f": robust-nc evaluate {model} --dataset digits --norm Linf --eps 8/255 "
        f"--protocol standard --n 120 --out {out} --no-geometry"
    )
    assert "Traceback" not in err
    assert not list(out.glob("*.json"))
    assert logged() >= 2
    again = start(*arguments, "--protocol", "standard", "--out", out)
    assert (again.communicate(timeout=300)[0].count("robust:"), again.returncode) == (1, 0)
    assert len(list(out.glob("*.json"))) == 1
    assert not list(out.rglob("*.jsonl"))


def test_a_suite_stops_with_all_its_processes_when_the_whole_group_is_told(tmp_path):
    """Its epochs are many and short: it must stop between two of them, with what it has saved."""
    out = tmp_path / "out"
    process = start("run", write_suite(tmp_path, LONG), "--out", out, "--workers", 1, stdout=None)
    try:
        wait_for(lambda: process.poll() is not None or bool(list(out.rglob("last.json"))))
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        wait_for(lambda: group_is_gone(process.pid), 10)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert "stopped as asked with 0 of 1 cells done, 1 under way" in err.splitlines()[-1]
    assert "tried again" not in err
    assert "Traceback" not in err
    assert left_by(out).records == {}
    (epochs,) = left_by(out).trainings.values()
    assert epochs == list(range(1, len(epochs) + 1))
    assert epochs
    assert_tidy(out)


class TestEndings:
    def ending(self, error: BaseException) -> tuple[int, list[str]]:
        told: list[str] = []

        def command() -> int:
            raise error

        return heeding(command, "robust-nc run x", told.append), told

    def test_each_has_its_code_and_its_sentence(self):
        assert (INTERRUPTED, TERMINATED) == (130, 143)
        assert self.ending(KeyboardInterrupt()) == (
            130,
            ["interrupted; nothing finished is lost. Go on with: robust-nc run x"],
        )
        code, (sentence,) = self.ending(StoppedError("stopped as asked; go on with"))
        assert (code, sentence) == (143, "stopped as asked; go on with: robust-nc run x")

    def test_who_is_interrupted_after_sigterm_was_terminated(self):
        def command() -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            raise KeyboardInterrupt

        assert heeding(command, "again", [].append) == 143

    def test_an_end_is_an_end(self):
        assert heeding(lambda: 1, "again", [].append) == 1
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_no_handler_stays_behind(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert cli("run", tmp_path / "absent.toml").code == 2
    assert signal.getsignal(signal.SIGTERM) == before
