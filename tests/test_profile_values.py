"""Rows of a profile against what features and outputs give by hand, on the test split."""

import math
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from helpers_models import digits
from scipy import stats
from torch import Tensor

from robust_nc.attacks.noise import matched_noise
from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split
from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.geometry.alignment import measure_alignment
from robust_nc.geometry.severity import output_measures
from robust_nc.models.classifier import Classifier
from robust_nc.profiling import Profile, profile
from robust_nc.profiling.conditions import attack_examples
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.profiling.rows import output_rows
from robust_nc.runtime import stream_key, untouched
from robust_nc.statistics.intervals import wilson
from robust_nc.threat import Ball

EPS, LEVEL, CLASSES = 0.1, 0.1, 10
BALL = Ball("Linf", EPS)
TAPS = ("block1", "penultimate")
WHOLE = MeasureConfig(
    taps=TAPS, steps=3, targets=("cyclic", "severest"), radii=(0.5, 1.0), trajectories=0
)
BARE = MeasureConfig(taps=TAPS, steps=2, targets=(), radii=(), trajectories=0)
DISTANCES = read_hierarchy("digits").distances()
RANKED = ("mistake_severity", "hd_1", "hd_5", "hd_20", "hier_ndcg")
TEST = 80

ATTACKED = {"condition": "attacked", "split": "test"}

by_tap = pytest.mark.parametrize("tap", TAPS)


class Hand(NamedTuple):
    """Features `(N, D)` float64 by tap, and logits `(N, K)`, of the test images; labels `(N,)`."""

    clean: dict[str, Tensor]
    attacked: dict[str, Tensor]
    noisy: dict[str, Tensor]
    before: Tensor
    after: Tensor
    labels: Tensor


def by_hand(model: Classifier, test: Split, found: Profile, steps: int) -> Hand:
    """Attack the test images, and put noise of the attack's size on top."""
    images, ids, key = (
        test.images,
        torch.arange(len(test.images)),
        stream_key(0, "geometry", "test"),
    )
    how = Measurement.of(
        model, MeasureConfig(steps=steps), BALL, num_classes=CLASSES, scale=found.logit_scale
    )
    examples = Examples("test", images, test.labels, ids)
    draws: dict[str, Any] = {"seed": key, "ids": ids}
    with untouched(model):
        attacked = attack_examples(model, how, examples, report=lambda share: None)
        draws["seed"] = stream_key(key, "return")
        noisy = matched_noise(attacked, attacked + (attacked - images), **draws)
        with torch.no_grad():
            read = [model.tapped(points, taps=TAPS) for points in (images, attacked, noisy)]
    features = [{tap: each.features[tap].double() for tap in TAPS} for each in read]
    return Hand(*features, read[0].logits, read[1].logits, test.labels)


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([features[labels == k].mean(0) for k in range(CLASSES)])


def nearest(features: Tensor, vertices: Tensor) -> Tensor:
    """Nearest vertex by the distance itself; a row of NaN is no vertex."""
    apart = (features[:, None] - vertices[None]).norm(dim=2)
    return apart.nan_to_num(torch.inf).argmin(1)


def ends(found: Profile, hand: Hand, tap: str) -> tuple[Tensor, Tensor]:
    """Nearest clean vertices of the clean and of the attacked examples."""
    vertices = found.vertices["gap", tap]
    return nearest(hand.clean[tap], vertices), nearest(hand.attacked[tap], vertices)


def batches(split: Split) -> list[tuple[Tensor, Tensor]]:
    return [(split.images, split.labels)]


def only(split: Split, kept: Tensor | slice) -> Split:
    return Split(*(part[kept] for part in split))


def row(found: Profile, measure: str, **where: Any) -> Any:
    rows = found.values(measure, **where)
    assert len(rows) == 1, f"{len(rows)} rows of {measure} for {where}"
    return rows.iloc[0]


def series(found: Profile, measure: str, by: str = "i", **where: Any) -> list[float]:
    rows = found.values(measure, **where).sort_values(by)
    assert rows[by].is_unique
    return rows["value"].tolist()


@pytest.fixture(scope="module")
def model(digits_network: Classifier) -> Classifier:
    return digits_network


@pytest.fixture(scope="module")
def test() -> Split:
    return digits("test", TEST)


@pytest.fixture(scope="module")
def found(model: Classifier, test: Split) -> Profile:
    sets = {"train": batches(digits("train", 120)), "test": batches(test)}
    return profile(model, sets, BALL, measure=WHOLE, distances=DISTANCES)


@pytest.fixture(scope="module")
def hand(model: Classifier, test: Split, found: Profile) -> Hand:
    return by_hand(model, test, found, WHOLE.steps)


@by_tap
class TestTheTestSplit:
    def test_alignment_is_with_the_clean_means_of_the_same_examples(self, found, hand, tap):
        clean, attacked = (class_means(each[tap], hand.labels) for each in hand[:2])
        wanted = measure_alignment(clean, attacked)
        angles = series(found, "alignment_angle_class", tap=tap, **ATTACKED)
        assert angles == pytest.approx(wanted.angles, rel=1e-5)
        for name, value in wanted.measures().items():
            assert row(found, name, tap=tap, **ATTACKED)["value"] == pytest.approx(value, rel=1e-5)

    def test_means_by_target_are_held_against_the_clean_ones_of_the_target(self, found, tap):
        here = {"tap": tap, "condition": "cyclic", "split": "test"}
        by_target = series(found, "alignment_angle_class", grouping="target", **here)
        by_label = series(found, "alignment_angle_class", grouping="true", **here)
        assert len(by_target) == len(by_label) == CLASSES
        assert by_target != by_label
        assert row(found, "alignment_angle", grouping="target", **here)["value"] == pytest.approx(
            sum(by_target) / CLASSES, rel=1e-5
        )

    @pytest.mark.parametrize("condition", ["clean", "attacked"])
    def test_class_means_are_told_pair_by_pair_at_the_penultimate_tap(
        self, found, hand, tap, condition
    ):
        here = {"tap": tap, "condition": condition, "split": "test"}
        told = found.values("mean_angle_pair", **here).sort_values(["i", "j"])
        if tap != "penultimate":
            assert told.empty
            return
        means = class_means(getattr(hand, condition)[tap], hand.labels)
        means = means - means.mean(0)
        norms = means.norm(dim=1)
        upper = torch.triu_indices(CLASSES, CLASSES, 1)
        unit = means / norms[:, None]
        wanted = (unit @ unit.T)[upper[0], upper[1]].arccos().rad2deg().tolist()
        assert told[["i", "j"]].to_numpy().tolist() == upper.T.tolist()
        assert told["value"].tolist() == pytest.approx(wanted, rel=1e-5)
        shares = series(found, "mean_norm_class", **here)
        assert shares == pytest.approx((norms / norms.mean()).tolist(), rel=1e-5)
        assert stats.variation(shares, ddof=1) == pytest.approx(
            row(found, "nc2_norm", grouping="true", vertices="same", **here)["value"], rel=1e-9
        )

    @pytest.mark.parametrize("condition", ["attacked", "gaussian", "cyclic"])
    def test_vulnerability_ranks_clean_collapse_beside_leap_rates(self, found, tap, condition):
        here = {"tap": tap, "split": "test"}
        collapse = series(found, "nc1_class", condition="clean", grouping="true", **here)
        rates = series(found, "leap_rate_class", condition=condition, **here)
        assert len(collapse) == len(rates) == CLASSES
        wanted = stats.spearmanr(collapse, rates).statistic
        value = row(found, "vulnerability_correlation", condition=condition, **here)["value"]
        assert value == pytest.approx(wanted, abs=1e-12)

    def test_leaps_start_at_the_nearest_vertex_whatever_the_label(self, found, hand, tap):
        origin, landed = ends(found, hand, tap)
        assert (origin != hand.labels).any()
        matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
        matrix.index_put_((origin, landed), torch.tensor(1), accumulate=True)
        rows = found.values("leap_matrix", tap=tap, **ATTACKED).sort_values(["i", "j"])
        assert rows["value"].tolist() == matrix.flatten().tolist()
        leaped, labels = origin != landed, hand.labels
        wanted = [float(leaped[labels == k].double().mean()) for k in range(CLASSES)]
        assert series(found, "leap_rate_class", tap=tap, **ATTACKED) == pytest.approx(wanted)

    @pytest.mark.parametrize("condition", ["attacked", "cyclic"])
    def test_severity_weighs_the_leap_matrix_with_the_distances(self, found, tap, condition):
        here = {"tap": tap, "condition": condition, "split": "test"}
        counts = found.values("leap_matrix", **here).sort_values(["i", "j"])["value"]
        matrix = torch.tensor(counts.tolist()).view(CLASSES, CLASSES).fill_diagonal_(0)
        leaps = float(matrix.sum())
        assert leaps > 0
        severity = row(found, "severity", **here)
        assert severity["value"] == pytest.approx(float((matrix * DISTANCES).sum()) / leaps)
        assert severity["n"] == leaps
        expected = DISTANCES.sum(1) / (CLASSES - 1)
        wanted = float((matrix.sum(1) * expected).sum()) / leaps
        assert row(found, "severity_null", **here)["value"] == pytest.approx(wanted)

    def test_noise_on_top_has_the_size_of_the_attack(self, found, hand, tap):
        origin, landed = ends(found, hand, tap)
        noisy = nearest(hand.noisy[tap], found.vertices["gap", tap])
        leaped = origin != landed
        wanted = float((noisy == origin)[leaped].double().mean())
        returned = row(found, "return_rate", tap=tap, **ATTACKED)
        assert returned["value"] == pytest.approx(wanted)
        assert returned["n"] == int(leaped.sum())


@by_tap
class TestTheSweep:
    def test_at_the_radius_of_the_ball_it_is_the_attack(self, found, tap):
        here = {"tap": tap, "split": "test", "eps": EPS}
        for name, more in (
            ("nc1_trace", {"grouping": "true"}),
            ("nc1_trace", {"grouping": "landed"}),
            ("leap_rate", {}),
        ):
            swept = row(found, name, condition="sweep", **here, **more)
            attacked = row(found, name, condition="attacked", **here, **more)
            assert swept["value"] == pytest.approx(attacked["value"], rel=1e-9)
            assert swept["n"] == attacked["n"]

    def test_the_bounds_are_those_of_the_examples_there_are(self, found, test, tap):
        """From 0 at eps 0 the bounds go straight to those of eps / 2, beyond the level."""
        here = {"tap": tap, "condition": "sweep"}
        first = row(found, "leap_rate", eps=EPS / 2, **here)
        assert first["n"] == len(test.labels)
        rate = wilson(round(first["value"] * len(test.labels)), len(test.labels))
        assert rate.low > LEVEL
        bounds = {"": rate.value, "_low": rate.high, "_high": rate.low}
        for end, bound in bounds.items():
            radius = row(found, f"collapse_radius{end}", **here)
            assert radius["value"] == pytest.approx(LEVEL / bound * EPS / 2)
            assert radius["note"] == ""
            assert radius["n"] == len(test.labels)


@pytest.fixture(scope="module")
def sparse_train() -> Split:
    """Without classes 8 and 9, and with one example of class 1."""
    train = digits("train", 120)
    ones = (train.labels == 1).nonzero().flatten()
    return only(train, (train.labels < 8).index_fill(0, ones[1:], False))


@pytest.fixture(scope="module")
def sparse_test(test: Split) -> Split:
    """Without class 0."""
    return only(test, test.labels != 0)


@pytest.fixture(scope="module")
def sparse(model: Classifier, sparse_train: Split, sparse_test: Split) -> Profile:
    sets = {"train": batches(sparse_train), "test": batches(sparse_test)}
    return profile(model, sets, BALL, measure=BARE)


@pytest.fixture(scope="module")
def sparse_hand(model: Classifier, sparse_test: Split, sparse: Profile) -> Hand:
    return by_hand(model, sparse_test, sparse, BARE.steps)


class TestExamplesBehindAValue:
    @by_tap
    @pytest.mark.parametrize("condition", ["clean", "attacked"])
    def test_all_test_examples_have_a_nearest_vertex(self, sparse, sparse_hand, tap, condition):
        here = {"tap": tap, "condition": condition, "split": "test"}
        features, logits = (
            (sparse_hand.clean, sparse_hand.before)
            if condition == "clean"
            else (sparse_hand.attacked, sparse_hand.after)
        )
        place = nearest(features[tap], sparse.vertices["gap", tap])
        ncc, nc4 = (row(sparse, name, **here) for name in ("ncc", "nc4"))
        assert ncc["n"] == nc4["n"] == len(sparse_hand.labels)
        assert ncc["value"] == pytest.approx(float((place == sparse_hand.labels).double().mean()))
        assert nc4["value"] == pytest.approx(float((place != logits.argmax(1)).double().mean()))
        means = class_means(features[tap], sparse_hand.labels)
        means[sparse_hand.labels.bincount(minlength=CLASSES) < 2] = torch.nan
        own = row(sparse, "nc4_own", **here)
        differ = nearest(features[tap], means) != logits.argmax(1)
        assert own["value"] == pytest.approx(float(differ.double().mean()))
        assert own["n"] == len(sparse_hand.labels)
        reference = row(sparse, "nc1_cleanref", **here)
        assert reference["n"] == int(((sparse_hand.labels != 1) & (sparse_hand.labels < 8)).sum())

    @by_tap
    def test_its_own_examples_count_where_their_class_has_a_vertex(self, sparse, sparse_train, tap):
        here = {"tap": tap, "condition": "clean", "split": "train"}
        kept = int((sparse_train.labels != 1).sum())
        assert kept == len(sparse_train.labels) - 1
        assert row(sparse, "ncc", **here)["n"] == kept
        assert row(sparse, "nc1", grouping="true", **here)["n"] == kept
        assert row(sparse, "nc4", **here)["n"] == len(sparse_train.labels)

    @by_tap
    def test_agreement_is_over_those_that_leaped_or_flipped(self, sparse, sparse_hand, tap):
        origin, landed = ends(sparse, sparse_hand, tap)
        flipped = sparse_hand.before.argmax(1) != sparse_hand.after.argmax(1)
        either = (origin != landed) | flipped
        agreement = row(sparse, "agreement", tap=tap, **ATTACKED)
        assert agreement["n"] == int(either.sum()) < len(sparse_hand.labels)
        both = (origin != landed) & flipped
        assert agreement["value"] == pytest.approx(int(both.sum()) / int(either.sum()))

    @by_tap
    def test_landed_is_over_leaps_onto_classes_with_a_radius(self, sparse, sparse_hand, tap):
        origin, landed = ends(sparse, sparse_hand, tap)
        reached = set(sparse_hand.labels[origin == sparse_hand.labels].tolist())
        known = torch.tensor([place in reached for place in landed.tolist()])
        leaped = origin != landed
        assert (leaped & ~known).any()
        assert row(sparse, "landed", tap=tap, **ATTACKED)["n"] == int((leaped & known).sum())


def outputs(found: Profile, condition: str, split: str = "test") -> pd.DataFrame:
    rows = found.frame
    rows = rows[(rows["tap"] == "output") & (rows["split"] == split)]
    return rows[rows["condition"] == condition].set_index("measure")


def answered(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Measures of outputs, of the geometry's own function."""
    return output_measures(logits, labels, DISTANCES).values


class TestOutputs:
    @pytest.mark.parametrize("condition", ["clean", "attacked", "gaussian", "severest"])
    def test_every_condition_has_them_once(self, found, condition):
        rows = outputs(found, condition)
        induced = set() if condition == "clean" else {"induced_severity"}
        assert rows.index.is_unique
        ranked = {f"crm_{name}" for name in ("accuracy", *RANKED)}
        assert set(rows.index) == {"accuracy", "ece", *RANKED} | ranked | induced
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
            how = Measurement.of(model, WHOLE, BALL, num_classes=CLASSES, scale=found.logit_scale)
            images = attack_examples(
                model,
                how,
                examples,
                report=lambda share: None,
                distances=DISTANCES if condition == "severest" else None,
            )
        with torch.no_grad():
            clean, logits = model(test.images), model(images)
        rows, wanted = outputs(found, condition), answered(logits, test.labels)
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

    def test_without_distances_there_are_accuracy_and_calibration_alone(self):
        labels = torch.tensor([0, 1, 1])
        rows = output_rows(torch.eye(3), labels, None, clean=torch.eye(3))
        assert [(row["measure"], row["n"]) for row in rows] == [("accuracy", 3), ("ece", 3)]
        confidence = math.e / (math.e + 2)
        wanted = [2 / 3, abs(confidence - 2 / 3)]
        assert [row["value"] for row in rows] == pytest.approx(wanted)

    def test_nothing_induced_is_none_with_the_reason(self):
        labels = torch.tensor([0, 1, 1])
        *_, row = output_rows(torch.eye(3), labels, 1 - torch.eye(3), clean=torch.eye(3))
        assert (row["measure"], row["value"], row["n"]) == ("induced_severity", None, 0)
        assert row["note"].startswith("undefined: no example that is right")
