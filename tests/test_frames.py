"""Frames: exact Gram matrices, golden values, uniform orientation, the nearest simplex."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import frames as oracle
from torch import Tensor

from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.exceptions import InputError
from robust_nc.models.frames import (
    haar_orthonormal,
    haframe,
    haframe_floor,
    nearest_etf,
    orthogonal_frame,
    similarities,
    simplex_etf,
)


def simplex_gram(num_classes: int) -> Tensor:
    return (num_classes * torch.eye(num_classes).double() - 1) / (num_classes - 1)


def gram_error(frame: Tensor, wanted: Tensor | None = None) -> float:
    wanted = simplex_gram(len(frame)) if wanted is None else wanted
    return float((frame.double() @ frame.double().T - wanted).abs().max())


def balanced(*sizes: int) -> Tensor:
    return torch.from_numpy(oracle.balanced_tree(*sizes))


def random_tree(num_classes: int, seed: int) -> Tensor:
    return torch.from_numpy(oracle.random_tree(num_classes, seed))


def cloud(num_classes: int, dim: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def cifar100() -> Tensor:
    return read_hierarchy("cifar100").distances()


@pytest.mark.parametrize(
    ("num_classes", "dim"),
    [(2, 1), (10, 10), (10, 512), (1000, 999)],
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


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 2), (10, 512)])
def test_orthogonal_rows_are_orthonormal(num_classes, dim):
    frame = orthogonal_frame(num_classes, dim, seed=0)
    assert frame.shape == (num_classes, dim)
    assert frame.dtype == torch.float32
    assert gram_error(frame, torch.eye(num_classes)) < 1e-6


GOLDEN_FLOORS = {
    1: -0.866979,
    2: -0.305739,
    3: -0.149252,
    5: -0.056273,
    20: -0.010886,
    100: -0.010101,
}


@pytest.mark.parametrize(("gamma", "floor"), GOLDEN_FLOORS.items())
def test_golden_floor_of_cifar100(cifar100, gamma, floor):
    assert haframe_floor(cifar100, gamma) == pytest.approx(floor, abs=5e-7)


def test_golden_frame_of_cifar100(cifar100):
    frame = haframe(cifar100, 128, gamma=2.0, seed=0).double()
    gram = frame @ frame.T
    for height, cosine in enumerate([0.5695, 0.2810, 0.0875, -0.0421, -0.1290], start=1):
        pairs = gram[cifar100 == height]
        assert float(pairs.std()) < 1e-6
        assert float(pairs.mean()) == pytest.approx(cosine, abs=5e-5)
    assert float(frame.sum(0).norm()) == pytest.approx(11.99, abs=5e-3)
    assert int((torch.linalg.svdvals(frame) > 1e-4).sum()) == 99


@settings(deadline=None, max_examples=25)
@given(
    num_classes=st.integers(2, 30),
    gamma=st.floats(0.05, 50),
    extra=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_haframe_of_any_tree(num_classes, gamma, extra, seed):
    tree = random_tree(num_classes, seed)
    floor = haframe_floor(tree, gamma)
    assert -1 <= floor < 0
    assert floor == pytest.approx(oracle.floor(tree.numpy(), gamma), abs=1e-9)
    wanted = torch.from_numpy(oracle.similarities(tree.numpy(), gamma, floor))
    assert gram_error(haframe(tree, num_classes + extra, gamma=gamma, seed=seed), wanted) < 1e-6
    assert haframe_floor(7 * tree, gamma) == pytest.approx(floor)


def test_haframe_fits_one_dimension_less_where_the_floor_is_above_minus_one(cifar100):
    wanted = similarities(cifar100, 2.0)
    assert gram_error(haframe(cifar100, 99, gamma=2.0, seed=0), wanted) < 1e-6
    with pytest.raises(InputError, match=r"gamma = 2.0 needs features of at least 99 .* found 98"):
        haframe(cifar100, 98, gamma=2.0, seed=0)
    pair = balanced(2)
    assert haframe_floor(pair, 2.0) == -1  # not the end of what is positive semidefinite
    with pytest.raises(InputError, match="at least 2 dimensions, found 1"):
        haframe(pair, 1, gamma=2.0, seed=0)


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (10, 10), (40, 64)])
def test_nearest_etf_is_an_etf_and_the_nearest(shape):
    means = 3 * cloud(*shape) + 5
    found = nearest_etf(means)
    assert found.shape == shape
    assert found.dtype == torch.float64
    assert gram_error(found) < 1e-12
    if shape[1] >= shape[0]:
        wanted = torch.from_numpy(oracle.nearest_etf(means.numpy()))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    gap = oracle.etf_gap(means.numpy(), found.numpy())
    for seed in range(50):
        far = simplex_etf(*shape, seed=seed).double()
        assert gap <= oracle.etf_gap(means.numpy(), far.numpy()) + 1e-12
        turn = torch.matrix_exp(
            0.05 * (skew := cloud(shape[1], shape[1], seed=seed)) - 0.05 * skew.T
        )
        near = found @ turn
        assert gap <= oracle.etf_gap(means.numpy(), near.numpy()) + 1e-12


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (3, 2), (10, 16)])
def test_nearest_etf_to_an_etf_is_itself(num_classes, dim):
    frame = simplex_etf(num_classes, dim, seed=4)
    found = nearest_etf(frame * 7 + 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, frame, rtol=0, atol=2e-5)
    assert gram_error(found) < 1e-6


@pytest.mark.parametrize("means", ["equal", "zero", "two", "line", "tiny"])
def test_nearest_etf_of_means_that_leave_it_open(means):
    rows = {
        "equal": 1e3 + 1e-13 * cloud(7, 8),  # up to rounding
        "zero": torch.zeros(7, 8),
        "two": cloud(7, 8)[[0, 0, 0, 1, 1, 1, 1]],
        "line": torch.arange(7.0)[:, None].expand(7, 8),
        "tiny": 1e-200 * cloud(7, 8),
    }[means]
    found = nearest_etf(rows)
    assert gram_error(found) < 1e-6
    assert torch.equal(found, nearest_etf(rows.clone()))
    toward = simplex_etf(7, 8, seed=2).to(rows.dtype)
    pulled = nearest_etf(rows, toward=toward, delta=1e-9)
    assert gram_error(pulled) < 1e-6
    if means in {"equal", "zero"}:
        torch.testing.assert_close(pulled, toward, rtol=0, atol=1e-6)
    if means == "two":  # along the edge by the means, across it by `toward`
        gap = oracle.etf_gap(rows.numpy(), pulled.numpy())
        assert gap == pytest.approx(oracle.etf_gap(rows.numpy(), found.numpy()), abs=1e-7)
        assert float((pulled - toward).norm()) < float((found - toward).norm())


@pytest.mark.parametrize("delta", [0.01, 0.3, 3.0])
def test_delta_is_the_weight_of_the_way_to_the_other_frame(delta):
    means, toward = 2 * cloud(5, 7) + 3, simplex_etf(5, 7, seed=1).double()

    def cost(frame: Tensor) -> float:
        # |P - P_0|^2 is |W - W_0|^2 (K-1)/K
        way = float((frame - toward).square().sum()) * 4 / 5
        return oracle.etf_gap(means.numpy(), frame.numpy()) + delta / 2 * way

    found = nearest_etf(means, toward=toward, delta=delta)
    assert gram_error(found) < 1e-12
    for seed in range(50):
        skew = cloud(7, 7, seed=seed)
        for size in (1e-4, 1e-2):
            turned = found @ torch.matrix_exp(size * (skew - skew.T))
            assert cost(found) <= cost(turned) + 1e-12
    assert cost(found) < min(cost(toward), cost(nearest_etf(means)))


def test_nearest_etf_takes_no_gradient_and_leaves_its_input():
    means = cloud(4, 5).requires_grad_()
    before = means.detach().clone()
    assert not nearest_etf(means).requires_grad
    assert torch.equal(means, before)
    assert nearest_etf(means.half()).dtype == torch.float32
    assert gram_error(nearest_etf(torch.eye(4, 5, dtype=torch.int64))) < 1e-6


@pytest.mark.parametrize("kind", [np.asarray, lambda values: values.tolist()])
def test_arrays_and_lists_are_taken_as_tensors_are(kind):
    tree, means = balanced(2, 2), cloud(4, 5).double()
    assert haframe_floor(kind(tree), 2.0) == haframe_floor(tree, 2.0)
    assert torch.equal(similarities(kind(tree), 2.0), similarities(tree, 2.0))
    wanted = haframe(tree, 8, gamma=2.0, seed=0)
    assert torch.equal(haframe(kind(tree), 8, gamma=2.0, seed=0), wanted)
    toward = simplex_etf(4, 5, seed=0).double()
    found = nearest_etf(kind(means), toward=kind(toward), delta=0.1)
    assert torch.equal(found, nearest_etf(means, toward=toward, delta=0.1))


LOOP = torch.tensor([[0, 1, 9, 1], [1, 0, 1, 9], [9, 1, 0, 1], [1, 9, 1, 0]])
TREE = balanced(2, 2)
BROKEN = TREE.clone()
BROKEN[0, 1] = 5


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: simplex_etf(10, 8, seed=0), "at least 9 dimensions, found 8; choose a wider"),
        (lambda: simplex_etf(1, 4, seed=0), "at least 2 classes, found 1"),
        (lambda: orthogonal_frame(5, 4, seed=0), "at least 5 dimensions, found 4"),
        (lambda: orthogonal_frame(1, 9, seed=0), "at least 2 classes, found 1"),
        (lambda: haframe([["a"]], 2, gamma=2.0, seed=0), "distances must be numbers"),
        (lambda: nearest_etf([[1.0], [1.0, 2.0]]), "class means must be numbers in rows"),
        (lambda: haframe(TREE, 2, gamma=2.0, seed=0), "found 2; choose a wider"),
        (lambda: haframe(TREE, 8, gamma=0.0, seed=0), "gamma must be finite and above 0, found 0"),
        (lambda: haframe_floor(TREE, float("nan")), "gamma must be .* found nan"),
        (lambda: haframe_floor(LOOP, 0.1), "positive definite; give the distances of a tree"),
        (lambda: haframe_floor(TREE, 1e-30), "or a larger gamma"),
        (lambda: haframe_floor(BROKEN, 2.0), "symmetric"),
        (lambda: haframe_floor(TREE + 1, 2.0), "0 on the diagonal"),
        (lambda: haframe_floor(TREE * 0, 2.0), "above 0 elsewhere"),
        (lambda: haframe_floor(TREE * float("inf"), 2.0), "must be finite"),
        (lambda: haframe_floor(TREE[:2], 2.0), r"\(K, K\) .* found \(2, 4\)"),
        (lambda: nearest_etf(cloud(4, 2)), "at least 3 dimensions, found 2"),
        (lambda: nearest_etf(cloud(4, 5)[0]), r"must be \(K, D\), found \(5,\)"),
        (lambda: nearest_etf(cloud(4, 5) / 0), "finite"),
        (lambda: nearest_etf(cloud(4, 5), delta=0.1), "needs `toward`.* found None"),
        (lambda: nearest_etf(cloud(4, 5), toward=cloud(5, 5), delta=0.1), r"found \(5, 5\)"),
        (lambda: nearest_etf(cloud(4, 5), toward=cloud(4, 5), delta=-1.0), "delta must be"),
    ],
)
def test_what_has_no_frame_is_refused(build, sentence):
    with pytest.raises(InputError, match=sentence):
        build()
