"""`evaluate` with the four attacks of `standard`: one verdict, whatever the circumstances."""

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
from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.noise import GaussianNoise
from robust_nc.evaluation.acceleration import Accelerated
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.types import EvaluationProtocol

each_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


@each_ball
def test_batches_and_order_leave_the_verdict_alone(ball: Ball) -> None:
    model, images, labels = examples(60)
    ids = torch.arange(1000, 1060)
    given = {"protocol": SHORT, "checks": False}
    first = evaluate(model, images, labels, ball, ids=ids, batch_size=16, **given)
    assert 0 < first.robust.sum() < first.clean_correct.sum()
    for size in (100, 500, None):
        again = evaluate(model, images, labels, ball, ids=ids, batch_size=size, **given)
        assert torch.equal(again.robust, first.robust)
        assert again.broken_by == first.broken_by
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
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

    evaluate(model, images, labels, BALL, protocol=SHORT)

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


def test_the_generator_of_the_standard_library_is_left_as_it_was() -> None:
    """In a process of its own: the checks of types under pytest draw from it."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import random, robust_nc, helpers_attacks as h\n"
        "model, images, labels = h.examples(8)\n"
        "before = random.getstate()\n"
        "robust_nc.evaluate(model, images, labels, h.BALL, protocol=h.SHORT)\n"
        "assert random.getstate() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_any_number_of_classes(classes: int) -> None:
    model, images = curved(SHAPE, classes), pictures(10, SHAPE)
    labels, ball = predictions(model, images), Ball("Linf", 0.1)
    outcome = evaluate(model, images, labels, ball, protocol=SHORT, checks=False)
    assert outcome.clean_correct.all()
    assert not outcome.robust.all()
    assert ball.contains(outcome.adversarials, images).all()
    assert torch.equal(predictions(model, outcome.adversarials) == labels, outcome.robust)


@each_ball
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8), (3, 32, 20), (1, 20, 32), (1, 1, 3)])
def test_any_image_shape(shape: tuple[int, int, int], ball: Ball) -> None:
    model, images, labels = examples(5, shape=shape)
    outcome = evaluate(model, images, labels, ball, protocol=SHORT, checks=False)
    assert outcome.adversarials.shape == images.shape
    assert ball.contains(outcome.adversarials, images).all()
    broken = outcome.clean_correct & ~outcome.robust
    assert (predictions(model, outcome.adversarials) != labels)[broken].all()


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


@each_ball
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_all_robust_runs_every_attack_to_its_end(ball: Ball, eps: float) -> None:
    model, images, labels = examples(6)
    outcome = evaluate(
        model, images, labels, Ball(ball.norm, eps), protocol=SHORT, accelerate=False
    )
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


@each_ball
def test_constant_logits_are_robust_and_doubted(ball: Ball) -> None:
    model = linear(SHAPE, 4)
    nn.init.zeros_(model[1].weight)
    images, labels = pictures(6, SHAPE), torch.full((6,), int(model[1].bias.argmax()))
    outcome = evaluate(model, images, labels, ball, protocol=SHORT)
    assert outcome.robust.all()
    assert ball.contains(outcome.adversarials, images).all()
    assert "zero-gradients" in {warned.name for warned in outcome.warnings}


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("accelerate", [True, False])
def test_logits_that_are_nan_on_attacked_points_are_named(value: float, accelerate: bool) -> None:
    model, images, labels = examples(6)
    late = Late(model, images, value)
    with pytest.raises(InputError, match=r"apgd-ce.*not finite|NaN or infinite"):
        evaluate(late, images, labels, BALL, protocol=SHORT, accelerate=accelerate)


@pytest.mark.parametrize("at", range(1, 12))
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
    assert "RuntimeError: out of luck" in said
    assert "batch" in said or "compared" in said
    assert "images of 1x8x8" in said or "compared" in said
    if at <= 3:
        assert f"batch {at} of the clean images" in said
    elif not accelerate:
        assert "attack 'apgd-ce'" in said


class Shift(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.roll(1, dims=1)


@pytest.mark.parametrize("name", [name for name, _ in SHORT.attacks])
def test_a_fast_copy_that_lies_breaks_nothing(name: str, monkeypatch) -> None:
    """What is attacked takes every image for another class; the user's own model does not."""
    model, images, labels = examples()
    liar = nn.Sequential(curved(SHAPE, 5), Shift()).eval()
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


@pytest.mark.parametrize("size", [1, 16, 100])
def test_every_pass_is_booked(size: int) -> None:
    model, images, labels = examples(10 if size == 1 else 30)
    counted = Counted(model)
    outcome = evaluate(
        counted,
        images,
        labels,
        BALL,
        protocol=APGD_ONLY if size == 1 else SHORT,
        batch_size=size,
        checks=False,
        accelerate=False,
    )
    assert int(outcome.forward_passes.sum()) == counted.forwards
    assert int(outcome.backward_passes.sum()) == counted.backwards


@pytest.mark.parametrize(("most", "logged"), [(8, True), (8, False), (3, True), (1, True)])
def test_memory_that_runs_out_halves_the_batch(most: int, logged: bool, tmp_path) -> None:
    model, images, labels = examples(30 if most == 8 else 10)
    log = tmp_path / "log.jsonl" if logged else None
    plan = APGD_ONLY if most == 1 else SHORT
    plain = evaluate(model, images, labels, BALL, protocol=plan, checks=False)
    limited = Limited(model, most)
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

    def noisy(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
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


@pytest.mark.parametrize("damage", ["train", "data", "replaced"])
def test_what_an_attack_of_others_leaves_behind_does_not_reach_the_verdict(damage: str) -> None:
    """Published attacks end in `model.train()`; an optimiser writes past the version counters."""
    model, images, labels = examples()

    def careless(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        if damage == "train":
            model.train()
            model(images)
        elif damage == "data":
            model[0].weight.data.mul_(-1)
        else:
            model[0].weight = nn.Parameter(-model[0].weight)
        return images

    before = {name: value.clone() for name, value in model.state_dict().items()}
    if damage == "train":
        outcome = evaluate(model, images, labels, BALL, protocol=own(careless))
        assert torch.equal(outcome.robust, outcome.clean_correct)
    else:
        with pytest.raises(InputError, match="changed the weights"):
            evaluate(model, images, labels, BALL, protocol=own(careless))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class Rounded(nn.Module):
    """Says in which precision it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.kinds: list[torch.dtype] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        self.kinds.append(logits.dtype)
        return logits


@pytest.mark.parametrize(
    ("precision", "turns"),
    [("float32", 2), ("tf32", 4), ("bf16", 4), ("tf32-only", 2), ("bf16-only", 2)],
)
def test_precisions_take_the_turns_that_they_say(precision: str, turns: int) -> None:
    model, images, labels = examples(20)
    rounded, said = Rounded(model), []
    outcome = evaluate(
        rounded,
        images,
        labels,
        BALL,
        protocol=APGD_ONLY,
        precision=precision,
        checks=False,
        accelerate=False,
        report=said.append,
    )
    assert said[-1].turns == said[-1].turn == turns
    assert (torch.bfloat16 in rounded.kinds) == ("bf16" in precision)
    assert rounded.kinds[-1] == torch.float32, "every verdict is in float32"
    # Clean; per turn 11 + 33 passes and two scores.
    least = 1 + turns // 2 * (11 + 33 + 2)
    assert (outcome.forward_passes[outcome.robust] >= least).all()
    assert (predictions(model, outcome.adversarials) == labels)[outcome.robust].all()


def test_what_survives_bf16_is_attacked_again_in_float32() -> None:
    """In bf16 the margin is a constant: only the turns in float32 can break anything."""

    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = curved(SHAPE, 5)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images)
            coarse = logits.dtype == torch.bfloat16
            return 0 * logits + torch.tensor([9.0, 0, 0, 0, 0]) if coarse else logits

    model, images = Coarse().eval(), pictures(60, SHAPE)
    images = images[predictions(model, images) == 0]
    labels = torch.zeros(len(images), dtype=torch.int64)
    both, alone, full = (
        evaluate(model, images, labels, BALL, protocol=APGD_ONLY, precision=precision)
        for precision in ("bf16", "bf16-only", "float32")
    )
    assert full.robust.sum() < both.clean_correct.sum()
    assert torch.equal(both.robust, full.robust)
    assert alone.robust.sum() > both.robust.sum()


def test_an_unknown_precision_is_refused() -> None:
    model, images, labels = examples(2)
    with pytest.raises(ConfigError, match="unknown precision 'fp16'; valid: float32, tf32"):
        evaluate(model, images, labels, BALL, protocol=SHORT, precision="fp16")


class Random(nn.Module):
    """Adds noise to its logits, from the global generator."""

    def __init__(self, model: nn.Module, size: float) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits + self.size * torch.randn_like(logits)


def test_a_random_model_is_judged_by_its_majority() -> None:
    model, images, labels = examples(30)
    noisy = Random(model, 0.3)
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


def test_an_evaluation_inside_no_grad_is_the_same() -> None:
    model, images, labels = examples(10)
    plain = evaluate(model, images, labels, BALL, protocol=SHORT)
    with torch.no_grad():
        assert differences(plain, evaluate(model, images, labels, BALL, protocol=SHORT)) == []
