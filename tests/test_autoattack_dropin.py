"""The drop-in does what a script that uses autoattack or pyautoattack expects of its class."""

from pathlib import Path
from typing import Any

import pyautoattack
import pytest
import torch
from helpers_attacks import curved
from torch import Tensor, nn

from robust_nc import Ball, evaluate
from robust_nc.attacks import AutoAttack
from robust_nc.attacks.protocols import PLUS, RAND, STANDARD
from robust_nc.exceptions import ConfigError, InputError, RecordError, UnknownNameError

SHAPE, CLASSES = (1, 6, 6), 4
FOUR = ["apgd-ce", "apgd-t", "fab-t", "square"]
NAMES = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]


def examples(model: nn.Module, count: int = 12, *, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """Images in the middle of the pixel range; every sixth is wrong from the start."""
    draws = torch.Generator().manual_seed(1)
    images = 0.4 + spread * torch.rand(count, *SHAPE, generator=draws)
    labels = model(images).argmax(1)
    labels[::6] = (labels[::6] + 1) % CLASSES
    return images, labels


def script(kind: Any, model: nn.Module, *, norm: str, eps: float) -> Any:
    """Evaluate as pyautoattack's users do; `kind` is the class that was imported."""
    images, labels = examples(model)
    attack = kind(model, norm=norm, eps=eps, seed=0, version="custom", attacks=FOUR, device="cpu")
    shorten(attack)
    accuracy = attack.clean_accuracy(images, labels, bs=10)
    adversarial, predicted = attack.run_standard_evaluation(images, labels, batch_size=12)
    return images, labels, accuracy, adversarial, predicted


def shorten(attack: Any) -> None:
    """Set what scripts set, by the names that both classes know."""
    attack.apgd.n_restarts = attack.fab.n_restarts = 1
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = 25
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 2
    attack.square.n_queries = 50


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.04), ("L2", 0.17)])
def test_the_same_script_gives_the_same_verdict(norm: str, eps: float) -> None:
    model = curved(SHAPE, CLASSES)
    theirs = script(pyautoattack.AutoAttack, model, norm=norm, eps=eps)
    images, labels, accuracy, adversarial, predicted = script(AutoAttack, model, norm=norm, eps=eps)
    assert accuracy == theirs[2] == pytest.approx(10 / 12)
    robust, robust_there = predicted == labels, theirs[4] == labels
    assert 0 < robust.sum() < 10, "the case decides nothing"
    assert (robust != robust_there).sum() <= 1
    assert torch.equal(model(adversarial).argmax(1), predicted)
    same = (adversarial == images).flatten(1).all(1)
    assert torch.equal(same, robust | (model(images).argmax(1) != labels))
    assert Ball(norm, eps).contains(adversarial, images).all()
    assert (adversarial.shape, adversarial.dtype) == (theirs[3].shape, theirs[3].dtype)


def test_each_attack_alone_agrees_with_theirs() -> None:
    model = curved(SHAPE, CLASSES)
    images, labels = examples(model)
    found = {}
    for kind in (pyautoattack.AutoAttack, AutoAttack):
        attack = kind(model, eps=0.04, seed=0, version="custom", attacks=NAMES, device="cpu")
        shorten(attack)
        found[kind] = attack.run_standard_evaluation_individual(images, labels, batch_size=12)
    theirs, ours = found.values()
    assert list(ours) == list(theirs) == NAMES
    for name in NAMES:
        adversarial, predicted = ours[name]
        robust, robust_there = predicted == labels, theirs[name][1] == labels
        assert 0 < robust.sum() < 10 + (name == "square"), name
        assert (robust != robust_there).sum() <= 1, name
        assert adversarial.shape == images.shape


def quick(model: Any, **options: Any) -> AutoAttack:
    """A custom version that is soon done, spelled as in autoattack."""
    settings: dict[str, Any] = {
        "norm": "Linf",
        "eps": 0.04,
        "seed": 0,
        "verbose": False,
        "attacks_to_run": ["apgd-ce", "square"],
        "version": "custom",
        "is_tf_model": False,
        "device": "cpu",
        "log_path": None,
    }
    attack = AutoAttack(model, **settings | options)
    attack.apgd.n_iter, attack.apgd.n_restarts, attack.square.n_queries = 10, 1, 20
    return attack


def test_the_keywords_decide_what_comes_back() -> None:
    model = curved(SHAPE, CLASSES)
    images, labels = examples(model, 8)
    attack = quick(model)
    alone = attack.run_standard_evaluation(images, labels, bs=4)
    assert isinstance(alone, Tensor)
    for both in (
        attack.run_standard_evaluation(images, labels, 4, True),
        attack.run_standard_evaluation(images, labels, batch_size=8),
        quick(model, attacks_to_run=(), attacks=["apgd-ce", "square"]).run_standard_evaluation(
            images, labels
        ),
    ):
        assert torch.equal(both[0], alone)
        assert torch.equal(both[1], model(alone).argmax(1))
    assert isinstance(
        attack.run_standard_evaluation(images, labels, return_labels=False, batch_size=4), Tensor
    )
    alone_by_name = attack.run_standard_evaluation_individual(images, labels, bs=8)
    assert torch.equal(alone_by_name["apgd-ce"][1], alone[1])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_versions_are_our_protocols(norm: str) -> None:
    model, ball = curved(SHAPE, CLASSES), Ball(norm, 0.5)
    for plan in (STANDARD, PLUS, RAND):
        attack = AutoAttack(model, norm, 0.5, verbose=False, version=plan.name)
        assert attack.protocol() == plan.under(ball)
    attack.set_version("standard")
    assert attack.protocol() == STANDARD.under(ball)
    assert AutoAttack(model, norm, 0.5, version="custom").attacks_to_run == []


def test_it_says_what_autoattack_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = curved(SHAPE, CLASSES)
    images, labels = examples(model)
    log = tmp_path / "runs" / "log.txt"
    attack = quick(model.forward, verbose=True, log_path=str(log))
    adversarial = attack.run_standard_evaluation(images, labels, bs=10)
    shown = capsys.readouterr().out
    assert shown == log.read_text()
    robust = (model(adversarial).argmax(1) == labels).double().mean()
    lines = shown.splitlines()
    assert lines[0] == "using custom version including apgd-ce, square"
    assert lines[1] == "initial accuracy: 83.33%"
    assert lines[2].startswith("robust accuracy after APGD-CE: ")
    assert lines[3].startswith(f"robust accuracy after SQUARE: {robust:.2%} (total time ")
    assert f"robust accuracy: {robust:.2%}" in lines
    attack.clean_accuracy(images, labels)
    attack.run_standard_evaluation_individual(images, labels)
    shown = capsys.readouterr().out
    assert "clean accuracy: 83.33%" in shown
    assert "robust accuracy by APGD-CE" in shown
    assert "robust accuracy by SQUARE" in shown


def test_doubts_are_told_though_it_is_not_verbose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(curved(SHAPE, CLASSES), nn.Softmax(1)).eval()
    images, labels = examples(model)
    attack = quick(model, log_path=tmp_path / "log.txt")
    _, predicted = attack.run_standard_evaluation(images, labels, return_labels=True)
    alone = evaluate(
        model, images, labels, Ball("Linf", 0.04), protocol=attack.protocol(), checks=False
    )
    assert torch.equal(predicted == labels, alone.robust)  # no attack more than was asked for
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith("Warning: ") for line in lines)
    assert any("softmax" in line for line in lines)


@pytest.mark.parametrize("seed", [3, None])
def test_a_state_is_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int | None
) -> None:
    model = curved(SHAPE, CLASSES)
    images, labels = examples(model)
    state = tmp_path / "runs" / "state.json"
    whole = quick(model, seed=seed).run_standard_evaluation(images, labels, state_path=state)
    kept = state.read_bytes().splitlines(keepends=True)
    assert len(kept) > 2
    state.write_bytes(b"".join(kept[:2]) + kept[2][:9])  # killed while it wrote
    again = quick(model, seed=seed, verbose=True)
    assert torch.equal(again.run_standard_evaluation(images, labels, state_path=state), whole)
    assert "initial accuracy: 83.33%" in capsys.readouterr().out
    finished = quick(model, seed=seed).run_standard_evaluation(images, labels, state_path=state)
    assert torch.equal(finished, whole)
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        quick(model, seed=seed, eps=0.01).run_standard_evaluation(images, labels, state_path=state)


def test_a_function_is_a_model_and_nothing_is_changed() -> None:
    model = curved(SHAPE, CLASSES)
    images, labels = examples(model, 8)
    before, draws = images.clone(), torch.random.get_rng_state()
    found = quick(lambda pixels: model(pixels)).run_standard_evaluation(images, labels)
    assert torch.equal(found, quick(model).run_standard_evaluation(images, labels))
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_used_is_answered_in_a_sentence() -> None:
    model = curved(SHAPE, CLASSES)
    with pytest.raises(ConfigError, match="TensorFlow models are not supported"):
        AutoAttack(model, is_tf_model=True)
    with pytest.raises(ConfigError, match="version='custom' to run fab"):
        AutoAttack(model, attacks_to_run=["fab"])
    with pytest.raises(UnknownNameError, match="did you mean 'standard'"):
        AutoAttack(model, version="standart")
    with pytest.raises(UnknownNameError, match="norm"):
        AutoAttack(model, norm="l2")
    with pytest.raises(InputError, match="did you mean 8/255"):
        AutoAttack(model, eps=8)
    with pytest.raises(InputError, match=r"the model is on cpu and device is cuda"):
        AutoAttack(model, device="cuda")
    with pytest.raises(UnknownNameError, match="did you mean 'apgd-t'"):
        quick(model, attacks_to_run=["apgd"]).run_standard_evaluation(*examples(model, 2))
