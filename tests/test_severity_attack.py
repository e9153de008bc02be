"""The attack that seeks the farthest mistake, on models where it is known what can be reached."""

import dataclasses
from typing import Any

import pytest
import torch
from helpers_attacks import BALLS, Counted, curved, pictures, predictions
from torch import Tensor, nn

from robust_nc.attacks.ensemble import geometry_attack
from robust_nc.attacks.severest import Severest
from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball

# Two groups of two: from class 0, class 1 is at distance 1 and classes 2 and 3 are at distance 2.
PAIRS = ((0.0, 1.0, 2.0, 2.0), (1.0, 0.0, 2.0, 2.0), (2.0, 2.0, 0.0, 1.0), (2.0, 2.0, 1.0, 0.0))
TREE = tuple(tuple(row) for row in read_hierarchy("cifar10").distances().tolist())
DISTANCES = torch.tensor(TREE)
SHAPE, CLASSES, STEPS = (1, 8, 8), 10, 6
IMAGES, IDS = pictures(24, SHAPE), torch.arange(24)
EPS = 0.25
IMAGE, ZERO, ID = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), torch.tensor([7])


class Slopes(nn.Module):
    """Class 0 has logit 1 everywhere; class k has its slope times what pixel k is above 1/2."""

    def __init__(self, *slopes: float) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.0, *slopes]))

    def forward(self, images: Tensor) -> Tensor:
        return self.slopes * (images.flatten(1) - 0.5) + torch.eye(4)[0]


def reached(slopes: tuple[float, ...], attack: Any, **options: Any) -> tuple[int, Tensor]:
    model = Slopes(*slopes)
    points = attack(model, IMAGE, ZERO, Ball("Linf", EPS), seed=3, ids=ID, **options)
    return int(predictions(model, points)), points


def severities(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    return DISTANCES[labels, predictions(model, points)]


class TestPlanted:
    """Within 0.25, the logit of class k reaches a quarter of its slope; it must pass 1."""

    slopes = (80.0, 2.0, 20.0)  # class 1 is easiest, class 2 is out of reach, class 3 is not

    def test_it_finds_the_farthest_class_that_can_be_reached(self):
        geometry = geometry_attack(steps=STEPS)
        end = {"goal": "maximise"}
        assert reached(self.slopes, geometry, **end)[0] == 1
        lowest_farthest = torch.tensor([2])
        assert reached(self.slopes, geometry, targets=lowest_farthest, **end)[0] == 0
        assert reached(self.slopes, Severest(distances=PAIRS, steps=STEPS))[0] == 3

    def test_a_nearer_class_where_the_farthest_are_out_of_reach(self):
        attack = Severest(distances=PAIRS, steps=STEPS)
        assert reached((80.0, 2.0, 3.0), attack)[0] == 1
        assert reached(self.slopes, dataclasses.replace(attack, targets=1))[0] == 1

    def test_it_leaves_with_the_likelier_of_two_that_are_as_far(self):
        slopes = (80.0, 20.0, 30.0)  # equal logits on the image: the lower class is tried first
        found, points = reached(slopes, Severest(distances=PAIRS, steps=STEPS))
        assert found == 2
        assert torch.equal(points, reached_at(2, slopes))

    def test_of_two_that_are_as_far_the_likelier_is_tried_first(self):
        image = IMAGE.clone()
        image[0, 0, 1, 1] = 0.51  # raises class 3, which alone can be reached
        attack = Severest(distances=PAIRS, steps=STEPS, targets=1)
        model, ball = Slopes(*self.slopes), Ball("Linf", EPS)
        points = attack(model, image, ZERO, ball, seed=3, ids=ID)
        assert int(predictions(model, points)) == 3

    def test_where_nothing_is_reached_it_has_come_closest_to_a_farthest_class(self):
        slopes = (3.9, 2.0, 3.0)
        found, points = reached(slopes, Severest(distances=PAIRS, steps=STEPS))
        assert found == 0
        assert torch.equal(points, reached_at(3, slopes))


def reached_at(target: int, slopes: tuple[float, ...]) -> Tensor:
    options = {"goal": "maximise", "targets": torch.tensor([target])}
    return reached(slopes, geometry_attack(steps=STEPS), **options)[1]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return curved(SHAPE, CLASSES, seed=2)  # it predicts several classes


@pytest.fixture(scope="module")
def labels(model: nn.Module) -> Tensor:
    return predictions(model, IMAGES)


class TestCurved:
    """A random network of ten classes in the tree of CIFAR-10."""

    attack = Severest(distances=TREE, steps=STEPS)

    def run(
        self, attack: Any, model: nn.Module, labels: Tensor, ball: Ball, **options: Any
    ) -> Tensor:
        points = attack(model, IMAGES, labels, ball, goal="maximise", seed=0, ids=IDS, **options)
        assert ball.contains(points, IMAGES).all()
        return points

    @pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
    def test_mistakes_are_worse_than_those_of_other_attacks(self, model, labels, ball):
        wide = Ball(ball.norm, 6 * ball.eps)
        geometry = geometry_attack(steps=STEPS)
        farthest = DISTANCES.argmax(1)[labels]
        severest = severities(model, self.run(self.attack, model, labels, wide), labels)
        for options in ({}, {"targets": farthest}):
            other = severities(model, self.run(geometry, model, labels, wide, **options), labels)
            assert (severest >= other).all()
            assert severest.mean() > other.mean()

    def test_more_targets_are_never_less_severe(self, model, labels):
        ball = Ball("L2", 1.8)
        means = []
        for count in (1, 2, 9):
            attack = dataclasses.replace(self.attack, targets=count)
            means.append(
                float(severities(model, self.run(attack, model, labels, ball), labels).mean())
            )
        assert means == sorted(means)
        assert means[0] < means[-1]

    def test_an_example_depends_on_itself_alone(self, model, labels):
        ball = Ball("L2", 0.3)
        whole = self.run(self.attack, model, labels, ball)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
        pieces = torch.cat(
            [
                self.attack(model, IMAGES[rows], labels[rows], ball, seed=0, ids=IDS[rows])
                for rows in order.split(7)
            ]
        )
        torch.testing.assert_close(pieces[order.argsort()], whole, rtol=0, atol=1e-4)
        other = self.attack(model, IMAGES, labels, ball, seed=1, ids=IDS)
        assert not torch.allclose(other, whole, atol=1e-4)

    def test_passes_are_counted_per_example(self, model, labels):
        counted = Counted(model)
        found = self.attack.run(counted, IMAGES, labels, Ball("L2", 0.3), seed=0, ids=IDS)
        assert int(found.forwards.sum()) == counted.forwards
        assert int(found.backwards.sum()) == counted.backwards
        attempts = (found.forwards - 1) / (2 * STEPS + 5)
        assert torch.equal(attempts, attempts.round())
        assert torch.equal(found.backwards, (2 * STEPS * attempts).long())
        assert 1 <= attempts.min() < attempts.max() <= 3 * 3


class TestFaults:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"targets": 0}, r"targets must be at least 1, found 0"),
            ({"distances": ((0.0, 1.0),)}, r"distances must be a square matrix"),
            ({"distances": ((0.0,),)}, r"distances must be a square matrix"),
            ({"steps": 0}, r"steps must be at least 1"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(InputError, match=message):
            Severest(**{"distances": PAIRS} | options)

    def test_a_model_of_other_classes(self):
        attack = Severest(distances=TREE, steps=2)
        with pytest.raises(InputError, match=r"model has 4 classes and the distances 10"):
            reached((1.0, 1.0, 1.0), attack)

    def test_targets_that_are_no_classes(self):
        with pytest.raises(InputError, match=r"must lie in 0..3"):
            reached((1.0, 1.0, 1.0), Severest(distances=PAIRS), targets=torch.tensor([4]))

    def test_a_target_that_is_the_label_is_no_target_and_no_example_has_none(self, model, labels):
        found = reached((80.0, 1.0, 1.0), Severest(distances=PAIRS), targets=torch.tensor([0]))
        assert torch.equal(found[1], IMAGE)
        nothing = Severest(distances=TREE)(
            model, IMAGES[:0], labels[:0], BALLS[0], seed=0, ids=IDS[:0]
        )
        assert nothing.shape == (0, *SHAPE)
