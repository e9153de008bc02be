"""Gates and targets that look at what the attacks before them found."""

import pytest
import torch
from helpers_attacks import curved, pictures, predictions
from torch import Tensor

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.gated import Gated
from robust_nc.attacks.losses import dlr
from robust_nc.attacks.pgd import PGD
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol, RefereedAttack

SHAPE = (1, 8, 8)
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


def test_behind_an_open_gate_the_attack_is_itself() -> None:
    plain, _ = judged(PROBE, ("more", PGD(steps=10)))
    gated, _ = judged(PROBE, ("more", Gated(PGD(steps=10), above=-1e9)))
    assert plain.broken_by == gated.broken_by
    assert torch.equal(plain.adversarials, gated.adversarials)
    assert torch.equal(plain.forward_passes, gated.forward_passes)


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
