"""What evidence holds: per example the verdict, and for each that was broken an adversarial one.

>>> import torch
>>> from robust_nc.threat import Ball
>>> Evidence.__annotations__["ball"] is Ball
True
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robust_nc.threat import Ball


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


TOLERANCE = 1e-3  # of the range of the logits
