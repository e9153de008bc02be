"""The public profile: a planted network is read off exactly, and any module is taken."""

import copy
import dataclasses
import functools
import math
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_geometry import TOTAL
from helpers_models import digits
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.exceptions import InputError, UnknownNameError
from robust_nc.profiling import Profile, profile
from robust_nc.profiling import split_rows as side
from robust_nc.profiling.conditions import TARGETS, Aim
from robust_nc.record import COLUMNS
from robust_nc.registry import METRICS
from robust_nc.threat import Ball

EPS, GAIN, EDGE = 0.1, 6.0, 0.6
SMALL = MeasureConfig(steps=4, targets=("cyclic",), radii=(0.25, 0.5), trajectories=8)
BARE = MeasureConfig(steps=2, targets=(), radii=(), trajectories=0, taps=("block4", "penultimate"))


class Planted(nn.Module):
    """Two pixels: the class at distance 0.6, and a trigger that only the second layer reads.

    The first layer moves an example by at most eps; the second by 7 eps along the edge.
    """

    def __init__(self) -> None:
        super().__init__()
        self.early = _linear(torch.eye(2))
        self.late = _linear(torch.tensor([[1.0, GAIN]]))
        self.out = _linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([3.5, -3.5]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(self.late(self.early(images.flatten(1))))
        return logits


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def planted_batches(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(count) % 2
    images = torch.full((count, 1, 1, 2), 0.5)
    images[:, 0, 0, 0] = 0.2 + EDGE * labels
    return [(images[:15], labels[:15]), (images[15:], labels[15:])]


def value(found: Profile, measure: str, **where: Any) -> float:
    rows = found.values(measure, **where)
    assert len(rows) == 1, f"{len(rows)} rows of {measure} for {where}"
    return float(rows["value"].iloc[0])


@pytest.fixture(scope="module")
def found() -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS._all(), TOTAL.name, "helpers_geometry:TOTAL")
        return profile(Planted(), planted_batches(), Ball("Linf", EPS), measure=SMALL)


@pytest.fixture(scope="module")
def model(digits_network: nn.Module) -> nn.Module:
    return digits_network


class TestThePlantedNetwork:
    def test_the_leap_is_found_at_its_layer_with_its_landing_fraction(self, found):
        assert found.taps == ("early", "late", "penultimate")
        here = {"condition": "attacked", "split": "train"}
        assert value(found, "leap_rate", tap="early", **here) == 0
        assert value(found, "leap_rate", tap="penultimate", **here) == 1
        wanted = (1 + GAIN) * EPS / EDGE
        landed = value(found, "landing_fraction", tap="penultimate", **here)
        assert landed == pytest.approx(wanted, rel=1e-5)
        assert value(found, "off_edge", tap="penultimate", **here) == pytest.approx(0, abs=1e-5)
        layers = found.values("leap_layer", **here).set_index("tap")["value"].to_dict()
        assert layers == {"early": 0, "late": 40, "penultimate": 0, "none": 0}

    def test_the_collapse_radius_is_where_the_examples_leap(self, found):
        """All leap between 0.025 and 0.05: the line between crosses 0.1 at a tenth of the way."""
        late = {"tap": "penultimate", "condition": "sweep"}
        assert value(found, "collapse_radius", **late) == pytest.approx(0.0275)
        low, high = (value(found, f"collapse_radius_{end}", **late) for end in ("low", "high"))
        assert low <= 0.0275 <= high
        early = found.values("collapse_radius", tap="early")
        assert math.isnan(early["value"].iloc[0])
        assert early["note"].iloc[0].startswith("> 0.05")
        rates = found.values("leap_rate", **late).set_index("eps")["value"].to_dict()
        assert rates == {0.0: 0.0, 0.025: 0.0, 0.05: 1.0}

    def test_every_class_leaps_and_noise_on_top_brings_some_back(self, found):
        here = {"tap": "penultimate", "condition": "attacked"}
        assert found.values("leap_rate_class", **here)["value"].tolist() == [1, 1]
        assert 0 <= value(found, "return_rate", **here) < 1

    def test_the_trajectory_runs_from_the_vertex_over_the_edge(self, found):
        way = found.values("trajectory_t", tap="penultimate").sort_values("i")["value"].tolist()
        assert way[0] == pytest.approx(0, abs=1e-6)
        assert way[-1] == pytest.approx((1 + GAIN) * EPS / EDGE, rel=1e-5)
        assert way == sorted(way)

    def test_attacked_means_change_places(self, found):
        here = {"condition": "attacked", "tap": "penultimate", "split": "train"}
        angles = found.values("alignment_angle_class", **here)["value"].tolist()
        assert angles == pytest.approx([180, 180])


class TestAnyModule:
    def batches(self, split: str, count: int) -> list[tuple[Tensor, Tensor]]:
        data = digits(split, count)
        return [(data.images[:30], data.labels[:30]), (data.images[30:], data.labels[30:])]

    def test_train_and_test_by_both_features(self, model):
        settings = dataclasses.replace(BARE, feature="both", taps=("block2", "block4"))
        batches = {"train": self.batches("train", 40), "test": self.batches("test", 35)}
        found = profile(model, batches, Ball("Linf", EPS), measure=settings)
        assert list(found.frame.columns) == list(COLUMNS)
        assert set(found.frame["split"]) == {"train", "test"}
        assert set(found.frame["feature"]) == {"gap", "flatten"}
        dims = {place: vertices.shape[1] for place, vertices in found.vertices.items()}
        assert dims == {
            ("gap", "block2"): 8,
            ("gap", "block4"): 16,
            ("flatten", "block2"): 8 * 16,
            ("flatten", "block4"): 16 * 4,
        }
        assert (found.frame["value"].map(math.isfinite) | (found.frame["note"] != "")).all()

    def test_memory_for_one_part_at_a_time_gives_the_same_rows(self, model, monkeypatch):
        run = functools.partial(
            profile,
            model,
            self.batches("train", 40),
            Ball("Linf", EPS),
            measure=dataclasses.replace(BARE, targets=("cyclic",), radii=(0.5,)),
        )
        whole = run().frame
        monkeypatch.setattr(side, "rounds", functools.partial(side.rounds, budget=0))
        keys = [name for name in COLUMNS if name not in {"value", "n", "note"}]
        one = run().frame.sort_values(keys, ignore_index=True)
        pd.testing.assert_frame_equal(one, whole.sort_values(keys, ignore_index=True))

    def test_a_foreign_network_and_its_last_layer(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
        model.train()
        before = copy.deepcopy(model.state_dict())
        found = profile(model, self.batches("train", 80), Ball("L2", 0.5), measure=SMALL)
        assert found.taps[-1] == "penultimate"
        nc3 = found.values("nc3", tap="penultimate", condition="clean", grouping="true")
        assert math.isfinite(nc3["value"].iloc[0])
        assert model.training
        assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())

    def test_severity_needs_distances_and_reads_them(self, model):
        settings = dataclasses.replace(BARE, targets=("hierarchy",))
        run = functools.partial(
            profile, model, self.batches("train", 80), Ball("Linf", EPS), measure=settings
        )
        with pytest.raises(InputError, match=r"profile\(distances=\)"):
            run()
        distances = 2.0 - 2.0 * torch.eye(10)
        found = run(distances=distances)
        for name in ("severity", "severity_null"):
            assert set(found.values(name)["value"].dropna()) == {2.0}
        noted = found.values("nc1", condition="hierarchy", grouping="true")["note"]
        assert noted.str.startswith("label_leak").all()

    def test_adaptive_attacks_and_gradient_products_are_rows(self, model):
        settings = dataclasses.replace(
            BARE, steps=3, adaptive="pgd", adaptive_examples=20, agop_examples=6
        )
        found = profile(
            model, self.batches("train", 80), Ball("Linf", EPS), measure=settings, initial=model
        )
        for tap in ("block4", "penultimate"):
            rates = [value(found, f"ncc_{kind}", tap=tap) for kind in ("adaptive", "transferred")]
            assert rates[0] <= rates[1] <= value(found, "ncc_clean", tap=tap)
        assert value(found, "agop_trace", condition="clean") > 0
        assert set(found.values("nfm_agop")["condition"]) == {"clean", "attacked"}
        rows = found.frame[found.frame["tap"].isin(found.taps)]
        assert rows.groupby("tap")["depth"].nunique().tolist() == [1, 1]


def test_a_registered_measure_with_a_function_becomes_a_row(found):
    rows = found.values(TOTAL.name, condition="clean", grouping="true")
    assert rows["tap"].tolist() == list(found.taps)
    assert rows["value"].tolist() == pytest.approx([(EDGE / 2) ** 2] * 3)
    attacked = found.values(TOTAL.name, condition="attacked", tap="penultimate")
    assert set(attacked["grouping"]) == {"true", "predicted", "landed"}


class TestTargets:
    aim = Aim(
        labels=torch.tensor([0, 1, 2]),
        features=torch.tensor([[0.0], [1.2], [10.0]]),
        vertices=torch.tensor([[0.0], [1.0], [10.0]]),
        distances=torch.tensor([[0.0, 1, 3], [1, 0, 3], [3, 3, 0]]),
        seed=0,
        ids=torch.arange(3),
    )

    @pytest.mark.parametrize(
        ("kind", "wanted"),
        [
            ("cyclic", [1, 2, 0]),
            ("nearest", [1, 0, 1]),
            ("farthest", [2, 2, 0]),
            ("hierarchy", [2, 2, 0]),
        ],
    )
    def test_a_target_is_what_its_name_says(self, kind: str, wanted: list[int]) -> None:
        assert TARGETS[kind](self.aim).tolist() == wanted

    def test_random_targets_are_all_other_classes_alike_and_keyed_by_id(self) -> None:
        count = 3_000
        many = self.aim._replace(
            labels=torch.zeros(count, dtype=torch.int64), ids=torch.arange(count)
        )
        found = TARGETS["random"](many)
        assert torch.equal(found, TARGETS["random"](many))
        shares = torch.bincount(found, minlength=3) / count
        assert shares[0] == 0
        assert abs(float(shares[1]) - 0.5) < 0.05

    def test_a_class_without_a_vertex_is_no_target(self) -> None:
        vertices = self.aim.vertices.clone()
        vertices[1] = torch.nan
        aim = self.aim._replace(vertices=vertices, labels=torch.tensor([0, 2, 2]))
        assert TARGETS["nearest"](aim).tolist() == [2, 0, 0]
        assert TARGETS["farthest"](aim).tolist() == [2, 0, 0]


class TestBadInput:
    ball = Ball("Linf", EPS)

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            ([], "hold no examples"),
            ({"test": planted_batches()}, "train and test"),
            ({"train": planted_batches(), "valid": planted_batches()}, "train and test"),
            ([torch.rand(2, 1, 1, 2)], "batch 0 of train must be a pair"),
            ([(torch.rand(2, 1, 1, 2) + 1, torch.tensor([0, 1]))], r"batch 0 .* \[0, 1\]"),
            ([(torch.rand(4, 1, 1, 2), torch.tensor([0, 1, 0, 7]))], "found 7"),
            ([(torch.rand(4, 1, 1, 2), torch.tensor([0, 0, 0, 1]))], "1 of 2 classes"),
        ],
    )
    def test_what_cannot_be_measured_is_said_in_one_sentence(self, batches, message):
        with pytest.raises(InputError, match=message):
            profile(Planted(), batches, self.ball, measure=SMALL)

    def test_an_unknown_tap_or_column(self, found):
        with pytest.raises(UnknownNameError, match="did you mean 'penultimate'"):
            profile(
                Planted(), planted_batches(), self.ball, measure=MeasureConfig(taps=("penultimat",))
            )
        with pytest.raises(InputError, match="no column 'layer'; valid: tap"):
            found.values("nc1", layer="early")
