"""The append-only log of an evaluation: one line per group of examples that a turn has finished.

A torn last line is ignored. Lines go to the disk about once a second.

>>> import tempfile, torch, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
>>> with open_log(path, lambda: "abc") as log:
...     log.put(0, (torch.arange(3),), {})
>>> [(line.turn, line.tensors[0].tolist()) for line in open_log(path, lambda: "abc").lines()]
[(0, [0, 1, 2])]
"""

import base64
import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_nc.exceptions import RecordError, StorageError

_SECONDS = 1.0  # what a killed evaluation may lose


class Line(NamedTuple):
    """What the log holds of one group of examples: the turn, and its tensors."""

    turn: int
    tensors: tuple[Tensor, ...]


class EvaluationLog:
    """The finished groups, on disk if there is a path; `warnings` stood with them, by name."""

    def __init__(self, path: Path | None, lines: list[dict[str, Any]]) -> None:
        self.path = path
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
            try:
                yield Line(line["turn"], tuple(_decode(entry) for entry in line["tensors"]))
            except (LookupError, TypeError, ValueError, zlib.error) as error:
                raise RecordError(
                    f"line {number} of the log {self.path} is damaged ({error}); delete it and "
                    "what follows to go on from there"
                ) from error

    def put(self, turn: int, tensors: tuple[Tensor, ...], warnings: dict[str, str]) -> None:
        """Append a finished group with the warnings so far."""
        if self.path is None:
            return
        packed = [_encode(tensor) for tensor in tensors]
        line = {"turn": turn, "warnings": warnings, "tensors": packed}
        self._waiting += json.dumps(line).encode() + b"\n"
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


def _opened(path: Path, first: dict[str, Any]) -> EvaluationLog:
    lines, end = _whole_lines(path)
    if not lines and _begun(path, first):
        if path.exists():
            path.unlink()
        _append(path, json.dumps(first).encode() + b"\n")
        return EvaluationLog(path, [])
    if not lines or lines[0] != first:
        raise RecordError(
            f"{path} is not the log of this evaluation (other model, images, ball, protocol, seed "
            "or precision); give another file, or delete it to start over"
        )
    if b"\n" in path.read_bytes()[end:]:
        raise RecordError(
            f"line {len(lines) + 1} of the log {path} is damaged; delete it and what follows to go "
            "on from there"
        )
    os.truncate(path, end)  # a torn last line would be glued to the next one
    return EvaluationLog(path, lines[1:])


def _begun(path: Path, first: dict[str, Any]) -> bool:
    """Whether there is nothing yet, or no more than a torn first line of this log."""
    return not path.exists() or json.dumps(first).encode().startswith(path.read_bytes())


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines that are whole, and the place where the last of them ends."""
    whole: list[dict[str, Any]] = []
    end = 0
    for raw in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            value = json.loads(raw)
        except ValueError:
            break
        if not raw.endswith(b"\n") or not isinstance(value, dict):
            break
        whole.append(value)
        end += len(raw)
    return whole, end


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
        raise StorageError(f"cannot write the log {path}: {error.strerror or error}") from error


def _encode(tensor: Tensor) -> dict[str, Any]:
    array = tensor.contiguous().numpy()
    packed = base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": packed}


def _decode(entry: dict[str, Any]) -> Tensor:
    raw = zlib.decompress(base64.b64decode(entry["data"]))
    array = np.frombuffer(raw, dtype=entry["dtype"]).reshape(entry["shape"])
    return torch.from_numpy(array.copy())
