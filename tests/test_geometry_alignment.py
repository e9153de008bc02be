"""Alignment of clean and attacked means, and the way to the nearest simplex, against oracles."""

import math

import pytest
import torch
from helpers_geometry import simplex
from reference import alignment as oracle
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.alignment import Alignment, etf_distance, measure_alignment


def pair(num_classes: int, dim: int, *, noise: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean, move = torch.randn(2, num_classes, dim, generator=generator, dtype=torch.float64)
    return clean, clean + noise * move + 3


def same(found: Alignment, wanted: Alignment, rel: float = 1e-10) -> None:
    for name, value in wanted.measures().items():
        assert found.measures()[name] == pytest.approx(value, rel=rel, abs=rel), name
    assert found.num_classes == wanted.num_classes


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (3, 2), (7, 3), (7, 6), (7, 20), (30, 12)])
@pytest.mark.parametrize("absent", [False, True])
def test_alignment_agrees_with_the_oracle(shape: tuple[int, int], absent: bool) -> None:
    clean, attacked = pair(*shape, seed=sum(shape))
    if absent:
        clean, attacked = (torch.cat([part, part[:1] - 1, part]) for part in (clean, attacked))
        clean[0] = attacked[-2] = attacked[-1] = torch.nan
    found = measure_alignment(clean.numpy(), attacked)
    wanted = oracle.alignment(clean.numpy(), attacked.numpy())
    close = {"rel": 1e-9, "abs": 1e-6 if shape[1] == 1 else 1e-11}  # acos has half the digits at 0
    for name in ("angle", "distance", "procrustes", "num_classes"):
        assert getattr(found, name) == pytest.approx(wanted[name], **close), name
    for name in ("angles", "distances"):
        assert len(getattr(found, name)) == len(clean)
        for value, expected in zip(getattr(found, name), wanted[name], strict=True):
            assert (value is None) == (expected is None)
            assert value is None or value == pytest.approx(expected, **close)
    assert found.absent_classes == len(clean) - found.num_classes == (3 if absent else 0)
    assert "alignment_angle" not in found.notes
    assert ("num_classes" in found.notes) == ("alignment_angle_class" in found.notes) == absent


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 60])
def test_perfect_alignment_is_exactly_zero(num_classes: int, offset: float) -> None:
    spectrum = torch.logspace(0, -4, 64, dtype=torch.float64)
    for rows in (simplex(num_classes, 64), pair(num_classes, 64)[0] * spectrum):
        found = measure_alignment(rows + offset, rows + offset)
        assert found.angles == found.distances == (0.0,) * num_classes
        assert found.angle == found.distance == 0
        assert 0 <= found.procrustes < 1e-12
        grown = measure_alignment(rows, 3 * rows - 7)
        assert grown.angle == pytest.approx(0, abs=1e-9)
        assert 0 <= grown.procrustes < 1e-12
        assert not found.notes


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-3, 1.0, 3.14])
def test_angles_keep_their_digits_where_the_cosine_has_none(angle: float) -> None:
    clean = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    attacked = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    found = measure_alignment(clean, 2 * torch.cat([attacked, -attacked]))
    assert found.angle == pytest.approx(math.degrees(angle), rel=1e-12)


@pytest.mark.parametrize("block", [1, 2, 11])
def test_a_few_columns_at_a_time_equal_all_at_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, attacked = pair(6, 50)
    clean[3] = torch.nan
    wanted, distance = measure_alignment(clean, attacked), etf_distance(clean)
    monkeypatch.setattr("robust_nc.geometry.moments._BLOCK", block)
    same(measure_alignment(clean, attacked), wanted, rel=1e-12)
    assert etf_distance(clean) == pytest.approx(distance, rel=1e-12)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_an_exact_simplex_has_no_distance(num_classes: int) -> None:
    for dim in {num_classes, num_classes + 40}:
        frame = simplex(num_classes, dim)
        assert 0 <= etf_distance(frame) < 1e-24
        assert 0 <= etf_distance(0.01 * frame.float()) < 1e-10
        assert 0 <= etf_distance(1e3 + 5 * frame) < 1e-12
    tight = torch.eye(num_classes)[:, 1:] * 2 - 1  # K - 1 dimensions can hold one, this is none
    assert (etf_distance(tight) > 0.001) == (num_classes > 2)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (5, 2), (6, 5), (6, 40)])
def test_distance_to_the_nearest_etf_agrees_with_the_oracle(shape: tuple[int, int]) -> None:
    vertices = pair(*shape)[1]
    found = etf_distance(vertices)
    assert found == pytest.approx(oracle.etf_distance(vertices.numpy()), rel=1e-9, abs=1e-15)
    if shape[1] >= shape[0]:
        fitted = oracle.distance_to_the_nearest_etf(vertices.numpy())
        assert found == pytest.approx(fitted, rel=1e-9, abs=1e-15)
    absent = torch.cat([vertices[:1], torch.full_like(vertices[:2], torch.nan), vertices[1:]])
    assert etf_distance(absent) == found


def test_means_that_coincide_have_no_value_but_a_reason() -> None:
    clean = torch.eye(3, dtype=torch.float64)
    point = 1e6 * torch.tensor([[0.1 + 0.2], [0.3], [0.3]], dtype=torch.float64).expand(3, 3)
    found = measure_alignment(clean, point)
    assert found.angle is found.procrustes is etf_distance(point) is None
    assert found.angles == (None,) * 3
    assert found.distance == pytest.approx(1)
    assert "coincide" in found.notes["alignment_angle"]
    assert set(found.notes) == {"alignment_angle", "alignment_angle_class", "procrustes"}
    still = measure_alignment(point, clean)
    assert set(still.measures().values()) == {None}
    assert still.distances == (None,) * 3
    assert set(still.measures()) <= set(still.notes)


def test_a_vertex_at_the_centre_has_no_angle_and_is_left_out() -> None:
    clean = torch.tensor([[1.0, 0], [-1, 0], [0, 0]])
    found = measure_alignment(clean, clean @ torch.tensor([[0.0, 1], [-1, 0]]))
    assert found.angles[2] is None
    assert found.angles[:2] == pytest.approx((90, 90))
    assert found.angle == pytest.approx(90)
    assert found.distances[2] == 0
    assert found.num_classes == 3
    assert found.notes["alignment_angle"].startswith("1 of 3 classes left out")


@pytest.mark.parametrize("common", [0, 1])
def test_fewer_than_two_common_classes_are_a_result(common: int) -> None:
    clean, attacked = pair(4, 3)
    clean[2:] = attacked[common - 2] = torch.nan
    attacked[: 2 - common] = torch.nan
    alone = torch.full_like(clean, torch.nan)
    alone[:common] = 1
    for other in (attacked, alone):
        for found in (measure_alignment(clean, other), measure_alignment(other, clean)):
            assert set(found.measures().values()) == {None}
            assert set(found.measures()) <= set(found.notes)
            assert "fewer than two" in found.notes["procrustes"]
            assert found.angles == found.distances == (None,) * 4
            assert (found.num_classes, found.absent_classes) == (common, 4 - common)
    assert etf_distance(alone) is None


@pytest.mark.parametrize(
    ("clean", "attacked", "message"),
    [
        (torch.eye(3), torch.eye(3)[:2], "same classes"),
        (torch.eye(3), torch.eye(3) / 0, "attacked must be finite"),
        (torch.eye(3).long(), torch.eye(3), "clean must be floating"),
        (torch.zeros(3), torch.eye(3), r"\(K, D\)"),
        (torch.eye(3), [["a"]], "numbers"),
    ],
)
def test_bad_vertices_are_answered_in_one_sentence(
    clean: Tensor, attacked: Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure_alignment(clean, attacked)
