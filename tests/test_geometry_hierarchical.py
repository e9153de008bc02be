"""Measures of outputs in a tree: definitions, closed forms, and what must not change them."""

import pytest
import torch
from reference import hierarchical as oracle
from torch import Tensor

from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.exceptions import InputError
from robust_nc.geometry.severity import least_cost, output_measures

CIFAR100 = read_hierarchy("cifar100").distances()


def measured(logits: Tensor, labels: Tensor, distances: Tensor) -> dict[str, float | None]:
    return output_measures(logits, labels, distances).values


def batch(
    count: int, num_classes: int, *, seed: int, levels: int | None = None
) -> tuple[Tensor, Tensor]:
    """Random logits, with ties where they take few `levels`, and labels."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_classes, generator=draws)
    if levels is not None:
        logits = (logits * levels / 4).round()
    return logits, torch.randint(num_classes, (count,), generator=draws)


def small_tree(num_classes: int) -> Tensor:
    """Pairs of classes in groups of two pairs: distances 1, 2, 3."""
    labels = torch.arange(num_classes)
    same = [labels[:, None] // size == labels // size for size in (1, 2, 4)]
    return 3.0 - sum(each.double() for each in same)


def by_distance(distances: Tensor, labels: Tensor, *, falling: bool = False) -> Tensor:
    """Logits that rank every class by its distance from the label."""
    return distances[labels] if falling else -distances[labels]


class TestValues:
    @pytest.mark.parametrize("levels", [None, 3], ids=["distinct", "tied"])
    @pytest.mark.parametrize("num_classes", [2, 3, 6])
    def test_the_definitions(self, num_classes, levels):
        logits, labels = batch(12, num_classes, seed=num_classes, levels=levels)
        distances = small_tree(num_classes)
        found = measured(logits, labels, distances)
        arrays = (logits.double().numpy(), labels.numpy(), distances.numpy())
        assert found["mistake_severity"] == pytest.approx(oracle.severity(*arrays), rel=1e-12)
        assert found["hier_ndcg"] == pytest.approx(oracle.ndcg(*arrays), rel=1e-12)
        for k in (1, 5, 20):
            wanted = oracle.hd(*arrays, k) if k <= num_classes else None
            assert found[f"hd_{k}"] == (wanted and pytest.approx(wanted, rel=1e-12))

    def test_the_order_by_distance_is_the_best_there_is(self):
        labels = torch.arange(100)
        best = measured(by_distance(CIFAR100, labels), labels, CIFAR100)
        assert best["accuracy"] == 1
        assert best["mistake_severity"] is None
        assert best["hd_1"] == 0
        assert best["hd_5"] == 4 / 5  # the label, and four of its superclass
        assert best["hier_ndcg"] == pytest.approx(1, abs=1e-12)
        worst = measured(by_distance(CIFAR100, labels, falling=True), labels, CIFAR100)
        assert worst["mistake_severity"] == worst["hd_1"] == worst["hd_5"] == worst["hd_20"] == 5
        chance = measured(torch.zeros(100, 100), labels, CIFAR100)
        assert 0 < worst["hier_ndcg"] < chance["hier_ndcg"] < 1
        assert chance["hd_20"] == pytest.approx(float(CIFAR100.mean()))


def test_batches_and_their_order_change_nothing():
    distances, (logits, labels) = small_tree(6), batch(23, 6, seed=0)
    rows = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    parted = output_measures(logits[rows], labels[rows], distances, at_once=5).values
    for name, value in measured(logits, labels, distances).items():
        close = None if value is None else pytest.approx(value, rel=1e-9)
        assert parted[name] == close


class TestUndefined:
    def test_nothing_is_none_with_a_reason(self):
        nobody = torch.zeros(0, dtype=torch.int64)
        found = output_measures(torch.zeros(0, 6), nobody, small_tree(6))
        assert set(found.values.values()) == {None}
        assert set(found.notes) == set(found.values)
        assert found.notes["hd_1"] == "undefined: no example"
        assert found.notes["hd_20"] == "undefined: fewer than 20 classes"
        assert found.counts == dict.fromkeys(found.values, 0)

    def test_counts_are_of_what_each_value_is_over(self):
        logits = torch.tensor([[2.0, 1, 0], [2, 1, 0], [2, 1, 0]])
        found = output_measures(logits, torch.tensor([0, 0, 2]), small_tree(3))
        assert found.counts["mistake_severity"] == 1
        assert found.counts["hd_1"] == found.counts["accuracy"] == 3
        assert found.notes.keys() == {"hd_5", "hd_20"}

    def test_no_distance_no_ranking(self):
        found = output_measures(torch.eye(2), torch.tensor([0, 0]), torch.zeros(2, 2))
        assert found.values["hier_ndcg"] is None
        assert found.notes["hier_ndcg"] == "undefined: all classes are at distance 0"
        assert found.values["mistake_severity"] == 0

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (torch.zeros(2, 3), [0, 1], r"logits must have shape \(N, 4\), .* found \(2, 3\)"),
            (torch.zeros(4), [0], r"found \(4,\)"),
            (torch.full((1, 4), torch.nan), [0], r"logits must be numbers, found NaN"),
            (torch.zeros(1, 4), [4], r"labels must be in 0..3, found 4"),
            (torch.zeros(2, 4), [1], r"found 1 labels for 2"),
        ],
    )
    def test_faults(self, logits, labels, message):
        with pytest.raises(InputError, match=message):
            output_measures(logits, torch.tensor(labels), small_tree(4))

    def test_a_class_that_is_ruled_out_comes_last(self):
        logits = torch.tensor([[-torch.inf, 1.0, 0.0]])
        assert measured(logits, torch.tensor([1]), small_tree(3))["hd_1"] == 0


def test_the_least_expected_distance_prefers_a_neighbour_of_many_to_a_single_class():
    """Classes 0 and 1 are siblings, and 2 is far: their shares together outweigh that of 2."""
    distances = torch.tensor([[0.0, 1, 3], [1, 0, 3], [3, 3, 0]], dtype=torch.float64)
    shares = torch.tensor([[0.3, 0.28, 0.42], [0.05, 0.05, 0.9]], dtype=torch.float64)
    costs = least_cost(shares.log(), distances)
    assert shares.argmax(1).tolist() == [2, 2]
    assert costs.argmax(1).tolist() == [0, 2]
    torch.testing.assert_close(costs[0], -torch.tensor([1.54, 1.56, 1.74], dtype=torch.float64))
