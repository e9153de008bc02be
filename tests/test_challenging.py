"""A challenge counts what holds, and only that; what was written can be checked again."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers_appraisal import BALL, EXAMPLES, claiming_all, opened
from helpers_report import trust
from helpers_runner import cli
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robust_nc.exceptions import RecordError
from robust_nc.record import Stored, unpack_flags
from robust_nc.record.standing import challenges_of, standing
from robust_nc.verification.audit import write_broken
from robust_nc.verification.challenge import judged_challenges, try_points
from robust_nc.verification.evidence import find_evidence
from robust_nc.verification.originals import RecordExamples, examples_of
from robust_nc.verification.rejudge import look_again


def changed_weights(reference: str, folder: Path, by: float) -> str:
    """Copy the model with one weight changed, and return a reference to the copy."""
    shutil.copytree(Path(reference.rpartition(":")[0]).parent, folder)
    state = load_file(folder / "weights.safetensors")
    state["5.bias"][2] += by
    save_file(state, folder / "weights.safetensors")
    return f"{folder / 'net.py'}:make"


def to_the_border(model: nn.Module, inside: Tensor, outside: Tensor, label: Tensor) -> Tensor:
    """Bisect to a point that the model takes for another class by almost nothing."""
    low, high = inside.double(), outside.double()
    for _ in range(60):
        middle = ((low + high) / 2).float()
        wrong = bool(look_again(model, middle[None], label).flipped)
        low, high = (low, middle.double()) if wrong else (middle.double(), high)
    return high.float()


@pytest.fixture
def claim(verdict_copy: tuple[Stored, str], tmp_path: Path) -> tuple[Stored, str]:
    """A record that claims every correct example to be robust, with the evidence taken away."""
    stored, reference = verdict_copy
    find_evidence(stored).rename(tmp_path / "proof.evidence")
    return claiming_all(stored), reference


class Tried(NamedTuple):
    """A claim, its model, and points that are tried on it."""

    stored: Stored
    reference: str
    model: nn.Module
    examples: RecordExamples
    clean: Tensor
    points: Tensor

    def with_points(self, rows: Tensor, points: Tensor, model: nn.Module | None = None) -> Any:
        return try_points(self.stored, model or self.model, self.examples, rows, points)


@pytest.fixture
def trial(claim: tuple[Stored, str]) -> Tried:
    stored, reference = claim
    examples, model = examples_of(stored.record, None), opened(reference)
    clean = torch.from_numpy(unpack_flags(stored.record.verdict.clean_correct))
    points = examples.images.clone().requires_grad_()  # one step of size eps against each label
    nn.functional.cross_entropy(model(points), examples.labels).backward()
    points = BALL.project(examples.images + BALL.eps * points.grad.sign(), examples.images)
    return Tried(stored, reference, model, examples, clean, points)


ALL = torch.arange(EXAMPLES)


class TestTrying:
    def test_each_point_is_put_where_it_belongs(self, trial):
        examples, clean, points = trial.examples, trial.clean, trial.points
        seen = look_again(trial.model, points, examples.labels)
        wins = clean & seen.flipped & (seen.margins > 1e-3 * seen.ranges)
        far = int(wins.nonzero()[3])
        points[far] = (examples.images[far] + 3 * BALL.eps).clamp(0, 1)
        tried = trial.with_points(ALL, points)
        expected = [row for row in wins.nonzero().flatten().tolist() if row != far]
        assert tried.counted.tolist() == expected
        assert tried.outside.tolist() == [far]
        assert tried.known.tolist() == (~clean).nonzero().flatten().tolist()
        assert torch.equal(tried.withstood, (clean & ~seen.flipped).nonzero().flatten())
        assert tried.left == pytest.approx(tried.before - len(expected) / EXAMPLES)
        twice = trial.with_points(ALL.repeat(2), torch.cat([examples.images, points]))
        assert torch.equal(twice.counted, tried.counted), "of several points one suffices"
        assert not set(twice.counted.tolist()) & set(twice.withstood.tolist())

    def test_a_margin_within_the_tolerance_does_not_count(self, trial):
        examples, points = trial.examples, trial.points
        flipped = look_again(trial.model, points, examples.labels).flipped
        row = int((trial.clean & flipped).nonzero()[0])
        label = examples.labels[row : row + 1]
        near = to_the_border(trial.model, examples.images[row], points[row], label)
        tried = trial.with_points(torch.tensor([row]), near[None])
        assert (tried.counted.tolist(), tried.near.tolist()) == ([], [row])

    def test_a_class_that_is_never_meant_protects_no_example(self, trial):
        class Spare(torch.nn.Module):
            def forward(self, images):
                logits = trial.model(images)
                return torch.cat([logits, torch.full_like(logits[:, :1], -1e6)], 1)

        plain, spare = (
            trial.with_points(ALL, trial.points, model) for model in (None, Spare().eval())
        )
        assert len(plain.counted)
        assert set(spare.counted.tolist()) <= set(plain.counted.tolist())
        assert len(spare.counted) >= 0.9 * len(plain.counted)  # 10 margins are more than the range

    @pytest.mark.parametrize(
        ("row", "shape"),
        [(EXAMPLES, (1, 1, 8, 8)), (-1, (1, 1, 8, 8)), (0, (1, 3, 8, 8)), (0, (2, 1, 8, 8))],
    )
    def test_what_does_not_fit_is_refused(self, trial, row, shape):
        with pytest.raises(RecordError, match="the evidence"):
            trial.with_points(torch.tensor([row]), torch.zeros(shape))


def challenge(stored, evidence, reference, *more):
    return cli("challenge", stored.path, "--evidence", evidence, "--model", reference, *more)


class TestCommand:
    def test_evidence_of_ours_lowers_the_row(self, claim, verdict, tmp_path, signing_key):
        stored, reference = claim
        ran = challenge(stored, tmp_path / "proof.evidence", reference)
        assert ran.code == 0, ran.out + ran.err
        assert (standing(stored).challenged, standing(stored).pending) == (0, 1)
        verified = cli("verify", stored.path, "--model", reference, "--sign", signing_key)
        assert (verified.code, "1 that no signed receipt says to hold" in verified.out) == (0, True)
        trust(stored, signing_key)
        now = standing(stored)
        broken = int((unpack_flags(stored.record.verdict.robust)).sum()) - int(
            unpack_flags(verdict[0].record.verdict.robust).sum()
        )
        assert 0 < now.challenged <= broken
        assert f"to {now.robust.mean():.2%}" in ran.out
        assert judged_challenges(stored, opened(reference), examples_of(stored.record, None)) == {
            challenges_of(stored.path)[0]: ""
        }
        verified = cli("verify", stored.path, "--model", reference)
        assert (verified.code, "challenged" in verified.out) == (0, True)
        again = challenge(stored, tmp_path / "proof.evidence", reference)
        assert (again.code, "nothing counts" in again.out) == (1, True)
        assert standing(stored).challenged == now.challenged

    def test_points_outside_of_the_ball_and_clean_images_leave_nothing(self, claim, tmp_path):
        stored, reference = claim
        examples = examples_of(stored.record, None)
        path, before = tmp_path / "points.npz", sorted(stored.path.parent.iterdir())
        clean = int(unpack_flags(stored.record.verdict.clean_correct).sum())
        told = (f"{clean} lie outside of the ball", "nothing counts")
        for points, words in zip((1 - examples.images, examples.images), told, strict=True):
            write_broken(path, ALL, points)
            ran = challenge(stored, path, reference)
            assert (ran.code, words in ran.out) == (1, True)
            assert sorted(stored.path.parent.iterdir()) == before

    def test_another_model_cannot_lower_it(self, claim, verdict, tmp_path):
        stored, reference = claim
        other = changed_weights(reference, tmp_path / "model", 5)
        ran = challenge(stored, tmp_path / "proof.evidence", other)
        assert ran.code == 2
        assert "another model" in ran.err

    def test_a_folder_of_its_own_takes_the_challenge(self, claim, tmp_path):
        stored, reference = claim
        proof = tmp_path / "proof.evidence"
        ran = challenge(stored, proof, reference, "--out", tmp_path / "apart")
        assert ran.code == 0
        names = sorted(path.suffix for path in (tmp_path / "apart").iterdir())
        assert names == [".challenge", ".evidence"]
        assert standing(stored).challenged == 0


class TestFalseChallenges:
    @pytest.fixture
    def lowered(self, trial, tmp_path):
        path = tmp_path / "points.npz"
        write_broken(path, ALL, trial.points)
        assert challenge(trial.stored, path, trial.reference).code == 0
        return trial.stored, trial.reference

    def test_rows_that_its_evidence_does_not_break_are_named(self, lowered):
        stored, reference = lowered
        (path,) = stored.path.parent.glob("*.challenge")
        withstanding = int(np.flatnonzero(standing(stored).robust)[0])
        path.write_text(path.read_text().replace('"broken":[', f'"broken":[{withstanding},'))
        ran = cli("verify", stored.path, "--model", reference)
        assert ran.code == 1
        assert f"does not break example {withstanding}" in ran.out

    def test_evidence_that_is_missing_or_another_is_named(self, lowered):
        stored, reference = lowered
        (copy,) = stored.path.parent.glob("*.npz")
        with copy.open("ab") as file:
            file.write(b"more")
        assert (
            "is not the evidence that it names"
            in cli("verify", stored.path, "--model", reference).out
        )
        copy.unlink()
        ran = cli("verify", stored.path, "--model", reference)
        assert (ran.code, "nothing bears it out" in ran.out) == (1, True)
