"""Small whole numbers and float32 patterns as few bytes, and back without trusting the bytes.

Numbers in -L..L are digits of base 2 L + 1, as many to a byte as fit: five where L is 1. The bytes
go through zstd, whose size is known before anything is unpacked.

>>> import numpy as np
>>> numbers = np.array([[-1, 0, 1, 1, -1, 0]], dtype=np.int8)
>>> packed = pack(numbers, 1)
>>> packed.shape, bool((unpack(packed, 1, 6) == numbers).all())
((1, 2), True)
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from robust_nc.exceptions import RecordError

MOST = 127  # the largest L: a number to a byte

_ZSTD = 9  # higher levels take longer and save less than 0.1 % of packed digits

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


def width(level: int, count: int) -> int:
    """Bytes that `count` numbers of a level take; level 0 stands for float32 patterns."""
    return 4 * count if level == 0 else -(-count // _per_byte(level))


def pack(numbers: Numbers, level: int) -> Bytes:
    """Pack rows of numbers in -level..level, `(n, count)`, into `(n, width(level, count))`."""
    places = _per_byte(level)
    digits = (numbers.astype(np.int16) + level).astype(np.uint8)
    spare = -digits.shape[1] % places
    digits = np.pad(digits, ((0, 0), (0, spare)), constant_values=level)
    packed: Bytes = np.zeros((len(digits), digits.shape[1] // places), dtype=np.uint8)
    for place in reversed(range(places)):
        packed = packed * np.uint8(2 * level + 1) + digits[:, place::places]
    return packed


def unpack(packed: Bytes, level: int, count: int) -> Numbers:
    """Undo `pack`; raises `RecordError` for bytes that it does not make."""
    places = _per_byte(level)
    if len(packed) and int(packed.max()) >= (2 * level + 1) ** places:
        raise RecordError(f"a code is larger than {places} numbers in -{level}..{level} make")
    numbers = _digits(level)[packed].reshape(len(packed), packed.shape[1] * places)
    if numbers[:, count:].any():
        raise RecordError("codes go on after the last pixel")
    return numbers[:, :count]


def pack_floats(values: Floats, known: Floats) -> Bytes:
    """Pack float32 `(n, count)` by the bits in which they differ from known ones, byte by byte."""
    different = values.view(np.uint32) ^ known.view(np.uint32)
    planes = different.astype("<u4").view(np.uint8).reshape(*values.shape, 4)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(len(values), -1)


def unpack_floats(packed: Bytes, known: Floats) -> Floats:
    """Undo `pack_floats`, to the bit."""
    planes = packed.reshape(len(packed), 4, -1).transpose(0, 2, 1)
    different = np.ascontiguousarray(planes).view("<u4")[..., 0].astype(np.uint32)
    values: Floats = (different ^ known.view(np.uint32)).view(np.float32)
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
