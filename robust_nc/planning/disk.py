"""Bytes that a cell leaves, and those that it holds beside them while it runs.

>>> from robust_nc.config import RunConfig
>>> from robust_nc.planning.cell_sizes import Anatomist
>>> weights_kept(Anatomist(None).look(RunConfig())) > 2 * 4 * 16_000
True
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from robust_nc.planning.cell_sizes import Site
from robust_nc.planning.cells import judged_images
from robust_nc.planning.pieces import Piece
from robust_nc.planning.speeds import Rate

_RECORD = 9_000  # bytes of a record without what it says of single images
_PER_IMAGE = 5  # of each judged image in it
_POINTS = 3  # worst points that the log of a verdict holds of an image, about
_BASE64 = 4 / 3


class Disk(NamedTuple):
    """Bytes: what stays of a cell (its weights counted apart), and what it needs while it runs."""

    results: float
    weights: float
    running: float


def weights_kept(site: Site) -> int:
    """Bytes of a training's checkpoint: best and last weights, momentum, raw ones of an average."""
    averaged = site.weight_bytes if site.config.train.averaging is not None else 0
    return 2 * site.weight_bytes + site.parameter_bytes + averaged


def disk_of(site: Site, pieces: Iterable[Piece], rates: Mapping[str, Rate]) -> Disk:
    """Return the bytes of a cell: what stays, its checkpoint, and logs with two checkpoints more.

    While a training goes on, the state before the last is kept, and the next one is written.
    """
    judged = judged_images(site)
    results = float(_RECORD + _PER_IMAGE * judged)
    for piece in pieces:
        written = rates[piece.probe.key].nbytes
        results += written * (piece.batch if piece.probe.kind == "evidence" else 1)
    channels, height, width = site.info.image_shape
    logs = judged * channels * height * width * 4 * _POINTS * _BASE64
    weights = float(weights_kept(site))
    return Disk(results, weights, 2 * weights + logs)
