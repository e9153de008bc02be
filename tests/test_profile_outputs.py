"""Rows of what the network answers, by hand; and the condition of the severest mistakes."""

from typing import Any

import pandas as pd
import pytest
import torch
from helpers_models import digits
from torch import Tensor

from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split
from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.geometry.severity import output_measures
from robust_nc.models.classifier import Classifier
from robust_nc.profiling import Profile, profile
from robust_nc.profiling.conditions import attack_examples
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.profiling.rows import output_rows
from robust_nc.threat import Ball

DISTANCES = read_hierarchy("digits").distances()
BALL = Ball("Linf", 0.1)
RANKED = ("mistake_severity", "hd_1", "hd_5", "hd_20", "hier_ndcg")
CONDITIONS = ("clean", "attacked", "gaussian", "sign", "hierarchy", "severest")
SETTINGS = MeasureConfig(
    taps=("penultimate",), steps=5, targets=("hierarchy", "severest"), radii=(), trajectories=0
)
TEST = 80


def batches(split: Split) -> list[tuple[Tensor, Tensor]]:
    return [(split.images, split.labels)]


def outputs(found: Profile, condition: str, split: str = "test") -> pd.DataFrame:
    rows = found.frame
    rows = rows[(rows["tap"] == "output") & (rows["split"] == split)]
    return rows[rows["condition"] == condition].set_index("measure")


@pytest.fixture(scope="module")
def model(digits_network: Classifier) -> Classifier:
    return digits_network


@pytest.fixture(scope="module")
def test() -> Split:
    return digits("test", TEST)


@pytest.fixture(scope="module")
def found(model: Classifier, test: Split) -> Profile:
    sets = {"train": batches(digits("train", 120)), "test": batches(test)}
    return profile(model, sets, BALL, measure=SETTINGS, distances=DISTANCES)


def by_hand(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    return output_measures(logits, labels, DISTANCES).values


class TestRows:
    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_every_condition_has_them_once(self, found, condition):
        rows = outputs(found, condition)
        induced = set() if condition == "clean" else {"induced_severity"}
        assert rows.index.is_unique
        assert set(rows.index) == {"accuracy", *RANKED} | induced
        assert rows.loc["hd_1", "n"] == TEST
        mistakes = round((1 - rows.loc["accuracy", "value"]) * TEST)
        assert rows.loc["mistake_severity", "n"] == mistakes
        assert rows.loc["hd_20", "note"] == "undefined: fewer than 20 classes"
        assert pd.isna(rows.loc["hd_20", "value"])
        assert (rows["depth"] == -1).all()

    @pytest.mark.parametrize("condition", ["clean", "attacked", "severest"])
    def test_values_by_hand(self, model, test, found, condition):
        images = test.images
        if condition != "clean":
            examples = Examples("test", test.images, test.labels, torch.arange(TEST))
            how = Measurement.of(model, SETTINGS, BALL, num_classes=10, scale=found.logit_scale)
            images = attack_examples(
                model,
                how,
                examples,
                report=lambda share: None,
                distances=DISTANCES if condition == "severest" else None,
            )
        with torch.no_grad():
            clean, logits = model(test.images), model(images)
        rows, wanted = outputs(found, condition), by_hand(logits, test.labels)
        for name in {*wanted} - {"hd_20"}:
            assert rows.loc[name, "value"] == pytest.approx(wanted[name], rel=1e-6)
        assert wanted["hd_1"] == pytest.approx(
            (1 - wanted["accuracy"]) * wanted["mistake_severity"]
        )
        if condition != "clean":
            made = (clean.argmax(1) == test.labels) & (logits.argmax(1) != test.labels)
            severity = DISTANCES[test.labels, logits.argmax(1)][made].mean()
            assert rows.loc["induced_severity", "value"] == pytest.approx(float(severity))
            assert rows.loc["induced_severity", "n"] == int(made.sum())

    def test_the_row_says_how_it_was_attacked(self, found):
        rows = found.values("leap_rate", condition="severest", split="test")
        assert rows["attack"].str.startswith("severest targets, pgd ce/").all()
        assert "target" not in set(found.frame[found.frame["condition"] == "severest"]["grouping"])
        assert not found.values("severity", condition="severest").empty

    def test_without_distances_there_is_accuracy_alone(self):
        labels = torch.tensor([0, 1, 1])
        rows = output_rows(torch.eye(3), labels, None, clean=torch.eye(3))
        assert rows == [{"tap": "output", "measure": "accuracy", "value": 2 / 3, "n": 3}]

    def test_nothing_induced_is_none_with_the_reason(self):
        labels = torch.tensor([0, 1, 1])
        *_, row = output_rows(torch.eye(3), labels, 1 - torch.eye(3), clean=torch.eye(3))
        assert (row["measure"], row["value"], row["n"]) == ("induced_severity", None, 0)
        assert row["note"].startswith("undefined: no example that is right")
