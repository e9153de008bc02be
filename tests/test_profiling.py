"""The rows of one model: complete, stated, and the same however they are computed."""

import copy
import itertools
import math
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_models import digits, small_config
from torch import Tensor

from robust_nc.config import MeasureConfig, RunConfig, plain, read
from robust_nc.data.base import Split
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import measure_collapse
from robust_nc.geometry.leaps import measure_leaps
from robust_nc.models.classifier import Classifier
from robust_nc.profiling.conditions import NOISES, attack_examples, noisy_images
from robust_nc.profiling.leap_rows import LANDING_BINS
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.profiling.profile_model import profile_cell, sweep_rows
from robust_nc.record import COLUMNS, tidy
from robust_nc.registry import CONTROLS
from robust_nc.runtime import stream_key
from robust_nc.runtime.progress import no_report
from robust_nc.threat import Ball

TRAIN, TEST = 80, 40
CONDITIONS = ("clean", "attacked", *NOISES, "cyclic")


def measured(**options: Any) -> RunConfig:
    values = plain(small_config(epochs=4, examples=250, train={"lr": 0.2}))
    values["measure"] |= {"train_examples": TRAIN, "test_examples": TEST, "steps": 4}
    values["measure"] |= {"targets": ["cyclic"], "radii": [0.5, 1.0], "trajectories": 8} | options
    values["evaluation"] |= {"sweep": [0.0, 0.1], "sweep_examples": 30, "sweep_protocol": "fgsm"}
    return read(RunConfig, values)


def rows_of(
    model: Classifier, config: RunConfig, train: Split | None = None, test: Split | None = None
) -> pd.DataFrame:
    return profile_cell(
        model,
        train or digits("train", TRAIN),
        test or digits("test", TEST),
        config,
        report=no_report,
    )


@pytest.fixture(scope="module")
def model(digits_network: Classifier) -> Classifier:
    return digits_network


@pytest.fixture(scope="module")
def rows(model: Classifier) -> pd.DataFrame:
    return rows_of(model, measured())


def chosen(rows: pd.DataFrame, **where: object) -> pd.DataFrame:
    keep = pd.Series(True, index=rows.index)
    for column, value in where.items():
        keep &= rows[column] == value
    return rows[keep]


def value(rows: pd.DataFrame, **where: object) -> float:
    found = chosen(rows, **where)
    assert len(found) == 1, f"{len(found)} rows for {where}"
    return float(found["value"].iloc[0])


class TestTheGridIsWhole:
    def test_every_tap_condition_split_and_grouping_is_there(self, model, rows):
        assert list(rows.columns) == list(COLUMNS)
        for tap, condition, split in itertools.product(model.taps, CONDITIONS, ("train", "test")):
            here = chosen(rows, tap=tap, condition=condition, split=split)
            groupings = {"true", "predicted"}
            groupings |= set() if condition == "clean" else {"landed", "none"}
            groupings |= {"target"} if condition == "cyclic" else set()
            assert set(here["grouping"]) == groupings
            for grouping in groupings - {"none"}:
                value(here, grouping=grouping, vertices="same", measure="nc1")
            for name in ("ncc", "nc4", "nc1_cleanref"):
                value(here, vertices="clean-train", measure=name)
            assert set(here["depth"]) == {model.taps.index(tap)}

    def test_no_row_stands_twice_and_values_are_finite_or_say_why_not(self, rows):
        keys = [name for name in COLUMNS if name not in {"value", "n", "note", "attack"}]
        assert not rows.duplicated(keys).any()
        assert (rows["value"].map(math.isfinite) | (rows["note"] != "")).all()
        assert set(rows["n"]) <= {TRAIN, TEST} | set(range(TRAIN))
        assert (rows["feature"] == "gap").all()
        of_the_head = rows["measure"].isin(["nc3", "nc2_angle_head"]) & rows["value"].notna()
        assert set(rows[of_the_head]["tap"]) == {"penultimate"}
        assert (rows["epoch"] == -1).all()

    def test_what_was_done_is_stated(self, rows):
        assert (chosen(rows, condition="clean")["eps"] == 0).all()
        assert (chosen(rows, condition="clean")["attack"] == "").all()
        for condition in ("attacked", *NOISES, "cyclic"):
            here = chosen(rows, condition=condition)
            assert (here["eps"] == 0.1).all()
            assert condition == "attacked" or here["attack"].str.startswith(condition).all()
            paths = here["measure"].str.startswith(("trajectory", "vertex"))
            assert here[paths]["attack"].str.endswith("from the image, 4 steps").all()
            assert here[~paths]["attack"].str.contains("4 steps, 1 restarts").all()
        assert set(chosen(rows, condition="sweep")["eps"]) == {0, 0.05, 0.1}


class TestCounts:
    def test_leap_matrices_hold_every_example_and_give_the_rate(self, model, rows):
        for tap, condition in itertools.product(model.taps, ("attacked", *NOISES)):
            here = chosen(rows, tap=tap, condition=condition, split="train")
            matrix = chosen(here, measure="leap_matrix")
            assert len(matrix) == 100
            assert matrix["value"].sum() == TRAIN
            stayed = matrix.loc[matrix["i"] == matrix["j"], "value"].sum()
            rate = value(here, measure="leap_rate")
            assert rate == pytest.approx(1 - stayed / TRAIN)

    def test_landing_histograms_and_leap_layers_count_each_example_once(self, model, rows):
        for _, part in chosen(rows, measure="landing_histogram").groupby(
            ["tap", "condition", "split"]
        ):
            assert sorted(part["i"]) == list(range(LANDING_BINS))
            assert part["value"].sum() == part["n"].iloc[0] <= TRAIN
        for _, part in chosen(rows, measure="leap_layer").groupby(["condition", "split"]):
            assert sorted(part["tap"]) == sorted([*model.taps, "none"])
            assert part["value"].sum() == part["n"].iloc[0] <= TRAIN
            assert chosen(part, tap="none")["depth"].tolist() == [-1]

    def test_accuracy_is_that_of_the_network(self, model, rows):
        test = digits("test", TEST)
        right = (model(test.images).argmax(1) == test.labels).double().mean()
        found = value(rows, measure="accuracy", condition="clean", split="test", tap="output")
        assert found == pytest.approx(float(right))
        attacked = value(rows, measure="accuracy", condition="attacked", split="test")
        assert attacked < found


class TestAgainstMeasuresByHand:
    def test_clean_collapse_is_that_of_measure_collapse(self, model, rows):
        train = digits("train", TRAIN)
        with torch.no_grad():
            read_out = model.tapped(train.images)
        for tap in model.taps:
            head = model.head if tap == "penultimate" else None
            by_hand = measure_collapse(
                read_out.features[tap],
                train.labels,
                num_classes=10,
                weight=None if head is None else head.vertices().detach(),
            )
            here = chosen(
                rows, tap=tap, condition="clean", split="train", grouping="true", vertices="same"
            )
            for name, wanted in by_hand.measures().items():
                if name in {"ncc", "nc4"}:
                    continue
                found = value(here, measure=name)
                if wanted is None:
                    assert math.isnan(found), name
                else:
                    assert found == pytest.approx(wanted, rel=1e-6), name
            assert value(
                rows, tap=tap, condition="clean", split="train", measure="ncc"
            ) == pytest.approx(by_hand.ncc)

    def test_attacked_leaps_are_those_of_measure_leaps(self, model, rows):
        train, points = digits("train", TRAIN), attacked_points(model)["attacked"]
        with torch.no_grad():
            clean, there = model.tapped(train.images), model.tapped(points)
        for tap in model.taps:
            features = clean.features[tap].double()
            vertices = torch.stack([features[train.labels == k].mean(0) for k in range(10)])
            by_hand = measure_leaps(
                features,
                there.features[tap].double(),
                train.labels,
                vertices,
                destinations=there.logits.argmax(1),
            )
            here = chosen(rows, tap=tap, condition="attacked", split="train", grouping="none")
            for name in ("leap_rate", "landing_fraction", "off_edge", "displacement", "landed"):
                wanted = getattr(by_hand, name)
                assert value(here, measure=name) == pytest.approx(wanted, rel=1e-5), name


def attacked_points(model: Classifier) -> dict[str, Tensor]:
    """The untargeted attack and the noise of the train split, made again."""
    train, ball = digits("train", TRAIN), Ball("Linf", 0.1)
    scale = CONTROLS.load("logit_scale")(model, train.images)
    settings = MeasureConfig(steps=4)
    how = Measurement.of(model, settings, ball, num_classes=10, scale=scale)
    examples = Examples("train", *train)
    attacked = attack_examples(model, how, examples, report=lambda share: None)
    key = stream_key(0, "geometry", "train")
    noise = {
        kind: noisy_images(how, examples, train.images, attacked, kind, key, torch.device("cpu"))
        for kind in NOISES
    }
    return {"attacked": attacked, **noise}


class TestConditions:
    def test_attacked_points_are_in_the_ball_and_noise_is_of_their_size(self, model):
        origin, ball = digits("train", TRAIN).images, Ball("Linf", 0.1)
        made = attacked_points(model)
        assert ball.contains(made["attacked"], origin).all()
        assert not torch.equal(made["attacked"], origin)
        for kind, norm in NOISES.items():
            noise = made[kind]
            assert (noise >= 0).all()
            assert (noise <= 1).all()
            size = Ball(norm, 0.1).distance(made["attacked"], origin)
            assert torch.allclose(Ball(norm, 0.1).distance(noise, origin), size, rtol=2e-3)

    def test_the_model_is_left_as_it_was(self, model):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        flags = [module.training for module in model.modules()]
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        model.zero_grad(set_to_none=True)
        model.train()
        rows_of(model, measured(taps=["penultimate"]))
        assert model.training
        model.eval()
        assert flags == [module.training for module in model.modules()]
        assert wanted == [parameter.requires_grad for parameter in model.parameters()]
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_head_times_a_number_changes_nothing(model, rows):
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.head.weight.mul_(100.0)
        scaled.head.bias.mul_(100.0)
    found = rows_of(scaled, measured(taps=["penultimate"]))
    for split, condition in itertools.product(("train", "test"), ("attacked", *NOISES)):
        here = {"tap": "penultimate", "split": split, "condition": condition}
        true = here | {"grouping": "true", "vertices": "same", "measure": "nc1"}
        landed = true | {"grouping": "landed"}
        for where in (true, landed, here | {"measure": "leap_rate"}):
            assert value(found, **where) == pytest.approx(value(rows, **where), rel=0.01)


def test_taps_may_be_chosen_and_keep_their_depth(model, rows):
    wanted = ["penultimate", model.taps[1]]
    some = rows_of(model, measured(taps=wanted))
    assert set(some["tap"]) == {*wanted, "output", "none"}
    for tap in wanted:
        columns = ["condition", "split", "grouping", "vertices", "measure", "i", "j"]
        whole = chosen(rows, tap=tap)
        whole = whole[whole["measure"] != "leap_layer"]  # counted over the chosen taps
        part = chosen(some, tap=tap)
        part = part[part["measure"] != "leap_layer"]
        pd.testing.assert_frame_equal(
            part.sort_values(columns, ignore_index=True),
            whole.sort_values(columns, ignore_index=True),
        )


class TestDegenerateData:
    """Undefined measures say why, and nothing breaks on the way."""

    def test_features_that_coincide(self, model):
        flat = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in flat.backbone.parameters():
                parameter.zero_()
        found = rows_of(flat, measured(taps=["penultimate"]))
        assert (found["value"].map(math.isfinite) | (found["note"] != "")).all()
        where = {"condition": "clean", "split": "train", "grouping": "true"}
        assert math.isnan(value(found, measure="nc1", **where))

    @pytest.mark.parametrize(
        ("each", "classes", "found"), [(1, 10, 0), (5, 1, 1)], ids=["single examples", "one class"]
    )
    def test_fewer_than_two_vertices_are_refused(self, model, each, classes, found):
        train = digits("train", 150)
        chosen = [(train.labels == k).nonzero()[:each, 0] for k in range(classes)]
        with pytest.raises(InputError, match=f"{found} of 10 classes have two .*train_limit"):
            rows_of(model, measured(), train.at(torch.cat(chosen)))


def test_accuracy_against_eps_is_that_of_the_protocol(model):
    test = digits("test", TEST)
    rows = tidy(sweep_rows(model, test, measured()))
    assert rows["eps"].tolist() == [0.0, 0.1]
    assert (rows["n"] == 30).all()
    assert (rows["attack"] == "fgsm").all()
    for eps, found in zip(rows["eps"], rows["value"], strict=True):
        outcome = evaluate(
            model, test.images[:30], test.labels[:30], Ball("Linf", eps), protocol="fgsm"
        )
        assert found == outcome.robust_accuracy
