"""Accuracy on classes with many, a medium number of, and few training examples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.pipeline.shot_scores import shot_scores
from robust_nc.statistics.intervals import wilson

COUNTS = torch.tensor([500, 101, 100, 20, 19, 0])


def expected(flags: Tensor, labels: Tensor, classes: list[int]) -> tuple[float, ...]:
    mine = [bool(f) for f, k in zip(flags, labels.tolist(), strict=True) if k in classes]
    return wilson(sum(mine), len(mine))[:4]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_classes_are_grouped_by_their_training_examples(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(6), torch.randint(0, 6, (100,), generator=draws)])
    flags = torch.rand(106, generator=draws) < 0.6
    found = shot_scores(COUNTS, labels, flags)
    groups = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    assert list(found) == list(groups)
    for name, classes in groups.items():
        score = found[name]
        assert (score.value, score.low, score.high, score.n) == expected(flags, labels, classes)


def test_thresholds_are_options() -> None:
    labels, flags = torch.arange(6), torch.tensor([True, False, True, False, True, False])
    found = shot_scores(COUNTS, labels, flags, many=499, few=101)
    assert {name: score.n for name, score in found.items()} == {"many": 1, "medium": 1, "few": 4}
    assert found["medium"].value == 0


def test_groups_without_classes_or_without_test_examples_are_left_out() -> None:
    flags = torch.tensor([True, True])
    assert list(shot_scores(torch.tensor([500, 400]), torch.tensor([0, 1]), flags)) == ["many"]
    assert list(shot_scores(COUNTS, torch.tensor([0, 5]), flags)) == ["many", "few"]
    assert shot_scores(COUNTS, torch.zeros(0).long(), flags[:0]) == {}


@pytest.mark.parametrize(
    ("counts", "labels", "flags", "options", "message"),
    [
        ([5, 5], [0, 2], [True, True], {}, r"in 0\.\.1, found 2"),
        ([5, 5], [0, 1, 1], [True, True], {}, "found 3 labels"),
        ([5, 5], [0, 1], [1, 0], {}, "flags must be bool"),
        ([0.5, 5.0], [0, 1], [True, True], {}, "whole numbers"),
        ([-1, 5], [0, 1], [True, True], {}, "training examples"),
        ([5, 5], [0, 1], [True, True], {"many": 5, "few": 6}, "few = 6, many = 5"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(
    counts: list[int], labels: list[int], flags: list[bool], options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        shot_scores(torch.tensor(counts), torch.tensor(labels), torch.tensor(flags), **options)
