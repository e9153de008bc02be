"""Lowering a record: adversarial examples against what it claims to be robust.

They come as an evidence file, or as anyone's `.npz`: `ids`, the rows of the examples in the record,
int64 `(M,)`, and `images`, the points, float32 `(M, C, H, W)` in [0, 1], as `numpy.savez` writes
them. Nothing is unpickled.

>>> import torch
>>> tried = Tried(*(torch.arange(0),) * 5, claimed=90, examples=100)
>>> tried._replace(counted=torch.arange(5)).left
0.85
>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "points.npz"
>>> np.savez(path, ids=np.array([3]), images=np.zeros((1, 1, 2, 2), np.float32))
>>> read_points(path, torch.zeros(5, 1, 2, 2)).rows.tolist()
[3]
"""

import io
import math
import re
import shutil
import struct
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robust_nc.config import plain, read
from robust_nc.evidence.file import MAX_BYTES, read_evidence
from robust_nc.exceptions import ConfigError, InputError, RecordError
from robust_nc.io.files import atomic, canonical_json, sha256_of, write_text
from robust_nc.io.untrusted import read_bounded, read_json
from robust_nc.record.schema import Stored, unpack_flags
from robust_nc.record.standing import (
    Challenge,
    challenge_evidence,
    challenge_path,
    challenges_of,
    standing,
)
from robust_nc.runtime.environment import hardware, versions
from robust_nc.runtime.torch_state import device_of
from robust_nc.verification.evidence import inside, name_rows
from robust_nc.verification.originals import RecordExamples, ball_of, protocol_draws
from robust_nc.verification.rejudge import bounded, certain, look_again

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
_CLEAN = 256  # images whose margins say what the model's are like


class Tried(NamedTuple):
    """What came of a challenge, by rows of the record, each `(n,)` int64.

    `counted` lower the record; `near` are misclassified by less than the tolerance; `withstood` are
    not misclassified; `outside` lie outside of the ball or the pixel bounds; `known` were not
    claimed robust, or no longer. `claimed` of `examples` were robust before.
    """

    counted: Tensor
    near: Tensor
    withstood: Tensor
    outside: Tensor
    known: Tensor
    claimed: int
    examples: int

    @property
    def before(self) -> float:
        """Robust accuracy before the challenge."""
        return self.claimed / self.examples

    @property
    def left(self) -> float:
        """Robust accuracy after it."""
        return (self.claimed - len(self.counted)) / self.examples


def try_points(
    stored: Stored,
    model: nn.Module,
    examples: RecordExamples,
    rows: Tensor,
    points: Tensor,
    *,
    robust: Tensor | None = None,
) -> Tried:
    """Judge `points` (B, C, H, W), meant to break the examples `rows` (B,) of a record.

    A point counts if its example is claimed robust, it lies in the ball and the bounds of its
    original, and the model misclassifies it by more than the tolerance (`rejudge`). Of
    several for one example, one has to. Nothing is projected. `robust` (N,) are the flags to lower
    (None: what earlier challenges left). Raises `RecordError` for rows and shapes that do not fit
    the record, `InputError` for a model that fails.
    """
    count = len(examples.labels)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise RecordError(
            f"the evidence names the rows {int(rows.min())} to {int(rows.max())}, but the record "
            f"has 0 to {count - 1}"
        )
    shape = (len(rows), *examples.images.shape[1:])
    if tuple(points.shape) != shape:
        raise RecordError(
            f"the evidence must have images of shape {shape}, found {tuple(points.shape)}"
        )
    robust = torch.from_numpy(standing(stored).robust) if robust is None else robust
    if len(robust) != count:
        raise RecordError(f"{stored.path} has flags of {len(robust)} examples, its data {count}")
    claimed = robust[rows]
    placed = inside(ball_of(stored.record.config), points, examples.images[rows])
    asked = claimed & placed
    draws, seed = protocol_draws(stored.record.protocol) or 1, stored.record.seed
    what = "the points of the challenge"
    wanted = examples.labels[rows[asked]]
    seen = look_again(model, points[asked], wanted, draws=draws, seed=seed, what=what)
    some, labels = examples.images[:_CLEAN], examples.labels[:_CLEAN]
    clean = look_again(model, some, labels, draws=draws, seed=seed, what="clean images")
    seen = bounded(seen, clean)
    sure = certain(seen, draws)
    counted = _others(rows[asked][sure])
    near = _others(rows[asked][seen.flipped], counted)
    return Tried(
        counted=counted,
        near=near,
        withstood=_others(rows[asked], counted, near),
        outside=_others(rows[~placed & claimed], counted, near),
        known=_others(rows[~claimed]),
        claimed=int(robust.sum()),
        examples=count,
    )


def write_challenge(
    stored: Stored, tried: Tried, evidence: Path, model: nn.Module, *, folder: Path | None = None
) -> Path:
    """Write a challenge and a copy of its evidence beside the record (or into `folder`).

    Returns the path of the challenge; its evidence has the same name and the ending it had.
    """
    assert len(tried.counted), "a challenge that lowers nothing"
    found = sha256_of(evidence)
    record = stored.path if folder is None else folder / stored.path.name
    path = challenge_path(record, found)
    copy = path.with_suffix(".npz" if evidence.suffix == ".npz" else ".evidence")
    if not (copy.exists() and copy.samefile(evidence)):
        with atomic(copy) as temporary:
            shutil.copyfile(evidence, temporary)
    values = Challenge(
        cell=stored.record.cell,
        evidence=found,
        broken=tuple(tried.counted.tolist()),
        versions=versions(),
        hardware=hardware(device_of(model)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_text(path, canonical_json(plain(values)) + "\n")
    return path


def judged_challenges(
    stored: Stored, model: nn.Module, examples: RecordExamples
) -> dict[Path, str]:
    """Try the challenges beside a record again: "" where one holds, else why it does not."""
    found = {}
    for path in challenges_of(stored.path):
        try:
            found[path] = _refusal(path, stored, model, examples)
        except (RecordError, ConfigError, InputError) as error:
            found[path] = str(error)
    return found


def _refusal(path: Path, stored: Stored, model: nn.Module, examples: RecordExamples) -> str:
    """Say why a challenge does not hold, "" where it does."""
    told = read(Challenge, read_json(path), source=path.name)
    if told.cell != stored.record.cell:
        return f"it is against the cell {told.cell[:40]!r}"
    copy = challenge_evidence(path)
    if copy is None:
        return "its evidence is not beside it, so nothing bears it out"
    if sha256_of(copy) != told.evidence:
        return f"{copy.name} is not the evidence that it names"
    points = read_points(copy, examples.images)
    claimed = torch.from_numpy(unpack_flags(stored.record.verdict.robust))
    tried = try_points(stored, model, examples, points.rows, points.points, robust=claimed)
    held = {*tried.counted.tolist(), *tried.near.tolist()}
    unproven = sorted(set(told.broken) - held)
    return f"its evidence does not break {name_rows(unproven)}" if unproven else ""


def _others(rows: Tensor, *without: Tensor) -> Tensor:
    """Return the rows, each once, that none of the others has."""
    return torch.tensor(
        sorted(set(rows.tolist()).difference(*(part.tolist() for part in without))),
        dtype=torch.int64,
    )


class ChallengePoints(NamedTuple):
    """M points `(M, C, H, W)` float32, and the rows `(M,)` int64 of the examples they are for."""

    rows: Tensor
    points: Tensor


def read_points(path: Path, images: Tensor) -> ChallengePoints:
    """Read the points of a challenge to the record whose N originals are `images` (N, C, H, W).

    Raises `RecordError` for a file that is neither, is damaged, names rows that there are not, or
    holds other shapes or pixels outside of [0, 1]. Whether points are in the ball is not asked.
    """
    content = read_bounded(path, limit=MAX_BYTES)
    if not content.startswith(b"PK"):
        evidence = read_evidence(path, images)
        return ChallengePoints(evidence.broken, evidence.adversarials)
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
    return ChallengePoints(
        torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(points.astype("f4"))
    )


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
