"""Evidence as one file: `<cell>.evidence`, written whole, read without trust.

>>> import tempfile, torch
>>> from robust_nc.evaluation.evaluate_model import evaluate
>>> from robust_nc.evidence.collecting import collect
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
>>> images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
>>> ball, ids, about = Ball("Linf", 0.3), torch.arange(6), {"fingerprint": "", "seed": 0}
>>> outcome = evaluate(model, images, labels, ball, protocol="pgd")
>>> evidence = collect(model, images, labels, ids, outcome, ball, draws=1, **about)
>>> path = Path(tempfile.mkdtemp()) / "cell.evidence"
>>> written = write_evidence(path, evidence, images)
>>> torch.equal(read_evidence(path, images).adversarials, evidence.adversarials)
True
>>> read_header(path).broken == written.broken
True
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_nc.config import read
from robust_nc.evidence.coding import (
    MOST,
    Coded,
    compress,
    content_size,
    decode,
    decompress,
    encode,
)
from robust_nc.evidence.container import TENSORS, TYPES, Array, Head, pack_file, unpack_file
from robust_nc.evidence.contents import Evidence
from robust_nc.exceptions import ConfigError, InputError, RecordError
from robust_nc.io.files import write_bytes
from robust_nc.io.untrusted import read_bounded
from robust_nc.record.schema import EvidenceFile
from robust_nc.threat import Ball

MAX_BYTES = 512 * 2**20
_FARTHEST = 2.0**20  # a pixel bound from 0
_GROUP = 2**20  # values that are coded and compressed at a time

_OF_EXAMPLES = ("ids", "labels", "broken_by", "forwards", "backwards")
_OF_BROKEN = ("margins", "ranges", "levels", "steps")


class Header(NamedTuple):
    """What a file says without the images: N `examples`, of which B are `broken`, and the rest.

    `shape` is (C, H, W); the other fields are those of `Evidence`.
    """

    examples: int
    broken: int
    ball: Ball
    fingerprint: str
    weights: Mapping[str, str]
    draws: int
    seed: int
    shape: tuple[int, int, int]


def write_evidence(path: Path, evidence: Evidence, images: Tensor) -> EvidenceFile:
    """Write evidence atomically, and return what a record says of the file.

    `images` (N, C, H, W) float32 are the originals of all N examples. The adversarials come back
    to the bit; equal evidence gives equal bytes. Raises `InputError` for parts that do not fit one
    another or 512 MiB, and `StorageError` for a place that cannot be written.
    """
    try:
        head, arrays, _ = _about(evidence, images)
        _check(head, arrays)
    except (RecordError, ConfigError) as error:
        raise InputError(f"evidence that cannot be written: {error}") from None
    content = pack_file(head, arrays)
    if len(content) > MAX_BYTES:
        raise InputError(
            f"evidence of {len(evidence.broken)} broken examples takes {len(content):,} bytes, "
            f"more than the {MAX_BYTES:,} that are read; keep the first examples only"
        )
    write_bytes(path, content)
    sha256 = hashlib.sha256(content).hexdigest()
    return EvidenceFile(
        name=path.name, sha256=sha256, bytes=len(content), broken=len(evidence.broken)
    )


def read_evidence(path: Path, images: Tensor | None) -> Evidence:
    """Read evidence, or raise `RecordError` that says what is wrong with it.

    `images` (N, C, H, W) float32 are the originals of all N examples; other images are refused.
    Without them (None) all but the points is read: `adversarials` is then (0, C, H, W).
    """
    head, arrays, broken = _opened(path)
    if images is None:
        points = torch.empty((0, *head.shape), dtype=torch.float32)
    else:
        if tuple(images.shape) != (head.examples, *head.shape):
            raise RecordError(
                f"{path} is evidence of {head.examples} images of shape {head.shape}, found images "
                f"of shape {tuple(images.shape)}; give evidence about the images of this record"
            )
        points = _points(path, head, arrays, broken, images)
    codes = _tensor(arrays["broken_by"]).long()
    return Evidence(
        ids=_tensor(arrays["ids"]),
        labels=_tensor(arrays["labels"]).long(),
        clean_correct=codes != -2,
        robust=codes == -1,
        broken_by=codes,
        forwards=_tensor(arrays["forwards"]).long(),
        backwards=_tensor(arrays["backwards"]).long(),
        broken=broken,
        adversarials=points,
        margins=_tensor(arrays["margins"]),
        ranges=_tensor(arrays["ranges"]),
        ball=_ball(head),
        fingerprint=head.fingerprint,
        weights=head.weights,
        draws=head.draws,
        seed=head.seed,
    )


def read_header(path: Path) -> Header:
    """Read what needs no images; raises `RecordError` as `read_evidence` does."""
    head, _, broken = _opened(path)
    about = (head.fingerprint, head.weights, head.draws, head.seed, head.shape)
    return Header(head.examples, len(broken), _ball(head), *about)


def first(evidence: Evidence, count: int) -> Evidence:
    """Return the evidence of the first `count` examples; `fingerprint` stays that of all."""
    rows = ("ids", "labels", "clean_correct", "robust", "broken_by", "forwards", "backwards")
    points = ("broken", "adversarials", "margins", "ranges")
    kept = evidence.broken < count
    cut: dict[str, Any] = {name: getattr(evidence, name)[:count] for name in rows}
    cut |= {name: getattr(evidence, name)[kept] for name in points}
    return replace(evidence, **cut)


class _Opened(NamedTuple):
    """The head of a file, its tensors, and the rows `(B,)` of the broken examples."""

    head: Head
    arrays: Mapping[str, Array]
    broken: Tensor


def _opened(path: Path) -> _Opened:
    head, arrays = unpack_file(read_bounded(path, limit=MAX_BYTES), what=str(path))
    try:
        return _Opened(head, arrays, _check(head, arrays))
    except RecordError as error:
        raise RecordError(f"{path} contradicts itself: {error}") from None


def _about(evidence: Evidence, images: Tensor) -> _Opened:
    """Return what a file holds of evidence, which must hold what a file leaves out."""
    broken, codes, ball = evidence.broken, evidence.broken_by, evidence.ball
    derived = {"clean_correct": codes != -2, "robust": codes == -1}
    derived["broken"] = (codes >= 0).nonzero().flatten()
    for name, value in derived.items():
        if not torch.equal(getattr(evidence, name), value):
            raise RecordError(f"{name} is not what broken_by says")
    points = evidence.adversarials
    if images.ndim != 4 or len(images) != len(codes) or not _fit(points, broken, images):
        raise RecordError(
            f"{len(codes)} examples, {len(broken)} of them broken, need as many images and "
            f"float32 adversarials of the same shape, found {tuple(images.shape)} and "
            f"{tuple(points.shape)}"
        )
    total = hashlib.sha256()
    arrays = _coded(evidence, images, total)
    for name in TENSORS.keys() - arrays.keys():
        arrays[name] = _narrow(name, getattr(evidence, name).numpy())
    values = {
        "examples": len(codes),
        "shape": list(images.shape[1:]),
        "norm": ball.norm,
        "eps": float(ball.eps).hex(),
        "bounds": [float(bound).hex() for bound in ball.bounds],
        "fingerprint": evidence.fingerprint,
        "weights": dict(evidence.weights),
        "draws": evidence.draws,
        "seed": evidence.seed,
        "points": total.hexdigest(),
    }
    return _Opened(read(Head, values, source="its head"), arrays, broken)


def _fit(points: Tensor, broken: Tensor, images: Tensor) -> bool:
    wanted = (len(broken), *images.shape[1:])
    return tuple(points.shape) == wanted and points.dtype == torch.float32


def _coded(evidence: Evidence, images: Tensor, total: Any) -> dict[str, Array]:
    """Code and compress the adversarials group by group; add each to the digest `total`."""
    levels, steps, frames = (
        [torch.empty(0, dtype=torch.uint8)],
        [torch.empty(0, dtype=torch.float32)],
        [],
    )
    for places, part in _groups(evidence.broken, images):
        points = evidence.adversarials[places]
        if not bool(points.isfinite().all()):
            raise RecordError("adversarials hold pixels that are not finite")
        coded = encode(points, part, evidence.ball.bounds)
        levels.append(coded.levels)
        steps.append(coded.steps)
        frames.append(compress(coded.content))
        _add(total, points)
    return {
        "levels": torch.cat(levels).numpy(),
        "steps": torch.cat(steps).numpy(),
        "frames": np.array([len(frame) for frame in frames], dtype=np.int64),
        "codes": np.frombuffer(b"".join(frames), dtype=np.uint8),
    }


def _narrow(name: str, values: Array) -> Array:
    narrow = values.astype(TYPES[TENSORS[name]])
    if values.ndim != 1 or not np.array_equal(narrow, values):
        raise RecordError(f"{name} must be of one axis, with finite values that fit its type")
    return narrow


def _check(head: Head, arrays: Mapping[str, Array]) -> Tensor:
    """Return the rows of the broken examples; `RecordError` for parts that do not fit."""
    ball = _ball(head)
    broken = np.flatnonzero(arrays["broken_by"] >= 0)
    for names, count in ((_OF_EXAMPLES, head.examples), (_OF_BROKEN, len(broken))):
        for name in names:
            if len(arrays[name]) != count:
                raise RecordError(f"{name} has {len(arrays[name])} entries instead of {count}")
    frames, groups = arrays["frames"], -(-len(broken) // _rows(head.shape))
    if len(frames) != groups or (frames < 0).any() or _sum(frames) != len(arrays["codes"]):
        raise RecordError(f"frames must be {groups} sizes that add up to that of codes")
    for name, least in (("labels", 0), ("forwards", 0), ("backwards", 0), ("broken_by", -2)):
        if (arrays[name] < least).any():
            raise RecordError(f"{name} holds {arrays[name].min()}; {least} is the least")
    levels, steps = arrays["levels"], arrays["steps"]
    most = ball.bounds[1] - ball.bounds[0]
    if not ((levels <= MOST) & (steps >= 0) & (steps <= most)).all():
        raise RecordError(f"levels must be in 0..{MOST}, and steps in 0..{most:g}")
    if steps[levels == 0].any():
        raise RecordError("an example that is kept exactly has a step")
    margins, ranges = arrays["margins"], arrays["ranges"]
    if not ((np.abs(margins) <= ranges) & np.isfinite(ranges)).all():
        raise RecordError("margins and ranges must be finite, and no margin above its range")
    return torch.from_numpy(broken)


def _ball(head: Head) -> Ball:
    """Return the ball of a head; `RecordError` for one that there is not."""
    try:
        eps, low, high = (float.fromhex(text) for text in (head.eps, *head.bounds))
        ball = Ball(head.norm, eps, (low, high))
    except (InputError, ValueError, OverflowError) as error:
        raise RecordError(f"its ball is none: {error}") from None
    if not max(abs(low), abs(high)) <= _FARTHEST:  # float32 must hold them and their differences
        raise RecordError(f"its pixel bounds must be finite and small, found {low:g} and {high:g}")
    return ball


def _points(
    path: Path, head: Head, arrays: Mapping[str, Array], broken: Tensor, images: Tensor
) -> Tensor:
    """Decode the adversarials group by group; all must be what was written, to the bit."""
    points = torch.empty((len(broken), *head.shape), dtype=torch.float32)
    levels, steps = _tensor(arrays["levels"]), _tensor(arrays["steps"])
    total, bounds, values = hashlib.sha256(), _ball(head).bounds, math.prod(head.shape)
    ends = np.cumsum(arrays["frames"])
    for end, size, (rows, part) in zip(
        ends, arrays["frames"], _groups(broken, images), strict=True
    ):
        frame = arrays["codes"][end - size : end].tobytes()
        try:
            content = decompress(frame, content_size(levels[rows], values))
            points[rows] = decode(Coded(levels[rows], steps[rows], content), part, bounds)
        except RecordError as error:
            raise RecordError(f"{path} is damaged: {error}") from None
        _add(total, points[rows])
    if total.hexdigest() != head.points:
        raise RecordError(
            f"{path} does not lead to the points that it was written with: the images given are "
            "not those it starts from, or it was changed"
        )
    return points


class _Group(NamedTuple):
    """Places among the broken examples, and their images."""

    places: slice
    images: Tensor


def _groups(broken: Tensor, images: Tensor) -> Iterator[_Group]:
    size = _rows(tuple(images.shape[1:]))
    for start in range(0, len(broken), size):
        part = images[broken[start : start + size]].to("cpu", torch.float32)
        yield _Group(slice(start, start + size), part)


def _rows(shape: tuple[int, ...]) -> int:
    """Broken examples that are coded together."""
    return max(1, _GROUP // math.prod(shape))


def _add(total: Any, points: Tensor) -> None:
    total.update(points.contiguous().numpy().astype("<f4", copy=False).data)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))


def _sum(values: Array) -> int:
    """Sum without wrapping around."""
    return sum(values.tolist())
