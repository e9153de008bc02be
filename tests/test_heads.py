"""Heads and frames: exact simplices, uniform orientation, per-example logits, nothing learnt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.exceptions import InputError
from robust_nc.models.frames import haar_orthonormal, simplex_etf
from robust_nc.models.heads import EtfHead, Head, LinearHead, unit_rows


def gram_error(frame: torch.Tensor) -> float:
    k = len(frame)
    wanted = (k * torch.eye(k, dtype=torch.float64) - 1) / (k - 1)
    return float((frame.double() @ frame.double().T - wanted).abs().max())


@pytest.mark.parametrize(
    ("num_classes", "dim"),
    [(2, 1), (2, 5), (10, 9), (10, 10), (10, 512), (1000, 999), (1000, 1024)],
)
def test_simplex_has_unit_rows_and_equal_angles(num_classes, dim):
    frame = simplex_etf(num_classes, dim, seed=0)
    assert frame.shape == (num_classes, dim)
    assert frame.dtype == torch.float32
    assert gram_error(frame) < 1e-6
    assert float(frame.double().sum(0).abs().max()) < 1e-5


@settings(deadline=None, max_examples=25)
@given(num_classes=st.integers(2, 60), extra=st.integers(0, 40), seed=st.integers(0, 2**31))
def test_simplex_of_any_size_and_seed(num_classes, extra, seed):
    assert gram_error(simplex_etf(num_classes, num_classes - 1 + extra, seed=seed)) < 1e-6


@pytest.mark.parametrize(("num_classes", "dim"), [(10, 8), (1000, 512), (1, 4)])
def test_frames_that_do_not_exist_are_refused(num_classes, dim):
    with pytest.raises(InputError, match=r"dimensions, found|at least 2 classes, found 1"):
        simplex_etf(num_classes, dim, seed=0)


def test_orientation_is_uniform():
    # Without the signs of R, the first entry of every Q is negative; a uniform matrix in place
    # of the Gaussian favours (1, ..., 1). A Haar column has mean 0 and covariance I / D.
    draws = torch.stack([haar_orthonormal(3, 2, seed=seed) for seed in range(1500)])
    for column in range(2):
        rows = draws[:, :, column]
        assert float(rows.mean(0).abs().max()) < 4 * (3 * 1500) ** -0.5
        assert float((rows.T @ rows / 1500 - torch.eye(3) / 3).abs().max()) < 0.03
    torch.testing.assert_close(
        draws.mT @ draws, torch.eye(2, dtype=torch.float64).expand(1500, 2, 2)
    )


def test_a_seed_names_a_frame():
    assert torch.equal(simplex_etf(5, 8, seed=1), simplex_etf(5, 8, seed=1))
    assert not torch.equal(simplex_etf(5, 8, seed=1), simplex_etf(5, 8, seed=2))


def heads() -> list[Head]:
    return [
        LinearHead(4, 6, seed=0),
        LinearHead(4, 6, seed=0, bias=False, temperature=0.1),
        LinearHead(4, 6, seed=0, normalise_features=True, temperature=2.0),
        EtfHead(4, 6, seed=0, scale=3.0, temperature=0.5),
        EtfHead(4, 6, seed=0, normalise_features=True),
    ]


@pytest.mark.parametrize("head", heads())
def test_logits_are_the_stated_linear_map(head):
    features = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    rows = features / features.norm(dim=1, keepdim=True) if head.normalise_features else features
    shift = head.bias_vector()
    wanted = rows @ head.vertices().T + (0 if shift is None else shift)
    torch.testing.assert_close(head(features), wanted)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(head(features[order]), head(features)[order])
    torch.testing.assert_close(torch.cat([head(row[None]) for row in features]), head(features))


def test_temperature_divides_the_logits():
    features = torch.randn(3, 6)
    for kind in (LinearHead, EtfHead):
        cold, warm = (kind(4, 6, seed=0, temperature=t) for t in (1.0, 4.0))
        torch.testing.assert_close(cold(features) / 4, warm(features))


def test_etf_is_a_buffer_without_gradient():
    head = EtfHead(4, 6, seed=0)
    assert not list(head.parameters())
    assert list(head.state_dict()) == ["fixed_frame"]
    features = torch.randn(2, 6, requires_grad=True)
    head(features).sum().backward()
    assert features.grad is not None
    assert not head.fixed_frame.requires_grad
    assert head.bias_vector() is None
    assert gram_error(head.frame()) < 1e-6


def test_etf_scale_follows_the_features():
    assert float(EtfHead(4, 6, seed=0).vertices().norm(dim=1).mean()) == pytest.approx(1)
    cosine = EtfHead(10, 16, seed=0, normalise_features=True)
    assert float(cosine.vertices().norm(dim=1).mean()) == pytest.approx(16)
    best = torch.nn.functional.cross_entropy(cosine(cosine.frame()), torch.arange(10))
    assert float(best) < 1e-5


def test_linear_head_is_learnt_and_has_no_frame():
    head = LinearHead(4, 6, seed=0)
    head(torch.randn(2, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert head.frame() is None
    assert float(head.weight.detach().abs().max()) <= 6**-0.5
    assert LinearHead(4, 6, seed=0, bias=False).bias_vector() is None
    assert torch.equal(head.weight, LinearHead(4, 6, seed=0, bias=False).weight)


def test_head_computes_in_its_own_precision_under_autocast():
    head, features = EtfHead(4, 6, seed=0), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features), EtfHead(4, 6, seed=0)(features))
        assert head(features.bfloat16()).dtype == torch.float32
    assert torch.equal(head(features), features @ head.frame().T)


def test_unit_rows_of_tiny_and_zero_features():
    rows = torch.tensor([[3.0, 4.0], [3e-4, 4e-4], [3e8, 4e8], [0.0, 0.0]], requires_grad=True)
    unit = unit_rows(rows)
    torch.testing.assert_close(unit[:3].detach(), torch.tensor([[0.6, 0.8]]).expand(3, 2))
    assert unit[3].tolist() == [0, 0]
    unit.sum().backward()
    assert rows.grad is not None
    assert bool(torch.isfinite(rows.grad).all())


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: LinearHead(1, 6, seed=0), "at least 2 classes, found 1"),
        (lambda: LinearHead(4, 0, seed=0), "at least 1 dimension, found 0"),
        (lambda: LinearHead(4, 6, seed=0, temperature=0.0), "temperature must be .* found 0"),
        (lambda: EtfHead(4, 6, seed=0, temperature=float("nan")), "temperature must be"),
        (lambda: EtfHead(4, 6, seed=0, scale=float("inf")), "scale must be finite .* found inf"),
        (lambda: EtfHead(4, 2, seed=0), "at least 3 dimensions, found 2"),
    ],
)
def test_heads_that_cannot_be_are_refused(build, sentence):
    with pytest.raises(InputError, match=sentence):
        build()
