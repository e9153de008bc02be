"""Known ways to look robust around one undefended network: each is seen through, or doubted.

The verdict is within five points of the network's own, or carries a warning that says why not.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers_attacks import BALLS, SHAPE, SHORT, curved, linear, pictures, predictions
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc import evaluate
from robust_nc.attacks.rays import RayS
from robust_nc.attacks.smooth import Smooth
from robust_nc.exceptions import NoGradientError
from robust_nc.runtime.progress import Progress
from robust_nc.threat import Ball
from robust_nc.types import DOUBTS

CLASSES = 5


class Planted(nn.Module):
    """A network, and what a defense does around it."""

    def __init__(self, network: nn.Module, around: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.around = network, around

    def forward(self, images: Tensor) -> Tensor:
        return self.around(self.network, images)


def _one_hot(network: nn.Module, images: Tensor) -> Tensor:
    return F.one_hot(network(images).argmax(1), CLASSES).float()


def _scattered(network: nn.Module, images: Tensor) -> Tensor:
    logits = network(images)
    return torch.zeros_like(logits).scatter(1, logits.max(1).indices[:, None], 1.0)


def _jpeg(network: nn.Module, images: Tensor) -> Tensor:
    """Round the coefficients of the discrete cosine transform of 8 x 8 pixels."""
    places = torch.arange(8.0)
    basis = torch.cos((2 * places[None] + 1) * places[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    table = (1 + places[:, None] + places) / 8
    coefficients = ((basis @ images @ basis.T) / table).round() * table
    return network(basis.T @ coefficients @ basis)


def _thermometer(network: nn.Module, images: Tensor) -> Tensor:
    levels = torch.linspace(0, 1, 17)[1:-1, None, None]
    return network((images.unsqueeze(2) > levels).float().mean(2))


def _k_winners(network: nn.Module, images: Tensor) -> Tensor:
    features = network[:-1](images)
    return network[-1](features * (features >= features.topk(24).values[:, -1:]).float())


def _resized(network: nn.Module, images: Tensor) -> Tensor:
    side = int(torch.randint(6, 9, ()))
    left, top = (int(torch.randint(9 - side, ())) for _ in range(2))
    small = F.interpolate(images, size=(side, side))
    return network(F.pad(small, (left, 8 - side - left, top, 8 - side - top)))


def _no_inference(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits = network(images)
    return logits.clone()


def _purified(network: nn.Module, images: Tensor) -> Tensor:
    """Move the images towards what the network is sure of, before it answers."""
    with torch.enable_grad():
        given = images.detach().requires_grad_()
        sure = network(given).logsumexp(1).sum()
        (slope,) = torch.autograd.grad(sure, given)
    return network((images + 0.02 * slope.sign()).clamp(0, 1))


def _written(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        images.mul_(255).round_().div_(255)
    return network(images)


def _nearest_mean(network: nn.Module, images: Tensor) -> Tensor:
    means = pictures(CLASSES, SHAPE, seed=1).flatten(1)
    return network(images) - 0.01 * torch.cdist(images.flatten(1), means)


PLANTED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "one-hot argmax": _one_hot,
    "saturated logits": lambda network, images: 10 * torch.tanh(1e3 * network(images)),
    "temperature 1e4": lambda network, images: 1e4 * network(images),
    "bit depth": lambda network, images: network((images * 7).round() / 7),
    "whole numbers": lambda network, images: network((images * 15).byte().float() / 15),
    "JPEG": _jpeg,
    "thermometer code": _thermometer,
    "k winners take all": _k_winners,
    "random resize and pad": _resized,
    "input noise": lambda network, images: network(images + 0.1 * torch.randn_like(images)),
    "random neurons": lambda network, images: network[-1](F.dropout(network[:-1](images), 0.3)),
    "batch-dependent": lambda network, images: network(images - images.mean(0) + 0.5),
    "detach": lambda network, images: network(images.detach()),
    "inference_mode": _no_inference,
    "NaN gradients": lambda network, images: network(
        torch.where(images > 0, images, images.sqrt() * 0 + images)
    ),
    "in place": _written,
    "optimisation in forward": _purified,
    "nearest-mean head mixed in": _nearest_mean,
}
NETWORK = curved(SHAPE, CLASSES)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures(60, SHAPE)


@pytest.fixture(scope="module")
def truth(images: Tensor) -> float:
    labels = predictions(NETWORK, images)
    return evaluate(NETWORK, images, labels, BALLS[0], protocol=SHORT).robust_accuracy


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defense_is_seen_through_or_doubted(
    name: str, images: Tensor, truth: float
) -> None:
    model = Planted(NETWORK, PLANTED[name]).eval()
    torch.manual_seed(0)
    labels = predictions(model, images.clone())
    found = evaluate(model, images, labels, BALLS[0], protocol=SHORT)
    warned = {warning.name for warning in found.warnings}
    assert found.robust_accuracy <= truth + 0.05 or warned & DOUBTS


@pytest.mark.parametrize("ball", BALLS[1:], ids=lambda ball: ball.norm)
def test_a_hidden_network_is_broken_as_the_plain_one(ball: Ball, images: Tensor) -> None:
    """What breaks it has a name and a place behind the attacks of the protocol."""
    labels = predictions(NETWORK, images)
    plain = evaluate(NETWORK, images, labels, ball, protocol=SHORT)
    hidden = Planted(NETWORK, _scattered).eval()
    found = evaluate(hidden, images, labels, ball, protocol=SHORT)
    assert [name for name, _ in found.attacks] == [n for n, _ in SHORT.attacks] + ["smooth", "rays"]
    assert found.robust_accuracy <= plain.robust_accuracy + 0.05
    assert found.broken_by.count("smooth") > 20
    broken = found.clean_correct & ~found.robust
    assert (predictions(hidden, found.adversarials[broken]) != labels[broken]).all()
    assert [name for name, _ in plain.attacks] == [name for name, _ in SHORT.attacks]
    unchecked = evaluate(hidden, images, labels, ball, protocol=SHORT, checks=False)
    assert unchecked.robust_accuracy > found.robust_accuracy + 0.3


def test_an_interrupted_second_opinion_goes_on(images: Tensor, tmp_path: Path) -> None:
    hidden, images = Planted(NETWORK, _one_hot).eval(), images[:20]
    labels = predictions(hidden, images)
    whole = evaluate(hidden, images, labels, BALLS[0], protocol="pgd")

    def stop(progress: Progress) -> None:
        if progress.attack == "rays":
            raise KeyboardInterrupt

    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        evaluate(hidden, images, labels, BALLS[0], protocol="pgd", log=log, report=stop)
    again = evaluate(hidden, images, labels, BALLS[0], protocol="pgd", log=log)
    assert again.broken_by == whole.broken_by
    kept = evaluate(hidden, images, labels, BALLS[0], protocol="pgd", log=log, checks=False)
    assert kept.broken_by == whole.broken_by
    assert torch.equal(again.adversarials, whole.adversarials)


def test_rays_come_near_the_closed_form_without_logits() -> None:
    """A linear model falls in Linf where eps reaches its margin over the L1 norm of its weights."""
    model = linear((1, 4, 4), 3).eval()
    images = 0.5 + 0.2 * (pictures(30, (1, 4, 4)) - 0.5)
    labels, hidden = (
        predictions(model, images),
        Planted(model, lambda n, x: F.one_hot(n(x).argmax(1), 3).float()),
    )
    logits, weight = model(images).detach(), model[1].weight.detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    nearest = (gaps / (weight[labels][:, None] - weight).abs().sum(2)).nan_to_num(torch.inf)
    nearest = nearest.scatter(1, labels[:, None], torch.inf).amin(1)
    ball = Ball("Linf", float(nearest.median()))
    points = RayS(queries=1000)(hidden, images, labels, ball, seed=0, ids=torch.arange(30))
    flipped = predictions(hidden, points) != labels
    assert not flipped[nearest > ball.eps * 1.0001].any()
    assert flipped[nearest < ball.eps / 1.25].all()


def test_a_model_without_a_way_back_has_no_stand_in() -> None:
    images = pictures(3, SHAPE)
    model = Planted(
        NETWORK, lambda network, x: network(torch.from_numpy(x.detach().numpy().copy()))
    )
    with pytest.raises(NoGradientError, match="no smooth stand-in"):
        Smooth()(model, images, predictions(model, images), BALLS[0], seed=0, ids=torch.arange(3))
