"""What `measure_collapse` and the accumulators take, and how they answer what they cannot use."""

import numpy as np
import pytest
import torch
from helpers_geometry import clusters
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import collapse, measure_collapse
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import TotalScatter


def test_numpy_and_torch_inputs_agree() -> None:
    features, labels = clusters([6, 7, 8], 3)
    wanted = measure_collapse(features, labels).measures()
    read_only = features.numpy().copy()
    read_only.flags.writeable = False
    for given_features, given_labels in [
        (read_only, labels.numpy().astype(np.uint8)),
        (features.numpy()[::-1][::-1], labels.int()),
        (features.numpy().astype(">f8"), labels.tolist()),
    ]:
        assert measure_collapse(given_features, given_labels).measures() == wanted


GOOD = (torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (GOOD[0][:, :, None], GOOD[1], {}, r"shape \(N, D\)"),
        (GOOD[0].long(), GOOD[1], {}, "floating point"),
        (GOOD[0] / 0, GOOD[1], {}, "finite"),
        (GOOD[0], GOOD[1][:5], {}, "5 labels"),
        (GOOD[0], GOOD[1] + 0.5, {}, "whole numbers"),
        (GOOD[0], GOOD[1] - 1, {}, "found -1"),
        (GOOD[0], GOOD[1], {"num_classes": 1}, "found 1"),
        (GOOD[0], GOOD[1] * 0, {}, "one class"),
        (GOOD[0], GOOD[1] + 10**12, {}, "examples for"),
        (GOOD[0][:2], GOOD[1][:2], {}, "two examples"),
        (GOOD[0][:0], GOOD[1][:0], {}, "empty"),
        (GOOD[0], GOOD[1], {"weight": torch.zeros(2, 4)}, r"weight must have shape \(2, 3\)"),
        (GOOD[0], GOOD[1], {"target": torch.zeros(3, 4)}, r"target must have shape \(2, any\)"),
        (GOOD[0], GOOD[1], {"bias": torch.zeros(2)}, "without weight"),
        (GOOD[0], GOOD[1], {"weight": torch.eye(2, 3), "bias": torch.zeros(3)}, "bias must have"),
        (np.array([["a"]]), GOOD[1], {}, "numbers"),
        ([[1.0, 2.0], [3.0]], GOOD[1], {}, "rows of one length"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(
    features: Tensor, labels: Tensor, options: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure_collapse(features, labels, **options)


def test_parts_that_do_not_fit_are_refused() -> None:
    features, labels = clusters([4, 4], 3)
    moments, scatter = Moments(2, 3), TotalScatter(3)
    moments.update(features, labels)
    for _ in range(10):
        scatter.update(features)
    with pytest.raises(InputError, match="same features"):
        collapse(moments, scatter=scatter)
    with pytest.raises(InputError, match="cannot merge"):
        moments.merge(Moments(2, 4))
    with pytest.raises(InputError, match="cannot merge"):
        scatter.merge(TotalScatter(4))
    with pytest.raises(InputError, match="different class means"):
        Projection(moments).merge(Projection.of(torch.eye(2, 3)))
    with pytest.raises(InputError, match=r"\(N, 3\)"):
        moments.update(features[:, :2], labels)
    with pytest.raises(InputError, match=r">= 1, found 0"):
        Moments(0, 3)
