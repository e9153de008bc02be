"""Codes of perturbations: short, lossless, and the same on any hardware."""

import numpy as np
import pytest
import torch
from helpers_attacks import BALLS, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robust_nc.evidence.coding import (
    LEVELS,
    MOST,
    Coded,
    coded_levels,
    compress,
    content_size,
    decode,
    decompress,
    encode,
    pack_floats,
    pack_numbers,
    rounded,
    unpack_floats,
    unpack_numbers,
    width,
)
from robust_nc.exceptions import RecordError
from robust_nc.threat import Ball

SHAPE = (3, 8, 8)
BOUNDS = (0.0, 1.0)


def points_in(ball: Ball, images: Tensor, *, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    moved = images + torch.randn(images.shape, generator=draws) * ball.eps
    return ball.project(moved, images)


@given(level=st.integers(1, MOST), count=st.integers(1, 23), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packed_numbers_come_back(level: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(-level, level + 1, (4, count)).astype(np.int8)
    packed = pack_numbers(numbers, level)
    assert packed.shape == (4, width(level, count))
    assert np.array_equal(unpack_numbers(packed, level, count), numbers)


def test_a_byte_holds_five_numbers_of_the_coarsest_level() -> None:
    assert [width(level, 3072) for level in (1, 2, 7, 127)] == [615, 1024, 1536, 3072]


@pytest.mark.parametrize("packed", [[243], [2 * 81 + 40]], ids=["no digits", "beyond the last"])
def test_bytes_that_packing_does_not_make_are_refused(packed: list[int]) -> None:
    with pytest.raises(RecordError, match="code"):
        unpack_numbers(np.array([packed], dtype=np.uint8), 1, 4)


def test_floats_come_back_to_the_bit() -> None:
    values = np.array([[0.1, -0.0, 1e-42, 0.7]], dtype=np.float32)
    known = np.array([[0.1, 0.0, 0.5, 0.69]], dtype=np.float32)
    again = unpack_floats(pack_floats(values, known), known)
    assert again.tobytes() == values.tobytes()


@pytest.mark.parametrize("size", [0, 10, 2999, 3001, 2**30])
def test_another_size_than_the_known_one_is_refused(size: int) -> None:
    with pytest.raises(RecordError, match="codes"):
        decompress(compress(b"abc" * 1000), size)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_rounded_points_are_in_the_ball_and_have_a_code(ball: Ball, level: int) -> None:
    images = pictures(20, SHAPE)
    points = rounded(points_in(ball, images), images, ball, level)
    coded = coded_levels(points, images, BOUNDS)
    assert bool(ball.contains(points, images).all())
    assert float((coded > 0).float().mean()) > 0.8
    assert int(coded.max()) <= level


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_finer_levels_keep_the_direction_better(ball: Ball) -> None:
    images = 0.25 + pictures(20, SHAPE) / 2  # nothing is clipped
    points = points_in(ball, images)
    wanted = (points - images).flatten(1)
    errors = []
    for level in (1, 7, 127):
        found = (rounded(points, images, ball, level) - images).flatten(1)
        errors.append(float(1 - torch.cosine_similarity(found, wanted).mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5e-3


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_codes_lose_nothing(ball: Ball) -> None:
    images = pictures(12, SHAPE)
    exact = points_in(ball, images)
    mixed = torch.cat([rounded(exact[:6], images[:6], ball, 2), exact[6:]])
    coded = encode(mixed, images, BOUNDS)
    assert len(coded.content) == content_size(coded.levels, images[0].numel())
    assert torch.equal(decode(coded, images, BOUNDS), mixed)
    assert int((coded.levels[:6] > 0).sum()) >= 5
    assert not bool(coded.levels[6:].any())


def test_the_code_of_a_point_does_not_depend_on_the_others() -> None:
    ball, images = BALLS[1], pictures(9, SHAPE)
    points = rounded(points_in(ball, images), images, ball, 7)
    together = encode(points, images, BOUNDS)
    for row in range(9):
        alone = encode(points[row : row + 1], images[row : row + 1], BOUNDS)
        assert alone.levels[0] == together.levels[row]
        assert alone.steps[0] == together.steps[row]


def test_an_unchanged_point_and_one_clipped_everywhere_have_codes() -> None:
    images = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).view(2, 1, 1, 2)
    points = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).view(2, 1, 1, 2)
    coded = encode(points, images, BOUNDS)
    assert coded.levels.tolist() == [1, 1]
    assert torch.equal(decode(coded, images, BOUNDS), points)


def test_negative_zero_is_kept() -> None:
    images = torch.tensor([0.1, 0.5]).view(1, 1, 1, 2)
    points = torch.tensor([-0.0, 0.5]).view(1, 1, 1, 2)
    again = decode(encode(points, images, BOUNDS), images, BOUNDS)
    assert again.numpy().tobytes() == points.numpy().tobytes()


def test_decoding_is_a_product_and_a_sum_of_float32() -> None:
    """Fused, or in float64, it would be other points on other hardware."""
    images, draws = pictures(1, (1, 64, 64)), np.random.default_rng(0)
    numbers = draws.integers(-7, 8, (1, 4096)).astype(np.int8)
    step = np.float32(0.0123)
    coded = Coded(
        torch.tensor([7], dtype=torch.uint8),
        torch.tensor([step]),
        pack_numbers(numbers, 7).tobytes(),
    )
    moved = (images.numpy() + (numbers.astype(np.float32) * step).reshape(images.shape)).clip(0, 1)
    found = decode(coded, images, BOUNDS).numpy()
    assert moved.dtype == np.float32
    assert np.array_equal(found, moved)


def test_exact_points_that_are_not_finite_are_refused() -> None:
    images = pictures(1, SHAPE)
    content = pack_floats(
        np.full((1, 192), np.nan, dtype=np.float32), images.flatten(1).numpy()
    ).tobytes()
    coded = Coded(torch.zeros(1, dtype=torch.uint8), torch.zeros(1), content)
    with pytest.raises(RecordError, match="not finite"):
        decode(coded, images, BOUNDS)
