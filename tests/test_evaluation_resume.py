"""The log: killed at any line, refused where it is another's, never half."""

import json
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers_attacks import APGD_ONLY, BALL, SHORT, Counted, Failing, differences, examples, own

from robust_nc import Ball, evaluate
from robust_nc.attacks.apgd import APGD
from robust_nc.evaluation import Outcome
from robust_nc.evaluation.identity import attack_identity
from robust_nc.evaluation.log import EvaluationLog, open_log
from robust_nc.exceptions import InputError, RecordError, StorageError
from robust_nc.types import Attack

COUNT = 12


def judged(log: Path | None, *, size: int = 4, **options: object) -> Outcome:
    model, images, labels = examples(COUNT)
    options = {"protocol": SHORT, "checks": False} | options
    return evaluate(model, images, labels, BALL, batch_size=size, log=log, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[bytes]]:
    """An evaluation with its log, line by line."""
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    outcome = judged(log)
    return outcome, log.read_bytes().splitlines(keepends=True)


def test_a_log_changes_nothing(finished: tuple[Outcome, list[bytes]]) -> None:
    assert differences(finished[0], judged(None)) == []


def test_killed_at_every_line_it_ends_the_same(
    finished: tuple[Outcome, list[bytes]], tmp_path: Path
) -> None:
    whole, lines = finished
    assert len(lines) > 5
    log = tmp_path / "log.jsonl"
    for cut in range(len(lines) + 1):
        torn = lines[cut][: cut % 40] if cut < len(lines) else b""
        log.write_bytes(b"".join(lines[:cut]) + torn)
        # Batches of one size, and the siblings that fly side by side are the same ones.
        assert differences(whole, judged(log)) == [], cut
        again = log.read_bytes().splitlines(keepends=True)
        assert again[:cut] == lines[:cut], "what was there is kept"
        assert all(json.loads(line) for line in again)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_batch_size_may_change_on_the_way(
    finished: tuple[Outcome, list[bytes]], tmp_path: Path, size: int
) -> None:
    whole, lines = finished
    log = tmp_path / "log.jsonl"
    for cut in range(1, len(lines), 6):
        log.write_bytes(b"".join(lines[:cut]))
        outcome = judged(log, size=size)
        assert torch.equal(outcome.robust, whole.robust)
        assert outcome.broken_by == whole.broken_by
        assert BALL.contains(outcome.adversarials, examples(COUNT)[1]).all()


def test_lower_precision_is_resumed_too(tmp_path: Path) -> None:
    run = partial(judged, precision="bf16", protocol=APGD_ONLY)
    log = tmp_path / "log.jsonl"
    whole = run(log)
    lines = log.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines), 3):
        log.write_bytes(b"".join(lines[:cut]))
        assert differences(whole, run(log)) == []


_CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import robust_nc.evaluation.log as module
from test_evaluation_resume import judged
module._SECONDS = 0.0
slow = module.EvaluationLog.put
def put(self, *given):
    slow(self, *given)
    time.sleep(0.05)
module.EvaluationLog.put = put
judged(sys.argv[1])
"""


@pytest.mark.slow
def test_kill_9_in_the_middle(finished: tuple[Outcome, list[bytes]], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    code = _CHILD.format(tests=str(Path(__file__).parent))
    killed = 0
    for wanted in (3, 8, 12):  # the log goes on from one kill to the next
        child = subprocess.Popen([sys.executable, "-c", code, str(log)])
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= wanted:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        killed += child.wait(60) == -signal.SIGKILL
    assert killed >= 2
    whole, lines = finished
    kept = log.read_bytes().splitlines(keepends=True)
    assert 3 <= len(kept) < len(lines) + 3
    assert differences(whole, judged(log)) == []


def test_a_model_that_fails_goes_on_when_it_is_healed(tmp_path: Path) -> None:
    """In the middle of the second attack: the log keeps the first one, the rest is made up."""
    model, images, labels = examples(COUNT)
    run = partial(
        evaluate,
        images=images,
        labels=labels,
        ball=BALL,
        protocol=SHORT,
        batch_size=4,
        checks=False,
        accelerate=False,
    )
    whole, counted = run(model), Counted(model)
    run(counted)
    for at in (3, counted.calls // 3, counted.calls // 2, counted.calls - 1):
        log = tmp_path / f"{at}.jsonl"
        failing = Failing(model, at).eval()
        with pytest.raises(InputError, match="out of luck"):
            run(failing, log=log)
        lines = log.read_bytes().splitlines()
        assert all(json.loads(line) for line in lines)
        assert len(lines) > 2 or at == 3
        failing.at, failing.calls = 0, 0
        assert differences(whole, run(failing, log=log)) == []
        if at > 3:
            assert failing.calls < counted.calls, "what the log holds is not done again"


def test_an_interrupt_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"

    def interrupt(progress) -> None:
        if progress.turn == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(log, report=interrupt)
    assert len(log.read_bytes().splitlines()) > 2
    assert differences(judged(None), judged(log)) == []


def test_warnings_survive_a_kill(tmp_path: Path) -> None:
    model, images, labels = examples(COUNT)

    def outside(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return images + 0.5

    plan = own(outside)._replace(attacks=(("outside", outside), *APGD_ONLY.attacks))
    run = partial(evaluate, images=images, labels=labels, ball=BALL, protocol=plan, batch_size=4)
    model.train()
    log = tmp_path / "log.jsonl"
    whole = run(model, log=log)
    assert {"train-mode", "left-ball:outside"} <= {warned.name for warned in whole.warnings}
    lines = log.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines) + 1, 2):
        log.write_bytes(b"".join(lines[:cut]))
        again = run(model, log=log)
        assert set(again.warnings) == set(whole.warnings)
        assert torch.equal(again.robust, whole.robust)


def _changed(name: str) -> dict[str, object]:
    model, images, labels = examples(COUNT)
    given: dict[str, object] = {
        "model": model,
        "images": images,
        "labels": labels,
        "ball": BALL,
        "protocol": APGD_ONLY,
        "seed": 0,
        "ids": torch.arange(COUNT),
        "precision": "float32",
    }
    if name == "model":
        with torch.no_grad():
            model[0].weight[0, 0, 0, 0] += 1e-6
    elif name == "buffer":
        model[1].running_mean[0] += 1e-3
    elif name == "images":
        images[0, 0, 0, 0] += 1e-3
    elif name == "labels":
        labels[1] = (labels[1] + 1) % 5
    elif name == "steps":
        given["protocol"] = own(APGD(steps=11), "apgd-ce")
    changes = {
        "seed": 1,
        "precision": "bf16-only",
        "ids": torch.arange(COUNT) + 1,
        "ball": Ball("Linf", 0.031),
    }
    return given | ({name: changes[name]} if name in changes else {})


@pytest.mark.parametrize(
    "name",
    ["model", "buffer", "images", "labels", "seed", "precision", "ids", "ball", "steps"],
)
def test_the_log_of_another_evaluation_is_refused(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    evaluate(**_changed(""), log=log, checks=False)
    before = log.read_bytes()
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        evaluate(**_changed(name), log=log, checks=False)
    assert log.read_bytes() == before
    evaluate(**_changed(""), log=log, checks=False)
    assert log.read_bytes() == before, "a finished log does not grow"


def one(model, images, labels, ball, *, goal="flip", targets=None, seed, ids, by=0.0):
    return images + by


def two(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
    return images


class Bound:
    def three(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return images

    def four(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return images


def test_attacks_that_differ_are_told_apart() -> None:
    attacks: list[Attack] = [
        one,
        two,
        partial(one, by=0.1),
        partial(one, by=0.2),
        Bound().three,
        Bound().four,
        APGD(),
        APGD(steps=5),
    ]
    assert len({attack_identity(attack) for attack in attacks}) == len(attacks)
    assert attack_identity(partial(one, by=0.1)) == attack_identity(partial(one, by=0.1))
    assert attack_identity(Bound().three) == attack_identity(Bound().three)
    assert not any("0x" in attack_identity(attack) for attack in attacks), (
        "the same in every process"
    )


@pytest.mark.parametrize("place", ["folder", "below a file", "no parent to be made"])
def test_a_place_that_cannot_be_written_is_a_storage_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    path = {
        "folder": tmp_path / "folder",
        "below a file": tmp_path / "file" / "log.jsonl",
        "no parent to be made": Path("/proc/nowhere/log.jsonl"),
    }[place]
    with pytest.raises(StorageError, match="log"):
        judged(path, protocol=APGD_ONLY)
    assert (tmp_path / "file").read_text() == "kept"
    assert not list((tmp_path / "folder").iterdir())


@pytest.fixture
def small_files():
    """Files may not grow beyond a limit, which the kernel says as it says a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("room", [0, 30, 700, 2500])
def test_a_full_place_is_a_storage_error_and_leaves_nothing_half(
    room: int, tmp_path: Path, small_files, finished: tuple[Outcome, list[bytes]]
) -> None:
    log = tmp_path / "log.jsonl"
    small_files(room)
    with pytest.raises(StorageError, match=r"cannot write the log .*log\.jsonl"):
        judged(log)
    small_files(resource.RLIM_INFINITY)
    content = log.read_bytes() if log.exists() else b""
    assert len(content) <= room
    assert content == b"" or content.endswith(b"\n")
    assert all(json.loads(line) for line in content.splitlines())
    assert differences(finished[0], judged(log)) == []


def test_lines_go_to_the_disk_once_a_second(tmp_path: Path, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("robust_nc.evaluation.log.time.monotonic", lambda: now[0])
    path = tmp_path / "log.jsonl"
    with open_log(path, lambda: "name") as log:
        assert isinstance(log, EvaluationLog)
        log.put(0, (torch.arange(2),), {})
        assert path.read_bytes().count(b"\n") == 1
        now[0] += 1.1
        log.put(0, (torch.arange(3),), {"a": "b"})
        assert path.read_bytes().count(b"\n") == 3
        log.put(1, (torch.zeros(0, 2, dtype=torch.bool),), {})
    again = open_log(path, lambda: "name")
    lines = list(again.lines())
    assert [line.turn for line in lines] == [0, 0, 1]
    last = lines[2].tensors[0]
    assert last.shape == (0, 2)
    assert last.dtype == torch.bool
    assert again.warnings == {"a": "b"}
