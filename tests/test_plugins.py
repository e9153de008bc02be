"""Attacks by reference: registered, of a module, of a file, or the object itself."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from helpers_attacks import BALL, examples, own

from robust_nc import evaluate
from robust_nc.attacks.noise import GaussianNoise
from robust_nc.attacks.pgd import PGD
from robust_nc.exceptions import ConfigError, UnknownNameError
from robust_nc.plugins import find_attack, find_protocol

FILE = '''
"""An attack of a user's own: one large step along the sign of the gradient, uncounted."""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Step:
    share: float = 1.0

    def __call__(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        points = images.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(points), labels)
        (gradient,) = torch.autograd.grad(loss, points)
        return images + self.share * ball.eps * gradient.sign()


def factory(share: float = 1.0) -> Step:
    return Step(share)


def nothing() -> None:
    return None


def picky(size: int) -> Step:
    return Step(size)


LIMIT = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_users_module.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_users_module", raising=False)
    return "a_users_module"


def test_an_attack_of_a_file_joins_the_worst_case(file: Path) -> None:
    model, images, labels = examples()
    reference = f"{file}:factory"
    clean = own(lambda model, images, *_, **__: images, "nothing")
    outcome = evaluate(model, images, labels, BALL, protocol=clean, attack=reference)
    assert [name for name, _ in outcome.attacks] == ["nothing", reference]
    assert set(outcome.broken_by) == {"clean", "", reference}
    alone = evaluate(model, images, labels, BALL, protocol=own(find_attack(reference)))
    assert torch.equal(alone.robust, outcome.robust)
    assert (outcome.backward_passes[outcome.robust] == 1).all(), "passes are seen by hooks"
    assert (outcome.forward_passes[outcome.robust] == 1 + 1 + 1 + 1).all()


def test_an_attack_of_a_module_with_options(module: str) -> None:
    assert find_attack(f"{module}:factory").share == 1.0
    assert find_attack(f"{module}:factory", {"share": 0.5}).share == 0.5
    assert find_attack(f"{module}:Step", {"share": 0.5}).share == 0.5, "a class is a factory too"


def test_a_registered_attack_joins_by_name() -> None:
    model, images, labels = examples(12)
    outcome = evaluate(model, images, labels, BALL, protocol="clean", attack="pgd")
    assert outcome.attacks == (("pgd", PGD()),)
    assert find_attack("pgd", {"steps": 3}) == PGD(steps=3)


def test_an_object_joins_under_its_name() -> None:
    model, images, labels = examples(12)

    def my_attack(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return images

    def clean(model, images, labels, ball, **_):
        return images

    for attack, name in (
        (clean, "own-clean"),
        (my_attack, "my_attack"),
        (PGD(steps=2), "pgd"),
        (functools.partial(my_attack), "partial"),
    ):
        outcome = evaluate(model, images, labels, BALL, protocol="clean", attack=attack)
        assert [label for label, _ in outcome.attacks] == [name]


def test_a_name_that_is_taken_gets_another() -> None:
    model, images, labels = examples(12)
    plan = own(GaussianNoise(), "pgd")
    outcome = evaluate(model, images, labels, BALL, protocol=plan, attack=PGD(steps=20))
    assert outcome.attacks == (("pgd", GaussianNoise()), ("own-pgd", PGD(steps=20)))
    assert "own-pgd" in outcome.broken_by


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("pdg", r"unknown attack 'pdg'; did you mean 'pgd'"),
        ("", "unknown attack ''"),
        ("a:b:c", "unknown attack 'a:b:c'"),
        ("nowhere.to_be_found:factory", "module 'nowhere.to_be_found', which is not found"),
        ("torchattack:CW", "one of .*torchattacks"),
        ("missing/file.py:factory", "file missing/file.py, which does not exist"),
        ("{file}:absent", "has no callable 'absent'"),
        ("{file}:LIMIT", "has no callable 'LIMIT'"),
        ("{file}:nothing", "must return an attack.*found NoneType"),
        ("{file}:picky", "cannot be called with {{}}.*size"),
        ("{file}:Step.share", "unknown attack"),
    ],
)
def test_a_wrong_reference_is_answered(file: Path, reference: str, sentence: str) -> None:
    model, images, labels = examples(2)
    with pytest.raises(ConfigError, match=sentence.format()):
        evaluate(model, images, labels, BALL, protocol="clean", attack=reference.format(file=file))


def test_options_that_do_not_fit_are_answered(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be called with .*strength"):
        find_attack(f"{file}:factory", {"strength": 1.0})
    with pytest.raises(ConfigError, match="stepps"):
        find_attack("pgd", {"stepps": 1})


def test_protocols_by_name() -> None:
    assert find_protocol("standard").name == "standard"
    assert len(find_protocol("plus").attacks) == 6
    assert find_protocol("rand").draws == 20
    with pytest.raises(UnknownNameError, match="unknown protocol 'standart'; did you mean"):
        find_protocol("standart")
