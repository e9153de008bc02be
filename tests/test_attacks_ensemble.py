"""Attacks of attacks: the strongest of several; gates that look at what earlier ones found."""

import pytest
import torch
from helpers_attacks import BALLS, Around, Counted, curved, linear, pictures, predictions
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.ensemble import Strongest, geometry_attack, logit_scale
from robust_nc.attacks.gated import Gated
from robust_nc.attacks.losses import dlr, margin
from robust_nc.attacks.noise import SignNoise
from robust_nc.attacks.pgd import FGSM, PGD
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol, RefereedAttack

SHAPE = (1, 8, 8)


def louder(model: nn.Module, factor: float) -> nn.Module:
    """The same classifier with logits times a factor."""
    return Around(model, after=lambda logits: factor * logits)


def _margins(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(model.eval()(points), labels, None, None)


def test_maximise_keeps_the_point_of_largest_margin() -> None:
    model, images = curved(SHAPE, 5), pictures(15, SHAPE)
    labels, ids = predictions(model, images), torch.arange(15)
    members = (SignNoise(), FGSM(), PGD(steps=3, initial="none"))
    call = (model, images, labels, BALLS[0])
    points = Strongest(members)(*call, goal="maximise", seed=0, ids=ids)
    found = _margins(model, points, labels)
    # FGSM and this PGD draw nothing, so that their points are known.
    for member in members[1:]:
        alone = _margins(model, member(*call, goal="maximise", seed=0, ids=ids), labels)
        assert (found >= alone - 1e-6).all()


def test_passes_add_up_with_one_look_per_turn() -> None:
    model, images = Counted(curved(SHAPE, 5)), pictures(6, SHAPE)
    labels, ids = predictions(model, images), torch.arange(6)
    attack = Strongest((FGSM(), PGD(steps=3)))
    model.forwards = model.backwards = 0
    still = Ball("Linf", 1e-6)
    result = attack.run(model, images, labels, still, goal="maximise", seed=0, ids=ids)
    assert result.forwards.tolist() == [1 + 1 + 4 + 1] * 6
    assert result.backwards.tolist() == [1 + 3] * 6
    assert (model.forwards, model.backwards) == (6 * 7, 6 * 4)
    result = attack.run(model, images, labels, still, seed=0, ids=ids)
    assert result.forwards.tolist() == [2 + 1 + 4] * 6
    assert model.forwards == 6 * 14


def test_flip_spends_nothing_on_what_an_earlier_member_flipped() -> None:
    model, images = curved(SHAPE, 5), pictures(15, SHAPE)
    labels, ids = predictions(model, images), torch.arange(15)
    call = (model, images, labels, BALLS[0])
    first = predictions(model, FGSM()(*call, seed=0, ids=ids)) != labels
    result = Strongest((FGSM(), PGD(steps=5))).run(*call, seed=0, ids=ids)
    flipped = predictions(model, result.points) != labels
    assert 0 < first.sum() < 15
    assert (first <= flipped).all()
    assert (result.forwards[first] <= 3).all()
    assert (result.forwards[~first] >= 4).all()


def test_members_draw_apart() -> None:
    images, labels = pictures(4, SHAPE), torch.zeros(4, dtype=torch.int64)
    call = (linear(SHAPE, 3), images, labels, BALLS[0])
    one = PGD(steps=1, step_size=1e-9, keep_best=False)
    single = one(*call, goal="maximise", seed=0, ids=torch.arange(4))
    points = Strongest((one, one))(*call, goal="maximise", seed=0, ids=torch.arange(4))
    assert not torch.equal(single, points)


@pytest.mark.parametrize("factor", [10.0, 100.0, 0.01])
def test_the_geometry_attack_is_blind_to_the_scale_of_the_logits(factor: float) -> None:
    plain, images = curved(SHAPE, 5), pictures(40, SHAPE)
    labels, ids, ball = predictions(plain, images), torch.arange(40), BALLS[0]

    def leaps(model: nn.Module, scale: float) -> tuple[Tensor, Tensor]:
        attack = geometry_attack(steps=10, scale=scale)
        points = attack(model, images, labels, ball, goal="maximise", seed=0, ids=ids)
        return predictions(plain, points), _margins(plain, points, labels)

    loud = louder(plain, factor)
    classes, margins = leaps(plain, logit_scale(plain, images))
    classes_loud, margins_loud = leaps(loud, logit_scale(loud, images))
    assert torch.equal(classes, classes_loud)
    assert torch.allclose(margins, margins_loud, rtol=0.01, atol=0.01)


def test_logit_scale_brings_the_median_margin_to_five() -> None:
    model, images = linear(SHAPE, 4), pictures(33, SHAPE)
    scale = logit_scale(model, images, batch_size=7)
    with torch.no_grad():
        top = (model(images) / scale).topk(2, 1).values
    assert float((top[:, 0] - top[:, 1]).median()) == pytest.approx(5.0, rel=1e-5)
    assert logit_scale(model, images[:0]) == 1.0
    assert logit_scale(louder(model, 0.0), images) == 1.0


BALL = Ball("Linf", 0.03)
PROBE = ("probe", PGD(steps=2))


def judged(*attacks: tuple[str, RefereedAttack], **options: object) -> tuple[Outcome, Tensor]:
    """The verdict on a curved model, and each example's DLR loss at its worst point."""
    model, images = curved(SHAPE, 5), pictures(60, SHAPE)
    labels = predictions(model, images)
    plan = EvaluationProtocol("own", attacks)
    outcome = evaluate(
        model, images, labels, BALL, protocol=plan, checks=False, accelerate=False, **options
    )
    with torch.no_grad():
        return outcome, dlr(model(outcome.adversarials), labels, None, None)


def test_only_examples_near_the_boundary_are_attacked() -> None:
    before, near = judged(PROBE)
    gate = float(near[before.robust].median())
    after, _ = judged(PROBE, ("gated", Gated(PGD(steps=10), above=gate)))
    passed = before.robust & (near > gate)
    assert 0 < passed.sum() < before.robust.sum()
    more = after.backward_passes - before.backward_passes
    assert (more[passed] > 0).all()
    assert (more[~passed] == 0).all()
    assert torch.equal(after.forward_passes[~passed], before.forward_passes[~passed])


def test_a_gate_is_the_same_in_any_batch() -> None:
    attacks = (PROBE, ("gated", Gated(APGD(steps=10, loss="dlr", num_targets=2), above=-0.5)))
    whole, _ = judged(*attacks)
    cut, _ = judged(*attacks, batch_size=7)
    assert whole.broken_by == cut.broken_by
    standing = whole.robust  # of the others, a cancelled target may have cost passes
    assert torch.equal(whole.forward_passes[standing], cut.forward_passes[standing])


def test_on_its_own_every_example_passes() -> None:
    model, images, ids = curved(SHAPE, 5), pictures(9, SHAPE), torch.arange(9)
    labels, inner = predictions(model, images), PGD(steps=3)
    gated = Gated(inner, above=-0.1)
    assert gated.cost(5) == inner.cost(5)
    assert not gated.gradient_free
    points = gated(model, images, labels, BALL, seed=0, ids=ids)
    assert torch.equal(points, inner(model, images, labels, BALL, seed=0, ids=ids))


@pytest.mark.parametrize("above", [0.0, 0.5, float("nan")])
def test_a_gate_that_all_or_none_pass_is_refused(above: float) -> None:
    with pytest.raises(InputError, match="above must be below 0"):
        Gated(PGD(), above=above)


def test_the_worst_point_ranks_the_targets() -> None:
    aims: dict[str, Tensor] = {}

    class Noted(APGD):
        def start(self, slots):
            assert slots.targets is not None
            aims[self.targets_at] = slots.targets.clone()
            return super().start(slots)

    for place in ("clean", "worst"):
        judged(("probe", PGD(steps=1)), ("aimed", Noted(steps=1, num_targets=1, targets_at=place)))
    assert aims["clean"].shape == aims["worst"].shape
    assert not torch.equal(aims["clean"], aims["worst"])
