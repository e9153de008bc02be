"""Label noise: rates within binomial bounds, draws that belong to examples, clear refusals."""

import math
from typing import Any

import pytest
import torch
from helpers_data import random_split
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import noise as oracle
from torch import Tensor

from robust_nc.config import Component, build
from robust_nc.data.alter import Altered, alter
from robust_nc.data.base import numbered
from robust_nc.data.imbalance import Step
from robust_nc.data.noise import LabelNoise, Pair, PerClass, Symmetric
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.registry import LABEL_NOISES

KINDS: list[tuple[str, dict[str, Any], LabelNoise]] = [
    ("symmetric", {"rate": 0.3}, Symmetric(0.3)),
    ("symmetric", {"rate": 0.3, "redraw": False}, Symmetric(0.3, redraw=False)),
    ("per_class", {"rates": [0.0, 0.1, 0.5, 1.0]}, PerClass((0.0, 0.1, 0.5, 1.0))),
    ("pair", {"rate": 0.3}, Pair(0.3)),
    ("pair", {"rate": 0.3, "pairs": [0, 2, 1, 1]}, Pair(0.3, (0, 2, 1, 1))),
]
NOISES = [noise for _, _, noise in KINDS]


def drawn(n: int, classes: int = 4) -> Tensor:
    """Unbalanced labels: class k about k + 1 times as often as class 0."""
    weights = torch.arange(1.0, classes + 1)
    return torch.multinomial(
        weights, n, replacement=True, generator=torch.Generator().manual_seed(n)
    )


def within_bounds(hits: int, n: int, rate: float) -> bool:
    """Five standard deviations of a binomial count, and a count at the ends."""
    return abs(hits - n * rate) <= 5 * math.sqrt(n * rate * (1 - rate)) + 1e-9


@pytest.mark.parametrize(("kind", "options", "noise"), KINDS)
def test_each_label_turns_into_each_other_as_often_as_stated(
    kind: str, options: dict[str, Any], noise: LabelNoise
) -> None:
    labels = drawn(20_000)
    found = noise(labels, 4, seed=3, ids=torch.arange(20_000))
    wanted = oracle.transition(kind, 4, **options)
    counts = labels.bincount(minlength=4).tolist()
    for own in range(4):
        for other in range(4):
            hits = int(((labels == own) & (found == other)).sum())
            assert within_bounds(hits, counts[own], wanted[own][other]), (own, other)
    wrong = sum(counts[k] * (1 - wanted[k][k]) for k in range(4)) / 20_000
    assert noise.effective_rate(labels, 4) == pytest.approx(wrong)
    assert within_bounds(int((found != labels).sum()), 20_000, wrong)


@pytest.mark.parametrize("redraw", [True, False])
@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_symmetric_noise_agrees_with_the_oracle(redraw: bool, classes: int) -> None:
    ids = torch.tensor([0, 1, 5, 49_999, 2**40, *range(100, 400)])
    labels = torch.arange(len(ids)) % classes
    found = Symmetric(0.6, redraw=redraw)(labels, classes, seed=11, ids=ids)
    wanted = []
    for label, identity in zip(labels.tolist(), ids.tolist(), strict=True):
        chance, which = oracle.draws(11, "label-noise", identity, 2)
        wanted.append(oracle.given_label(label, classes, chance, which, rate=0.6, redraw=redraw))
    assert found.tolist() == wanted


@pytest.mark.parametrize("noise", NOISES)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 59))
def test_the_noise_of_an_example_depends_on_its_id_alone(
    noise: LabelNoise, seed: int, cut: int
) -> None:
    ids, labels = torch.arange(60) * 7 + 3, drawn(60)
    whole = noise(labels, 4, seed=seed, ids=ids)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(noise(labels[order], 4, seed=seed, ids=ids[order]), whole[order])
    halves = [noise(labels[s], 4, seed=seed, ids=ids[s]) for s in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(halves), whole)


@pytest.mark.parametrize("noise", NOISES)
def test_another_seed_is_another_noise_and_the_labels_handed_in_stay(noise: LabelNoise) -> None:
    labels, ids = drawn(500), torch.arange(500)
    before = labels.clone()
    found = noise(labels, 4, seed=0, ids=ids)
    assert torch.equal(labels, before)
    assert not torch.equal(found, labels)
    assert not torch.equal(found, noise(labels, 4, seed=1, ids=ids))
    assert found.dtype == torch.int64


def test_the_ends_of_the_rate_are_exact() -> None:
    labels, ids = drawn(3_000), torch.arange(3_000)
    for noise in (Symmetric(0.0), PerClass((0.0,) * 4), Pair(0)):
        assert torch.equal(noise(labels, 4, seed=0, ids=ids), labels)
        assert noise.effective_rate(labels, 4) == 0
    assert bool((Symmetric(1.0, redraw=False)(labels, 4, seed=0, ids=ids) != labels).all())
    assert torch.equal(Pair(1)(labels, 4, seed=0, ids=ids), (labels + 1) % 4)
    assert Symmetric(1.0).effective_rate(labels, 4) == 0.75


def test_options_come_from_a_configuration() -> None:
    for kind, options, noise in KINDS:
        assert build(LABEL_NOISES, Component(name=kind, options=options)) == noise


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("symmetric", {"rate": 1.2}, r"rate is a probability in \[0, 1\], found 1.2"),
        ("symmetric", {"rate": -0.1}, "found -0.1"),
        ("symmetric", {}, "needs the option 'rate'"),
        ("symmetric", {"rate": 0.2, "redraw": 1}, "valid boolean"),
        ("per_class", {"rates": [0.1, 2.0]}, r"rates\[1\] is a probability in \[0, 1\], found 2.0"),
        ("pair", {"rate": 7.0}, "pair noise: rate is"),
        ("pair", {"rate": 0.1, "pairs": [1, 2]}, r"in 0\.\.1, .* found pairs\[1\] = 2"),
        ("pair", {"rate": 0.1, "pairs": [1, -1]}, r"pairs\[1\] = -1"),
        ("pair", {"rate": 0.1, "pairs": [0, 1]}, "every class itself"),
        ("asymmetric", {}, "unknown label noise 'asymmetric'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(LABEL_NOISES, Component(name=kind, options=options))


@pytest.mark.parametrize("rate", [float("nan"), "0.2", True, None])
def test_a_rate_that_is_no_number_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="probability"):
        Symmetric(rate)


@pytest.mark.parametrize("noise", [PerClass((0.1, 0.2, 0.3)), Pair(0.2, (1, 2, 0))])
def test_options_for_another_number_of_classes_are_refused(noise: LabelNoise) -> None:
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(ConfigError, match="has 3 entries for 4 classes"):
        noise(labels, 4, seed=0, ids=torch.arange(3))
    with pytest.raises(ConfigError, match="has 3 entries for 4 classes"):
        noise.effective_rate(labels, 4)


@pytest.mark.parametrize(
    ("labels", "ids", "classes", "message"),
    [
        ([0, 4], [0, 1], 4, r"labels must be in 0\.\.3, found 4"),
        ([0, 1], [0, 1, 2], 4, "found ids of shape"),
        ([], [], 4, "at least one label"),
        ([0, 0], [0, 1], 1, "at least two classes"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    labels: list[int], ids: list[int], classes: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Symmetric(0.3)(torch.tensor(labels), classes, seed=0, ids=torch.tensor(ids))


def altered(noise: Component | None, imbalance: Component | None = None, n: int = 200) -> Altered:
    split = random_split(n, classes=4)
    return alter(split, imbalance=imbalance, noise=noise, num_classes=4, seed=5)


def test_altered_data_keep_images_ids_and_original_labels() -> None:
    split = random_split(200, classes=4)
    noise = Component(name="symmetric", options={"rate": 0.4})
    found = altered(noise)
    assert torch.equal(found.split.images, split.images)
    assert torch.equal(found.split.ids, split.ids)
    assert torch.equal(found.original, split.labels)
    assert torch.equal(found.wrong, found.split.labels != split.labels)
    assert found.effective_rate == pytest.approx(0.3)
    assert within_bounds(int(found.wrong.sum()), 200, 0.3)
    some = torch.tensor([199, 3, 50, 7])
    assert torch.equal(found.wrong_among(some), found.wrong[some])


def test_without_noise_and_imbalance_nothing_is_altered() -> None:
    found = altered(None)
    assert torch.equal(found.split.labels, random_split(200, classes=4).labels)
    assert found.effective_rate is None
    assert not bool(found.wrong.any())


def test_classes_are_thinned_out_before_labels_are_made_wrong() -> None:
    """Noise first would let the tail be filled by wrong labels, and cut them away at random."""
    noise = Component(name="pair", options={"rate": 0.5, "pairs": [3, 1, 2, 3]})
    tail = Component(name="step", options={"factor": 10.0, "share": 0.25})
    found = altered(noise, tail)
    assert found.original.bincount().tolist() == [50, 50, 50, 5]
    assert found.split.labels.bincount().tolist()[3] > 15
    assert found.effective_rate == pytest.approx(0.5 * 50 / 155)
    assert torch.equal(found.wrong_among(found.split.ids.flip(0)), found.wrong.flip(0))
    thinned = Step(10.0, 0.25)(random_split(200, classes=4), 4, seed=5)
    assert torch.equal(found.split.ids, thinned.ids)
    alone = altered(noise).wrong_among(found.split.ids)
    assert torch.equal(found.wrong, alone), "noise must not depend on what was thinned out"


def test_a_class_that_loses_its_label_to_noise_is_refused() -> None:
    noise = Component(name="pair", options={"rate": 1.0, "pairs": [1, 1, 2, 3]})
    with pytest.raises(InputError, match="takes the label 0 from all 50 examples"):
        altered(noise)
    split = numbered(torch.zeros(8, 1, 1, 1), torch.arange(8) % 2)
    absent = Component(name="pair", options={"rate": 1.0})
    with pytest.raises(InputError, match="takes the label 0"):
        alter(split, imbalance=None, noise=absent, num_classes=4, seed=0)
