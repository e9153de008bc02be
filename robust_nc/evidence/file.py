"""Evidence (per example the verdict, per broken one an adversarial) as one file, `<cell>.evidence`.

It is a safetensors file of known tensors, and one text that describes them, written whole. Nothing
that a file says of itself is believed: its header is checked against what is there, and each tensor
against its digest, so that damage is named. (Who forges a tensor can forge its digest too: the
SHA-256 in the record is what holds.)

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
>>> len(read_evidence(path, None).broken) == written.broken
True
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from pydantic import Field
from torch import Tensor

from robust_nc.config import configuration, plain, read
from robust_nc.evidence.coding import (
    MOST,
    Coded,
    compress,
    content_size,
    decode,
    decompress,
    encode,
)
from robust_nc.exceptions import ConfigError, InputError, RecordError
from robust_nc.io.files import canonical_json, digest, write_bytes
from robust_nc.io.untrusted import parse_json, read_bounded
from robust_nc.record.schema import EvidenceFile
from robust_nc.threat import Ball

TOLERANCE = 1e-3  # of the range of the logits
TENSORS = {
    "ids": "I64",  # of all examples, as the next four
    "labels": "I32",
    "broken_by": "I16",
    "forwards": "I32",
    "backwards": "I32",
    "margins": "F32",  # of broken examples, as the next three
    "ranges": "F32",
    "levels": "U8",
    "steps": "F32",
    "frames": "I64",  # compressed bytes of each group of broken examples
    "codes": "U8",
}
TYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "F32": "<f4", "U8": "|u1"}

_KEY = "robust_nc.evidence"
_MAX_HEADER = 4 * 2**20

Array = npt.NDArray[Any]
_Count = Annotated[int, Field(ge=0, le=2**31)]
_Side = Annotated[int, Field(ge=1, le=2**20)]
_Text = Annotated[str, Field(max_length=200)]

MAX_BYTES = 512 * 2**20
_FARTHEST = 2.0**20  # a pixel bound from 0
_MOST_VALUES = 2**28  # that are read without originals, which would bound them
_GROUP = 2**20  # values that are coded and compressed at a time

_OF_EXAMPLES = ("ids", "labels", "broken_by", "forwards", "backwards")
_OF_BROKEN = ("margins", "ranges", "levels", "steps")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """N examples of one evaluation, on the CPU, in the order of the record's flags.

    `ids`, `labels` (N,) int64; `clean_correct`, `robust` (N,) bool; `broken_by` (N,) int64 as in
    `record.Verdict`; `forwards`, `backwards` (N,) int64 passes.

    `adversarials` (B, C, H, W) float32 are those of the B rows `broken` (B,) int64, ascending: the
    examples that were correct and are not robust. Their `margins` (B,) float32 are the largest
    other logit minus that of the label, as the judging machine had them for these very points, and
    `ranges` (B,) float32 the largest logit minus the smallest.

    `fingerprint` is that of the examples (`data.load.fingerprint`), `weights` the digest of each
    tensor of the model (`fingerprints.state_digests`); `draws` passes, keyed by `seed`, made each
    verdict (1, unless the model is random).
    """

    ids: Tensor
    labels: Tensor
    clean_correct: Tensor
    robust: Tensor
    broken_by: Tensor
    forwards: Tensor
    backwards: Tensor
    broken: Tensor
    adversarials: Tensor
    margins: Tensor
    ranges: Tensor
    ball: Ball
    fingerprint: str
    weights: Mapping[str, str]
    draws: int = 1
    seed: int = 0


@configuration
class EvidenceHead:
    """What evidence is about. Numbers that must be exact are hexadecimal (`float.hex`).

    `points` is the SHA-256 of the adversarial images, `tensors` those of the tensors, and `seal`
    the digest of all other fields.
    """

    schema_version: Literal[1] = 1
    examples: _Count
    shape: tuple[_Side, _Side, _Side]
    norm: _Text
    eps: _Text
    bounds: tuple[_Text, _Text]
    fingerprint: _Text
    weights: dict[str, _Text]
    draws: Annotated[int, Field(ge=1, le=2**31)]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    points: _Text
    tensors: dict[str, _Text] = Field(default_factory=dict)
    seal: _Text = ""


class Unpacked(NamedTuple):
    """The head of a file and its tensors, each of one axis, by name."""

    head: EvidenceHead
    arrays: Mapping[str, Array]


def write_evidence(path: Path, evidence: Evidence, images: Tensor) -> EvidenceFile:
    """Write evidence atomically, and return what a record says of the file.

    `images` (N, C, H, W) float32 are the originals of all N examples. The adversarials come back
    to the bit; equal evidence gives equal bytes. Raises `InputError` for parts that do not fit one
    another or 512 MiB, and `StorageError` for a place that cannot be written.
    """
    try:
        head, arrays = _about(evidence, images)
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
    head, arrays = unpack_file(read_bounded(path, limit=MAX_BYTES), what=str(path))
    try:
        broken = _check(head, arrays)
    except RecordError as error:
        raise RecordError(f"{path} contradicts itself: {error}") from None
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


def read_differences(path: Path) -> Tensor:
    """Read how the adversarials differ from their originals, `(B, C, H, W)`, without these.

    Clipping at the pixel bounds is not undone. NaN for those whose code needs the original. Raises
    `RecordError` as `read_evidence`.
    """
    head, arrays = unpack_file(read_bounded(path, limit=MAX_BYTES), what=str(path))
    broken = _check(head, arrays)
    if max(1, len(broken)) * math.prod(head.shape) > _MOST_VALUES:
        raise RecordError(f"{path} is of more pixels than are read without their originals")
    grey = torch.zeros((1, *head.shape)).expand(head.examples, *head.shape)
    points, _ = _decoded(path, head, arrays, broken, grey, (-_FARTHEST, _FARTHEST))
    points[_tensor(arrays["levels"]) == 0] = math.nan
    return points


def first_evidence(evidence: Evidence, count: int) -> Evidence:
    """Return the evidence of the first `count` examples; `fingerprint` stays that of all."""
    rows = ("ids", "labels", "clean_correct", "robust", "broken_by", "forwards", "backwards")
    points = ("broken", "adversarials", "margins", "ranges")
    kept = evidence.broken < count
    cut: dict[str, Any] = {name: getattr(evidence, name)[:count] for name in rows}
    cut |= {name: getattr(evidence, name)[kept] for name in points}
    return replace(evidence, **cut)


def _about(evidence: Evidence, images: Tensor) -> Unpacked:
    """Return what a file holds of evidence, which must hold what a file leaves out."""
    broken, codes, ball = evidence.broken, evidence.broken_by, evidence.ball
    derived = {"clean_correct": codes != -2, "robust": codes == -1}
    derived["broken"] = (codes >= 0).nonzero().flatten()
    for name, value in derived.items():
        if not torch.equal(getattr(evidence, name), value):
            raise RecordError(f"{name} is not what broken_by says")
    points = evidence.adversarials
    fit = tuple(points.shape) == (len(broken), *images.shape[1:]) and points.dtype == torch.float32
    if images.ndim != 4 or len(images) != len(codes) or not fit:
        raise RecordError(
            f"{len(codes)} examples, {len(broken)} of them broken, need as many images and "
            f"float32 adversarials of the same shape, found {tuple(images.shape)} and "
            f"{tuple(points.shape)}"
        )
    total = hashlib.sha256()
    arrays = _coded(evidence, images, total)
    for name in TENSORS.keys() - arrays.keys():
        values: Array = getattr(evidence, name).numpy()
        arrays[name] = values.astype(TYPES[TENSORS[name]])
        if values.ndim != 1 or not np.array_equal(arrays[name], values):
            raise RecordError(f"{name} must be of one axis, with finite values that fit its type")
    about = {
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
    return Unpacked(read(EvidenceHead, about, source="its head"), arrays)


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


def _check(head: EvidenceHead, arrays: Mapping[str, Array]) -> Tensor:
    """Return the rows of the broken examples; `RecordError` for parts that do not fit."""
    ball = _ball(head)
    broken = np.flatnonzero(arrays["broken_by"] >= 0)
    for names, count in ((_OF_EXAMPLES, head.examples), (_OF_BROKEN, len(broken))):
        for name in names:
            if len(arrays[name]) != count:
                raise RecordError(f"{name} has {len(arrays[name])} entries instead of {count}")
    frames, groups = arrays["frames"], -(-len(broken) // _rows(head.shape))
    total = sum(frames.tolist())  # which does not wrap around
    if len(frames) != groups or (frames < 0).any() or total != len(arrays["codes"]):
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


def _ball(head: EvidenceHead) -> Ball:
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
    path: Path, head: EvidenceHead, arrays: Mapping[str, Array], broken: Tensor, images: Tensor
) -> Tensor:
    """Decode the adversarials; all must be what was written, to the bit."""
    points, total = _decoded(path, head, arrays, broken, images, _ball(head).bounds)
    if total != head.points:
        raise RecordError(
            f"{path} does not lead to the points that it was written with: the images given are "
            "not those it starts from, or it was changed"
        )
    return points


def _decoded(
    path: Path,
    head: EvidenceHead,
    arrays: Mapping[str, Array],
    broken: Tensor,
    images: Tensor,
    bounds: tuple[float, float],
) -> tuple[Tensor, str]:
    """Decode the adversarials group by group, from these images on; and digest them."""
    points = torch.empty((len(broken), *head.shape), dtype=torch.float32)
    levels, steps = _tensor(arrays["levels"]), _tensor(arrays["steps"])
    total, values = hashlib.sha256(), math.prod(head.shape)
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
    return points, total.hexdigest()


def _groups(broken: Tensor, images: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield places among the broken examples, and their images."""
    size = _rows(tuple(images.shape[1:]))
    for start in range(0, len(broken), size):
        part = images[broken[start : start + size]].to("cpu", torch.float32)
        yield slice(start, start + size), part


def _rows(shape: tuple[int, ...]) -> int:
    """Broken examples that are coded together."""
    return max(1, _GROUP // math.prod(shape))


def _add(total: Any, points: Tensor) -> None:
    total.update(points.contiguous().numpy().astype("<f4", copy=False).data)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))


def pack_file(head: EvidenceHead, arrays: Mapping[str, Array]) -> bytes:
    """Return the content of a file; equal arguments give equal bytes."""
    assert arrays.keys() == TENSORS.keys()
    stored = {name: arrays[name].astype(TYPES[kind]) for name, kind in TENSORS.items()}
    values = plain(head)
    values["tensors"] = {name: _sha256(array.tobytes()) for name, array in stored.items()}
    values["seal"] = _seal(values)
    packed: bytes = safetensors.numpy.save(stored, metadata={_KEY: canonical_json(values)})
    return packed


def unpack_file(content: bytes, *, what: str) -> Unpacked:
    """Take a file apart; raises `RecordError` that names `what` and says what is wrong with it."""
    if len(content) < 8:
        raise RecordError(f"{what} is no evidence file: it has only {len(content)} bytes")
    size = int.from_bytes(content[:8], "little")
    if size > min(_MAX_HEADER, len(content) - 8):
        raise RecordError(
            f"{what} is no evidence file, or a part of one: its header would have {size:,} bytes"
        )
    try:
        text = content[8 : 8 + size].decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(f"{what} is no evidence file: its header is not UTF-8 text") from None
    header = parse_json(text, what=f"the header of {what}")
    if not isinstance(header, dict) or header.keys() != {"__metadata__", *TENSORS}:
        raise RecordError(f"{what} is no evidence file: it must hold {', '.join(TENSORS)}")
    head = _read_head(header.pop("__metadata__"), what)
    return Unpacked(head, _arrays(header, head, memoryview(content)[8 + size :], what))


def _read_head(metadata: Any, what: str) -> EvidenceHead:
    text = metadata.get(_KEY) if isinstance(metadata, dict) and len(metadata) == 1 else None
    if not isinstance(text, str):
        raise RecordError(f"{what} is no evidence file: it has no entry {_KEY!r}")
    values = parse_json(text, what=f"the entry {_KEY!r} of {what}")
    try:
        head = read(EvidenceHead, values, source=what)
    except ConfigError as error:
        raise RecordError(str(error)) from None
    if head.seal != _seal(plain(head)):
        raise RecordError(f"{what} is damaged: what it says of itself does not fit its seal")
    return head


def _arrays(
    header: dict[str, Any], head: EvidenceHead, data: memoryview, what: str
) -> dict[str, Array]:
    places = {}
    for name, kind in TENSORS.items():
        entry = header[name]
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise RecordError(f"{what}: {name} must have a dtype, a shape and data_offsets only")
        length, (start, end) = _whole(entry["shape"], 1), _whole(entry["data_offsets"], 2)
        size = np.dtype(TYPES[kind]).itemsize
        if entry["dtype"] != kind or start > end or end - start != length[0] * size:
            raise RecordError(f"{what}: {name} must be {kind} of one axis that fits its data")
        places[name] = (start, end)
    reached = 0
    for start, end in sorted(places.values()):
        if start != reached:
            raise RecordError(f"{what} has tensors that overlap, or data that belong to none")
        reached = end
    if reached != len(data):
        raise RecordError(f"{what} has {len(data):,} bytes of data instead of {reached:,}")
    arrays = {}
    for name, (start, end) in places.items():
        if head.tensors.get(name) != _sha256(data[start:end]):
            raise RecordError(f"{what} is damaged: {name} is not what its digest says")
        arrays[name] = np.frombuffer(data[start:end], dtype=TYPES[TENSORS[name]])
    return arrays


def _whole(values: Any, count: int) -> list[int]:
    """Return a list of so many numbers >= 0; of -1 where there is none, which fits no data."""
    right = isinstance(values, list) and len(values) == count
    if right and all(type(value) is int and value >= 0 for value in values):
        return list(values)
    return [-1] * count


def _seal(values: dict[str, Any]) -> str:
    return digest({name: value for name, value in values.items() if name != "seal"})


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
