import pytest
import torch
from helpers_attacks import BALLS, pictures

from robust_nc.attacks.noise import GaussianNoise, SignNoise, matched_noise
from robust_nc.exceptions import InputError
from robust_nc.threat import Ball

SHAPE = (3, 8, 6)
KINDS = ("gaussian", "sign")


def _attacked(images: torch.Tensor, eps: float) -> torch.Tensor:
    draws = torch.Generator().manual_seed(9)
    eps = eps * torch.arange(1, len(images) + 1)[:, None, None, None] / len(images)
    return (images + eps * torch.randn(images.shape, generator=draws).sign()).clamp(0, 1)


@pytest.mark.parametrize("norm", ["L2", "Linf", "L1"])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_as_large_as_the_attack_after_clipping(kind: str, norm: str) -> None:
    images = pictures(8, SHAPE)
    attacked = _attacked(images, 0.3)
    noisy = matched_noise(images, attacked, kind=kind, norm=norm, seed=0, ids=torch.arange(8))
    ball = Ball(norm, 0.0)
    sizes = ball.distance(noisy, images), ball.distance(attacked, images)
    assert torch.allclose(*sizes, rtol=1e-5)
    assert 0 <= noisy.min() <= noisy.max() <= 1
    assert not torch.allclose(noisy, attacked, atol=0.01)


def test_noise_that_the_bounds_leave_no_room_for_is_as_large_as_can_be() -> None:
    images = torch.full((1, *SHAPE), 0.25)
    far = torch.ones_like(images)  # 0.75 away; noise downwards has 0.25
    noisy = matched_noise(images, far, kind="sign", norm="L2", seed=0, ids=torch.arange(1))
    assert set(noisy.unique().tolist()) == {0.0, 1.0}


def test_no_attack_no_noise() -> None:
    images = pictures(3, SHAPE)
    for kind in KINDS:
        noisy = matched_noise(images, images, kind=kind, seed=0, ids=torch.arange(3))
        assert torch.equal(noisy, images)
    assert matched_noise(images[:0], images[:0], seed=0, ids=torch.arange(0)).shape == (0, *SHAPE)


def test_noise_depends_on_seed_and_id_alone() -> None:
    images = pictures(6, SHAPE)
    attacked, ids = _attacked(images, 0.1), torch.arange(6)
    for kind in KINDS:
        whole = matched_noise(images, attacked, kind=kind, seed=0, ids=ids)
        part = matched_noise(images[4:], attacked[4:], kind=kind, seed=0, ids=ids[4:])
        other = matched_noise(images, attacked, kind=kind, seed=1, ids=ids)
        assert torch.equal(whole[4:], part)
        assert not torch.equal(whole, other)


def test_noise_is_noise() -> None:
    images = torch.full((40, 1, 16, 16), 0.5)
    attacked = images + 0.1
    delta = matched_noise(images, attacked, kind="gaussian", seed=0, ids=torch.arange(40)) - images
    assert abs(float(delta.mean())) < 0.005
    assert float((delta.abs() < 0.1).float().mean()) == pytest.approx(0.683, abs=0.02)
    delta = matched_noise(images, attacked, kind="sign", seed=0, ids=torch.arange(40)) - images
    assert torch.allclose(delta.abs(), torch.tensor(0.1), atol=1e-5)
    assert abs(float(delta.mean())) < 0.005


@pytest.mark.parametrize("attack", [GaussianNoise(), SignNoise()])
@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
def test_as_an_attack_it_lies_on_the_surface_and_asks_nothing(attack, ball) -> None:
    images, labels = pictures(4, SHAPE), torch.zeros(4, dtype=torch.int64)
    result = attack.run(torch.nn.Identity(), images, labels, ball, seed=0, ids=torch.arange(4))
    assert ball.distance(result.points, images).tolist() == pytest.approx([ball.eps] * 4, rel=1e-4)
    assert ball.contains(result.points, images).all()
    assert result.forwards.tolist() == result.backwards.tolist() == [0] * 4


def test_noise_that_cannot_be_made_is_named() -> None:
    images, ids = pictures(2, SHAPE), torch.arange(2)
    with pytest.raises(InputError, match="must both be"):
        matched_noise(images, images[:1], seed=0, ids=ids)
    with pytest.raises(ValueError, match="unknown norm 'l2'"):
        matched_noise(images, images, norm="l2", seed=0, ids=ids)
    with pytest.raises((ValueError, TypeError), match="kind"):
        matched_noise(images, images, kind="salt", seed=0, ids=ids)
