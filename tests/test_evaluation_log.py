"""The log of an evaluation: killed at any line, damaged, stopped, of something else, never half."""

import json
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_attacks import APGD_ONLY, BALL, SHORT, Counted, Failing, differences, examples, own
from torch import Tensor, nn

from robust_nc import Ball, evaluate
from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.square import Square
from robust_nc.evaluation import Outcome
from robust_nc.evaluation.identity import attack_identity
from robust_nc.evaluation.log import close_log, end_of_log, open_log
from robust_nc.exceptions import InputError, RecordError, StoppedError, StorageError
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Progress
from robust_nc.types import Attack, EvaluationProtocol

COUNT = 12
PLAN = EvaluationProtocol("plan", (("one", APGD(steps=3)), ("two", PGD(steps=2))))
Finished = tuple[Outcome, list[bytes]]


def judged(log: Path | None, *, model: nn.Module | None = None, **options: object) -> Outcome:
    plain, images, labels = examples(COUNT)
    options = {"protocol": PLAN, "batch_size": 4, "checks": False} | options
    return evaluate(model or plain, images, labels, BALL, log=log, **options)


def with_lines(folder: Path, **options: object) -> Finished:
    outcome = judged(folder / "log.jsonl", **options)
    return outcome, (folder / "log.jsonl").read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An evaluation with its log, line by line."""
    return with_lines(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One by the four attacks of `standard`."""
    return with_lines(tmp_path_factory.mktemp("log"), protocol=SHORT)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


# Killed


def test_a_log_changes_nothing_and_spares_what_it_holds(finished: Finished, log: Path) -> None:
    assert differences(finished[0], judged(None)) == []
    log.write_bytes(b"".join(finished[1]))
    model, calls = examples(COUNT)[0], []
    model.register_forward_hook(lambda *_: calls.append(1))
    again = judged(log, model=model, batch_size=COUNT, accelerate=False)
    assert differences(finished[0], again, passes=False) == ["accelerated"]
    assert len(calls) == 2  # what the model answers is part of its name; and the clean verdict


def test_killed_at_every_line_it_ends_the_same(standard: Finished, log: Path) -> None:
    whole, lines = standard
    assert len(lines) > 5
    for cut in range(len(lines) + 1):
        torn = lines[cut][: cut % 40] if cut < len(lines) else b""
        log.write_bytes(b"".join(lines[:cut]) + torn)
        # Batches of one size, and the siblings that fly side by side are the same ones.
        assert differences(whole, judged(log, protocol=SHORT)) == [], cut
        again = log.read_bytes().splitlines(keepends=True)
        assert again[:cut] == lines[:cut], "what was there is kept"
        assert all(json.loads(line) for line in again)


@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_size_may_change_on_the_way(standard: Finished, log: Path, size: int) -> None:
    whole, lines = standard
    for cut in range(1, len(lines), 8):
        log.write_bytes(b"".join(lines[:cut]))
        outcome = judged(log, protocol=SHORT, batch_size=size)
        assert torch.equal(outcome.robust, whole.robust)
        assert outcome.broken_by == whole.broken_by
        assert BALL.contains(outcome.adversarials, examples(COUNT)[1]).all()


def test_lower_precision_is_resumed_too(tmp_path: Path, log: Path) -> None:
    options = {"precision": "bf16", "protocol": APGD_ONLY}
    whole, lines = with_lines(tmp_path, **options)
    for cut in range(1, len(lines), 3):
        log.write_bytes(b"".join(lines[:cut]))
        assert differences(whole, judged(log, **options)) == []


_CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import robust_nc.evaluation.log as module
from test_evaluation_log import SHORT, judged
module._SECONDS = 0.0
slow = module.EvaluationLog.put
def put(self, *given):
    slow(self, *given)
    time.sleep(0.05)
module.EvaluationLog.put = put
judged(sys.argv[1], protocol=SHORT)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle(standard: Finished, log: Path) -> None:
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
    whole, lines = standard
    kept = log.read_bytes().splitlines(keepends=True)
    assert 3 <= len(kept) < len(lines) + 3
    assert differences(whole, judged(log, protocol=SHORT)) == []


def test_a_model_that_fails_goes_on_when_it_is_healed(tmp_path: Path) -> None:
    """In the middle of the second attack: the log keeps the first one, the rest is made up."""
    model = examples(COUNT)[0]
    run = partial(judged, protocol=SHORT, accelerate=False)
    counted = Counted(model).eval()
    whole = run(None, model=counted)
    for at in (3, counted.calls // 2, counted.calls - 1):
        log = tmp_path / f"{at}.jsonl"
        failing = Failing(model, at).eval()
        with pytest.raises(InputError, match="out of luck"):
            run(log, model=failing)
        lines = log.read_bytes().splitlines()
        assert all(json.loads(line) for line in lines)
        assert len(lines) > 2 or at == 3
        failing.at, failing.calls = 0, 0
        assert differences(whole, run(log, model=failing)) == []
        if at > 3:
            assert failing.calls < counted.calls, "what the log holds is not done again"


def test_warnings_survive_a_kill(tmp_path: Path, log: Path) -> None:
    def outside(model, images, labels, ball, **_):
        return images + 0.5

    model = examples(COUNT)[0].train()
    plan = own(outside)._replace(attacks=(("outside", outside), *APGD_ONLY.attacks))
    run = partial(judged, model=model, protocol=plan, checks=True)
    whole, lines = with_lines(tmp_path, model=model, protocol=plan, checks=True)
    assert {"train-mode", "left-ball:outside"} <= {warned.name for warned in whole.warnings}
    for cut in range(1, len(lines) + 1, 2):
        log.write_bytes(b"".join(lines[:cut]))
        again = run(log)
        assert set(again.warnings) == set(whole.warnings)
        assert torch.equal(again.robust, whole.robust)


# Of another evaluation


class Turned(nn.Sequential):
    """A model of the same weights and other answers."""

    def forward(self, images: Tensor) -> Tensor:
        return -super().forward(images)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", lambda model: Turned(*model)),
        ("model", lambda model: model[0].weight.data[0, 0, 0, :1].add_(1e-6)),
        ("model", lambda model: model[1].running_mean[:1].add_(1e-3)),
        ("images", lambda images: images[0, 0, 0, :1].add_(1e-3)),
        ("labels", lambda labels: labels[1:2].add_(1).remainder_(5)),
        ("ids", lambda ids: ids.add_(1)),
        ("seed", 1),
        ("precision", "bf16-only"),
        ("ball", Ball("Linf", 0.031)),
        ("protocol", own(APGD(steps=11), "apgd-ce")),
    ],
)
def test_the_log_of_another_evaluation_is_refused(name: str, value: object, log: Path) -> None:
    def given() -> dict[str, Any]:
        model, images, labels = examples(COUNT)
        return {
            "model": model, "images": images, "labels": labels, "ball": BALL, "log": log,
            "protocol": APGD_ONLY, "ids": torch.arange(COUNT), "checks": False,
        }  # fmt: skip

    evaluate(**given())
    before, other = log.read_bytes(), given()
    if callable(value):
        made = value(other[name])
        other[name] = made if isinstance(made, nn.Module) else other[name]
    else:
        other[name] = value
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        evaluate(**other)
    assert log.read_bytes() == before
    evaluate(**given())
    assert log.read_bytes() == before, "a finished log does not grow"


class Bound:
    def two(self, model, images, *_, **__):
        return images

    def three(self, model, images, *_, **__):
        return images


def one(model, images, *_, by=0.0, **__):
    return images + by


def test_attacks_that_differ_are_told_apart() -> None:
    def attacks() -> list[Attack]:
        made = [one, partial(one, by=0.1), partial(one, by=0.2), Bound().two, Bound().three]
        return [*made, APGD(), APGD(steps=5)]

    names, again = (list(map(attack_identity, attacks())) for _ in range(2))
    assert len(set(names)) == len(names)
    assert names == again
    assert not any("0x" in name for name in names), "the same in every process"


# A place that cannot be written


@pytest.mark.parametrize("place", ["folder", "file/log.jsonl", "/proc/nowhere/log.jsonl"])
def test_a_place_that_cannot_be_written_is_a_storage_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="log"):
        judged(tmp_path / place)
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


@pytest.mark.parametrize("room", [0, 700, 2500])
def test_a_full_place_is_a_storage_error_and_leaves_nothing_half(
    room: int, log: Path, small_files, standard: Finished
) -> None:
    small_files(room)
    with pytest.raises(StorageError, match=r"cannot write the log .*log\.jsonl"):
        judged(log, protocol=SHORT)
    small_files(resource.RLIM_INFINITY)
    content = log.read_bytes() if log.exists() else b""
    assert len(content) <= room
    assert content == b"" or content.endswith(b"\n")
    assert all(json.loads(line) for line in content.splitlines())
    assert differences(standard[0], judged(log, protocol=SHORT)) == []


# Damaged


def logged(path: Path, lines: int = 4) -> bytes:
    """A small log of the evaluation `name`, and its bytes."""
    with open_log(path, lambda: "name") as log:
        for turn in range(lines):
            log.put(turn, (torch.arange(2), torch.rand(2)), {"told": f'once, "crc": {turn}'})
    return path.read_bytes()


def test_any_changed_byte_is_found_and_the_lines_before_it_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_nc.evaluation.log.os.fsync", lambda handle: None)
    path, beside = tmp_path / "log.jsonl", tmp_path / "log.jsonl.damaged"
    whole = logged(path, lines=2)
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= (1, 4, 0x80)[place % 3]
        path.write_bytes(damaged)
        beside.unlink(missing_ok=True)
        good = sum(end <= place for end in ends)
        log = open_log(path, lambda: "name")
        assert len(list(log.lines())) == max(good - 1, 0)
        assert path.read_bytes() == whole[: ends[max(good, 1) - 1]]
        rest = damaged[ends[good - 1] if good else 0 :]
        assert bool(log.damage) == beside.exists() == (b"\n" in rest)
        if beside.exists():
            assert beside.read_bytes() == rest


@pytest.mark.parametrize("kind", ["flip", "zeros inside", "zeros at the end", "line lost", "x"])
def test_a_damaged_log_goes_on_to_the_same_verdict(
    kind: str, finished: Finished, log: Path
) -> None:
    whole, lines = finished
    assert len(lines) > 5
    for place in (0, len(lines) // 2, len(lines) - 1):
        line = lines[place]
        damaged = {
            "flip": line[:20] + bytes([line[20] ^ 1]) + line[21:],
            "zeros inside": line[:20] + bytes(10) + line[30:],
            "zeros at the end": line[:-30] + bytes(30),
            "line lost": line[:20],
            "x": line + b"x\n",
        }[kind]
        rest = [] if kind == "zeros at the end" else lines[place + 1 :]
        log.write_bytes(b"".join([*lines[:place], damaged, *rest]))
        assert differences(whole, judged(log)) == [], place
        again = log.read_bytes().splitlines(keepends=True)
        assert again[:place] == lines[:place], "what was good is kept"
        assert all(json.loads(line) for line in again)


def test_what_followed_is_kept_beside_and_told(finished: Finished, tmp_path: Path) -> None:
    lines = finished[1]
    log, beside = tmp_path / "log.jsonl", tmp_path / "log.jsonl.damaged"
    told: list[Progress] = []
    for times in (1, 2):
        log.write_bytes(b"".join([*lines[:3], b"x", *lines[3:]]))
        judged(log, report=told.append)
        assert beside.read_bytes() == times * b"".join([b"x", *lines[3:]])
    assert "goes on from there; what followed is in log.jsonl.damaged" in str(told[-1])
    judged(log, report=told.append)
    assert "damaged" not in str(told[-1])


def test_what_a_kill_left_half_is_dropped_in_silence(finished: Finished, tmp_path: Path) -> None:
    lines, log = finished[1], tmp_path / "log.jsonl"
    told: list[Progress] = []
    for tail in (lines[4][:50], bytes(4096), lines[4][:50] + bytes(4096)):
        log.write_bytes(b"".join(lines[:4]) + tail)
        judged(log, report=told.append)
        assert not told[-1].note
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("content", [b"", bytes(512), b'{"evaluation": "na' + bytes(9)])
def test_a_first_line_that_a_power_cut_left_half_is_written_anew(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    whole = logged(tmp_path / "another.jsonl", lines=0)
    with open_log(path, lambda: "name"):
        pass
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b"my notes\n", b'{"seed": 1}\n{"seed": 2}\n', b"\x89PNG\r\n", b'{"evaluation": "other"}\n'],
)
def test_a_file_that_is_no_log_is_refused_untouched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        open_log(path, lambda: "name")
    assert path.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def without_checksums(lines: list[bytes]) -> list[bytes]:
    """The lines as earlier versions wrote them."""
    return [line.rpartition(b', "crc": ')[0] + b"}\n" for line in lines]


def test_logs_of_earlier_versions_are_gone_on_with(finished: Finished, tmp_path: Path) -> None:
    whole, lines = finished
    old = without_checksums(lines)
    log = tmp_path / "log.jsonl"
    for cut in range(1, len(old) + 1, 2):
        log.write_bytes(b"".join(old[:cut]))
        assert differences(whole, judged(log)) == []
        again = log.read_bytes().splitlines(keepends=True)
        assert again[:cut] == old[:cut]
        assert all(b', "crc": ' in line for line in again[cut:])
        assert differences(whole, judged(log)) == []


@pytest.mark.parametrize(
    "line",
    [
        b"{}\n",
        b'{"turn": 0, "warnings": {}, "tensors": [{"dtype": "int64"}]}\n',
        b'{"turn": 0, "tensors": [{"dtype": "int64", "shape": [1], "data": "eA=="}]}\n',
        b'{"turn": 0, "warnings": {}, "tensors": [], "crb": 12}\n',
    ],
)
def test_damaged_lines_of_earlier_versions_are_found(
    line: bytes, finished: Finished, tmp_path: Path
) -> None:
    whole, lines = finished
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join([*without_checksums(lines[:3]), line, *lines[3:]]))
    assert differences(whole, judged(log)) == []
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == b"".join([line, *lines[3:]])


def test_after_a_line_with_a_checksum_every_line_has_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = logged(path).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *without_checksums(lines[2:3]), *lines[3:]]))
    assert [line.turn for line in open_log(path, lambda: "name").lines()] == [0]


def test_a_closed_log_says_so_until_something_follows_or_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert end_of_log(path) is None
    logged(path)
    assert end_of_log(path) is None
    close_log(path, {"weights": "00ff", "seconds": 1.5})
    assert end_of_log(path) == {"weights": "00ff", "seconds": 1.5}
    whole = path.read_bytes()
    with open_log(path, lambda: "name") as log:
        assert log.ended == {"weights": "00ff", "seconds": 1.5}
        assert [line.turn for line in log.lines()] == [0, 1, 2, 3]
    assert path.read_bytes() == whole
    path.write_bytes(whole[:100] + b"?" + whole[101:])
    assert end_of_log(path) is None
    path.write_bytes(whole)
    with open_log(path, lambda: "name") as log:
        log.put(4, (torch.arange(1),), {})
    assert end_of_log(path) is None
    assert open_log(path, lambda: "name").ended is None


# Stopped, or out of memory on the way


STOPPED = EvaluationProtocol(
    "stopped",
    (("apgd", APGD(steps=5)), ("pgd", PGD(steps=3, restarts=2)), ("square", Square(queries=6))),
)


class Wishing(nn.Module):
    """Asks to stop at one of its calls, and counts those that come after."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.model, self.at, self.calls = examples(COUNT)[0], at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            stopping.wish()
        logits: Tensor = self.model(images)
        return logits


@pytest.fixture(autouse=True)
def no_wish():
    stopping.clear()
    yield
    stopping.clear()


def test_it_stops_within_a_step_and_goes_on_to_the_same_verdict(tmp_path: Path) -> None:
    run, log = partial(judged, protocol=STOPPED, accelerate=False), tmp_path / "log.jsonl"
    model = Wishing()
    whole = run(None, model=model)
    calls, stops = model.calls, 0
    while True:
        model = Wishing(at=calls // 2)
        try:
            outcome = run(log, model=model)
        except StoppedError:
            assert model.calls - model.at <= 1, "and what it flipped is confirmed"
            stops += 1
            stopping.clear()
            assert stops < 30, "it does not get on"
            continue
        break
    assert stops >= 2
    assert differences(whole, outcome, passes=False) == []
