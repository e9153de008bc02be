"""Accuracy on classes with many, a medium number of, and few training examples.

The groups of Liu et al. (CVPR 2019), which the long-tailed CIFAR are reported by: many above 100
training examples, few below 20, medium between.

>>> import torch
>>> counts, labels = torch.tensor([500, 60, 5]), torch.arange(300) % 3
>>> scores = shot_scores(counts, labels, labels < 2)
>>> {name: (score.value, score.n) for name, score in scores.items()}
{'many': (1.0, 100), 'medium': (1.0, 100), 'few': (0.0, 100)}
"""

import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.pipeline.make_record import score
from robust_nc.record.schema import Score

MANY, FEW = 100, 20


def shot_scores(
    counts: Tensor, labels: Tensor, flags: Tensor, *, many: int = MANY, few: int = FEW
) -> dict[str, Score]:
    """Return the share of true `flags` by group, with its 95 % Wilson interval.

    `counts` (K,) are the training examples of each class; `labels` and `flags` (N,) bool of the
    test examples. Classes with more than `many` are "many", with fewer than `few` (none too) "few",
    the others "medium". All test examples of a group count alike; one without any is left out.
    Raises `InputError` for shapes that do not agree and labels outside of 0..K-1.
    """
    if few > many:
        raise InputError(f"few must not be above many, found few = {few}, many = {many}")
    if counts.ndim != 1 or counts.is_floating_point() or bool((counts < 0).any()):
        raise InputError(
            "counts must be training examples of each class, whole numbers of shape (K,), found "
            f"{counts.dtype} of {tuple(counts.shape)}"
        )
    labels = check_labels(labels, len(flags), len(counts)).cpu()
    if flags.dtype != torch.bool or flags.ndim != 1:
        raise InputError(f"flags must be bool of shape (N,), found {flags.dtype}")
    mine, flags = counts.cpu()[labels], flags.cpu()
    groups = {
        "many": mine > many,
        "medium": (mine <= many) & (mine >= few),
        "few": mine < few,
    }
    return {name: score(flags[chosen]) for name, chosen in groups.items() if bool(chosen.any())}
