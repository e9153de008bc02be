"""Points that challenge a record: an `.npz` file of anyone's, or an evidence file.

An `.npz` holds `ids`, the rows of the examples in the record, int64 `(M,)`, and `images`, the
points, float32 `(M, C, H, W)` in [0, 1], as `numpy.savez` writes them. Nothing is unpickled.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "points.npz"
>>> np.savez(path, ids=np.array([3]), images=np.zeros((1, 1, 2, 2), np.float32))
>>> read_points(path, torch.zeros(5, 1, 2, 2)).rows.tolist()
[3]
"""

import io
import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robust_nc.evidence.file import MAX_BYTES, read_evidence
from robust_nc.exceptions import RecordError
from robust_nc.io.untrusted import read_bounded

_TYPES = {"ids": "<i8", "images": "<f4"}
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_DAMAGED = (
    *(OSError, ValueError, RuntimeError, EOFError, LookupError, ArithmeticError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_HEADER = re.compile(
    r"\{'descr': '([<>|=]?\w{1,8})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,10}, ?)*(?:\d{1,10})?),?\), ?\} *\n?"
)


class Points(NamedTuple):
    """M points `(M, C, H, W)` float32, and the rows `(M,)` int64 of the examples they are for."""

    rows: Tensor
    points: Tensor


def read_points(path: Path, images: Tensor) -> Points:
    """Read the points of a challenge to the record whose N originals are `images` (N, C, H, W).

    Raises `RecordError` for a file that is neither, is damaged, names rows that there are not, or
    holds other shapes or pixels outside of [0, 1]. Whether points are in the ball is not asked.
    """
    content = read_bounded(path, limit=MAX_BYTES)
    if not content.startswith(b"PK"):
        evidence = read_evidence(path, images)
        return Points(evidence.broken, evidence.adversarials)
    most = len(images) * (math.prod(images.shape[1:]) * 4 + 8) + 2**16
    arrays = _members(content, path, most=most)
    ids, points = arrays["ids"], arrays["images"]
    if ids.ndim != 1 or points.shape != (len(ids), *images.shape[1:]):
        raise RecordError(
            f"{path} must hold ids (M,) and images (M, {', '.join(map(str, images.shape[1:]))}), "
            f"found {ids.shape} and {points.shape}"
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(images):
        raise RecordError(
            f"{path} has the ids {ids.min()} to {ids.max()}; they are the rows of the record's "
            f"examples, 0 to {len(images) - 1}"
        )
    if not ((points >= 0) & (points <= 1)).all():
        raise RecordError(f"{path} has pixels that are not in [0, 1]; divide by 255 if 0..255")
    return Points(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(points.astype("f4")))


def _members(content: bytes, path: Path, *, most: int) -> dict[str, npt.NDArray[Any]]:
    """Read both arrays of an archive, whose members together may have `most` bytes."""
    wanted = [f"{name}.npy" for name in _TYPES]
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sorted(entry.filename for entry in entries) != wanted:
                raise RecordError(f"{path} must hold the arrays ids and images, and nothing else")
            if not {entry.compress_type for entry in entries} <= _METHODS:
                raise RecordError(f"{path} must be stored or deflated, as numpy.savez does")
            total = sum(entry.file_size for entry in entries)
            if total > most:
                raise RecordError(
                    f"{path} unpacks to {total:,} bytes; the record's examples have {most:,}"
                )
            # A member is read up to the size that was just checked, whatever follows.
            found = {name: archive.read(f"{name}.npy") for name in _TYPES}
    except _DAMAGED as error:
        raise RecordError(f"{path} cannot be read as .npz: {error}") from None
    return {name: _array(member, name, path) for name, member in found.items()}


def _array(content: bytes, name: str, path: Path) -> npt.NDArray[Any]:
    """Read one array as `numpy.save` writes it; its header is no more than matched."""
    size, start = (2, 10) if content[6:7] == b"\x01" else (4, 12)
    end = start + int.from_bytes(content[8 : 8 + size], "little")
    header = _HEADER.fullmatch(content[start : min(end, start + 2**12)].decode("latin-1"))
    if not content.startswith(b"\x93NUMPY") or header is None:
        raise RecordError(f"{name} of {path} is no plain array as numpy.savez writes it")
    kind, fortran, sizes = header.groups()
    shape = tuple(int(side) for side in sizes.split(",") if side.strip())
    if kind != _TYPES[name] or fortran == "True":
        raise RecordError(
            f"{name} of {path} must be {np.dtype(_TYPES[name]).name} in C order, found {kind!r}"
        )
    if len(content) - end != math.prod(shape) * np.dtype(kind).itemsize:
        raise RecordError(f"{name} of {path} has another number of bytes than its shape {shape}")
    return np.frombuffer(content[end:], dtype=kind).reshape(shape)
