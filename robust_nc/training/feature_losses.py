"""Training losses that read the features before the head: `(seen, labels (N,)) -> (N,)`.

What they ask of features are cosines with the frame of the head, so directions and no lengths. As
the other losses they compute in float32 at least, also under autocast.

>>> import torch
>>> from torch import nn
>>> class Axes(Head):
...     def vertices(self):
...         return torch.eye(2)
...     frame = vertices
>>> head, features = Axes(2, 2), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
>>> seen = Seen(head(features), features, head)
>>> dot_regression(seen, torch.tensor([0, 0])).tolist()
[0.0, 0.5]
>>> haframe(seen, torch.tensor([0, 0]), alpha=1.0).tolist()
[0.0, 2.0]
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from robust_nc.exceptions import ConfigError
from robust_nc.models.heads import Head, unit_rows
from robust_nc.training.losses import Seen, cross_entropy, widened
from robust_nc.types import Features, Labels, PerExample, Vertices

Schedule = Literal[
    "constant",
    "linear_increase",
    "linear_decrease",
    "cosine",
    "cosine_linear_increase",
    "cosine_linear_decrease",
]
Share = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(gt=0)]


def dot_regression(seen: Seen, labels: Labels) -> PerExample:
    """1/2 (cos(h, w_y) - 1)^2 for features h (Yang et al., NeurIPS 2022).

    w_y is the label's row of the head's fixed frame; where a head has none, its vertices at unit
    length stand in, and learn too. In [0, 2]. The lengths sqrt(E_H) and sqrt(E_W) of the original
    are 1 here. Only the label's class is asked for: nothing pushes the other classes away.
    """
    directions = seen.head.frame()
    if directions is None:
        directions = unit_rows(seen.head.vertices())
    features = widened(seen.features)
    cosines = (unit_rows(features) * directions.to(features.dtype)[labels]).sum(1)
    return (cosines - 1).square() / 2


def haframe(
    seen: Seen,
    labels: Labels,
    *,
    alpha: Share = 0.4,
    schedule: Schedule = "constant",
    period: Above = 1.0,
    progress: float = 0.0,
) -> PerExample:
    """(1 - a) cross-entropy + a sum_c (cos(w_c, h) - <w_c, w_y>)^2 (Liang and Davis, 2023).

    Features h are asked to stand to every class as the label's own row of the frame does. a is
    `alpha` times the `schedule` at `progress` (`schedule_at`). Raises `ConfigError` for a head
    without a fixed frame.
    """
    weight = alpha * schedule_at(schedule, progress, period=period)
    angular = _frame_error(seen.features, _frame(seen.head), labels)
    return (1 - weight) * cross_entropy(seen.logits, labels) + weight * angular


def schedule_at(schedule: Schedule, progress: float, *, period: float = 1.0) -> float:
    """Return the share of `alpha` that holds at `progress`, both in [0, 1]: those of the authors.

    "linear_increase" rises from 0 to 1 over the training, "linear_decrease" falls from 1 to 0.
    "cosine" is a wave from 0 up to 1 and back in every `period` (a share of the training).
    "cosine_linear_increase" is that wave times the progress, "cosine_linear_decrease" is 1 minus
    it. With `alpha` 1 these are the weights of the authors' code, which counts epochs, not steps.

    >>> schedule_at("linear_decrease", 0.25), round(schedule_at("cosine", 0.25, period=0.5), 6)
    (0.75, 1.0)
    """
    wave = (1 - math.cos(2 * math.pi * progress / period)) / 2
    shares: dict[Schedule, float] = {
        "constant": 1.0,
        "linear_increase": progress,
        "linear_decrease": 1 - progress,
        "cosine": wave,
        "cosine_linear_increase": wave * progress,
        "cosine_linear_decrease": 1 - wave * progress,
    }
    return shares[schedule]


def _frame(head: Head) -> Vertices:
    frame = head.frame()
    if frame is None:
        raise ConfigError(
            f"the loss 'haframe' reads the head's fixed frame, and {type(head).__name__} has none; "
            "choose the head 'haframe', 'etf', 'nearest_etf' or 'orthogonal', or another loss"
        )
    return frame


def _frame_error(features: Features, frame: Vertices, labels: Labels) -> Tensor:
    """Sum over c of (cos(w_c, h) - <w_c, w_y>)^2 = (<w_c, h / |h| - w_y>)^2, `(N,)`."""
    with torch.autocast(features.device.type, enabled=False):
        inputs = widened(features)
        rows = frame.to(inputs.dtype)
        return ((unit_rows(inputs) - rows[labels]) @ rows.T).square().sum(1)
