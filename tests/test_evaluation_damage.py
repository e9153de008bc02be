"""The log, damaged in any way: found, cut to its last good line, and the verdict is the same."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers_attacks import BALL, differences, examples

from robust_nc import evaluate
from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.pgd import PGD
from robust_nc.evaluation import Outcome
from robust_nc.evaluation.log import close_log, end_of_log, open_log
from robust_nc.exceptions import RecordError
from robust_nc.runtime.progress import Progress
from robust_nc.types import EvaluationProtocol

COUNT = 12
PLAN = EvaluationProtocol("plan", (("one", APGD(steps=3)), ("two", PGD(steps=2))))


def judged(log: Path | None, **options: object) -> Outcome:
    model, images, labels = examples(COUNT)
    run = partial(evaluate, model, images, labels, BALL, protocol=PLAN, batch_size=4)
    return run(checks=False, log=log, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[bytes]]:
    """An evaluation with its log, line by line."""
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    outcome = judged(log)
    return outcome, log.read_bytes().splitlines(keepends=True)


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
    kind: str, finished: tuple[Outcome, list[bytes]], tmp_path: Path
) -> None:
    whole, lines = finished
    assert len(lines) > 5
    log = tmp_path / "log.jsonl"
    for place in (0, 1, len(lines) // 2, len(lines) - 1):
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


def test_what_followed_is_kept_beside_and_told(
    finished: tuple[Outcome, list[bytes]], tmp_path: Path
) -> None:
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


def test_what_a_kill_left_half_is_dropped_in_silence(
    finished: tuple[Outcome, list[bytes]], tmp_path: Path
) -> None:
    lines, log = finished[1], tmp_path / "log.jsonl"
    told: list[Progress] = []
    for tail in (lines[4][:50], bytes(4096), lines[4][:50] + bytes(4096)):
        log.write_bytes(b"".join(lines[:4]) + tail)
        judged(log, report=told.append)
        assert not told[-1].note
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("content", [b"", bytes(512), b'{"eval', b'{"evaluation": "na' + bytes(9)])
def test_a_first_line_that_a_power_cut_left_half_is_written_anew(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    whole = logged(tmp_path / "another.jsonl", lines=0)
    with open_log(path, lambda: "name"):
        pass
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"my notes\n", b'{"seed": 1}\n{"seed": 2}\n', b"\x89PNG\r\n"])
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


def test_logs_of_earlier_versions_are_gone_on_with(
    finished: tuple[Outcome, list[bytes]], tmp_path: Path
) -> None:
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
    line: bytes, finished: tuple[Outcome, list[bytes]], tmp_path: Path
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
