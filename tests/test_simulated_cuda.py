"""What a GPU would refuse, or wait for: the same work on a simulated device and on the CPU.

Ratchets hold how many kernels a step launches beyond the model's own and how often the host waits.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_attacks import curved, pictures, predictions
from helpers_cuda import SimulatedCuda
from helpers_models import small_model
from helpers_runner import tiny
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc import Ball, evaluate, profile
from robust_nc.attacks import fab
from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.rays import RayS
from robust_nc.attacks.smooth import Smooth
from robust_nc.attacks.square import Square
from robust_nc.config import MeasureConfig, RunConfig, read
from robust_nc.evaluation import acceleration
from robust_nc.evaluation.acceleration import Accelerated
from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import measure_collapse
from robust_nc.pipeline.cell import run_cell
from robust_nc.record import read_record
from robust_nc.record.folder import record_path
from robust_nc.registry import HEADS, OBJECTIVES
from robust_nc.runtime.progress import no_report
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Pgd, Trades
from robust_nc.training.run import train_cell
from robust_nc.types import EvaluationProtocol, Goal

SHAPE = (1, 8, 8)
GRID = """
[grid]
"train.epochs" = [6]
"threat.eps" = [0.04]
"measure.taps" = [["penultimate"]]
"""
HEAD_OPTIONS = {"deep_rfm": {"name": "linear", "bias": False}}
ATTACKS: dict[str, Any] = {
    "pgd": lambda steps: PGD(steps=steps),
    "apgd": lambda steps: APGD(steps=steps),
    "fab": lambda steps: FAB(steps=steps, num_targets=1),
    "square": lambda steps: Square(queries=steps),
    "smooth": lambda steps: Smooth(steps=steps, restarts=1),
    "rays": lambda steps: RayS(queries=steps),
}


def run_config(objective: str, head: str) -> RunConfig:
    steps = {} if objective in {"standard", "fgsm", "deep_rfm"} else {"steps": 2}
    train: dict[str, Any] = {"epochs": 1, "batch_size": 64}
    backbone: dict[str, Any] = {"name": "small_cnn", "width": 8}
    if objective == "deep_rfm":
        train, backbone = {"epochs": 0}, {"name": "deep_rfm", "layers": 1, "centers": 50}
    values = {
        "data": {"dataset": "digits", "augment": ["crop", "flip"], "train_limit": 150},
        "model": {"backbone": backbone, "head": HEAD_OPTIONS.get(objective, head)},
        "train": {"objective": {"name": objective, **steps}, **train},
        "threat": {"norm": "Linf", "eps": 0.1},
    }
    if head == "haframe":
        values["data"] |= {"hierarchy": "digits"}
    return read(RunConfig, values)


@pytest.mark.parametrize(
    ("objective", "head"),
    [("pgd", head) for head in HEADS.names()]
    + [(objective, "linear") for objective in OBJECTIVES.names() if objective != "pgd"],
)
def test_training_is_that_of_the_cpu(objective: str, head: str) -> None:
    config = run_config(objective, head)
    here = train_cell(config, device="cpu")
    with SimulatedCuda() as devices:
        before = [state.clone() for state in devices.generators]
        there = train_cell(config, device="cuda:1")
        assert all(map(torch.equal, before, devices.generators))
        weights = {name: value.cpu() for name, value in there.last.state_dict().items()}
    for name, weight in here.last.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(here.history, there.history, strict=True):
        assert theirs["train_loss"] == pytest.approx(mine["train_loss"], rel=1e-5)


def subject() -> tuple[nn.Module, Tensor, Tensor]:
    model, images = curved(SHAPE, 5), pictures(24, SHAPE)
    return model, images, predictions(model, images)


@pytest.mark.parametrize("ball", [Ball("Linf", 0.05), Ball("L2", 0.3), Ball("L1", 0.5)], ids=str)
def test_verdicts_are_those_of_the_cpu(ball: Ball) -> None:
    model, images, labels = subject()
    attacks = tuple((name, attack(8)) for name, attack in ATTACKS.items())
    options: Any = {"protocol": EvaluationProtocol("all", attacks), "batch_size": 8}
    options |= {"accelerate": False}
    here = evaluate(model, images, labels, ball, **options)
    with SimulatedCuda() as devices:
        model.to("cuda:1")
        before = [state.clone() for state in devices.generators]
        there = evaluate(model, images, labels, ball, **options)
        assert all(map(torch.equal, before, devices.generators))
    assert 0 < int(here.robust.sum()) < len(images)
    assert torch.equal(here.robust, there.robust)
    assert here.codes.tolist() == there.codes.tolist()


@pytest.mark.parametrize("name", ["apgd", "square"])
def test_flips_that_are_denied_cost_no_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is somewhat off flips too soon, as lower precision does."""
    model, images, labels = subject()
    images, labels = images[:10], labels[:10]
    off = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, draws in zip(off.parameters(), range(100), strict=False):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(draws))
            parameter.mul_(1 + 0.1 * noise)
    monkeypatch.setattr(
        "robust_nc.evaluation.turns.accelerate",
        lambda own, images, *_: Accelerated(copy.deepcopy(off).to(images.device), ("off",)),
    )
    plan = EvaluationProtocol("one", ((name, ATTACKS[name](25)),))
    options: Any = {"protocol": plan, "batch_size": 1, "checks": False, "precision": "float32"}
    here = evaluate(model, images, labels, Ball("Linf", 0.03), **options)
    with SimulatedCuda():
        model.to("cuda")
        there = evaluate(model, images, labels, Ball("Linf", 0.03), **options)
    assert torch.equal(here.robust, there.robust)
    torch.testing.assert_close(here.adversarials, there.adversarials)


class Root(nn.Module):
    """A model whose gradient is infinite, and then NaN, where a pixel is black."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.sqrt())
        return logits


@pytest.mark.parametrize("goal", ["flip", "maximise"])
@pytest.mark.parametrize("name", ["pgd", "apgd", "fab"])
def test_haste_that_was_wrong_is_repented(
    name: str, goal: Goal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are no numbers, or FAB's steps too few: both are seen when it is looked."""
    monkeypatch.setattr(fab, "_HASTY_STEPS", 2)
    model, images, labels = subject()
    ids, ball = torch.arange(len(images)), Ball("L2", 0.3)
    for tried in (model, Root(model)):
        attack = ATTACKS[name](8)
        here = attack(tried, images, labels, ball, goal=goal, seed=0, ids=ids)
        with SimulatedCuda():
            there = [one.to("cuda:1") for one in (images, labels, ids)]
            twin = copy.deepcopy(tried).to("cuda:1")
            found = attack(twin, *there[:2], ball, goal=goal, seed=0, ids=there[2]).cpu()
        torch.testing.assert_close(found, here)


def test_profile_is_that_of_the_cpu() -> None:
    model, images, labels = subject()
    measure = MeasureConfig(steps=1, radii=(0.5,), targets=("nearest",), trajectories=4)
    options: Any = {"measure": measure}
    here = profile(model, [(images, labels)], Ball("Linf", 0.05), **options).frame
    with SimulatedCuda():
        model.to("cuda:1")
        there = profile(model, [(images, labels)], Ball("Linf", 0.05), **options).frame
    assert len(here) == len(there)
    assert here["value"].tolist() == pytest.approx(there["value"].tolist(), rel=1e-4, nan_ok=True)


def test_a_record_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "_COMPILING", set())  # no torch.compile on this device
    (cell,) = tiny(tmp_path, GRID).cells
    run_cell(cell, "tiny", tmp_path / "here", None, report=no_report)
    with SimulatedCuda():
        run_cell(cell, "tiny", tmp_path / "there", None, report=no_report)
    first, second = (
        read_record(record_path(tmp_path / place, cell.model, cell.id)).record
        for place in ("here", "there")
    )
    assert first.verdict == second.verdict
    assert first.scores == second.scores
    for name, value in first.summary.items():
        assert second.summary[name] == (value and pytest.approx(value, rel=1e-4))


def test_a_device_without_float64_is_refused_in_a_sentence() -> None:
    model, images, labels = subject()
    with SimulatedCuda(float64=False):
        model, there = model.to("cuda"), images.to("cuda")
        ball, labels = Ball("L2", 0.3), labels.to("cuda")
        refused: list[Callable[[], object]] = [
            lambda: evaluate(model, images, labels, ball),
            lambda: profile(model, [(images, labels)], ball),
            lambda: train_cell(run_config("standard", "linear"), device="cuda"),
            lambda: PGD(steps=1)(model, there, labels, ball, seed=0, ids=torch.arange(24)),
            lambda: measure_collapse(there.flatten(1), labels),
        ]
        for call in refused:
            with pytest.raises(InputError, match="has no float64"):
                call()


def steps_and_retirements(name: str) -> dict[str, float]:
    """Kernels of a step beyond the model's own, waits of a step, and of an example that ends."""
    model, images, labels = subject()
    model.requires_grad_(False)

    def count(steps: int, examples: int, batch_size: int) -> Tensor:
        protocol = EvaluationProtocol("one", ((name, ATTACKS[name](steps)),))
        options: Any = {"protocol": protocol, "batch_size": batch_size, "precision": "float32"}
        options |= {"checks": False, "accelerate": False}
        for _ in range(2):  # tables of steps and of windows are sent once
            devices.kernels.clear()
            devices.waits.clear()
            evaluate(model, images[:examples], labels[:examples], Ball("Linf", 1e-6), **options)
        return counted(devices)

    with SimulatedCuda() as devices:
        model.to("cuda")
        own = count_pass(devices, model, images[:4].cuda(), gradient=name not in GRADIENT_FREE)
        kernels, waits = ((count(20, 4, 4) - count(10, 4, 4)) / 10).tolist()
        _, ended = ((count(3, 12, 1) - count(3, 4, 1)) / 8).tolist()
    return {"kernels": kernels - own, "waits": waits, "retirement": ended}


def counted(devices: SimulatedCuda) -> Tensor:
    found = [devices.kernels.total(), devices.waits.total()]
    return torch.tensor(found, dtype=torch.float64)


def count_pass(devices: SimulatedCuda, model: nn.Module, images: Tensor, *, gradient: bool) -> int:
    """Kernels of the model itself: a pass forward, or there and back to the images."""
    leaf = images.requires_grad_(gradient)
    devices.kernels.clear()
    logits = model(leaf).sum()
    if gradient:
        torch.autograd.grad(logits, leaf)
    return devices.kernels.total()


# Linf: kernels of a step beyond the model's own, and waits of an example that survives. They go
# down, never up.
BUDGET = {
    "pgd": (23.4, 10),
    "apgd": (68.4, 10),
    "fab": (184.4, 10),
    "square": (90, 10),
    "smooth": (32.4, 10),
    "rays": (119, 9),
}
GRADIENT_FREE = {"square", "rays"}


@pytest.mark.parametrize("name", BUDGET)
def test_a_step_launches_and_waits_no_more_than_it_did(name: str) -> None:
    found = steps_and_retirements(name)
    kernels, waits = BUDGET[name]
    assert found["kernels"] <= kernels
    assert found["waits"] <= 0.11
    assert found["retirement"] <= waits


def test_training_launches_and_waits_no_more_than_it_did() -> None:
    """A step of PGD-10, beyond ten passes to the images and one to the weights."""
    model, images, labels = subject()
    objective = Pgd(Ball("Linf", 0.1), cross_entropy, steps=10)
    with SimulatedCuda() as devices:
        model, images, labels = model.to("cuda"), images.to("cuda"), labels.to("cuda")
        ids = torch.arange(len(images)).to("cuda")
        model.requires_grad_(False)
        own = 10 * count_pass(devices, model, images.clone(), gradient=True)
        model.requires_grad_(True).train()
        devices.kernels.clear()
        F.cross_entropy(model(images), labels).backward()
        own += devices.kernels.total()
        devices.kernels.clear()
        devices.waits.clear()
        objective(model, images, labels, seed=0, ids=ids).value.backward()
        kernels, waits = counted(devices).tolist()
    assert kernels - own <= 207
    assert waits <= 2


@pytest.mark.parametrize(("objective", "casts"), [(Pgd, 83), (Trades, 89)])
def test_an_inner_attack_casts_each_weight_once(objective: type[Pgd | Trades], casts: int) -> None:
    """Of a step of PGD-10 under bf16: 40 of 123 and 44 of 133 casts were of weights cast before."""
    ball, images, labels = Ball("Linf", 0.1), pictures(4, SHAPE), torch.arange(4)
    built = objective(ball, cross_entropy, steps=10)
    with SimulatedCuda() as devices:
        model, images, labels = small_model().to("cuda"), images.to("cuda"), labels.to("cuda")
        ids = torch.arange(4).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            devices.kernels.clear()
            loss = built(model, images, labels, seed=0, ids=ids)
        loss.value.backward()
        assert devices.kernels["_to_copy"] <= casts
        assert all(weight.grad is not None for weight in model.parameters())


def test_the_device_refuses_what_cuda_refuses() -> None:
    with SimulatedCuda() as devices:
        one, other = torch.ones(3, device="cuda:0"), torch.ones(3).to("cuda:1")
        for wrong in (torch.ones(3), other):
            with pytest.raises(RuntimeError, match="same device"):
                one + wrong
        with pytest.raises(TypeError, match="numpy"):
            one.numpy()
        with pytest.raises(RuntimeError, match="ordinal"):
            torch.ones(3, device="cuda:2")
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device="cuda")
        waits = devices.waits.total()
        assert float((one + 1)[torch.tensor([0, 2])].sum()) == 4
        assert devices.waits.total() == waits + 2  # the indices went there, the sum came back
