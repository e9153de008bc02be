"""What a model does to the images it is handed, and gradients that are no numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers_attacks import BALLS, SHAPE, SHORT, curved, pictures, predictions
from torch import Tensor, nn

from robust_nc import Ball, evaluate
from robust_nc.attacks.autoattack import AutoAttack
from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.trajectory import trajectory
from robust_nc.config import MeasureConfig
from robust_nc.exceptions import InputError
from robust_nc.io.digests import state_digests
from robust_nc.profiling import profile
from robust_nc.types import EvaluationProtocol

each_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


class Before(nn.Module):
    """Does something to the images before a model sees them."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.change(images))
        return logits


def _quantised(images: Tensor) -> Tensor:
    with torch.no_grad():
        return images.mul_(15).round_().div_(15)


def _moved(images: Tensor) -> Tensor:
    images.data.sub_(0.1)
    return images


IN_PLACE = {"mul_": lambda images: images.mul_(0.9), "data": _moved, "no_grad": _quantised}


class Scripted(nn.Module):
    """As TorchScript can read it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        images.mul_(0.5)
        return self.layer(images.flatten(1))


@each_ball
@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
def test_a_model_that_writes_into_its_images_is_judged_as_its_copying_twin(ball, change) -> None:
    network, images = curved(SHAPE, 5), pictures(24, SHAPE)
    labels, kept = predictions(network, images), images.clone()
    own, twin = (
        evaluate(Before(network, each).eval(), images, labels, ball, protocol=SHORT)
        for each in (change, lambda given: change(given.clone()))
    )
    assert torch.equal(images, kept)
    assert 0 < own.robust.sum() < own.clean_correct.sum()
    assert torch.equal(own.robust, twin.robust)
    assert torch.equal(own.adversarials, twin.adversarials)
    assert ball.contains(own.adversarials, images).all()


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo, of what is in place
@pytest.mark.parametrize(
    "made", [torch.jit.script, lambda model: torch.compile(model, backend="eager")]
)
def test_compiled_models_may_write_into_their_images(made) -> None:
    model, images, kept = made(Scripted().eval()), pictures(6, SHAPE), pictures(6, SHAPE)
    labels, ids = predictions(model, images.clone()), torch.arange(6)
    for mode in ("eval", "as_is"):
        PGD(steps=2, mode=mode)(model, images, labels, BALLS[0], seed=0, ids=ids)
    trajectory(model, images, labels, BALLS[0], steps=2, seed=0, ids=ids)
    evaluate(model, images, labels, BALLS[0], protocol="pgd", attack="gaussian")
    attack = AutoAttack(
        model.forward, eps=0.03, verbose=False, attacks_to_run=["square"], version="custom"
    )
    attack.square.n_queries = 5
    attack.run_standard_evaluation(images, labels)
    assert torch.equal(images, kept)


# Equal to the images, with a gradient that is NaN, or infinite, at black pixels.
NO_NUMBERS = {
    "NaN": lambda images: torch.where(images > 0, images, images.sqrt() * 0 + images),
    "infinite": lambda images: images + (images.sqrt() - images.detach().sqrt()) * (images == 0),
}


def dark(count: int) -> Tensor:
    """Images of which a third of the pixels is black."""
    return (pictures(count, SHAPE) - 0.3).clamp(0, 1)


@pytest.mark.parametrize(
    ("ball", "protocol", "change"),
    [
        *((ball, "pgd", NO_NUMBERS["NaN"]) for ball in BALLS),
        (BALLS[0], SHORT, NO_NUMBERS["infinite"]),
        (BALLS[2], SHORT, NO_NUMBERS["NaN"]),
    ],
)
def test_gradients_that_are_no_numbers_hide_nothing(ball: Ball, protocol, change) -> None:
    network, images = curved(SHAPE, 5), dark(50)
    labels = predictions(network, images)
    plain = evaluate(network, images, labels, ball, protocol=protocol)
    found = evaluate(Before(network, change).eval(), images, labels, ball, protocol=protocol)
    assert found.robust_accuracy <= plain.robust_accuracy + 0.02
    assert "unusable-gradients" in {warned.name for warned in found.warnings}
    assert "unusable-gradients" not in {warned.name for warned in plain.warnings}


def test_geometry_counts_gradients_that_are_no_numbers() -> None:
    network = curved(SHAPE, 3)
    images = dark(30)
    batches = [(images, torch.arange(30) % 3)]
    measure = MeasureConfig(targets=("cyclic",))
    found = {
        name: profile(model.eval(), batches, BALLS[0], measure=measure).frame
        for name, model in {"plain": network, "NaN": Before(network, NO_NUMBERS["NaN"])}.items()
    }
    counted = found["NaN"][found["NaN"]["measure"] == "unusable_gradients"]
    assert set(counted["condition"]) == {"attacked", "cyclic"}
    assert counted["value"].between(0.1, 1).all()
    assert "unusable_gradients" not in set(found["plain"]["measure"])


def test_a_model_without_gradients_is_judged_by_what_needs_none() -> None:
    network, images = curved(SHAPE, 5), pictures(24, SHAPE)
    labels = predictions(network, images)
    detached = Before(network, Tensor.detach).eval()
    square = EvaluationProtocol("square", SHORT.attacks[3:])
    found = evaluate(detached, images, labels, BALLS[0], protocol=SHORT, checks=False)
    assert "no-gradient" in {warned.name for warned in found.warnings}
    assert torch.equal(
        found.robust, evaluate(network, images, labels, BALLS[0], protocol=square).robust
    )
    assert 0 < found.robust.sum() < 24
    with pytest.raises(InputError, match="differentiated"):
        PGD(steps=1)(detached, images, labels, BALLS[0], seed=0, ids=labels)


def test_what_is_no_model_or_no_ball_gets_a_sentence() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(4, 1, 4, 4)
    labels, ball = torch.arange(4) % 3, Ball("Linf", 0.125)
    for other in (lambda x: x, model.forward, "net.pt"):
        with pytest.raises(InputError, match=r"must be a torch\.nn\.Module"):
            evaluate(other, images, labels, ball)
        with pytest.raises(InputError, match=r"must be a torch\.nn\.Module"):
            profile(other, [(images, labels)], ball)
    with pytest.raises(InputError, match=r"such as robust_nc\.Ball\('Linf', 8 / 255\), found 0.03"):
        evaluate(model, images, labels, 8 / 255)
    column = evaluate(model, images, labels[:, None], ball, protocol="fgsm")
    told = repr(column).splitlines()
    assert (len(told), told[0]) == (6, "Outcome of 4 examples")
    assert told[2] == f"robust     {column.robust_accuracy:.1%}"


class WithState(nn.Linear):
    """Keeps more than tensors in its state."""

    kept: object = None

    def get_extra_state(self) -> object:
        return self.kept

    def set_extra_state(self, state: object) -> None:
        self.kept = state


@pytest.mark.filterwarnings("ignore")  # of torch, on its quantised layers
def test_states_that_hold_more_than_tensors_name_a_model(tmp_path: Path) -> None:
    images = pictures(8, SHAPE)
    for model in (
        nn.Sequential(nn.Flatten(), WithState(64, 5)).eval(),
        torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval(), {nn.Linear}, dtype=torch.qint8
        ),
    ):
        labels, log = predictions(model, images), tmp_path / type(model[1]).__name__
        first, again = (
            evaluate(model, images, labels, BALLS[0], protocol=SHORT, log=log) for _ in range(2)
        )
        assert torch.equal(first.robust, again.robust)
    plain = nn.Sequential(nn.Flatten(), WithState(64, 5))
    digests = set()
    for kept in (None, {"scale": 1}, {"scale": 2}, [torch.zeros(2)], (torch.ones(2),)):
        plain[1].kept = kept
        digests.add(state_digests(plain)["1._extra_state"])
    assert len(digests) == 5
