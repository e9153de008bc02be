"""Memorization between epochs, without a trace, and whether memorised examples leap."""

import copy

import pytest
import torch
from helpers_models import digits, same_weights, small_model
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split
from robust_nc.data.noise import Symmetric
from robust_nc.exceptions import InputError
from robust_nc.geometry.dilation import MEASURES, measure_memorization
from robust_nc.geometry.leaps import measure_leaps
from robust_nc.models.classifier import Classifier
from robust_nc.profiling.conditions import attack_examples
from robust_nc.profiling.leap_rows import leap_rows
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.runtime import untouched
from robust_nc.threat import Ball
from robust_nc.training.validation import MemorizationProbe

NAMES = {*MEASURES, "memorised", "dilation"}


def mislabelled(rate: float = 0.3, limit: int = 300) -> tuple[Split, Tensor]:
    clean = digits(limit=limit)
    noise = Symmetric(rate, redraw=False)
    given = noise(clean.labels, 10, seed=0, ids=clean.ids)
    return clean._replace(labels=given), clean.labels


def read(model: Classifier, split: Split) -> tuple[Tensor, Tensor]:
    with untouched(model), torch.no_grad():
        seen = model.tapped(split.images, taps=("penultimate",))
    return seen.features["penultimate"], seen.logits.argmax(1)


def test_the_probe_measures_the_penultimate_features() -> None:
    train, original = mislabelled(limit=700)
    model, test = small_model(), digits("test", 120)
    found = MemorizationProbe(train, original, test, device="cpu")(model)
    features, predicted = read(model, train)
    wanted = measure_memorization(features, train.labels, original, num_classes=10).measures()
    assert set(found) == NAMES
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value), name
    wrong = train.labels != original
    assert found["memorised"] == float((predicted == train.labels)[wrong].double().mean())
    h, y = read(model, test)[0].double(), test.labels
    means = torch.stack([h[y == k].mean(0) for k in range(10)])
    within = (h - means[y]).square().sum(1).mean()
    between = (means - h.mean(0)).square().sum(1).mean()
    assert found["dilation"] == pytest.approx(float(within / between))


def test_ids_of_the_data_do_not_matter_to_the_probe() -> None:
    """Held-out and thinned-out examples leave gaps in the ids: places count, not ids."""
    train, original = mislabelled()
    model, test = small_model(), digits("test", 60)
    found = MemorizationProbe(train, original, test, device="cpu")(model)
    moved = train._replace(ids=train.ids * 5 + 1000)
    assert MemorizationProbe(moved, original, test, device="cpu")(model) == found


def test_the_probe_leaves_no_trace() -> None:
    train, original = mislabelled()
    model = small_model().train()
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    MemorizationProbe(train, original, digits("test", 60), device="cpu")(model)
    assert same_weights(model, before)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_undefined_has_no_value() -> None:
    model, test = small_model(), digits("test", 60)
    clean = digits()
    found = MemorizationProbe(clean, clean.labels, test, device="cpu")(model)
    assert [name for name, value in found.items() if value is not None] == ["dilation"]
    train, original = mislabelled(rate=1.0)
    found = MemorizationProbe(train, original, test, device="cpu")(model)
    assert {name for name, value in found.items() if value is not None} == {"dilation", "memorised"}
    nn.init.constant_(next(model.backbone.parameters()), torch.nan)
    found = MemorizationProbe(*mislabelled(), test, device="cpu")(model)
    assert found == dict.fromkeys(NAMES)


def test_labels_of_other_examples_are_refused() -> None:
    train, original = mislabelled()
    with pytest.raises(InputError, match="found 299 original labels for 300"):
        MemorizationProbe(train, original[1:], digits("test"), device="cpu")
    other = MemorizationProbe(train, original + 1, digits("test"), device="cpu")
    with pytest.raises(InputError, match=r"in 0\.\.9, found 10"):
        other(small_model())


def some_leaps() -> tuple[object, ...]:
    """Six examples of two classes, of which the first, second and last leap."""
    vertices = torch.tensor([[0.0, 0], [4, 0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    ends = torch.tensor([1, 1, 0, 1, 1, 0])
    return measure_leaps(vertices[labels], vertices[ends], labels, vertices), (None, None)


def rates(wrong: Tensor | None, predicted: Tensor | None = None) -> dict[str, tuple[object, ...]]:
    leaps, collapse = some_leaps()
    given = None if wrong is None else torch.where(wrong, 1 - leaps.labels, leaps.labels)
    predicted = leaps.labels if predicted is None else predicted
    rows = leap_rows(leaps, collapse, given=given, predicted=predicted)
    return {
        row["measure"]: (row["value"], row["n"], row["note"], row["vertices"])
        for row in rows
        if row["measure"] in ("leap_rate_wrong", "leap_rate_right", "leap_rate_memorised")
    }


def test_leaps_are_told_apart_by_whether_the_label_was_wrong() -> None:
    wrong = torch.tensor([True, False, True, False, False, True])
    found = rates(wrong, torch.tensor([1, 1, 1, 1, 1, 1]))
    assert found == {
        "leap_rate_wrong": (2 / 3, 3, "", "clean-train"),
        "leap_rate_right": (1 / 3, 3, "", "clean-train"),
        "leap_rate_memorised": (0.5, 2, "", "clean-train"),
    }
    assert rates(None) == {}
    none = rates(torch.zeros(6, dtype=torch.bool))
    assert none["leap_rate_wrong"][:2] == (None, 0)
    assert "no example was given a wrong label" in none["leap_rate_wrong"][2]
    assert none["leap_rate_right"][0] == 0.5
    assert none["leap_rate_memorised"][:2] == (None, 0)
    assert "no wrong label is what the network says" in none["leap_rate_memorised"][2]
    every = rates(torch.ones(6, dtype=torch.bool))
    assert every["leap_rate_right"][:2] == (None, 0)
    assert "every example" in every["leap_rate_right"][2]


def test_attacks_on_train_aim_away_from_the_labels_that_training_saw() -> None:
    """A network that has fitted a wrong label is not moved by an attack on the right one."""
    labels = torch.tensor([0, 1, 2])
    right = Examples("train", torch.rand(3, 1, 8, 8), labels, labels)
    model, ball = small_model().eval(), Ball("Linf", 0.1)
    how = Measurement.of(model, MeasureConfig(steps=2), ball, num_classes=10, scale=1.0)
    wrong = labels.flip(0)
    noisy, given, plain = (
        attack_examples(model, how, some, report=lambda share: None)
        for some in (right._replace(given=wrong), right._replace(labels=wrong), right)
    )
    assert torch.equal(noisy, given)
    assert not torch.equal(noisy[0], plain[0])
