"""From the verdict to the evidence: stronger, smaller, coded without loss, the same verdict."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_attacks import (
    BALL,
    BALLS,
    SHAPE,
    Coin,
    Failing,
    Limited,
    collected,
    curved,
    linear,
    own,
    pictures,
    predictions,
    with_evidence,
)
from helpers_runner import tiny
from safetensors.torch import load_file
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.evaluation.scoring import Scorer
from robust_nc.evidence.coding import (
    LEVELS,
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
    unpack_numbers,
)
from robust_nc.evidence.collecting import look, strengthen
from robust_nc.evidence.file import TOLERANCE
from robust_nc.exceptions import InputError, RecordError
from robust_nc.io.digests import state_digest, tensors_digest
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.cell import run_cell
from robust_nc.record import read_record, unpack_flags
from robust_nc.record.folder import evidence_path, record_path
from robust_nc.record.schema import broken_seals
from robust_nc.runtime.progress import no_report
from robust_nc.threat import Ball

LARGER = [*BALLS[:2], Ball("L1", 1.0)]
BOUNDS = (0.0, 1.0)
COLOURED = (3, 8, 8)
LINEAR = linear(SHAPE, 4).eval()
each_ball = pytest.mark.parametrize("ball", BALLS, ids=str)


# Codes of perturbations are short, lossless, and the same on any hardware.


def points_in(ball: Ball, images: Tensor, *, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    moved = images + torch.randn(images.shape, generator=draws) * ball.eps
    return ball.project(moved, images)


def test_bytes_that_coding_does_not_make_are_refused() -> None:
    for packed in (243, 2 * 81 + 40):  # no digits; digits beyond the last
        with pytest.raises(RecordError, match="code"):
            unpack_numbers(np.array([[packed]], dtype=np.uint8), 1, 4)
    for size in (0, 2999, 2**30):
        with pytest.raises(RecordError, match="codes"):
            decompress(compress(b"abc" * 1000), size)
    images = pictures(1, COLOURED)
    nan = np.full((1, 192), np.nan, dtype=np.float32)
    content = pack_floats(nan, images.flatten(1).numpy()).tobytes()
    with pytest.raises(RecordError, match="not finite"):
        decode(Coded(torch.zeros(1, dtype=torch.uint8), torch.zeros(1), content), images, BOUNDS)


@pytest.mark.parametrize("level", LEVELS)
@each_ball
def test_rounded_points_are_in_the_ball_and_codes_lose_nothing(ball: Ball, level: int) -> None:
    images = pictures(12, COLOURED)
    exact = points_in(ball, images)
    points = torch.cat([rounded(exact[:6], images[:6], ball, level), exact[6:]])
    assert bool(ball.contains(points, images).all())
    coded = encode(points, images, BOUNDS)
    assert len(coded.content) == content_size(coded.levels, images[0].numel())
    assert torch.equal(decode(coded, images, BOUNDS), points)
    assert int((coded.levels[:6] > 0).sum()) >= 5
    assert int(coded.levels.max()) <= level
    assert not bool(coded.levels[6:].any())


@pytest.mark.parametrize(
    ("origins", "moved", "levels"),
    [
        ([[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]], [1, 1]),
        ([[0.1, 0.5]], [[-0.0, 0.5]], [0]),
    ],
    ids=["unchanged and clipped everywhere", "negative zero"],
)
def test_points_that_are_special_keep_every_bit(origins, moved, levels) -> None:
    images, points = (torch.tensor(pixels).view(-1, 1, 1, 2) for pixels in (origins, moved))
    coded = encode(points, images, BOUNDS)
    assert coded.levels.tolist() == levels
    assert decode(coded, images, BOUNDS).numpy().tobytes() == points.numpy().tobytes()


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


# What is collected is stronger than what the attack left, and as small as it can be.


def outcome_of(points: Tensor) -> Outcome:
    """A verdict by which every example was correct and is broken, at these points."""
    count = len(points)
    yes, passes = torch.ones(count, dtype=torch.bool), torch.full((count,), 7)
    attacks = (("own", APGD(steps=1)),)
    return Outcome(yes, ~yes, torch.zeros_like(passes), points, passes, passes, (), attacks)


def barely(model: nn.Module, ball: Ball, *, count: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and points that are misclassified by almost nothing."""
    images = pictures(count, SHAPE)
    labels = predictions(model, images)
    outcome = evaluate(
        model, images, labels, ball, protocol=own(FAB(steps=20, num_targets=3)), checks=False
    )
    points, flipped = outcome.adversarials, ~outcome.robust
    images, labels, points = images[flipped], labels[flipped], points[flipped]
    inside, outside = images.clone(), points.clone()
    for _ in range(30):  # bisect towards the border
        middle = (inside + outside) / 2
        wrong = (predictions(model, middle) != labels)[:, None, None, None]
        inside, outside = torch.where(wrong, inside, middle), torch.where(wrong, middle, outside)
    return images, labels, outside


@pytest.mark.parametrize("ball", LARGER, ids=str)
def test_a_success_of_almost_no_margin_is_pushed(ball: Ball) -> None:
    images, labels, points = barely(LINEAR, ball)
    scorer = Scorer(LINEAR)
    before = look(scorer, points, labels)
    assert len(points) > 3
    assert float(before.weak.float().mean()) > 0.9
    after = strengthen(scorer, points, before, images, labels, ball)
    assert bool((after.found.margins >= before.margins).all())
    assert float(after.found.weak.float().mean()) < 0.3
    assert bool(ball.contains(after.points, images).all())
    again = look(scorer, after.points, labels)
    assert torch.equal(again.margins, after.found.margins)


@pytest.mark.parametrize(
    "cut", [lambda x: torch.from_numpy(x.numpy().copy()), Tensor.detach], ids=["raises", "no graph"]
)
def test_a_model_without_a_gradient_keeps_its_points(cut) -> None:
    class Stepped(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = LINEAR(cut(images))
            return logits

    model = Stepped()
    images, labels, points = barely(LINEAR, BALL)
    found = look(Scorer(model), points, labels)
    kept = strengthen(Scorer(model), points, found, images, labels, BALL)
    assert torch.equal(kept.points, points)
    evidence = collected(model, images, labels, outcome_of(points), BALL)
    assert bool((evidence.margins >= found.margins / 2).all())


def test_a_model_that_runs_out_of_memory_gets_smaller_batches() -> None:
    made = with_evidence()
    limited = Limited(made.model, 3)
    found = collected(limited, made.images, made.labels, made.outcome, BALL)
    assert max(limited.sizes) > 3
    assert torch.equal(found.adversarials, made.evidence.adversarials)


@pytest.mark.parametrize("ball", LARGER, ids=str)
def test_points_are_rounded_and_still_break_the_model(ball: Ball) -> None:
    made = with_evidence(ball)
    found, broken = made.evidence, made.evidence.broken
    origins, labels = made.images[broken], made.labels[broken]
    assert torch.equal(found.clean_correct, made.outcome.clean_correct)
    assert torch.equal(found.robust, made.outcome.robust)
    assert torch.equal(found.forwards, made.outcome.forward_passes)
    assert bool(ball.contains(found.adversarials, origins).all())
    seen = look(Scorer(made.model), found.adversarials, labels)
    assert bool(seen.flipped.all())
    torch.testing.assert_close(seen.margins, found.margins, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.ranges, found.ranges, atol=1e-5, rtol=1e-5)
    assert bool((found.margins > TOLERANCE * found.ranges).all())
    levels = coded_levels(found.adversarials, origins, ball.bounds)
    assert float((levels > 0).float().mean()) > 0.7
    assert made.evidence.broken_by.tolist() == [
        {"clean": -2, "": -1, "apgd-ce": 0}[name] for name in made.outcome.broken_by
    ]


class Needle(nn.Module):
    """Wrong at the very points it was made with, and at none other."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.register_buffer("points", points.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        known = (images.flatten(1)[:, None] == self.points[None]).all(2).any(1).float()
        return torch.stack([1 - known, known], 1)


def test_a_point_that_bears_no_rounding_is_kept_exactly() -> None:
    images = pictures(5, SHAPE)
    points = BALL.sample(images, seed=0, ids=torch.arange(5), stream="needle")
    labels = torch.zeros(5, dtype=torch.int64)
    found = collected(Needle(points), images, labels, outcome_of(points), BALL)
    assert torch.equal(found.adversarials, points)
    assert found.margins.tolist() == [1.0] * 5


def test_a_random_model_is_asked_by_draws() -> None:
    images = pictures(10, SHAPE)
    points = BALL.sample(images, seed=0, ids=torch.arange(10), stream="x")
    labels, state = torch.zeros(10, dtype=torch.int64), torch.get_rng_state()
    one, again = (
        collected(Coin(), images, labels, outcome_of(points), BALL, draws=20) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert one.draws == 20
    assert torch.equal(again.adversarials, one.adversarials)


def test_the_model_is_left_as_it_was_found() -> None:
    model, images = curved(SHAPE, 5), pictures(12, SHAPE)
    labels = (predictions(model, images) + 1) % 5
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        found = collected(model, images, labels, outcome_of(images), BALL)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert found.weights.keys() == before.keys()
    assert bool((found.margins > 0).all()), "judged in eval mode"


def test_parts_that_do_not_fit_are_refused() -> None:
    made = with_evidence()
    with pytest.raises(InputError, match="29 images"):
        collected(made.model, made.images[:29], made.labels[:29], made.outcome, BALL)
    renamed = made.outcome._replace(attacks=())
    with pytest.raises(InputError, match="broken by 0, none of its attacks"):
        collected(made.model, made.images, made.labels, renamed, BALL)
    with pytest.raises(InputError, match="batch 1 of the points of the evidence"):
        collected(Failing(made.model, 1), made.images, made.labels, made.outcome, BALL)


# What a cell of a suite leaves beside its verdict.

GRID = """
[grid]
"threat.eps" = [0.3]
"train.epochs" = [4]
"""


def test_a_cell_leaves_evidence_seals_and_the_digest_of_its_weights(tmp_path: Path) -> None:
    suite, out = tiny(tmp_path / "suite", GRID), tmp_path / "out"
    (cell,) = suite.cells
    run_cell(cell, suite.name, out, None, report=no_report)
    stored = read_record(record_path(out, cell.model, cell.id))
    record, beside = stored.record, evidence_path(stored.path)
    assert record.evidence is not None
    assert (record.evidence.name, record.evidence.bytes) == (beside.name, beside.stat().st_size)
    assert record.evidence.sha256 == sha256_of(beside)
    broken = unpack_flags(record.verdict.clean_correct) & ~unpack_flags(record.verdict.robust)
    assert record.evidence.broken == broken.sum() > 0
    assert broken_seals(json.loads(stored.path.read_text())) == ()
    assert record.weights.best is not None
    tensors = load_file(out / record.weights.best.path)
    digests = {name: tensors_digest([tensors[name]])[:16] for name in sorted(tensors)}
    assert record.weights.state == state_digest(digests)
