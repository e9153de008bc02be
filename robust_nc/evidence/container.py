"""The container of evidence: a safetensors file of known tensors, and one text that describes them.

Nothing that a file says of itself is believed: its header is checked against what is there, and
each tensor against its digest, so that damage is named. (Who forges a tensor can forge its digest
too: the SHA-256 in the record is what holds.)

>>> unpack_file(b"PK", what="mine.evidence")
Traceback (most recent call last):
...
robust_nc.exceptions.RecordError: mine.evidence is no evidence file: it has only 2 bytes
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from pydantic import Field

from robust_nc.config import configuration, plain, read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import canonical_json, digest
from robust_nc.io.untrusted import parse_json

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
Count = Annotated[int, Field(ge=0, le=2**31)]
Side = Annotated[int, Field(ge=1, le=2**20)]
Text = Annotated[str, Field(max_length=200)]


@configuration
class Head:
    """What evidence is about. Numbers that must be exact are hexadecimal (`float.hex`).

    `points` is the SHA-256 of the adversarial images, `tensors` those of the tensors, and `seal`
    the digest of all other fields.
    """

    schema_version: Literal[1] = 1
    examples: Count
    shape: tuple[Side, Side, Side]
    norm: Text
    eps: Text
    bounds: tuple[Text, Text]
    fingerprint: Text
    weights: dict[str, Text]
    draws: Annotated[int, Field(ge=1, le=2**31)]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    points: Text
    tensors: dict[str, Text] = Field(default_factory=dict)
    seal: Text = ""


class Opened(NamedTuple):
    """The head of a file and its tensors, each of one axis, by name."""

    head: Head
    arrays: Mapping[str, Array]


def pack_file(head: Head, arrays: Mapping[str, Array]) -> bytes:
    """Return the content of a file; equal arguments give equal bytes."""
    assert arrays.keys() == TENSORS.keys()
    stored = {name: arrays[name].astype(TYPES[kind]) for name, kind in TENSORS.items()}
    values = plain(head)
    values["tensors"] = {name: _sha256(array.tobytes()) for name, array in stored.items()}
    values["seal"] = _seal(values)
    packed: bytes = safetensors.numpy.save(stored, metadata={_KEY: canonical_json(values)})
    return packed


def unpack_file(content: bytes, *, what: str) -> Opened:
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
    head = _head(header.pop("__metadata__"), what)
    return Opened(head, _arrays(header, head, memoryview(content)[8 + size :], what))


def _head(metadata: Any, what: str) -> Head:
    text = metadata.get(_KEY) if isinstance(metadata, dict) and len(metadata) == 1 else None
    if not isinstance(text, str):
        raise RecordError(f"{what} is no evidence file: it has no entry {_KEY!r}")
    values = parse_json(text, what=f"the entry {_KEY!r} of {what}")
    try:
        head = read(Head, values, source=what)
    except ConfigError as error:
        raise RecordError(str(error)) from None
    if head.seal != _seal(plain(head)):
        raise RecordError(f"{what} is damaged: what it says of itself does not fit its seal")
    return head


def _arrays(header: dict[str, Any], head: Head, data: memoryview, what: str) -> dict[str, Array]:
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
