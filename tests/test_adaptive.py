"""The verdict on each tap: worst of transfer and of the attack on the classifier itself."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from helpers_attacks import APGD_ONLY, own
from helpers_models import digits, small_config, small_run
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.square import Square
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.evaluation.evaluate_model import TRANSFER
from robust_nc.exceptions import InputError
from robust_nc.geometry.moments import Moments
from robust_nc.models.classifier import Classifier
from robust_nc.models.nearest_vertex import NearestVertexClassifier
from robust_nc.models.taps import read_taps
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import ModelExecutor
from robust_nc.profiling.tap_attacks import (
    TapVerdict,
    Trial,
    attack_network,
    attack_tap,
    tap_attack_rows,
)
from robust_nc.record import tidy
from robust_nc.runtime.progress import Report, no_report
from robust_nc.threat import Ball
from robust_nc.types import Attack, EvaluationProtocol

BALL = Ball("Linf", 0.2)
LIKE_STANDARD = EvaluationProtocol(
    "like-standard",
    (
        ("apgd-ce", APGD(steps=20)),
        ("apgd-t", APGD(loss="dlr", num_targets=3, steps=20)),
        ("fab-t", FAB(num_targets=2, steps=10)),
        ("square", Square(queries=300)),
    ),
)
CROSS_ENTROPY = own(PGD(steps=20), "pgd-ce")
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "steep": lambda features: 1e4 * features,
    "rounded": lambda features: (2 * features).round() / 2,
    "saturated": lambda features: torch.sigmoid(1000 * (features - 0.7)),
}


class Case(NamedTuple):
    """A small network trained on digits, vertices' examples, and what is attacked."""

    model: Classifier
    images: Tensor
    labels: Tensor
    train: Tensor
    train_labels: Tensor
    network: Outcome


@pytest.fixture(scope="session")
def case() -> Case:
    model = small_run(small_config(epochs=4, examples=400)).best.eval()
    train, test = digits("train", 300), digits("test", 24)
    network = evaluate(model, test.images, test.labels, BALL, protocol=LIKE_STANDARD)
    return Case(model, test.images, test.labels, train.images, train.labels, network)


def vertices_of(model: nn.Module, tap: str, case: Case, feature: str = "gap") -> Tensor:
    with torch.no_grad():
        features = read_taps(model, case.train, [tap], feature).features[tap]
    moments = Moments(10, features.shape[1])
    moments.update(features, case.train_labels)
    return moments.means


class Planted(nn.Module):
    """A network with an early layer whose features say nothing by their gradients."""

    def __init__(self, model: nn.Module, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.mask = model, mask
        self.defense = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        read = self.model.tapped(images, taps=("block2",), feature="flatten")
        self.defense(self.mask(read.features["block2"]))
        return read.logits


def rows_of(
    case: Case, trial: Trial, vertices: dict[str, Tensor], report: Report = no_report
) -> list[Row]:
    executor = ModelExecutor(case.model)
    network = executor.ask(attack_network, trial)
    return tap_attack_rows(executor, trial, network, vertices, "gap", report)


def judge_planted(mask: str, case: Case, protocol: EvaluationProtocol | str) -> TapVerdict:
    model = Planted(case.model, MASKS[mask]).eval()
    vertices = vertices_of(model, "defense", case)
    naive = NearestVertexClassifier(model, "defense", vertices)
    held = evaluate(naive, case.images, case.labels, BALL, protocol=CROSS_ENTROPY, checks=False)
    trial = Trial(case.images, case.labels, BALL, protocol)
    verdict = attack_tap(model, trial, "defense", vertices, network=case.network)
    assert held.robust_accuracy > verdict.adaptive + 0.3, "PGD on cross-entropy sees nothing"
    return verdict


@pytest.mark.parametrize("mask", MASKS)
def test_a_planted_defense_that_masks_gradients_is_unmasked(mask: str, case: Case) -> None:
    verdict = judge_planted(mask, case, LIKE_STANDARD)
    assert verdict.clean > 0.75
    assert verdict.transferred > 0.45
    assert verdict.adaptive < verdict.transferred - 0.3
    warned = {warning.name for warning in verdict.outcome.warnings}
    assert ("black-box-stronger" in warned) == (mask != "steep")


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_the_standard_protocol_unmasks_a_planted_defense(mask: str, case: Case) -> None:
    verdict = judge_planted(mask, case, "standard")
    assert verdict.adaptive < verdict.transferred - 0.3


def shifting(by: float) -> Attack:
    """An attack that shifts all pixels, out of the ball."""
    return lambda model, images, *_, **__: images + by


def test_what_transfers_counts_where_the_attack_itself_failed(case: Case) -> None:
    vertices = vertices_of(case.model, "penultimate", case)
    trial = Trial(case.images, case.labels, BALL, own(shifting(0.0)))
    verdict = attack_tap(case.model, trial, "penultimate", vertices, network=case.network)
    assert verdict.adaptive == verdict.transferred < verdict.clean
    outcome = verdict.outcome
    broken = [name == TRANSFER for name in outcome.broken_by]
    assert torch.equal(outcome.clean_correct & ~outcome.robust, torch.tensor(broken))
    assert torch.equal(outcome.adversarials[broken], case.network.adversarials[broken])
    kept = ~torch.tensor(broken)
    assert torch.equal(outcome.adversarials[kept], case.images[kept])
    assert "transfer-stronger" in [warned.name for warned in outcome.warnings]


def test_the_verdict_is_the_worst_of_both_attacks(case: Case) -> None:
    vertices = vertices_of(case.model, "block3", case)
    trial = Trial(case.images, case.labels, BALL, APGD_ONLY)
    verdict = attack_tap(case.model, trial, "block3", vertices)
    network = evaluate(case.model, case.images, case.labels, BALL, protocol=APGD_ONLY)
    classifier = NearestVertexClassifier(case.model, "block3", vertices, scale=verdict.scale)
    alone = evaluate(classifier, case.images, case.labels, BALL, protocol=APGD_ONLY)
    stands = classifier(network.adversarials).argmax(1) == case.labels
    assert torch.equal(verdict.outcome.robust, alone.robust & stands)
    assert verdict.clean == alone.clean_accuracy
    assert verdict.transferred == float((alone.clean_correct & stands).double().mean())
    assert (verdict.outcome.forward_passes == alone.forward_passes + 1).all()


def test_a_point_that_happens_to_be_right_does_not_mend_a_wrong_example(case: Case) -> None:
    vertices = vertices_of(case.model, "block3", case)
    moved = case.images.roll(1, 0)
    labels = NearestVertexClassifier(case.model, "block3", vertices)(moved).argmax(1)
    trial = Trial(case.images, labels, Ball("Linf", 1.0), "clean")
    network = case.network._replace(adversarials=moved)
    verdict = attack_tap(case.model, trial, "block3", vertices, network=network)
    assert verdict.clean == verdict.transferred == verdict.adaptive < 0.5


def test_rows_stand_side_by_side(case: Case) -> None:
    told: list[tuple[float, str]] = []
    vertices = {
        tap: vertices_of(case.model, tap, case) for tap in ("block1", "block4", "penultimate")
    }
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    case.model.train()
    trial = Trial(case.images, case.labels, BALL, APGD_ONLY)
    rows = rows_of(case, trial, vertices, lambda share, text: told.append((share, text)))
    assert case.model.training
    case.model.eval()
    assert all(torch.equal(before[name], new) for name, new in case.model.state_dict().items())
    frame = tidy(rows)
    assert len(frame) == 1 + 3 * 4
    for column, value in (
        ("condition", "attacked"),
        ("split", "test"),
        ("grouping", "true"),
        ("attack", "short"),
        ("eps", 0.2),
        ("n", 24),
        ("feature", "gap"),
    ):
        assert set(frame[column]) == {value}
    network = frame[frame.tap == "output"]
    assert network.measure.tolist() == ["robust_accuracy"]
    taps = frame[frame.tap != "output"]
    assert set(taps.vertices) == {"clean-train"}
    assert dict(zip(taps.tap, taps.depth, strict=True)) == {
        "block1": 0,
        "block4": 3,
        "penultimate": 4,
    }
    values = taps.pivot(index="tap", columns="measure", values="value")
    assert (values.ncc_adaptive <= values.ncc_transferred).all()
    assert (values.ncc_transferred <= values.ncc_clean).all()
    assert (values.robust_accuracy_at_both <= network.value.item()).all()
    assert values.loc["block1", "ncc_adaptive"] < values.loc["block1", "ncc_clean"]
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert [text.split(":")[0] for _, text in told][-1] == "adaptive, penultimate"


def test_the_network_must_stand_at_the_points_of_a_tap_too(case: Case) -> None:
    vertices = vertices_of(case.model, "penultimate", case)
    trial = Trial(case.images, case.labels, Ball("Linf", 0.06), CROSS_ENTROPY)
    network = trial.evaluate(case.model)
    verdict = attack_tap(case.model, trial, "penultimate", vertices, network=network)
    with torch.no_grad():
        right = case.model(verdict.outcome.adversarials).argmax(1) == case.labels
    assert verdict.network == pytest.approx((network.robust & right).double().mean().item())
    assert 0 < verdict.network < network.robust_accuracy


def test_taps_with_equal_features_share_one_verdict(case: Case) -> None:
    trial = Trial(case.images, case.labels, BALL, own(shifting(1.0), "leaves"))
    rows = rows_of(
        case, trial, {tap: vertices_of(case.model, tap, case) for tap in case.model.taps}
    )
    notes = {row["tap"]: row["note"] for row in rows if row["measure"] == "ncc_clean"}
    assert notes == {
        "block1": "",
        "block2": "",
        "block3": "",
        "block4": "same features as penultimate",
        "penultimate": "",
    }
    twin, last = (
        {row["measure"]: row["value"] for row in rows if row["tap"] == tap}
        for tap in ("block4", "penultimate")
    )
    assert twin == last
    adaptive = {row["tap"]: row["note"] for row in rows if row["measure"] == "ncc_adaptive"}
    assert "left-ball:leaves" in adaptive["penultimate"].split(", ")
    assert adaptive["block4"] == f"same features as penultimate; {adaptive['penultimate']}"


def test_what_cannot_be_used_is_explained(case: Case) -> None:
    vertices = vertices_of(case.model, "block1", case)
    few = Trial(case.images[:4], case.labels[:4], BALL)
    with pytest.raises(InputError, match=r"points of shape \(24, .*the same examples"):
        attack_tap(case.model, few, "block1", vertices, network=case.network)
    none = Trial(case.images[:0], case.labels[:0], BALL)
    with pytest.raises(InputError, match="needs examples, found none"):
        attack_tap(case.model, none, "block1", vertices)
