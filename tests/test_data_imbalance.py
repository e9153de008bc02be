"""Long tails: sizes as the field has them, examples chosen by id; accuracy by shots."""

from typing import Any

import pytest
import torch
from helpers_data import random_split
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import noise as oracle
from torch import Tensor

from robust_nc.config import Component, build
from robust_nc.data.base import Split
from robust_nc.data.imbalance import Exponential, Imbalance, Step
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.pipeline.make_record import shot_scores
from robust_nc.registry import IMBALANCES
from robust_nc.statistics.intervals import wilson


def same(one: Split, other: Split) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("how", "largest", "classes", "ends", "total"),
    [
        (Exponential(100.0), 5000, 10, (5000, 50), 12_406),  # the long-tailed CIFAR-10
        (Exponential(100.0), 500, 100, (500, 5), 10_847),  # and CIFAR-100
        (Exponential(1.0), 500, 10, (500, 500), 5000),
        (Step(100.0), 5000, 10, (5000, 50), 25_250),
        (Step(10.0, share=0.3), 100, 10, (100, 10), 730),
        (Step(10.0, share=0.01), 100, 10, (100, 10), 910),
        (Step(10.0, share=0.99), 100, 10, (100, 10), 190),
        (Step(2.0), 100, 3, (100, 50), 200),
    ],
)
def test_sizes_are_those_of_the_field(
    how: Imbalance, largest: int, classes: int, ends: tuple[int, int], total: int
) -> None:
    sizes = how.sizes(largest, classes)
    assert (int(sizes[0]), int(sizes[-1])) == ends
    assert int(sizes.sum()) == total
    assert bool((sizes.diff() <= 0).all())


@pytest.mark.parametrize("factor", [3.0, 5.0, 10.0, 49.0, 100.0])
def test_the_smallest_class_is_not_cut_by_rounding(factor: float) -> None:
    for how in (Exponential(factor), Step(factor)):
        for classes in (2, 3, 10, 100, 1000):
            assert int(how.sizes(int(4 * factor), classes)[-1]) == 4


@pytest.mark.parametrize("how", [Exponential(8.0), Step(5.0, share=0.4)])
def test_which_examples_stay_agrees_with_the_oracle(how: Imbalance) -> None:
    split = random_split(200, classes=5)
    split = split._replace(ids=split.ids * 3 + 100)
    found = how(split, 5, seed=9)
    wanted = oracle.kept(
        split.labels.tolist(), split.ids.tolist(), how.sizes(40, 5).tolist(), seed=9
    )
    assert same(found, split.at(torch.tensor(wanted)))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_the_same_examples_stay_in_any_order(seed: int) -> None:
    split = random_split(120, classes=3)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
    found = Exponential(6.0)(split, 3, seed=seed)
    shuffled = Exponential(6.0)(split.at(order), 3, seed=seed)
    assert same(found, shuffled.at(shuffled.ids.argsort()))
    assert bool((found.ids.diff() > 0).all()), "the official order is kept"
    assert torch.equal(shuffled.ids, order[torch.isin(order, shuffled.ids)])


def test_a_larger_factor_keeps_a_part_of_what_a_smaller_one_keeps() -> None:
    split = random_split(300, classes=3)
    much, less = (Exponential(factor)(split, 3, seed=0).ids for factor in (4.0, 20.0))
    assert bool(torch.isin(less, much).all())
    assert len(less) < len(much)
    assert not torch.equal(Exponential(4.0)(split, 3, seed=1).ids, much)


def test_a_factor_of_one_changes_nothing() -> None:
    split = random_split(50)
    for how in (Exponential(1.0), Step(1.0)):
        assert same(how(split, 3, seed=0), split)


def test_a_class_that_has_fewer_than_its_share_keeps_what_it_has() -> None:
    labels = torch.tensor([0] * 40 + [1] * 3 + [2] * 40 + [4])
    split = random_split(len(labels))._replace(labels=labels)
    found = Exponential(4.0)(split, 5, seed=0)
    assert found.labels.bincount(minlength=5).tolist() == [40, 3, 20, 0, 1]
    found = Step(40.0, share=0.2)(split, 5, seed=0)
    assert found.labels.bincount(minlength=5).tolist() == [40, 3, 40, 0, 1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Exponential(50.0), "factor 50 leaves class 2 0 of its 40 examples, and 2 are needed"),
        (Step(25.0), "leaves class 1 1 of its 40 examples, .* factor to at most 20,"),
    ],
)
def test_a_class_that_would_vanish_is_refused(how: Imbalance, message: str) -> None:
    split = random_split(120, classes=3)
    with pytest.raises(ConfigError, match=message):
        how(split, 3, seed=0)
    assert Exponential(20.0)(split, 3, seed=0).labels.bincount().tolist() == [40, 8, 2]


def test_two_examples_a_class_cannot_be_thinned_out() -> None:
    with pytest.raises(ConfigError, match="and 2 are needed; use more examples"):
        Exponential(2.0)(random_split(6, classes=3), 3, seed=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("exponential", {"factor": 0.01}, "at least 1, found 0.01"),
        ("exponential", {}, "needs the option 'factor'"),
        ("exponential", {"factor": "ten"}, "valid number"),
        ("step", {"factor": 0.5}, "step imbalance: factor"),
        ("step", {"factor": 2.0, "share": 1.0}, "between 0 and 1, found 1.0"),
        ("step", {"factor": 2.0, "share": 0.0}, "between 0 and 1, found 0.0"),
        ("exponential", {"factor": 2.0, "share": 0.5}, "no option 'share'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(IMBALANCES, Component(name=kind, options=options))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), None])
def test_a_factor_that_is_no_number_is_refused(factor: Any) -> None:
    for how in (Exponential, Step):
        with pytest.raises(ConfigError, match="at least 1"):
            how(factor)


def test_labels_of_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"in 0\.\.1, found 2"):
        Step(2.0)(random_split(30), 2, seed=0)
    with pytest.raises(InputError, match="two classes"):
        Step(2.0)(random_split(30, classes=1), 1, seed=0)


# Accuracy on classes with many, a medium number of, and few training examples

COUNTS = torch.tensor([500, 101, 100, 20, 19, 0])


def interval(flags: Tensor, labels: Tensor, classes: list[int]) -> tuple[float, ...]:
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
        assert (score.value, score.low, score.high, score.n) == interval(flags, labels, classes)


def test_groups_without_classes_or_without_test_examples_are_left_out() -> None:
    flags = torch.tensor([True, True])
    assert list(shot_scores(torch.tensor([500, 400]), torch.tensor([0, 1]), flags)) == ["many"]
    assert list(shot_scores(COUNTS, torch.tensor([0, 5]), flags)) == ["many", "few"]
    assert shot_scores(COUNTS, torch.zeros(0).long(), flags[:0]) == {}
