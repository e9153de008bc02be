"""The path of an attack step by step, and where it is between the vertices."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers_attacks import BALLS, curved, pictures, predictions
from helpers_geometry import clusters
from reference import barycentric as oracle
from torch import Tensor, nn

from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.trajectory import trajectory
from robust_nc.config import MeasureConfig
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.geometry.barycentric import Hull, polygon
from robust_nc.profiling.measurement import Attacking, Examples, Measurement
from robust_nc.profiling.trajectory_rows import Row, trajectory_rows
from robust_nc.record import COLUMNS
from robust_nc.threat import Ball

SHAPE = (1, 8, 8)


@pytest.fixture
def batch() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    model, images = curved(SHAPE, 5), pictures(9, SHAPE)
    return model, images, predictions(model, images), torch.arange(9)


# ------------------------------------------------------------------------------------- the attack


@pytest.mark.parametrize(
    ("ball", "loss", "targeted"),
    [(BALLS[0], "ce", False), (BALLS[1], "margin", True), (BALLS[2], "ce", True)],
    ids=str,
)
def test_every_point_is_that_of_pgd_stopped_there(batch, ball, loss, targeted) -> None:
    model, images, labels, ids = batch
    targets = (labels + 2) % 5 if targeted else None
    path = trajectory(
        model, images, labels, ball, steps=6, scale=3.0, loss=loss, targets=targets, seed=0, ids=ids
    )
    assert torch.equal(path[0], images)
    for steps in (1, 2, 4, 6):
        attack = PGD(steps=steps, step_size=2.5 * ball.eps / 6, loss=loss, scale=3.0)
        attack = dataclasses.replace(attack, initial="none", keep_best=False)
        options = {"goal": "maximise", "targets": targets, "seed": 9, "ids": ids}
        wanted = attack(model, images, labels, ball, **options)
        assert torch.equal(path[steps], wanted)
        assert not torch.equal(path[steps], path[steps - 1])


def test_an_example_walks_alone(batch) -> None:
    """Neither its batch, nor its place in it, nor the seed changes its path."""
    model, images, labels, ids = batch
    whole = trajectory(model, images, labels, BALLS[1], steps=5, seed=0, ids=ids)
    order = torch.tensor([4, 8, 0, 2, 6, 1, 7, 3, 5])
    pieces = trajectory(
        model, images[order], labels[order], BALLS[1], steps=5, seed=3, ids=ids, batch_size=2
    )
    torch.testing.assert_close(pieces, whole[:, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"loss": "kl"}, "no slope at the clean image; use one of ce, dlr, margin"),
        ({"loss": "cee"}, "did you mean 'ce'"),
        ({"targets": torch.zeros(9, 2, dtype=torch.int64)}, r"found \(9, 2\)"),
        ({"targets": torch.full((9,), 5)}, "found 0..5"),
        ({"ids": torch.arange(8)}, "ids must be int64"),
    ],
)
def test_what_cannot_be_followed_is_refused(batch, change, said) -> None:
    model, images, labels, ids = batch
    options: dict[str, Any] = {"seed": 0, "ids": ids, "targets": None} | change
    labels = (labels * 0).long()
    with pytest.raises((InputError, ConfigError), match=said):
        trajectory(model, images, labels, BALLS[0], **options)


# ------------------------------------------------------------------------- coordinates in the hull


def barycentric(features: Tensor, vertices: Tensor) -> Tensor:
    return Hull(vertices).locate(features).weights


def residual(features: Tensor, vertices: Tensor) -> Tensor:
    return Hull(vertices).locate(features).residual


def edge_position(features: Tensor, origins: Tensor, ends: Tensor, vertices: Tensor) -> Tensor:
    hull = Hull(vertices)
    return hull.along(hull.locate(features).inner, origins, ends)


@pytest.mark.parametrize(("groups", "dim"), [(2, 1), (2, 5), (4, 3), (3, 8), (6, 3), (9, 2)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_coordinates_agree_with_the_oracle(groups, dim, offset) -> None:
    features, labels = clusters([7] * groups, dim, noise=0.8, seed=groups)
    vertices = torch.stack([features[labels == k].mean(0) for k in range(groups)])
    found = barycentric(features + offset, vertices + offset)
    wanted = oracle.barycentric(features.numpy(), vertices.numpy())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-8)
    away = oracle.residual(features.numpy(), vertices.numpy())
    off = residual(features + offset, vertices + offset).numpy()
    np.testing.assert_allclose(off, away, rtol=0, atol=1e-9)
    ends = (labels + 1) % groups
    t = edge_position(features + offset, labels, ends, vertices + offset)
    for h, a, b, value in zip(features, labels, ends, t, strict=True):
        straight = oracle.edge_position(h.numpy(), int(a), int(b), vertices.numpy())
        assert float(value) == pytest.approx(straight, abs=1e-9)


def test_many_wide_vertices_are_corners_too() -> None:
    """Where the span comes from the Gram of the vertices."""
    vertices = 5 + torch.randn(110, 4_200, generator=torch.Generator().manual_seed(0))
    hull, corners = Hull(vertices), torch.eye(110, dtype=torch.float64)
    position = hull.locate(vertices)
    torch.testing.assert_close(position.weights, corners, rtol=0, atol=1e-9)
    assert float(position.residual.max()) < 1e-9
    torch.testing.assert_close(hull.own_weights(), corners, rtol=0, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_vertices_on_a_line_stay_on_it_wherever_it_is(offset) -> None:
    """What a common offset leaves as rounding is no direction of the hull."""
    way = torch.tensor([0.3, 1.1, 0.7, 0.9], dtype=torch.float64)
    vertices = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)[:, None] * way / 3 + offset
    features = torch.tensor([[0.7, -0.2, 0.4, 0.1]], dtype=torch.float64) + offset
    wanted = oracle.barycentric(features.numpy() - offset, vertices.numpy() - offset)
    found = barycentric(features, vertices)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-8)


def test_a_class_without_a_vertex_has_no_part() -> None:
    features, _ = clusters([5, 5], 4, seed=2)
    vertices, _ = clusters([1] * 4, 4, seed=3)
    gap = torch.cat([vertices[:2], torch.full((1, 4), torch.nan), vertices[2:]]).double()
    weights = barycentric(features, gap)
    assert weights[:, 2].tolist() == [0.0] * 10
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(weights[:, others], barycentric(features, vertices))
    torch.testing.assert_close(residual(features, gap), residual(features, vertices))
    starts = torch.tensor([0, 2, 0, 1, 3] * 2)
    ends = torch.tensor([2, 1, 0, 4, 1] * 2)
    there = torch.isfinite(edge_position(features, starts, ends, gap))
    assert there.tolist() == [False, False, False, True, True] * 2
    hull = Hull(gap)
    assert hull.nearest(hull.locate(vertices[2:]).inner).tolist() == [3, 4]
    own = hull.own_weights()
    assert bool(own[2].isnan().all())
    torch.testing.assert_close(own[others], torch.eye(5, dtype=torch.float64)[others])


def nudged(vertices: Tensor) -> Tensor:
    """The same vertices, one of them off by a rounding."""
    moved = vertices.clone()
    moved[1] = torch.nextafter(moved[1], moved[1] + 1)
    return moved


def test_vertices_that_coincide() -> None:
    vertices = torch.tensor([[0.1, 0.2], [0.1, 0.2], [1.1, 0.2]], dtype=torch.float64) + 1e6
    wanted = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0, 0, 1]], dtype=torch.float64)
    starts, ends = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    for those in (vertices, nudged(vertices)):
        weights = barycentric(vertices, those)
        torch.testing.assert_close(weights, wanted, rtol=0, atol=1e-8)
        t = edge_position(vertices + 1, starts, ends, those)
        assert t.isnan().tolist() == [True, False, False]
        assert t[1:].tolist() == pytest.approx([1.0, 2.0], abs=1e-8)


def test_vertices_that_all_coincide() -> None:
    features = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    vertices = torch.full((3, 2), 1e6 + 0.1, dtype=torch.float64)
    for those in (vertices, nudged(vertices)):
        assert barycentric(features, those).tolist() == [[1 / 3] * 3] * 3
        assert bool(residual(features, those).isnan().all())
        starts = torch.arange(3)
        assert bool(edge_position(features, starts, starts.roll(1), those).isnan().all())


def test_many_rows_are_cut_into_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2_000, 700, generator=generator)  # more than one block
    vertices = torch.randn(5, 700, generator=generator)
    hull = Hull(vertices)
    whole = hull.locate(features)
    for part in (slice(0, 3), slice(1_490, 1_510), slice(1_997, None)):
        for piece, all_of_it in zip(hull.locate(features[part]), whole, strict=True):
            torch.testing.assert_close(piece, all_of_it[part], rtol=1e-10, atol=1e-12)
    assert hull.locate(features[:0]).weights.shape == (0, 5)


@pytest.mark.parametrize(
    ("features", "vertices", "said"),
    [
        (torch.zeros(2, 4), torch.eye(3), r"shape \(N, 3\), found \(2, 4\)"),
        (torch.full((2, 3), torch.nan), torch.eye(3), "features must be finite"),
        (torch.zeros(2, 3), torch.full((3, 3), torch.inf), "vertices must be finite"),
        (torch.zeros(2, 3), torch.zeros(1, 3), "at least two classes"),
    ],
)
def test_what_has_no_coordinates_is_refused(features, vertices, said) -> None:
    with pytest.raises(InputError, match=said):
        barycentric(features, vertices)
    with pytest.raises(InputError, match="paths must be at least 0"):
        measured(paths=-1)
    with pytest.raises(InputError, match="2 classes or more"):
        polygon(torch.ones(3, 1))


# -------------------------------------------------------------------------------------- the polygon


def test_corners_go_clockwise_from_the_top() -> None:
    square = polygon(torch.eye(4))
    wanted = torch.tensor([[0.0, 1], [1, 0], [0, -1], [-1, 0]], dtype=torch.float64)
    torch.testing.assert_close(square, wanted, rtol=0, atol=1e-12)
    third = polygon(torch.eye(3))[1].tolist()
    assert third == pytest.approx([math.sqrt(3) / 2, -0.5])
    assert polygon(torch.eye(2))[1].tolist() == pytest.approx([0.0, -1.0])


# ------------------------------------------------------------------------------------ rows of leaps

TILT = 0.6  # part of the network's direction that leaves the plane of the vertices
ALONG = 0.8
EPS, STEPS = 0.24, 4
LENGTHS = [min(step * 2.5 * EPS / STEPS, EPS) for step in range(STEPS + 1)]
VERTICES = torch.tensor([[0.3, 0.3, 0.5, 0.5], [0.7, 0.3, 0.5, 0.5], [0.3, 0.7, 0.5, 0.5]])
EDGE = (0.4 + 0.4 + 0.4 * math.sqrt(2)) / 3
# Pixels, label, and whether it is followed: the boundary is ALONG (x - .5) + TILT (z - .5) = 0.
EXAMPLES = [
    ([0.25, 0.30, 0.50, 0.50], 0, True),  # crosses the boundary after the second step
    ([0.10, 0.30, 0.50, 0.50], 0, False),  # too far from the boundary
    ([0.60, 0.40, 0.55, 0.50], 1, True),  # from vertex 1 to vertex 0
    ([0.55, 0.30, 0.40, 0.50], 0, False),  # lies nearest to vertex 1 already, as 0 for the network
    ([0.40, 0.35, 0.45, 0.60], 0, True),
    ([0.60, 0.30, 0.50, 0.50], 0, False),  # wrong from the start, and driven further
]


def planted() -> nn.Module:
    """Two classes apart along one direction, and a third that never wins; features are pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    way = 10 * torch.tensor([ALONG, 0.0, TILT, 0.0])
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-way / 2, way / 2, 0 * way]))
        model[1].bias.copy_(torch.tensor([0.5 * way.sum() / 2, -0.5 * way.sum() / 2, -1000.0]))
    return model


def measured(
    model: nn.Module | None = None,
    vertices: Tensor = VERTICES,
    *,
    examples: list[tuple[list[float], int, bool]] = EXAMPLES,
    eps: float = EPS,
    scale: float = 1.0,
    batch_size: int = 64,
    paths: int = 12,
    taps: tuple[str, ...] = ("penultimate",),
) -> list[Row]:
    images = torch.tensor([pixels for pixels, _, _ in examples]).reshape(-1, 1, 2, 2)
    labels = torch.tensor([label for _, label, _ in examples], dtype=torch.int64)
    measurement = Measurement(
        taps=taps,
        depths={tap: depth for depth, tap in enumerate(taps)},
        num_classes=3,
        ball=Ball("L2", eps),
        attacking=Attacking(STEPS, 1, scale),
        settings=MeasureConfig(batch_size=batch_size),
        seed=0,
        distances=None,
    )
    return trajectory_rows(
        planted() if model is None else model,
        measurement,
        dict.fromkeys(taps, vertices),
        Examples("train", images, labels, torch.arange(len(images))),
        "gap",
        paths=paths,
    )


def values(rows: list[Row], measure: str) -> dict[tuple[int, int], float]:
    return {(row["i"], row.get("j", -1)): row["value"] for row in rows if row["measure"] == measure}


def planted_points() -> dict[int, list[tuple[float, ...]]]:
    """By example, the pixels after every step; label 0 goes towards vertex 1, label 1 to 0."""
    return {
        place: [
            (x + sign * ALONG * length, y, z + sign * TILT * length, last) for length in LENGTHS
        ]
        for place, ((x, y, z, last), label, followed) in enumerate(EXAMPLES)
        if followed
        for sign in [1 if label == 0 else -1]
    }


def test_a_planted_path_is_found_in_closed_form() -> None:
    rows = measured()
    points = planted_points()
    ways = {
        place: [(x - 0.3) / 0.4 if EXAMPLES[place][1] == 0 else (0.7 - x) / 0.4 for x, *_ in path]
        for place, path in points.items()
    }
    offs = [
        [math.hypot(z - 0.5, last - 0.5) / EDGE for _, _, z, last in path]
        for path in points.values()
    ]
    t = np.array(list(ways.values()))
    for name, wanted in (
        ("trajectory_t", t.mean(0)),
        ("trajectory_t_low", np.quantile(t, 0.25, axis=0)),
        ("trajectory_t_high", np.quantile(t, 0.75, axis=0)),
        ("trajectory_off", np.mean(offs, axis=0)),
    ):
        found = values(rows, name)
        assert list(found) == [(step, -1) for step in range(STEPS + 1)]
        assert list(found.values()) == pytest.approx(wanted.tolist(), abs=1e-6), name
    assert {row["n"] for row in rows if row["measure"] == "trajectory_t"} == {3}
    places = {"trajectory_x": {}, "trajectory_y": {}}
    for place, path in points.items():
        for step, (x, y, _, _) in enumerate(path):
            one, two = (x - 0.3) / 0.4, (y - 0.3) / 0.4
            place_x = math.sqrt(3) / 2 * (one - two)
            places["trajectory_x"][step, place] = place_x
            places["trajectory_y"][step, place] = (1 - one - two) - (one + two) / 2
    for name, wanted_places in places.items():
        found = values(rows, name)
        assert found == pytest.approx(wanted_places, abs=1e-6), name
    assert {row["n"] for row in rows if row["measure"] == "trajectory_x"} == {1}
    corners = polygon(torch.eye(3)).T.tolist()
    for name, wanted_corners in zip(("vertex_x", "vertex_y"), corners, strict=True):
        assert list(values(rows, name).values()) == pytest.approx(wanted_corners, abs=1e-6)


def test_rows_are_rows_of_the_frame() -> None:
    rows = measured(taps=("0", "penultimate"))
    stated = {"condition": "attacked", "grouping": "none", "vertices": "clean-train"}
    assert all(row.items() >= stated.items() and set(row) <= set(COLUMNS) for row in rows)
    assert all(isinstance(row["value"], float) and math.isfinite(row["value"]) for row in rows)
    assert {row["attack"] for row in rows} == {"pgd ce/1 from the image, 4 steps"}
    keys = [(row["tap"], row["measure"], row["i"], row.get("j", -1)) for row in rows]
    assert len(set(keys)) == len(keys)
    halves = [
        [{**row, "tap": ""} for row in rows if row["tap"] == tap] for tap in ("0", "penultimate")
    ]
    assert halves[0] == halves[1]  # both are the pixels


@pytest.mark.parametrize(("paths", "places"), [(0, set()), (2, {0, 2}), (3, {0, 2, 4})])
def test_only_so_many_paths_are_drawn(paths, places) -> None:
    rows = measured(paths=paths)
    assert {place for _, place in values(rows, "trajectory_x")} == places
    assert values(rows, "trajectory_t") == values(measured(), "trajectory_t")


@pytest.mark.parametrize(("eps", "examples"), [(0.0, EXAMPLES), (0.01, EXAMPLES), (EPS, [])])
def test_where_nothing_leaps_one_row_says_so(eps, examples) -> None:
    rows = measured(eps=eps, examples=examples, taps=("0", "penultimate"))
    assert [(row["tap"], row["measure"], row["value"], row["n"]) for row in rows] == [
        ("0", "trajectory_t", None, 0),
        ("penultimate", "trajectory_t", None, 0),
    ]
    assert all(row["note"].startswith("undefined") for row in rows)


def test_a_class_without_a_vertex_is_nobodys_end() -> None:
    absent = torch.full((1, 4), torch.nan)
    rows = measured(vertices=torch.cat([VERTICES, absent]))
    corners = values(rows, "vertex_x")
    assert [value is None for value in corners.values()] == [False, False, False, True]
    (row,) = [row for row in rows if row["measure"] == "vertex_y" and row["i"] == 3]
    assert row["note"] == "undefined: no example of this class"
    assert values(rows, "trajectory_t") == pytest.approx(values(measured(), "trajectory_t"))
    # Without vertex 1 nobody can go there, and the one that starts there starts at another.
    rows = measured(vertices=torch.cat([VERTICES[:1], absent, VERTICES[2:]]))
    assert [row["value"] for row in rows] == [None]


def test_dropout_and_batches_do_not_reach_the_rows() -> None:
    model = nn.Sequential(nn.Dropout(0.9), *planted()).train()
    rows = measured(model, taps=("1",), batch_size=2)
    wanted = values(measured(), "trajectory_t")
    assert values(rows, "trajectory_t") == pytest.approx(wanted, abs=1e-6)
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
