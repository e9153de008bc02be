"""Attacks of other libraries: what the adapters add to one made up here, and to the real ones."""

import random
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from helpers_attacks import curved, pictures, predictions
from torch import nn
from torch.nn import functional as F

from robust_nc.attacks import (
    external_advlib,
    external_foolbox,
    external_torchattacks,
)
from robust_nc.attacks.external import (
    KnownDefectWarning,
    own_randomness,
)
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import ConfigError, InputError, UnknownNameError
from robust_nc.plugins import find_attack
from robust_nc.registry import ADAPTERS
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol

SHAPE = (1, 6, 5)


class Wild:
    """A made-up attack with the manners of the field.

    Distance Measure : Linf, L2
    """

    seen: dict[str, object]

    def __init__(self, model, norm="Linf", eps=8 / 255, alpha=2 / 255, steps=1000, seed=0):
        type(self).seen = {"norm": norm, "eps": eps, "steps": steps, "seed": seed}
        self.model = model
        self.supported_mode = ["default"]

    def set_device(self, device):
        self.device = device

    def __call__(self, images, labels):
        print("Attack mode is changed")
        type(self).seen["draws"] = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
        self.model.train()
        self.model.zero_grad()
        self.model(images.requires_grad_()).sum().backward()
        return self.answer(images)

    def answer(self, images):
        points = images + 3 * torch.rand_like(images)
        points[0, 0, 0, 0] = float("nan")
        return points


class Aimed(Wild):
    """Distance Measure : Linf."""

    def __init__(self, model, eps=8 / 255):
        super().__init__(model, eps=eps)
        self.supported_mode = ["default", "targeted"]

    def set_mode_targeted_by_label(self, quiet=False):
        self.aimed = True

    def __call__(self, images, labels):
        type(self).seen["aims"] = labels.tolist()
        return images


class Broken(Wild):
    """Distance Measure : Linf."""

    def answer(self, images):
        raise IndexError("index 10 is out of bounds")


class Wrong(Wild):
    """Distance Measure : Linf."""

    def answer(self, images):
        return images[:1]


class Pixels(Wild):
    """Distance Measure : L0."""


@pytest.fixture
def library(monkeypatch):
    """Put the made-up attacks in the place of torchattacks."""
    fake = types.ModuleType("torchattacks")
    fake.__all__ = ["Wild", "Aimed", "Broken", "Wrong", "Pixels", "MultiAttack"]
    for kind in (Wild, Aimed, Broken, Wrong, Pixels):
        setattr(fake, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "torchattacks", fake)
    return external_torchattacks.torchattacks_attack


def called(attack, *, norm="Linf", eps=0.1, seed=0, targets=None, count=4, model=None):
    model = curved(SHAPE, 3) if model is None else model
    images = pictures(count, SHAPE)
    labels = torch.arange(count) % 3
    ball = Ball(norm, eps)
    points = attack(
        model, images, labels, ball, seed=seed, targets=targets, ids=torch.arange(count)
    )
    assert ball.contains(points, images).all()
    return points, images


class TestOptions:
    def test_eps_norm_and_seed_come_from_the_call_and_options_go_over_them(self, library):
        called(library("Wild", {"steps": 2000}), norm="L2", eps=0.5)
        assert Wild.seen["norm"] == "L2"
        assert Wild.seen["eps"] == 0.5
        assert Wild.seen["steps"] == 2000
        called(library("Wild", {"eps": 0.25, "seed": 7}))
        assert (Wild.seen["eps"], Wild.seen["seed"]) == (0.25, 7)

    def test_an_unknown_option_is_answered_with_the_nearest(self, library):
        with pytest.raises(UnknownNameError, match=r"torchattacks:Wild 'step'.*'steps'.*alpha"):
            library("Wild", {"step": 3})

    @pytest.mark.parametrize("option", ["model", "device", "targeted"])
    def test_what_the_adapter_hands_over_is_no_option(self, library, option):
        with pytest.raises(UnknownNameError, match=option):
            library("Wild", {option: 1})


class TestNames:
    def test_an_unknown_attack_is_answered_with_the_nearest(self, library):
        with pytest.raises(UnknownNameError, match=r"attack of torchattacks 'Wild2'.*'Wild'"):
            library("Wild2")

    def test_what_cannot_be_named_is_refused_with_the_reason(self, library):
        with pytest.raises(ConfigError, match="holds other attacks"):
            library("MultiAttack")


class TestImports:
    def test_no_library_is_imported_before_an_attack_is_made(self):
        names = [ADAPTERS.load(name).__module__ for name in ADAPTERS.names()]
        optional = [*ADAPTERS.names(), "huggingface_hub", "timm", "robustbench"]
        code = (
            f"import sys; [__import__(name) for name in {[*names, 'robust_nc.zoo.reference']}]; "
            f"assert not set({optional}) & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestCall:
    def test_points_come_back_into_the_ball_and_nan_becomes_the_image(self, library):
        points, images = called(library("Wild"))  # `called` checks the ball
        assert points[0, 0, 0, 0] == images[0, 0, 0, 0]
        assert (points != images).any(3).any(2).any(1).all()

    @pytest.mark.parametrize(
        ("name", "options", "words"),
        [
            ("Wild", {"norm": "L1"}, "serves Linf and L2, found a ball in L1"),
            ("Wild", {"targets": torch.ones(4, dtype=torch.int64)}, "cannot be aimed"),
            ("Aimed", {"targets": torch.ones((4, 2), dtype=torch.int64)}, "one target per image"),
            ("Wrong", {}, "Wrong returned"),
        ],
    )
    def test_what_cannot_be_done_is_said(self, library, name, options, words):
        with pytest.raises(InputError, match=words):
            called(library(name), **options)

    def test_targets_take_the_place_of_labels(self, library):
        called(library("Aimed"), targets=torch.tensor([2, 0, 1, 2]))
        assert Aimed.seen["aims"] == [2, 0, 1, 2]

    def test_another_norm_and_steps_that_cannot_reach_eps_are_said(self, library):
        with pytest.warns(KnownDefectWarning, match="made for L0; its points are projected"):
            called(library("Pixels"), norm="L1")
        with pytest.warns(KnownDefectWarning, match="by at most 0.2 "):
            called(library("Wild", {"alpha": 0.1, "steps": 2}), eps=0.3)

    @pytest.mark.parametrize(("count", "eps"), [(0, 0.1), (3, 0)])
    def test_nothing_to_do_is_done_without_the_library(self, library, count, eps):
        points, images = called(library("Broken"), count=count, eps=eps)
        assert torch.equal(points, images)


class TestTraces:
    def state(self, model):
        flags = [module.training for module in model.modules()]
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        grads = [parameter.grad for parameter in model.parameters()]
        buffers = [buffer.clone() for buffer in model.buffers()]
        return flags, wanted, grads, buffers

    @pytest.mark.parametrize("name", ["Wild", "Broken"])
    def test_the_model_is_left_as_it_was(self, library, name):
        model = curved(SHAPE, 3)
        model[1].train()
        model[8].weight.grad = torch.ones_like(model[8].weight)
        before = self.state(model)
        if name == "Broken":
            with pytest.raises(IndexError) as caught:
                called(library(name), model=model)
            assert "torchattacks:Broken" in caught.value.__notes__[0]
        else:
            called(library(name), model=model)
        after = self.state(model)
        assert before[:2] == after[:2]
        assert all(one is two for one, two in zip(before[2], after[2], strict=True))
        assert (model[8].weight.grad == 1).all()
        assert all(torch.equal(one, two) for one, two in zip(before[3], after[3], strict=True))

    def test_draws_are_those_of_the_seed(self, library):
        draws = []
        for seed in (0, 0, 1):
            called(library("Wild"), seed=seed)
            draws.append(Wild.seen["draws"])
        assert draws[0] == draws[1]
        assert all(one != two for one, two in zip(draws[0], draws[2], strict=True))

    def test_the_callers_generators_are_untouched(self):
        def states():
            numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
            return torch.get_rng_state().tolist(), random.getstate(), numpy

        def library_fails():
            torch.manual_seed(5)
            np.random.rand()  # noqa: NPY002
            random.random()
            raise KeyError

        before = states()
        with pytest.raises(KeyError), own_randomness(3, torch.device("cpu")):
            library_fails()
        assert before == states()

    def test_what_a_library_prints_is_no_result(self, library, capsys):
        called(library("Wild"))
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "Attack mode is changed\n")


@pytest.fixture(scope="module")
def digits():
    """A small CNN on handwritten digits, 98 % accurate, with 24 images that it classifies."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            rows = torch.randint(0, 1500, (128,))
            optimiser.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimiser.step()
    model.eval()
    right = (predictions(model, images) == labels).nonzero().flatten()[-24:]
    return model, images[right], labels[right]


STRONG = {"Linf": Ball("Linf", 0.3), "L2": Ball("L2", 1.5), "L1": Ball("L1", 8)}
SOME = [
    ("torchattacks", "APGD", "L2", {}),
    ("torchattacks", "DeepFool", "L2", {}),
    ("torchattacks", "EADL1", "L1", {"max_iterations": 20}),
    ("torchattacks", "FAB", "Linf", {}),
    ("torchattacks", "FGSM", "Linf", {}),
    ("torchattacks", "PGD", "Linf", {"alpha": 0.05}),
    ("torchattacks", "Square", "Linf", {"n_queries": 100}),
    ("pyautoattack", "APGDAttack", "L1", {"n_iter": 20}),
    ("pyautoattack", "APGDAttack_targeted", "Linf", {"n_iter": 10}),
    ("pyautoattack", "AutoAttack", "L2", {}),
    ("pyautoattack", "FABAttack_PT", "L2", {"n_iter": 10, "targeted": True}),
    ("pyautoattack", "SquareAttack", "Linf", {"n_queries": 100}),
    ("foolbox", "HopSkipJumpAttack", "L2", {"steps": 2}),
    ("foolbox", "L1FMNAttack", "L1", {}),
    ("foolbox", "L2DeepFoolAttack", "L2", {}),
    ("foolbox", "LinfPGD", "Linf", {"steps": 10}),
    ("foolbox", "PointwiseAttack", "L1", {}),
    ("foolbox", "VirtualAdversarialAttack", "L2", {"steps": 5}),
    ("adv_lib", "apgd", "L1", {"n_iter": 20}),
    ("adv_lib", "ddn", "L2", {}),
    ("adv_lib", "fab", "Linf", {"n_iter": 10}),
    ("adv_lib", "fmn", "Linf", {"alpha_init": 0.5, "steps": 20}),
    ("adv_lib", "pgd_linf", "Linf", {"steps": 10}),
]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
class TestTheLibraries:
    @pytest.mark.parametrize(("library", "name", "norm", "options"), SOME)
    def test_an_attack_lowers_the_accuracy_inside_the_ball(
        self, digits, library, name, norm, options
    ):
        model, images, labels = digits
        attack = ADAPTERS.load(library)(name, options)
        ids = torch.arange(len(images))
        runs = [attack(model, images, labels, STRONG[norm], seed=0, ids=ids) for _ in range(2)]
        assert torch.equal(*runs)
        assert STRONG[norm].contains(runs[0], images).all()
        assert (predictions(model, runs[0]) == labels).float().mean() < 0.8

    @pytest.mark.parametrize(
        ("library", "name"),
        [("torchattacks", "FGSM"), ("foolbox", "LinfPGD"), ("adv_lib", "apgd")],
    )
    def test_targets_are_reached(self, digits, library, name):
        model, images, labels = digits
        targets = (labels + 1) % 10
        options = {"targets": targets, "seed": 0, "ids": torch.arange(len(images))}
        points = ADAPTERS.load(library)(name)(model, images, labels, STRONG["Linf"], **options)
        assert (predictions(model, points) == targets).float().mean() > 0.3

    def test_every_class_of_torchattacks_has_a_name(self):
        import torchattacks

        made = [
            external_torchattacks.torchattacks_attack(name)
            for name in torchattacks.__all__
            if name not in torchattacks.__wrapper__
        ]
        assert len(made) >= 36
        assert {attack.version for attack in made} == {"3.5.1"}
        assert {norm for attack in made for norm in attack.norms()} == {"Linf", "L2", "L1", "L0"}

    def test_every_attack_of_foolbox_and_adv_lib_has_a_name_and_a_norm(self):
        import adv_lib.attacks
        import foolbox.attacks

        options = {"VirtualAdversarialAttack": {"steps": 5}}
        names = [
            name
            for name, value in vars(foolbox.attacks).items()
            if isinstance(value, type) and issubclass(value, foolbox.attacks.Attack)
        ]
        usable = set(names) - {"Attack", "BinarizationRefinementAttack"}
        without = {
            name
            for name in usable
            if not external_foolbox.foolbox_attack(name, options.get(name, {})).norms()
        }
        assert without == {"SpatialAttack"}
        names = [name for name, value in vars(adv_lib.attacks).items() if callable(value)]
        without = {name for name in names if not external_advlib.advlib_attack(name).norms()}
        assert without == {"perc_al", "str_attack"}

    def test_a_name_leads_to_a_verdict(self, digits):
        model, images, labels = digits
        attack = find_attack("torchattacks:PGD", {"alpha": 0.05})
        plan = EvaluationProtocol("peers", (("torchattacks:PGD", attack),))
        outcome = evaluate(model, images, labels, STRONG["Linf"], protocol=plan)
        assert (outcome.clean_accuracy, outcome.robust_accuracy < 0.5) == (1, True)
        assert "left-ball:torchattacks:PGD" not in {warned.name for warned in outcome.warnings}

    def test_what_is_wrong_with_torchattacks_autoattack_is_said(self, digits):
        model, images, labels = digits
        attack = external_torchattacks.torchattacks_attack("AutoAttack")
        with pytest.warns(KnownDefectWarning) as told:
            attack(model, images, labels, STRONG["L2"], seed=0, ids=torch.arange(len(images)))
        words = " ".join(str(warning.message) for warning in told)
        assert "APGD 10, APGDT 10, FAB 10, not 100" in words
        assert "all K-1 other classes" in words
        assert "step size of the first image" in words

    def test_colour_attacks_refuse_grey_images(self, digits):
        model, images, labels = digits
        for library, name in (("torchattacks", "TIFGSM"), ("adv_lib", "perc_al")):
            with pytest.raises(InputError, match="needs images of 3 channels, found 1"):
                ADAPTERS.load(library)(name)(
                    model, images, labels, STRONG["Linf"], seed=0, ids=torch.arange(len(images))
                )
