"""The append-only log of an evaluation: one line per finished block, a torn last line is ignored.

>>> import tempfile, torch, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
>>> log = open_log(path, lambda: "abc")
>>> log.put(0, (torch.arange(3),), {})
>>> open_log(path, lambda: "abc").get(0, lambda x: x).tolist()
[0, 1, 2]
"""

import base64
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from robust_nc.exceptions import RecordError, StorageError

T = TypeVar("T")


class BlockLog:
    """Finished blocks by number, on disk if there is a path; each block is a tuple of tensors.

    `warnings` are those that stood with the blocks, name to message.
    """

    def __init__(self, path: Path | None, lines: list[dict[str, Any]]) -> None:
        self.path = path
        self._lines = {line["block"]: line["tensors"] for line in lines}
        self.warnings: dict[str, str] = {}
        for line in lines:
            self.warnings |= line["warnings"]

    def get(self, number: int, make: Callable[..., T]) -> T | None:
        """Return `make(*tensors)` of a finished block, or None."""
        line = self._lines.get(number)
        return None if line is None else make(*(_decode(entry) for entry in line))

    def put(self, number: int, block: tuple[Tensor, ...], warnings: dict[str, str]) -> None:
        """Append a finished block with the warnings so far, flushed to the disk."""
        if self.path is not None:
            tensors = [_encode(tensor) for tensor in block]
            _append(self.path, {"block": number, "warnings": warnings, "tensors": tensors})


def open_log(path: str | Path | None, identity: Callable[[], str]) -> BlockLog:
    """Open or begin a log; a file that is not the log of this evaluation is refused, untouched."""
    if path is None:
        return BlockLog(None, [])
    path, first = Path(path), {"evaluation": identity()}
    lines, end = _whole_lines(path)
    if not lines and _begun(path, first):
        if path.exists():
            path.unlink()
        _append(path, first)
        return BlockLog(path, [])
    if not lines or lines[0] != first:
        raise RecordError(
            f"{path} is not the log of this evaluation (other model, images, ball, protocol, seed "
            "or batch size); give another file, or delete it to start over"
        )
    os.truncate(path, end)  # a torn last line would be glued to the next one
    return BlockLog(path, lines[1:])


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


def _append(path: Path, value: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(value).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write the log {path}: {error.strerror or error}") from error


def _encode(tensor: Tensor) -> dict[str, Any]:
    array = tensor.contiguous().numpy()
    packed = base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": packed}


def _decode(entry: dict[str, Any]) -> Tensor:
    raw = zlib.decompress(base64.b64decode(entry["data"]))
    array = np.frombuffer(raw, dtype=entry["dtype"]).reshape(entry["shape"])
    return torch.from_numpy(array.copy())
