"""The append-only log of an evaluation: one line per group of examples that a turn has finished.

Every line ends with a checksum of what stands before it (lines of earlier versions have none). A
log goes on after its last good line: what a kill left half is dropped, and what else is damaged is
kept beside it, in `<log>.damaged`. Lines go to the disk about once a second.

>>> import tempfile, torch, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
>>> with open_log(path, lambda: "abc") as log:
...     log.put(0, (torch.arange(3),), {})
>>> [(line.turn, line.tensors[0].tolist()) for line in open_log(path, lambda: "abc").lines()]
[(0, [0, 1, 2])]
>>> close_log(path, {"seconds": 1.5})
>>> end_of_log(path)
{'seconds': 1.5}
"""

import base64
import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_nc.exceptions import RecordError, StorageError
from robust_nc.io.files import atomic

_SECONDS = 1.0  # what a killed evaluation may lose
_CHECKSUM = b', "crc": '
_HEAD = b'{"evaluation": '
_PLAIN = {"turn", "warnings", "tensors"}  # keys of a line of earlier versions


class Line(NamedTuple):
    """What the log holds of one group of examples: the turn, and its tensors."""

    turn: int
    tensors: tuple[Tensor, ...]


class EvaluationLog:
    """The finished groups, on disk if there is a path; `warnings` stood with them, by name.

    `ended` is what `close_log` left, if nothing follows it; `damage` says what had to be cut off.
    """

    def __init__(self, path: Path | None, lines: list[dict[str, Any]], damage: str = "") -> None:
        self.path = path
        self.damage = damage
        self.ended: dict[str, Any] | None = lines[-1].get("end") if lines else None
        self._lines = lines
        self._waiting = b""
        self._written = time.monotonic()
        self.warnings: dict[str, str] = {}
        for line in lines:
            self.warnings |= line.get("warnings", {})

    def __enter__(self) -> "EvaluationLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def lines(self) -> Iterator[Line]:
        """Give the groups that an earlier run finished, in order, once."""
        lines, self._lines = self._lines[::-1], []
        for number in range(2, len(lines) + 2):
            line = lines.pop()
            if "end" in line:
                continue
            try:
                yield _line(line)
            except (LookupError, TypeError, ValueError, zlib.error) as error:
                raise RecordError(
                    f"line {number} of the log {self.path} is damaged ({error}); delete it and "
                    "what follows to go on from there"
                ) from error

    def put(self, turn: int, tensors: tuple[Tensor, ...], warnings: dict[str, str]) -> None:
        """Append a finished group with the warnings so far."""
        if self.path is None:
            return
        self._waiting += _packed(turn, tensors, warnings)
        if time.monotonic() - self._written >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits, and see it onto the disk."""
        if self.path is not None and self._waiting:
            _append(self.path, self._waiting)
        self._waiting, self._written = b"", time.monotonic()


def open_log(path: str | Path | None, identity: Callable[[], str]) -> EvaluationLog:
    """Open or begin a log; a file that is not the log of this evaluation is refused, untouched.

    Raises `RecordError` for such a file, `StorageError` where nothing can be written.
    """
    if path is None:
        return EvaluationLog(None, [])
    name = identity()
    try:
        return _opened(Path(path), {"evaluation": name})
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot use the log {path}: {error.strerror or error}") from error


def write_log(path: Path, name: str, lines: Iterable[tuple[Line, dict[str, str]]]) -> None:
    """Write the log of the evaluation `name` at once: lines, each with its warnings so far."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(_framed({"evaluation": name}))
        for line, warnings in lines:
            file.write(_packed(*line, warnings))


def close_log(path: Path, end: dict[str, Any]) -> None:
    """Say in the log that the evaluation is finished, with what there is to say about it."""
    _append(path, _framed({"end": end}))


def end_of_log(path: Path) -> dict[str, Any] | None:
    """Return what `close_log` left; None where there is no log, or it is damaged or unfinished."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    lines, good = _good_lines(content)
    end: dict[str, Any] | None = lines[-1].get("end") if lines and good == len(content) else None
    return end


def _opened(path: Path, first: dict[str, Any]) -> EvaluationLog:
    content = path.read_bytes() if path.exists() else b""
    lines, good = _good_lines(content)
    damage = ""
    ours = lines[0] == first if lines else _begun(content, first) or _ours(content)
    if not ours:
        raise RecordError(
            f"{path} is not the log of this evaluation (other model, images, ball, protocol, seed "
            "or precision); give another file, or delete it to start over"
        )
    if b"\n" in content[good:]:
        _append(path.with_name(f"{path.name}.damaged"), content[good:])
        damage = (
            f"the log was damaged after {len(lines)} lines and goes on from there; what followed "
            f"is in {path.name}.damaged"
        )
    if not lines:
        if path.exists():
            path.unlink()
        _append(path, _framed(first))
    elif good < len(content):
        os.truncate(path, good)  # a torn last line would be glued to the next one
    return EvaluationLog(path, lines[1:], damage)


def _ours(content: bytes) -> bool:
    """Whether a file whose first line is damaged was a log: it is set aside, not refused."""
    found = (_checked(raw) for raw in content.splitlines(keepends=True))
    return content.startswith(_HEAD) or any(line is not None for line in found)


def _begun(content: bytes, first: dict[str, Any]) -> bool:
    """Whether there is nothing yet, or no more than a torn first line (zeros: a power cut)."""
    return _framed(first).startswith(content.rstrip(b"\0")) or (
        json.dumps(first).encode() == content.rstrip(b"\0")
    )


def _good_lines(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the lines up to the first damaged one, and the place where the last of them ends."""
    good: list[dict[str, Any]] = []
    end, plain = 0, True
    for raw in content.splitlines(keepends=True):
        line = _checked(raw)
        if line is not None:
            plain = False  # from here on every line has a checksum
        elif plain:
            line = _of_earlier_version(raw, first=not good)
        if line is None:
            break
        good.append(line)
        end += len(raw)
    return good, end


def _checked(raw: bytes) -> dict[str, Any] | None:
    """Return what a line says, without its checksum; None where the two do not agree."""
    head, mark, told = raw.rpartition(_CHECKSUM)
    body = head + b"}"
    if not mark or told != b"%d}\n" % zlib.crc32(body):
        return None
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _of_earlier_version(raw: bytes, *, first: bool) -> dict[str, Any] | None:
    """Return what a line without a checksum says, if it is whole as far as one can tell."""
    try:
        value = json.loads(raw)
        if not raw.endswith(b"\n") or not isinstance(value, dict):
            return None
        if first:
            return value if set(value) == {"evaluation"} else None
        _line(value)
    except (LookupError, TypeError, ValueError, zlib.error):
        return None
    return value if set(value) == _PLAIN else None


def _framed(line: dict[str, Any]) -> bytes:
    text = json.dumps(line).encode()
    return text[:-1] + _CHECKSUM + b"%d}\n" % zlib.crc32(text)


def _packed(turn: int, tensors: tuple[Tensor, ...], warnings: dict[str, str]) -> bytes:
    packed = []
    for tensor in tensors:
        array = tensor.contiguous().numpy()
        data = base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()
        packed.append({"dtype": str(array.dtype), "shape": list(array.shape), "data": data})
    return _framed({"turn": turn, "warnings": warnings, "tensors": packed})


def _append(path: Path, lines: bytes) -> None:
    end = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            end = file.tell()
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if end is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, end)  # half a line would be glued to the next one
        raise StorageError(
            f"cannot write the log {path}: {error.strerror or error}; free some space or choose "
            "another place with --out"
        ) from error


def _line(line: dict[str, Any]) -> Line:
    tensors = []
    for entry in line["tensors"]:
        raw = zlib.decompress(base64.b64decode(entry["data"]))
        array = np.frombuffer(raw, dtype=entry["dtype"]).reshape(entry["shape"])
        tensors.append(torch.from_numpy(array.copy()))
    return Line(line["turn"], tuple(tensors))
