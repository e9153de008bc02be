"""`evaluate`: one verdict, whatever the model, the attacks, the caller and the circumstances."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_attacks import (
    APGD_ONLY,
    BALL,
    BALLS,
    SHAPE,
    SHORT,
    Around,
    Counted,
    Failing,
    Limited,
    curved,
    differences,
    examples,
    linear,
    own,
    pictures,
    predictions,
)
from torch import Tensor, nn

from robust_nc import Ball, evaluate
from robust_nc.attacks import batching
from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.noise import GaussianNoise
from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.protocols import FAST
from robust_nc.data.load import read_split, to_unit
from robust_nc.evaluation.acceleration import Accelerated
from robust_nc.exceptions import InputError, RecordError, RobustNCError
from robust_nc.training.run import load_classifier
from robust_nc.types import EvaluationProtocol

each_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
TENTH = Ball("Linf", 0.1)


def on_a_linear_model(count: int = 40) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, images far from the bounds, their labels, and which are robust in closed form."""
    model = linear((1, 4, 4), 3).eval()
    images = 0.5 + 0.2 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = predictions(model, images)
    labels[::7] = (labels[::7] + 1) % 3  # some are wrong from the start
    # A linear model falls in Linf iff eps reaches a margin over the L1 norm of its weights.
    layer = model[1]
    logits, weight = layer(images.flatten(1)).detach(), layer.weight.detach()
    margins = logits.gather(1, labels[:, None]) - logits
    reach = TENTH.eps * (weight[labels][:, None] - weight[None]).abs().sum(2)
    others = torch.arange(3) != labels[:, None]
    return model, images, labels, ((margins > reach) | ~others).all(1)


def test_a_linear_model_gets_its_analytic_verdict() -> None:
    model, images, labels, truth = on_a_linear_model()
    outcome = evaluate(model, images, labels, TENTH, protocol="pgd")
    assert 0 < truth.sum() < len(truth)
    assert torch.equal(outcome.robust, truth)
    assert torch.equal(outcome.clean_correct, predictions(model, images) == labels)
    assert [name == "clean" for name in outcome.broken_by] == (~outcome.clean_correct).tolist()
    assert [name == "" for name in outcome.broken_by] == outcome.robust.tolist()
    assert TENTH.contains(outcome.adversarials, images).all()
    broken = outcome.clean_correct & ~outcome.robust
    assert (predictions(model, outcome.adversarials[broken]) != labels[broken]).all()
    assert (outcome.forward_passes[~outcome.clean_correct] == 1).all()
    assert (outcome.backward_passes[outcome.robust] == 40).all()  # two attacks of 20 steps


def _by_sum(gaps: Tensor, slopes: Tensor, pixels: Tensor) -> Tensor:
    return gaps / slopes.abs().sum(2)


def _by_length(gaps: Tensor, slopes: Tensor, pixels: Tensor) -> Tensor:
    return gaps / slopes.norm(dim=2)


def _pixel_by_pixel(gaps: Tensor, slopes: Tensor, pixels: Tensor) -> Tensor:
    """Move the pixel of steepest slope to its bound, then the next, until the gap is closed."""
    steepness, order = slopes.abs().sort(2, descending=True)
    room = torch.where(slopes > 0, pixels[:, None], 1 - pixels[:, None]).gather(2, order)
    closed = (steepness * room).cumsum(2) - steepness * room
    spent = ((gaps[:, :, None] - closed) / steepness.clamp_min(1e-9)).clamp_min(0).minimum(room)
    return spent.sum(2)


@pytest.mark.parametrize(
    ("protocol", "tolerance"),
    [pytest.param("standard", 0.01, marks=pytest.mark.slow), (SHORT, 0.05)],
    ids=["standard", "short"],
)
@each_ball
def test_a_linear_model_falls_as_far_as_it_should(
    ball: Ball, protocol: str | EvaluationProtocol, tolerance: float
) -> None:
    """Against the closed form: in L1 up to the bounds, pixel by pixel; else far from them."""
    model = linear(SHAPE, 3)
    images = 0.5 + 0.1 * (pictures(40, SHAPE) - 0.5)
    labels = predictions(model, images)
    with torch.no_grad():
        gaps = model(images).gather(1, labels[:, None]) - model(images)
        slopes = model[1].weight[labels][:, None] - model[1].weight[None]
        distance = {"Linf": _by_sum, "L2": _by_length, "L1": _pixel_by_pixel}[ball.norm]
        nearest = torch.where(gaps > 0, distance(gaps, slopes, images.flatten(1)), torch.inf)
    nearest = nearest.amin(1)
    eps = float(nearest.median())
    sure = ((nearest / eps) - 1).abs() > tolerance
    near = Ball(ball.norm, eps)
    outcome = evaluate(model, images, labels, near, protocol=protocol, checks=False)
    assert sure.sum() > 30
    assert torch.equal(outcome.robust[sure], (nearest > eps)[sure])
    assert near.contains(outcome.adversarials, images).all()
    names = [name for name, _ in outcome.attacks]
    assert names == ["apgd-ce", "apgd-t", "fab-t", "square"]


@each_ball
def test_batches_and_order_leave_the_verdict_alone(ball: Ball) -> None:
    model, images, labels = examples(36)
    ids = torch.arange(1000, 1036)
    plan = SHORT._replace(attacks=(*SHORT.attacks, ("pgd", PGD(steps=5))))
    given = {"protocol": plan, "checks": False}
    first = evaluate(model, images, labels, ball, ids=ids, batch_size=16, **given)
    assert 0 < first.robust.sum() < first.clean_correct.sum()
    for size in (7, 500, None):
        again = evaluate(model, images, labels, ball, ids=ids, batch_size=size, **given)
        assert torch.equal(again.robust, first.robust)
        assert again.broken_by == first.broken_by
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    mixed = evaluate(
        model, images[order], labels[order], ball, ids=ids[order], batch_size=32, **given
    )
    assert torch.equal(mixed.robust, first.robust[order])
    assert mixed.broken_by == tuple(first.broken_by[place] for place in order)


def test_ids_and_the_seed_key_the_draws() -> None:
    model, images, labels = examples()
    outcomes = [
        evaluate(model, images, labels, BALL, protocol=SHORT, seed=seed, ids=ids, checks=False)
        for seed, ids in (
            (0, None),
            (0, torch.arange(40)),
            (0, torch.arange(40) + 7),
            (1, torch.arange(40)),
        )
    ]
    assert differences(outcomes[0], outcomes[1]) == []
    assert "adversarials" in differences(outcomes[0], outcomes[2])
    assert "adversarials" in differences(outcomes[0], outcomes[3])
    one = evaluate(model, images[3:4], labels[3:4], BALL, protocol=SHORT, ids=torch.tensor([3]))
    assert bool(one.robust[0]) == bool(outcomes[0].robust[3])


@pytest.mark.parametrize(
    "around",
    [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad],
    ids=["autocast", "inference_mode", "no_grad"],
)
def test_what_a_caller_allows_changes_no_verdict(around) -> None:
    model, images, labels = examples(10)
    plain = evaluate(model, images, labels, BALL, protocol=SHORT)
    with around():
        inside = evaluate(model, images + 0, labels, BALL, protocol=SHORT)
    assert differences(plain, inside) == []


class Marked(nn.Module):
    """A model with all that an evaluation might leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.core = curved(SHAPE, 5)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        logits: Tensor = self.core(images)
        return logits


def _legacy_state() -> str:
    return str(np.random.get_state())  # noqa: NPY002  (the global one is what is meant)


def test_the_model_and_all_generators_are_left_as_they_were() -> None:
    model = Marked().train()
    model.core[1].eval()
    model.core[0].weight.requires_grad_(False)
    model.core[4].weight.grad = torch.ones_like(model.core[4].weight)
    model.core.to(memory_format=torch.channels_last)
    model.core[0].register_forward_hook(lambda *_: None)
    hooks = dict(model.core[0]._forward_hooks)
    flags = [module.training for module in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    _, images, labels = examples(12)
    kept, names = images.clone(), labels.clone()
    torch.manual_seed(5)
    states = torch.get_rng_state(), _legacy_state()

    outcome = evaluate(model, images, labels, BALL, protocol=SHORT)

    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == _legacy_state()
    assert flags == [module.training for module in model.modules()]
    for name, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, values[name]), name
        assert id(value) == objects[name], name
        assert value.stride() == strides[name], name
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert [name for name, wants in wanted.items() if not wants] == ["core.0.weight"]
    grads = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert grads == ["core.4.weight"]
    assert torch.equal(model.core[4].weight.grad, torch.ones_like(model.core[4].weight))
    assert dict(model.core[0]._forward_hooks) == hooks
    assert not model._forward_hooks
    assert not any(
        module._forward_hooks for name, module in model.named_modules() if name != "core.0"
    )
    assert torch.equal(images, kept)
    assert torch.equal(labels, names)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert "train-mode" in {warning.name for warning in outcome.warnings}


@pytest.mark.parametrize(
    ("classes", "shape", "ball"),
    [
        (2, (1, 28, 28), BALLS[1]),
        (3, (3, 32, 20), BALLS[2]),
        (10, (1, 20, 32), BALLS[0]),
        (100, (3, 8, 8), BALLS[1]),
        (5, (1, 1, 3), BALLS[2]),
    ],
)
def test_any_number_of_classes_and_image_shape(
    classes: int, shape: tuple[int, int, int], ball: Ball
) -> None:
    model, images, labels = examples(8, shape=shape, classes=classes)
    outcome = evaluate(model, images, labels, ball, protocol=SHORT, checks=False)
    assert outcome.adversarials.shape == images.shape
    assert ball.contains(outcome.adversarials, images).all()
    right = predictions(model, outcome.adversarials) == labels
    assert torch.equal(right & outcome.clean_correct, outcome.robust)


def test_all_wrong_at_the_start_costs_one_pass() -> None:
    model, images, _ = examples()
    labels = (predictions(model, images) + 1) % 5
    counted = Counted(model)
    outcome = evaluate(counted, images, labels, BALL, protocol=SHORT, checks=False)
    assert counted.forwards == 40
    assert not outcome.clean_correct.any()
    assert set(outcome.broken_by) == {"clean"}
    assert (outcome.forward_passes == 1).all()
    assert torch.equal(outcome.adversarials, images)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.0), ("L2", 1e-6), ("L1", 0.0)])
def test_all_robust_runs_every_attack_to_its_end(norm: str, eps: float) -> None:
    model, images, labels = examples(6)
    outcome = evaluate(model, images, labels, Ball(norm, eps), protocol=SHORT, accelerate=False)
    assert torch.equal(outcome.robust, outcome.clean_correct)
    assert outcome.adversarials.isfinite().all()
    if eps == 0:
        assert torch.equal(outcome.adversarials, images)
    # APGD 10 + 1 and 3 (10 + 1), FAB 3 (10 + 1), Square 40 + 1; four scores, one clean pass.
    assert set(outcome.forward_passes[outcome.robust].tolist()) == {11 + 33 + 33 + 41 + 4 + 1}
    assert set(outcome.backward_passes[outcome.robust].tolist()) == {10 + 30 + 30}


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_zero_and_one_example(count: int, precision: str) -> None:
    model, images, labels = examples(2)
    images, labels = images[1:][:count], labels[1:][:count]
    said = []
    outcome = evaluate(
        model, images, labels, BALL, protocol=SHORT, precision=precision, report=said.append
    )
    assert len(outcome.robust) == len(outcome.broken_by) == count
    assert outcome.adversarials.shape == images.shape
    assert said[-1].share == 1


def test_an_exact_tie_of_the_margin_is_what_argmax_says() -> None:
    """Two classes with the same logits everywhere: the first is right, the second wrong."""
    model = linear(SHAPE, 3)
    with torch.no_grad():
        model[1].weight[1] = model[1].weight[0]
        model[1].bias.copy_(torch.tensor([100.0, 100.0, 0.0]))
    images = pictures(8, SHAPE)
    for label, right in ((0, True), (1, False)):
        labels = torch.full((8,), label)
        outcome = evaluate(model, images, labels, BALL, protocol=SHORT)
        assert outcome.clean_correct.tolist() == [right] * 8
        assert torch.equal(outcome.robust, outcome.clean_correct)


# Attacks that lie, are careless, or are not of this package


def overwriting(images: Tensor, labels: Tensor, stranger: Tensor) -> Tensor:
    images.copy_(stranger.expand_as(images))
    labels.add_(1).remainder_(3)
    return images


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (lambda images, labels, stranger: stranger.expand_as(images), ["left-ball:own"]),
        (lambda images, *_: torch.full_like(images, torch.nan), ["left-ball:own"]),
        (overwriting, None),
    ],
    ids=["outside", "NaN", "overwriting"],
)
def test_an_attack_that_lies_does_not_win(lie, told: list[str] | None) -> None:
    model, images, labels, robust = on_a_linear_model(200)
    images, labels = images[robust], labels[robust]
    images, labels = images[labels == labels[0]], labels[labels == labels[0]]
    before, others = (images.clone(), labels.clone()), pictures(40, (1, 4, 4))
    stranger = others[predictions(model, others) != labels[0]][:1]  # of another class, far away
    assert len(stranger)

    def lying(model, images, labels, ball, **_):
        return lie(images, labels, stranger)

    outcome = evaluate(model, images, labels, TENTH, protocol=own(lying))
    assert outcome.robust.all()
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert outcome.adversarials.isfinite().all()
    assert TENTH.contains(outcome.adversarials, images).all()
    assert told is None or [warning.name for warning in outcome.warnings] == told


@pytest.mark.parametrize("damage", ["train", "gradients", "data", "in place", "replaced"])
def test_what_an_attack_of_others_leaves_behind_does_not_reach_the_verdict(damage: str) -> None:
    """Published attacks end in `model.train()`; an optimiser writes past the version counters."""
    model, images, labels = examples()
    model(images).sum().backward()

    def careless(model, images, labels, ball, **_):
        if damage == "train":
            model.train()
            model(images)
        elif damage == "gradients":
            model.zero_grad()
        elif damage == "data":
            model[0].weight.data.mul_(-1)
        elif damage == "in place":
            with torch.no_grad():
                model[0].weight.mul_(-1)
        else:
            model[0].weight = nn.Parameter(-model[0].weight)
        return images

    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    if damage in ("train", "gradients"):
        outcome = evaluate(model, images, labels, BALL, protocol=own(careless))
        assert torch.equal(outcome.robust, outcome.clean_correct)
        for parameter, gradient in zip(model.parameters(), grads, strict=True):
            assert torch.equal(parameter.grad, gradient)
    else:
        with pytest.raises(InputError, match="attack 'own' changed the weights"):
            evaluate(model, images, labels, BALL, protocol=own(careless))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_edited_attack_is_another_evaluation(tmp_path: Path) -> None:
    model, images, labels = examples(30)
    own, log = tmp_path / "own.py", tmp_path / "log.jsonl"

    def judged(scale: float) -> float:
        own.write_text(f"def make(): return lambda m, images, *_, **__: images + {scale}\n")
        options = {"protocol": "clean", "attack": f"{own}:make", "log": log}
        return evaluate(model, images, labels, Ball("Linf", 0.5), **options).robust_accuracy

    weak = judged(0.0)
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        judged(0.5)
    log.unlink()
    assert judged(0.5) < weak


def test_looking_seldom_at_a_device_changes_nothing(monkeypatch) -> None:
    model, images, labels = examples(30)
    plan = SHORT._replace(attacks=(("pgd", PGD(steps=3, restarts=2)), *SHORT.attacks))

    def judged():
        return evaluate(model, images, labels, BALL, protocol=plan, checks=False, batch_size=7)

    often, advance = judged(), batching._advance
    monkeypatch.setattr(
        batching, "_advance", lambda a, w, f, *, patient: advance(a, w, f, patient=True)
    )
    seldom = judged()
    assert 0 < often.robust.sum() < len(images)
    assert often.broken_by == seldom.broken_by
    assert torch.allclose(often.adversarials, seldom.adversarials, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, _ in SHORT.attacks])
def test_a_fast_copy_that_lies_breaks_nothing(name: str, monkeypatch) -> None:
    """What is attacked takes every image for another class; the user's own model does not."""
    model, images, labels = examples()
    liar = Around(curved(SHAPE, 5), after=lambda logits: logits.roll(1, dims=1)).eval()
    counted, lies = Counted(model), Counted(liar)
    monkeypatch.setattr(
        "robust_nc.evaluation.turns.accelerate", lambda *_: Accelerated(lies, ("lying",))
    )
    attack = dict(SHORT.attacks)[name]
    outcome = evaluate(counted, images, labels, BALL, protocol=own(attack), checks=False)
    assert outcome.accelerated == ("lying",)
    broken = outcome.clean_correct & ~outcome.robust
    assert (predictions(model, outcome.adversarials) != labels)[broken].all()
    assert outcome.robust.sum() > 10, "examples go on after a flip that is refuted"
    least = attack.rounds * (attack.num_targets or 1)
    assert (outcome.forward_passes[outcome.robust] > least).all()
    assert int(outcome.forward_passes.sum()) == counted.forwards + lies.forwards
    assert int(outcome.backward_passes.sum()) == counted.backwards + lies.backwards


@pytest.mark.parametrize(("size", "plan"), [(1, APGD_ONLY), (16, SHORT)])
def test_every_pass_is_booked(size: int, plan: EvaluationProtocol) -> None:
    model, images, labels = examples(10 if size == 1 else 30)
    counted, options = Counted(model), {"checks": False, "accelerate": False, "tune": False}
    outcome = evaluate(counted, images, labels, BALL, protocol=plan, batch_size=size, **options)
    assert int(outcome.forward_passes.sum()) == counted.forwards
    assert int(outcome.backward_passes.sum()) == counted.backwards


@pytest.mark.parametrize(("most", "logged"), [(8, True), (3, False), (1, True)])
def test_memory_that_runs_out_halves_the_batch(most: int, logged: bool, tmp_path) -> None:
    model, images, labels = examples(30 if most == 8 else 10)
    log = tmp_path / "log.jsonl" if logged else None
    plan = APGD_ONLY if most == 1 else SHORT
    plain = evaluate(model, images, labels, BALL, protocol=plan, checks=False)
    limited = Limited(model, most, torch.OutOfMemoryError if logged else MemoryError)
    outcome = evaluate(
        limited, images, labels, BALL, protocol=plan, checks=False, accelerate=False, log=log
    )
    assert torch.equal(outcome.robust, plain.robust)
    assert outcome.broken_by == plain.broken_by
    refused = [size for size in limited.sizes if size > most]
    assert len(refused) <= 6 + 5 * logged, "what is too large is not tried again and again"
    assert max(limited.sizes[-50:]) <= most


def test_memory_that_runs_out_in_an_attack_of_others_halves_the_batch() -> None:
    model, images, labels = examples()
    limited = Limited(model, 8)

    def noisy(model, images, labels, ball, *, seed, ids, **_):
        model(images)
        return GaussianNoise()(model, images, labels, ball, seed=seed, ids=ids)

    plan = own(noisy)
    plain, outcome = (
        evaluate(each, images, labels, BALL, protocol=plan, checks=False)
        for each in (model, limited)
    )
    assert torch.equal(outcome.robust, plain.robust)
    assert torch.equal(outcome.adversarials, plain.adversarials)
    assert max(limited.sizes[-4:]) <= 8


# Models and input that do not serve


TWINS = EvaluationProtocol("twins", (("a", PGD()), ("a", PGD())))


def unlucky(model, images, labels, ball, **_):
    raise ZeroDivisionError("by hand")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m, x, y: (m, x * 255, y), "divide by 255"),
        (lambda m, x, y: (m, x.clone().index_fill_(0, torch.tensor([2]), float("nan")), y), "NaN"),
        (lambda m, x, y: (m, x[0], y), "(N, C, H, W)"),
        (lambda m, x, y: (m, x, y[:-1]), "labels"),
        (lambda m, x, y: (m, x, y + 0.5), "whole numbers"),
        (lambda m, x, y: (m, x, y - 5), "label"),
        (lambda m, x, y: (m, x, y + 5), "out of range: the model has 5 classes"),
        (
            lambda m, x, y: (Around(m, after=lambda z: 0 * z[:, 0]), x, y),
            "must return logits (N, K)",
        ),
        (lambda m, x, y: (Around(m, after=lambda z: z[:, :1]), x, y * 0), "at least two classes"),
        (lambda m, x, y: (Around(m, after=lambda z: torch.nan * z), x, y), "not finite"),
        ({"protocol": own(lambda model, images, *_, **__: images[:, 0])}, "'own' returned"),
        ({"protocol": own(unlucky)}, "attack 'own' failed on examples"),
        ({"protocol": "clean", "attack": 42}, "attack 'int'"),
        ({"protocol": "pdg"}, "unknown protocol 'pdg'; did you mean 'pgd'"),
        ({"protocol": TWINS}, "need names of their own"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"precision": "fp16"}, "unknown precision 'fp16'; valid: auto, float32, tf32"),
    ],
)
def test_bad_input_gets_one_sentence(change, sentence: str) -> None:
    given, options = examples(8), {"protocol": "pgd"}
    if isinstance(change, dict):
        options |= change
    else:
        given = change(*given)
    with pytest.raises(RobustNCError) as raised:
        evaluate(*given, BALL, **options)
    assert sentence in str(raised.value)


class Late(nn.Module):
    """Answers clean images as `model` does; all others times `factor`."""

    def __init__(self, model: nn.Module, clean: Tensor, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor
        self.register_buffer("clean", clean)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        known = (images[:, None] == self.clean[None]).flatten(2).all(2).any(1)
        return torch.where(known[:, None], logits, logits * self.factor)


@pytest.mark.parametrize(("value", "accelerate"), [(torch.nan, True), (torch.inf, False)])
def test_logits_that_are_nan_on_attacked_points_are_named(value: float, accelerate: bool) -> None:
    model, images, labels = examples(6)
    late = Late(model, images, value)
    with pytest.raises(InputError, match=r"apgd-ce.*not finite|NaN or infinite"):
        evaluate(late, images, labels, BALL, protocol=SHORT, accelerate=accelerate)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 11])
@pytest.mark.parametrize("accelerate", [True, False])
def test_a_model_that_fails_is_answered_with_the_batch_and_the_attack(
    at: int, accelerate: bool
) -> None:
    model, images, labels = examples()
    failing = Failing(model, at)
    with pytest.raises(InputError) as raised:
        evaluate(
            failing, images, labels, BALL, protocol=SHORT, accelerate=accelerate, batch_size=16
        )
    said = str(raised.value)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in failing.modules())
    assert "RuntimeError: out of luck" in said
    assert "batch" in said or "compared" in said
    assert "images of 1x8x8" in said or "compared" in said
    if at <= 3:
        assert f"batch {at} of the clean images" in said
    elif not accelerate:
        assert "attack 'apgd-ce'" in said


def test_fast_has_a_list_for_a_norm_in_which_that_of_linf_is_too_short() -> None:
    model, ball, row = curved(SHAPE, 5, seed=2), Ball("L1", 2.0), torch.tensor([3])
    images = pictures(4, SHAPE)[row]
    labels = predictions(model, images)
    fast, short = (
        evaluate(model, images, labels, ball, protocol=protocol, ids=row, checks=False, tune=False)
        for protocol in ("fast", EvaluationProtocol("linf", FAST.attacks))
    )
    assert fast.robust.tolist() == [False]
    assert short.robust.tolist() == [True]


def test_a_gate_of_l2_lets_pass_what_that_of_linf_shuts_out() -> None:
    """The worst point has a DLR loss of -0.23: above -0.4, not above -0.15."""
    model = load_classifier(Path(__file__).parent / "before/judging/checkpoints/2ad96559c1ea26d3")
    test, row = read_split("digits", "test", limit=46), torch.tensor([45])
    images, labels, ball = to_unit(test.images)[row], test.labels[row], Ball("L2", 0.31)
    fast, short = (
        evaluate(model, images, labels, ball, protocol=protocol, ids=row, checks=False, tune=False)
        for protocol in ("fast", EvaluationProtocol("linf", FAST.attacks))
    )
    assert fast.broken_by == ("apgd-t-near",)
    assert short.robust.tolist() == [True]


# Precisions, and models whose output is random


@pytest.mark.parametrize(
    ("precision", "turns"),
    [("float32", 2), ("tf32", 4), ("bf16", 4), ("tf32-only", 2), ("bf16-only", 2)],
)
def test_precisions_take_the_turns_that_they_say(precision: str, turns: int) -> None:
    model, images, labels = examples(20)
    kinds, said = [], []
    handle = model.register_forward_hook(lambda *call: kinds.append(call[2].dtype))
    outcome = evaluate(
        *(model, images, labels, BALL),
        protocol=APGD_ONLY,
        precision=precision,
        checks=False,
        accelerate=False,
        report=said.append,
    )
    handle.remove()
    assert said[-1].turns == said[-1].turn == turns
    assert (torch.bfloat16 in kinds) == ("bf16" in precision)
    assert kinds[-1] == torch.float32, "every verdict is in float32"
    # Clean; per turn 11 + 33 passes and two scores.
    least = 1 + turns // 2 * (11 + 33 + 2)
    assert (outcome.forward_passes[outcome.robust] >= least).all()
    assert (predictions(model, outcome.adversarials) == labels)[outcome.robust].all()


def test_what_survives_bf16_is_attacked_again_in_float32() -> None:
    """In bf16 the margin is a constant: only the turns in float32 can break anything."""

    def coarse(logits: Tensor) -> Tensor:
        bare = logits.dtype == torch.bfloat16
        return 0 * logits + torch.tensor([9.0, 0, 0, 0, 0]) if bare else logits

    model, images = Around(curved(SHAPE, 5), after=coarse).eval(), pictures(60, SHAPE)
    images = images[predictions(model, images) == 0]
    labels = torch.zeros(len(images), dtype=torch.int64)
    both, alone, full = (
        evaluate(model, images, labels, BALL, protocol=APGD_ONLY, precision=precision)
        for precision in ("bf16", "bf16-only", "float32")
    )
    assert full.robust.sum() < both.clean_correct.sum()
    assert torch.equal(both.robust, full.robust)
    assert alone.robust.sum() > both.robust.sum()


def test_a_random_model_is_judged_by_its_majority() -> None:
    model, images, labels = examples(30)
    noisy = Around(model, after=lambda logits: logits + 0.3 * torch.randn_like(logits))
    plan = EvaluationProtocol("rand", (("apgd-ce", APGD(steps=5, eot=2)),), draws=9)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = evaluate(noisy, images, labels, BALL, protocol=plan)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again = evaluate(noisy, images, labels, BALL, protocol=plan)
    assert differences(first, again) == []
    other = evaluate(noisy, images, labels, BALL, protocol=plan, seed=1)
    assert differences(first, other) != []
    assert first.accelerated == ()
    assert (first.forward_passes[~first.clean_correct] == 9).all()
    rest = first.forward_passes[first.robust] - (9 + 2 * (5 + 1) + 9)
    assert rest.max() == 0
    assert (rest < 0).any(), "an attack that thinks it is done stops, and the majority refutes it"
    assert 0 < first.robust.sum() < first.clean_correct.sum()


def test_a_majority_is_more_than_half() -> None:
    """A model that is wrong in every second pass is right: half is no majority."""

    class Alternating(nn.Module):
        def __init__(self, period: int) -> None:
            super().__init__()
            self.period, self.calls = period, 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            wrong = self.calls % self.period == 0
            return torch.tensor([[0.0, 1.0]] if wrong else [[1.0, 0.0]]).repeat(len(images), 1)

    clean = EvaluationProtocol("clean", (), draws=4)
    images, labels = pictures(3, SHAPE), torch.zeros(3, dtype=torch.int64)
    assert evaluate(Alternating(2), images, labels, BALL, protocol=clean).clean_correct.all()
    assert not evaluate(Alternating(1), images, labels, BALL, protocol=clean).clean_correct.any()


SETTINGS = (
    "",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'tf32'",
)
PRECISE = """
import os, sys, torch
from robust_nc.runtime.torch_state import full_precision

b = torch.backends
parts = [b.cuda.matmul, b.cudnn.conv, b.mkldnn.matmul, b.mkldnn.conv]
older = [torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32]

def read():
    return ["ieee" if part.fp32_precision == "none" else part.fp32_precision for part in parts]

def answers(what):
    try:
        return what()
    except RuntimeError:
        return "refused"

for setting in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        exec(setting)
        before = read(), [answers(what) for what in older]
        with full_precision(), full_precision():
            assert read() == ["ieee"] * 4, (setting, read())
        assert (read(), [answers(what) for what in older]) == before, setting
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, setting
"""


def test_products_are_exact_whatever_the_caller_allows() -> None:
    """Each in a process of its own: torch refuses to mix its old and its new switches."""
    ran = subprocess.run([sys.executable, "-c", PRECISE, *SETTINGS], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
