"""The leap layer: from which tap on an attacked example stays at another vertex.

>>> import torch
>>> clean = [torch.tensor([0, 0])] * 3
>>> attacked = [torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1, 0])]
>>> leap_layer(clean, attacked, torch.tensor([0, 0])).tolist()
[1, -1]
"""

from typing import NamedTuple

import torch

from robust_nc.exceptions import InputError
from robust_nc.types import Labels

NO_LEAP, NOT_COUNTED = -1, -2  # in place of a leap layer


def leap_layer(origins: list[Labels], landings: list[Labels], labels: Labels) -> Labels:
    """Per example the first tap l with b' != a at l and at every later tap, `(N,)` int64.

    `origins` and `landings` hold the nearest vertices of clean and attacked features, one `(N,)`
    tensor per tap in order of depth. -1: at the last tap b' = a. -2: not counted, because the clean
    vertex at the last tap is not the label.
    """
    if not origins or len(origins) != len(landings):
        raise InputError(
            f"leap_layer needs one origin and one landing per tap, "
            f"found {len(origins)} and {len(landings)}"
        )
    apart = torch.stack(origins) != torch.stack(landings)
    stays = apart.flip(0).long().cumprod(0).sum(0)
    layer = torch.where(stays > 0, len(origins) - stays, NO_LEAP)
    return torch.where(origins[-1] == labels, layer, NOT_COUNTED)


class LeapLayers(NamedTuple):
    """Distribution of the leap layer: `counts` per tap, `none` and `not_counted` examples."""

    counts: tuple[int, ...]
    none: int
    not_counted: int


def leap_layer_histogram(layers: Labels, num_taps: int) -> LeapLayers:
    """Count leap layers as `leap_layer` returns them."""
    counts = torch.bincount(layers[layers >= 0], minlength=num_taps).tolist()
    assert len(counts) == num_taps, "a leap layer beyond the last tap"
    return LeapLayers(
        tuple(counts), int((layers == NO_LEAP).sum()), int((layers == NOT_COUNTED).sum())
    )
