"""FGSM with a random start, MART and AWP: their formulas, batch norm, and what they are for."""

import numpy as np
import pytest
import torch
from helpers_models import digits, small_config, small_model, small_run
from torch import nn
from torch.nn import functional as F

from robust_nc.attacks.pgd import PGD
from robust_nc.config import Component, build
from robust_nc.exceptions import ConfigError
from robust_nc.models.classifier import Classifier
from robust_nc.models.heads import LinearHead
from robust_nc.registry import OBJECTIVES
from robust_nc.threat import Ball
from robust_nc.training.losses import build_loss, cross_entropy, squared_error
from robust_nc.training.objectives import Awp, Fgsm, Mart, Pgd, Trades, boosted_cross_entropy

BALL = Ball("Linf", 0.1)
CE = build_loss(Component(name="ce"))


class CountingHead(LinearHead):
    """Counts how often it observes, and how many examples."""

    observes = True

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__(num_classes, dim, seed=0)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))

    def observe(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        self.calls += 1
        self.seen += torch.tensor([1, len(labels)])


def objectives(bn_mode: str = "eval") -> dict[str, Pgd | Trades | Awp]:
    return {
        "pgd": Pgd(BALL, CE, steps=2, bn_mode=bn_mode),
        "trades": Trades(BALL, CE, steps=2, bn_mode=bn_mode),
        "fgsm": Fgsm(BALL, CE, bn_mode=bn_mode),
        "mart": Mart(BALL, CE, steps=2, bn_mode=bn_mode),
        "awp": Awp(BALL, CE, steps=2, bn_mode=bn_mode),
        "awp-trades": Awp(BALL, CE, base="trades", steps=2, bn_mode=bn_mode),
    }


NAMES = tuple(objectives())


def call(objective, model, seed: int = 5):
    images, labels, ids = digits()
    return objective(model, images, labels, seed=seed, ids=ids)


def lively_model() -> nn.Module:
    """A model whose probabilities differ, between classes and under attack."""
    model = small_model().eval()
    with torch.no_grad():
        model.head.weight *= 20
    return model


def gradients(loss, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss.value, list(model.parameters())))


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(
        torch.allclose(one, other, atol=1e-6) for one, other in zip(found, wanted, strict=True)
    )


class TestFgsm:
    def test_it_is_one_step_of_1_25_eps_from_a_random_start(self):
        images, labels, ids = digits()
        model = small_model().eval()
        attack = PGD(steps=1, step_size=0.125, keep_best=False)
        points = attack(model, images, labels, BALL, goal="maximise", seed=5, ids=ids)
        found = call(Fgsm(BALL, squared_error, bn_mode="frozen"), model)
        assert torch.allclose(found.value, squared_error(model(points), labels).mean())
        longer = call(Fgsm(BALL, squared_error, step_size=0.2, bn_mode="frozen"), model)
        assert not torch.allclose(longer.value, found.value)


def softmax64(logits: torch.Tensor) -> np.ndarray:
    powers = np.exp(logits.detach().double().numpy())
    return powers / powers.sum(1, keepdims=True)


def mart_by_hand(clean: torch.Tensor, attacked: torch.Tensor, labels, beta: float) -> float:
    total = 0.0
    for p, q, y in zip(softmax64(clean), softmax64(attacked), labels.tolist(), strict=True):
        rival = max(q[k] for k in range(len(q)) if k != y)
        divergence = sum(p[k] * np.log(p[k] / q[k]) for k in range(len(q)))
        total += -np.log(q[y]) - np.log(1 - rival) + beta * divergence * (1 - p[y])
    return total / len(labels)


class TestMart:
    def test_it_is_the_formula(self):
        images, labels, ids = digits()
        model = lively_model()
        attack = PGD(steps=3, initial="gaussian", keep_best=False)
        points = attack(model, images, labels, BALL, goal="maximise", seed=5, ids=ids)
        wanted = mart_by_hand(model(images), model(points), labels, 4.0)
        found = call(Mart(BALL, CE, beta=4.0, steps=3, bn_mode="frozen"), model)
        assert float(found.value.detach()) == pytest.approx(wanted, rel=1e-5)
        without = mart_by_hand(model(images), model(points), labels, 0.0)
        assert wanted > without + 0.01

    def test_gradients_flow_into_every_part(self):
        images, labels, ids = digits()
        model = lively_model()
        attack = PGD(steps=2, initial="gaussian", keep_best=False)
        points = attack(model, images, labels, BALL, goal="maximise", seed=5, ids=ids)
        p, q = model(images).softmax(1), model(points).softmax(1)
        truth = F.one_hot(labels, 10).bool()
        rival = q.masked_fill(truth, 0).amax(1)
        boosted = -q[truth].log() - (1 - rival).log()
        value = boosted + 5 * (p * (p / q).log()).sum(1) * (1 - p[truth])
        wanted = list(torch.autograd.grad(value.mean(), list(model.parameters())))
        found = gradients(call(Mart(BALL, CE, steps=2, bn_mode="frozen"), model), model)
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)

    def test_boosted_cross_entropy_is_finite_however_sure_the_model_is(self):
        logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]], requires_grad=True)
        values = boosted_cross_entropy(logits, torch.tensor([0, 0]))
        values.sum().backward()
        assert values.tolist() == pytest.approx([0.0, 2e4 - np.log(2)])
        assert bool(torch.isfinite(logits.grad).all())

    def test_with_two_classes_it_is_twice_the_cross_entropy(self):
        logits, labels = torch.tensor([[1.0, -0.5], [0.3, 2.0]]), torch.tensor([0, 0])
        assert torch.allclose(
            boosted_cross_entropy(logits, labels), 2 * cross_entropy(logits, labels)
        )


def awp_in_place(model: nn.Module, base: Pgd | Trades, gamma: float) -> list[torch.Tensor]:
    """Move the weights of more than one dimension, take the gradient there, move them back."""
    images, labels, ids = digits()
    attacked = base.inner(model, images, labels, BALL, goal="maximise", seed=5, ids=ids)

    def value() -> torch.Tensor:
        if isinstance(base, Pgd):
            return F.cross_entropy(model(attacked), labels)
        clean, moved = model(images), model(attacked).log_softmax(1)
        divergence = F.kl_div(moved, clean.log_softmax(1), log_target=True, reduction="batchmean")
        return F.cross_entropy(clean, labels) + base.beta * divergence

    parameters = list(model.parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    slopes = torch.autograd.grad(value(), parameters)
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            if parameter.ndim > 1:
                parameter += gamma * parameter.norm() * slope / slope.norm()
    found = list(torch.autograd.grad(value(), parameters))
    with torch.no_grad():
        for parameter, before in zip(parameters, kept, strict=True):
            parameter.copy_(before)
    return found


class TestAwp:
    @pytest.mark.parametrize("name", ["pgd", "trades"])
    def test_its_gradient_is_that_of_weights_moved_in_place(self, name):
        model = lively_model()
        options = {"steps": 2, "bn_mode": "frozen"}
        extra = {"beta": 3.0} if name == "trades" else {}
        base = {"pgd": Pgd, "trades": Trades}[name](BALL, CE, **options, **extra)
        objective = Awp(BALL, CE, base=name, gamma=0.05, **options, **extra)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        found = gradients(call(objective, model), model)
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
        assert close(found, awp_in_place(model, base, 0.05))
        assert not close(found, gradients(call(base, model), model))

    @pytest.mark.parametrize("name", ["pgd", "trades"])
    def test_without_gamma_it_is_its_base(self, name):
        base = {"pgd": Pgd, "trades": Trades}[name](BALL, CE, steps=2)
        objective = Awp(BALL, CE, base=name, gamma=0.0, steps=2)
        models = small_model(), small_model()
        losses = [call(one, model) for one, model in zip((base, objective), models, strict=True)]
        assert losses[0].logs == losses[1].logs
        assert close(*(gradients(loss, model) for loss, model in zip(losses, models, strict=True)))
        for one, other in zip(*(model.buffers() for model in models), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
class TestEveryOne:
    def outer_batches(self, name: str) -> int:
        return 2 if name in {"trades", "mart", "awp-trades"} else 1

    def test_batch_norm_learns_from_the_outer_step_alone(self, name):
        """Trap: TRADES that leaves the model in eval mode, so that batch norm never learns."""
        model = small_model()
        call(objectives()[name], model)
        assert all(module.training for module in model.modules())
        counted = [b for n, b in model.named_buffers() if "num_batches_tracked" in n]
        assert {int(count) for count in counted} == {self.outer_batches(name)}

    def test_frozen_batch_norm_never_learns(self, name):
        model = small_model()
        before = [buffer.clone() for buffer in model.buffers()]
        call(objectives("frozen")[name], model).value.backward()
        assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
        assert all(module.training for module in model.modules())
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_a_head_that_observes_does_so_once(self, name):
        plain = small_model()
        head = CountingHead(10, plain.backbone.dim)
        model = Classifier(plain.normalise, plain.backbone, head)
        call(objectives()[name], model).value.backward()
        assert head.calls == 1
        assert head.seen.tolist() == [1, 50]

    def test_the_draws_come_from_the_seed(self, name):
        first, again, other = (
            call(objectives()[name], small_model(), seed).value.detach() for seed in (5, 5, 6)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def robust_accuracy(objective: object) -> float:
    last = small_run(small_config(objective=objective, epochs=6, eps=0.15, examples=400)).last
    images, labels, ids = digits("test", 200)
    points = PGD(steps=10)(last, images, labels, Ball("Linf", 0.15), seed=9, ids=ids)
    return float((last(points).argmax(1) == labels).float().mean())


@pytest.fixture(scope="module")
def undefended() -> float:
    return robust_accuracy("standard")


@pytest.mark.parametrize("name", ["pgd", "trades", "fgsm", "mart", "awp"])
def test_each_defense_lowers_the_attacked_error(name, undefended):
    table = {"name": name} | ({} if name == "fgsm" else {"steps": 4})
    assert robust_accuracy(table) > undefended + 0.1


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("pgd", {"steps": 0}, "steps must be at least 1, found 0"),
        ("pgd", {"step_size": -1.0}, "step_size must be above 0, found -1.0"),
        ("pgd", {"bn_mode": "evl"}, "bn_mode"),
        ("trades", {"beta": -1.0}, "beta must be at least 0, found -1.0"),
        ("trades", {"betta": 1.0}, "no option 'betta'"),
        ("fgsm", {"steps": 3}, "no option 'steps'.*valid: step_size, bn_mode"),
        ("fgsm", {"step_size": 0.0}, "step_size must be above 0, found 0.0"),
        ("mart", {"beta": -1.0}, "beta must be at least 0, found -1.0"),
        ("mart", {"steps": 0}, "steps must be at least 1, found 0"),
        ("awp", {"gamma": -0.1}, "gamma must be at least 0, found -0.1"),
        ("awp", {"beta": 3.0}, 'beta is an option of base = "trades"; leave it out with "pgd"'),
        ("awp", {"base": "trades", "beta": -3.0}, "beta must be at least 0, found -3.0"),
        ("awp", {"base": "mart"}, "'pgd' or 'trades'"),
        ("awp", {"step_size": -1.0}, "step_size must be above 0, found -1.0"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(name, options, why):
    with pytest.raises(ConfigError, match=why) as caught:
        build(OBJECTIVES, Component(name=name, options=options), ball=BALL, loss=CE)
    assert "\n" not in str(caught.value)


def test_mart_refuses_another_loss():
    with pytest.raises(ConfigError, match="mart brings its own loss; set"):
        small_run(small_config(objective="mart", train={"loss": "mse"}))
