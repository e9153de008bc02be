"""Perturbations as small whole numbers times a step: what makes evidence small.

The code of a point is found from the point alone, and taken only where it gives the point back to
the bit, by float32 operations that are the same on any hardware; any other point is kept as it is.
`rounded` moves points to where a short code exists, into the same direction and onto the surface of
the ball. Whether they are still misclassified is for the caller to find out.

>>> import torch
>>> from robust_nc.threat import Ball
>>> ball, images = Ball("Linf", 0.1), torch.full((1, 1, 2, 2), 0.5)
>>> points = rounded(images + torch.tensor([[0.09, -0.08], [0.01, 0.0]]), images, ball, 1)
>>> coded = encode(points, images, ball.bounds)
>>> coded.levels.tolist(), len(coded.content)
([1], 1)
>>> torch.equal(decode(coded, images, ball.bounds), points)
True
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from robust_nc.exceptions import RecordError
from robust_nc.threat import Ball

MOST = 127  # the largest L: a number to a byte

_ZSTD = 9  # higher levels take longer and save less than 0.1 % of packed digits

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int8]
_Floats = npt.NDArray[np.float32]


def width(level: int, count: int) -> int:
    """Bytes that `count` numbers of a level take; level 0 stands for float32 patterns."""
    return 4 * count if level == 0 else -(-count // _per_byte(level))


def pack_numbers(numbers: Numbers, level: int) -> Bytes:
    """Pack rows of numbers in -level..level, `(n, count)`, into `(n, width(level, count))`."""
    places = _per_byte(level)
    digits = (numbers.astype(np.int16) + level).astype(np.uint8)
    spare = -digits.shape[1] % places
    digits = np.pad(digits, ((0, 0), (0, spare)), constant_values=level)
    packed: Bytes = np.zeros((len(digits), digits.shape[1] // places), dtype=np.uint8)
    for place in reversed(range(places)):
        packed = packed * np.uint8(2 * level + 1) + digits[:, place::places]
    return packed


def unpack_numbers(packed: Bytes, level: int, count: int) -> Numbers:
    """Undo `pack_numbers`; raises `RecordError` for bytes that it does not make."""
    places = _per_byte(level)
    if len(packed) and int(packed.max()) >= (2 * level + 1) ** places:
        raise RecordError(f"a code is larger than {places} numbers in -{level}..{level} make")
    numbers = _digits(level)[packed].reshape(len(packed), packed.shape[1] * places)
    if numbers[:, count:].any():
        raise RecordError("codes go on after the last pixel")
    return numbers[:, :count]


def pack_floats(values: _Floats, known: _Floats) -> Bytes:
    """Pack float32 `(n, count)` by the bits in which they differ from known ones, byte by byte."""
    different = values.view(np.uint32) ^ known.view(np.uint32)
    planes = different.astype("<u4").view(np.uint8).reshape(*values.shape, 4)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(len(values), -1)


def unpack_floats(packed: Bytes, known: _Floats) -> _Floats:
    """Undo `pack_floats`, to the bit."""
    planes = packed.reshape(len(packed), 4, -1).transpose(0, 2, 1)
    different = np.ascontiguousarray(planes).view("<u4")[..., 0].astype(np.uint32)
    values: _Floats = (different ^ known.view(np.uint32)).view(np.float32)
    return values


def compress(content: bytes) -> bytes:
    """Compress bytes with zstd: equal bytes give equal ones, with one version of the library."""
    packed: bytes = pa.Codec("zstd", _ZSTD).compress(content, asbytes=True)
    return packed


def decompress(packed: bytes, size: int) -> bytes:
    """Undo `compress` for content of `size` bytes; `RecordError` for any other, unread."""
    if not size and not packed:
        return b""
    try:
        content: bytes = pa.decompress(packed, decompressed_size=size, codec="zstd", asbytes=True)
    except (OSError, ValueError) as error:
        raise RecordError(f"codes cannot be decompressed: {error}") from None
    if len(content) != size:
        raise RecordError(f"codes decompress to {len(content)} bytes instead of {size}")
    return content


@cache
def _per_byte(level: int) -> int:
    assert 1 <= level <= MOST
    places = 1
    while (2 * level + 1) ** (places + 1) <= 256:
        places += 1
    return places


@cache
def _digits(level: int) -> Numbers:
    """Numbers `(256, places)` that each byte stands for."""
    places, base = _per_byte(level), 2 * level + 1
    values = np.arange(256)[:, None] // base ** np.arange(places) % base
    return (values - level).astype(np.int8)


LEVELS = (1, 2, 4, 7, 15, 31, 63, 127)  # tried from coarse to fine
_BITS = 12  # a step has so many, so that it can be told from the points it made
_TERNARY = 1.4  # level 1 stands for so many times the root mean square of what changed


class Coded(NamedTuple):
    """Codes of n points: `levels` (n,) uint8, `steps` (n,) float32, and the packed numbers.

    Level L stands for numbers in -L..L; 0 for a point kept to the bit, with step 0. Rows of one
    level stand together, in order, the levels ascending.
    """

    levels: Tensor
    steps: Tensor
    content: bytes


class _Found(NamedTuple):
    """Level (0: none), step and numbers `(n, D)` of each point."""

    levels: Tensor
    steps: Tensor
    numbers: Tensor


def rounded(points: Tensor, origins: Tensor, ball: Ball, level: int) -> Tensor:
    """Return points `(n, C, H, W)` near the given ones, with numbers in -level..level as codes.

    All on the CPU. They may lie outside of the ball by rounding, and may have no code after all
    (`coded_levels`).
    """
    delta = (points.double() - origins.double()).flatten(1)
    scale = delta.abs().amax(1, keepdim=True)
    if level == 1:  # few values are near the largest
        changed = (delta != 0).sum(1, keepdim=True).clamp_min(1)
        typical = (delta.square().sum(1, keepdim=True) / changed).sqrt()
        scale = torch.minimum(scale, _TERNARY * typical)
    numbers = (delta * level / scale.clamp_min(1e-300)).round().clamp(-level, level)
    shaped = numbers.float().view_as(origins)
    size = ball.distance(shaped, torch.zeros_like(shaped))
    low, high = ball.bounds
    steps = _short((ball.eps / size.clamp_min(1e-9)).clamp_max(high - low), down=True)
    return _moved(numbers, torch.where(size > 0, steps, 0), origins, ball.bounds)


def coded_levels(points: Tensor, origins: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return the level `(n,)` uint8 of the code of each point, 0 where it has none."""
    return _search(points, origins, bounds).levels


def encode(points: Tensor, origins: Tensor, bounds: tuple[float, float]) -> Coded:
    """Code points `(n, C, H, W)` float32 by their differences from their origins, losing nothing.

    All on the CPU. The code of a point depends on it and its origin alone.
    """
    found = _search(points, origins, bounds)
    exact = np.ascontiguousarray(points.flatten(1).numpy())
    known = np.ascontiguousarray(origins.flatten(1).numpy())
    parts = []
    for level in _distinct(found.levels):
        rows = (found.levels == level).numpy()
        if level:
            parts.append(pack_numbers(found.numbers.numpy()[rows], level))
        else:
            parts.append(pack_floats(exact[rows], known[rows]))
    return Coded(found.levels, found.steps, b"".join(part.tobytes() for part in parts))


def content_size(levels: Tensor, values: int) -> int:
    """Bytes that the content of codes of these levels has, for points of so many values."""
    return sum(width(level, values) for level in levels.tolist())


def decode(coded: Coded, origins: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Undo `encode`: points `(n, C, H, W)`, float32 on the CPU.

    Raises `RecordError` for codes that it does not make.
    """
    points = torch.empty_like(origins)
    rest: Bytes = np.frombuffer(coded.content, dtype=np.uint8)
    count = origins[0].numel() if len(origins) else 0
    for level in _distinct(coded.levels):
        rows = coded.levels == level
        there, part = origins[rows], width(level, count)
        packed = rest[: part * len(there)].reshape(-1, part)
        rest = rest[packed.size :]
        if level:
            numbers = torch.from_numpy(unpack_numbers(packed, level, count))
            points[rows] = _moved(numbers, coded.steps[rows], there, bounds)
        else:
            known: _Floats = np.ascontiguousarray(there.flatten(1).numpy())
            points[rows] = torch.from_numpy(unpack_floats(packed, known)).view_as(there)
    if not bool(points.isfinite().all()):
        raise RecordError("a point that was kept exactly has pixels that are not finite")
    return points


def _moved(numbers: Tensor, steps: Tensor, origins: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Origin + number x step within the bounds: a product and a sum, each rounded to float32."""
    change = numbers.to(torch.float32) * steps.to(torch.float32)[:, None]
    return (origins + change.view_as(origins)).clamp_(*bounds)


def _search(points: Tensor, origins: Tensor, bounds: tuple[float, float]) -> _Found:
    low, high = bounds
    delta = (points.double() - origins.double()).flatten(1)
    clipped = ((points == low) | (points == high)).flatten(1)
    largest = torch.where(clipped, 0, delta.abs()).amax(1)
    numbers = torch.zeros(delta.shape, dtype=torch.int8)
    steps = torch.zeros(len(points), dtype=torch.float32)
    found = _Found(torch.zeros(len(points), dtype=torch.uint8), steps, numbers)
    left = torch.arange(len(points))
    for level in LEVELS:
        if not len(left):
            break
        # Where all that changed was clipped, any step that leads out of the bounds will do.
        steps = torch.where(largest[left] > 0, _short(largest[left] / level), high - low).float()
        ratio = delta[left] / steps.double()[:, None]
        outwards = ratio.sign() * ratio.abs().ceil()  # what was clipped was longer
        tried = torch.where(clipped[left], outwards, ratio.round()).clamp_(-level, level)
        again = _moved(tried, steps, origins[left], bounds)
        same = (again.view(torch.int32) == points[left].view(torch.int32)).flatten(1).all(1)
        done = left[same]
        found.levels[done], found.steps[done] = level, steps[same]
        found.numbers[done] = tried[same].to(torch.int8)
        left = left[~same]
    return found


def _short(values: Tensor, *, down: bool = False) -> Tensor:
    """Round float64 values to the nearest (or the next lower) number of `_BITS` bits."""
    mantissa, exponent = torch.frexp(values)
    scaled = mantissa * 2.0**_BITS
    return torch.ldexp(scaled.floor() if down else scaled.round(), exponent - _BITS)


def _distinct(levels: Tensor) -> list[int]:
    return sorted(set(levels.tolist()))
