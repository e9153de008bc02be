"""Models whose output is random, attacks that were edited, callers with settings of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_attacks import Coin, curved, pictures, predictions
from torch import Tensor, nn

from robust_nc.attacks import batching as flight
from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.square import Square
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol

SHAPE = (1, 8, 8)
BALL = Ball("Linf", 0.03)


def given(count: int = 30) -> tuple[nn.Module, Tensor, Tensor]:
    model, images = curved(SHAPE, 5), pictures(count, SHAPE)
    return model, images, predictions(model, images)


def test_noise_alone_does_not_break_a_random_model() -> None:
    images, labels = pictures(100, SHAPE), torch.zeros(100, dtype=torch.int64)
    attacks = (("apgd-ce", APGD(steps=30, eot=3)), ("apgd-dlr", APGD(steps=30, eot=3, loss="dlr")))
    plan = EvaluationProtocol("rand", attacks, draws=20)
    outcome = evaluate(Coin(), images, labels, Ball("Linf", 0.0), protocol=plan, checks=False)
    # One vote of 20 passes is wrong for 1.7 % of the examples, and there are two after the first.
    assert outcome.clean_correct.sum() - outcome.robust.sum() <= 9


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=25),
        APGD(steps=25, loss="dlr", num_targets=2),
        FAB(steps=13, num_targets=2),
        PGD(steps=7, restarts=2),
        Square(queries=33),
    ],
    ids=["apgd", "apgd-t", "fab-t", "pgd", "square"],
)
def test_looking_seldom_at_a_device_changes_nothing(attack, monkeypatch) -> None:
    model, images, labels = given()
    plan = EvaluationProtocol("own", (("own", attack),))

    def judged():
        return evaluate(model, images, labels, BALL, protocol=plan, checks=False, batch_size=7)

    often, advance = judged(), flight._advance
    monkeypatch.setattr(
        flight, "_advance", lambda a, w, f, *, patient: advance(a, w, f, patient=True)
    )
    seldom = judged()
    assert 0 < often.robust.sum() < len(images)
    assert often.broken_by == seldom.broken_by
    assert torch.allclose(often.adversarials, seldom.adversarials, atol=1e-6)


def test_an_edited_attack_is_another_evaluation(tmp_path: Path) -> None:
    model, images, labels = given()
    own, log = tmp_path / "own.py", tmp_path / "log.jsonl"

    def judged(scale: float) -> float:
        own.write_text(
            "def make():\n"
            "    def attack(model, images, labels, ball, **_):\n"
            f"        return ball.project(images + {scale}, images)\n"
            "    return attack\n"
        )
        return evaluate(
            model,
            images,
            labels,
            Ball("Linf", 0.5),
            protocol="clean",
            attack=f"{own}:make",
            log=log,
        ).robust_accuracy

    weak = judged(0.0)
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        judged(0.5)
    log.unlink()
    assert judged(0.5) < weak


def test_an_attack_gets_a_name_of_its_own() -> None:
    model, images, labels = given(8)

    def clean(model, images, labels, ball, **_):
        return 1 - images

    outcome = evaluate(model, images, labels, Ball("Linf", 1.0), protocol="clean", attack=clean)
    assert [name for name, _ in outcome.attacks] == ["own-clean"]
    assert set(outcome.broken_by) <= {"", "own-clean"}
    twins = EvaluationProtocol("twins", (("a", PGD()), ("a", PGD())))
    with pytest.raises(ConfigError, match="need names of their own"):
        evaluate(model, images, labels, BALL, protocol=twins)


def test_an_attack_that_clears_gradients_leaves_them() -> None:
    model, images, labels = given(8)
    model(images).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]

    def careless(model, images, labels, ball, **_):
        model.zero_grad()
        return images

    evaluate(model, images, labels, BALL, protocol="clean", attack=careless)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_a_caller_without_gradients_gets_the_same_verdict() -> None:
    model, images, labels = given()
    plain = evaluate(model, images, labels, BALL, protocol="pgd")
    with torch.inference_mode():
        inside = evaluate(model, images + 0, labels, BALL, protocol="pgd")
    assert plain.broken_by == inside.broken_by


SETTINGS = {
    "none": "",
    "matmul": "torch.set_float32_matmul_precision('medium')",
    "old": "torch.backends.cuda.matmul.allow_tf32 = True",
    "new": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "all": "torch.backends.fp32_precision = 'tf32'",
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_products_are_exact_whatever_the_caller_allows(setting: str, tmp_path: Path) -> None:
    """In a process of its own: torch refuses to mix its old and its new switches."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from robust_nc.runtime.torch_state import full_precision\n"
        f"{setting}\n"
        "b = torch.backends\n"
        "parts = [b.cuda.matmul, b.cudnn.conv, b.mkldnn.matmul, b.mkldnn.conv]\n"
        "def read():\n"
        "    return ['ieee' if p.fp32_precision == 'none' else p.fp32_precision for p in parts]\n"
        "def answers(what):\n"
        "    try:\n"
        "        return what()\n"
        "    except RuntimeError:\n"
        "        return 'refused'\n"
        "older = [torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32]\n"
        "before = read(), [answers(what) for what in older]\n"
        "with full_precision(), full_precision():\n"
        "    assert read() == ['ieee'] * 4, read()\n"
        "assert (read(), [answers(what) for what in older]) == before\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
