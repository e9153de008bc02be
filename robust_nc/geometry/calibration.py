"""How far the confidence of a network is from its accuracy.

>>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
>>> round(expected_calibration_error(logits, torch.tensor([0, 0, 0, 1])), 3)
0.232
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def expected_calibration_error(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], *, bins: int = 15
) -> float:
    """Mean |confidence - accuracy| over equal bins of confidence, weighted by their examples.

    Confidence is the largest softmax probability (Guo et al., ICML 2017: ECE); a value at the edge
    of two bins is in the lower one. NaN without examples.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    off = (predicted == labels.to(predicted.device)).double() - confidence
    gaps = torch.zeros(bins, dtype=torch.float64, device=off.device).index_add_(0, place, off)
    return float(gaps.abs().sum() / len(off))
