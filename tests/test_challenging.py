"""A challenge counts what holds, and only that; what was written can be checked again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_appraisal import BALL, EXAMPLES, claiming_all, judged, opened
from helpers_runner import cli
from safetensors.torch import load_file, save_file
from torch import Tensor

from robust_nc.exceptions import RecordError
from robust_nc.record import Stored, read_record, unpack_flags
from robust_nc.record.standing import standing
from robust_nc.verification.audit import write_broken
from robust_nc.verification.challenge import challenge_findings, try_points
from robust_nc.verification.evidence import find_evidence
from robust_nc.verification.originals import RecordExamples, examples_of
from robust_nc.verification.rejudge import look_again


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, str]:
    return judged(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def claim(made: tuple[Stored, str], tmp_path: Path) -> tuple[Stored, str]:
    """A record that claims every correct example to be robust, with the evidence taken away."""
    stored, reference = made
    folder = shutil.copytree(stored.path.parent, tmp_path / "out")
    copy = read_record(folder / stored.path.name)
    find_evidence(copy).rename(tmp_path / "proof.evidence")
    return claiming_all(copy), reference


def pushed(model: torch.nn.Module, examples: RecordExamples) -> Tensor:
    """One step of size eps against the margin, for every example."""
    points = examples.images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(points), examples.labels).backward()
    return BALL.project(examples.images + BALL.eps * points.grad.sign(), examples.images)


class TestTrying:
    def test_each_point_is_put_where_it_belongs(self, claim):
        stored, reference = claim
        examples, model = examples_of(stored.record, None), opened(reference)
        points, rows = pushed(model, examples), torch.arange(EXAMPLES)
        clean = torch.from_numpy(unpack_flags(stored.record.verdict.clean_correct))
        seen = look_again(model, points, examples.labels)
        wins = clean & seen.flipped & (seen.margins > 1e-3 * seen.ranges)
        far = int(wins.nonzero()[3])
        points[far] = (examples.images[far] + 3 * BALL.eps).clamp(0, 1)
        tried = try_points(stored, model, examples, rows, points)
        expected = [row for row in wins.nonzero().flatten().tolist() if row != far]
        assert tried.counted.tolist() == expected
        assert tried.outside.tolist() == [far]
        assert tried.known.tolist() == (~clean).nonzero().flatten().tolist()
        assert torch.equal(tried.withstood, (clean & ~seen.flipped).nonzero().flatten())
        assert tried.left == pytest.approx(tried.before - len(expected) / EXAMPLES)

    def test_of_several_points_one_suffices_and_counts_once(self, claim):
        stored, reference = claim
        examples, model = examples_of(stored.record, None), opened(reference)
        points = pushed(model, examples)
        once = try_points(stored, model, examples, torch.arange(EXAMPLES), points)
        rows = torch.arange(EXAMPLES).repeat(2)
        both = torch.cat([examples.images, points])
        twice = try_points(stored, model, examples, rows, both)
        assert torch.equal(once.counted, twice.counted)
        assert not set(twice.counted.tolist()) & set(twice.withstood.tolist())

    def test_a_margin_within_the_tolerance_does_not_count(self, claim):
        stored, reference = claim
        examples, model = examples_of(stored.record, None), opened(reference)
        points = pushed(model, examples)
        seen = look_again(model, points, examples.labels)
        clean = torch.from_numpy(unpack_flags(stored.record.verdict.clean_correct))
        row = int((clean & seen.flipped).nonzero()[0])
        low, high = examples.images[row].double(), points[row].double()
        for _ in range(60):  # bisect to the boundary
            middle = ((low + high) / 2).float()
            wrong = bool(look_again(model, middle[None], examples.labels[row : row + 1]).flipped)
            low, high = (low, middle.double()) if wrong else (middle.double(), high)
        tried = try_points(stored, model, examples, torch.tensor([row]), high.float()[None])
        assert (tried.counted.tolist(), tried.near.tolist()) == ([], [row])

    def test_a_class_that_is_never_meant_protects_no_example(self, claim):
        stored, reference = claim
        examples, model = examples_of(stored.record, None), opened(reference)

        class Spare(torch.nn.Module):
            def forward(self, images):
                logits = model(images)
                return torch.cat([logits, torch.full_like(logits[:, :1], -1e6)], 1)

        rows, points = torch.arange(EXAMPLES), pushed(model, examples)
        plain, spare = (
            try_points(stored, one, examples, rows, points) for one in (model, Spare().eval())
        )
        assert len(plain.counted)
        assert set(spare.counted.tolist()) <= set(plain.counted.tolist())
        assert len(spare.counted) >= 0.9 * len(plain.counted)  # 10 margins are more than the range

    @pytest.mark.parametrize(
        ("rows", "shape"),
        [
            ([EXAMPLES], (1, 1, 8, 8)),
            ([-1], (1, 1, 8, 8)),
            ([0], (1, 3, 8, 8)),
            ([0], (2, 1, 8, 8)),
        ],
    )
    def test_what_does_not_fit_is_refused(self, claim, rows, shape):
        stored, reference = claim
        examples = examples_of(stored.record, None)
        with pytest.raises(RecordError, match="the evidence"):
            try_points(stored, opened(reference), examples, torch.tensor(rows), torch.zeros(shape))


class TestCommand:
    def test_evidence_of_ours_lowers_the_row(self, claim, made, tmp_path):
        stored, reference = claim
        evidence = tmp_path / "proof.evidence"
        ran = cli("challenge", stored.path, "--evidence", evidence, "--model", reference)
        assert ran.code == 0, ran.out + ran.err
        now = standing(stored)
        broken = int((unpack_flags(stored.record.verdict.robust)).sum()) - int(
            unpack_flags(made[0].record.verdict.robust).sum()
        )
        assert 0 < now.challenged <= broken
        assert f"to {now.robust.mean():.2%}" in ran.out
        assert challenge_findings(stored, opened(reference), examples_of(stored.record, None)) == []
        verified = cli("verify", stored.path, "--model", reference)
        assert (verified.code, "challenged" in verified.out) == (0, True)

    def test_the_same_challenge_twice_takes_nothing_more(self, claim, tmp_path):
        stored, reference = claim
        arguments = ("--evidence", tmp_path / "proof.evidence", "--model", reference)
        assert cli("challenge", stored.path, *arguments).code == 0
        before = standing(stored)
        ran = cli("challenge", stored.path, *arguments)
        assert ran.code == 1
        assert "nothing counts" in ran.out
        assert standing(stored).challenged == before.challenged

    def test_clean_images_win_nothing_and_leave_nothing(self, claim, tmp_path):
        stored, reference = claim
        examples = examples_of(stored.record, None)
        path = tmp_path / "clean.npz"
        write_broken(path, torch.arange(EXAMPLES), examples.images)
        before = sorted(stored.path.parent.iterdir())
        ran = cli("challenge", stored.path, "--evidence", path, "--model", reference)
        assert ran.code == 1
        assert "nothing counts" in ran.out
        assert sorted(stored.path.parent.iterdir()) == before

    def test_points_outside_of_the_ball_are_counted_and_refused(self, claim, tmp_path):
        stored, reference = claim
        examples = examples_of(stored.record, None)
        path = tmp_path / "far.npz"
        write_broken(path, torch.arange(EXAMPLES), 1 - examples.images)
        ran = cli("challenge", stored.path, "--evidence", path, "--model", reference)
        assert ran.code == 1
        clean = int(unpack_flags(stored.record.verdict.clean_correct).sum())
        assert f"{clean} lie outside of the ball" in ran.out

    def test_another_model_cannot_lower_it(self, claim, made, tmp_path):
        stored, reference = claim
        folder = shutil.copytree(Path(reference.rpartition(":")[0]).parent, tmp_path / "model")
        state = load_file(folder / "weights.safetensors")
        state["5.bias"][2] += 5
        save_file(state, folder / "weights.safetensors")
        ran = cli(
            "challenge",
            stored.path,
            "--evidence",
            tmp_path / "proof.evidence",
            "--model",
            f"{folder / 'net.py'}:make",
        )
        assert ran.code == 2
        assert "another model" in ran.err

    def test_a_folder_of_its_own_takes_the_challenge(self, claim, tmp_path):
        stored, reference = claim
        arguments = ("--evidence", tmp_path / "proof.evidence", "--model", reference)
        ran = cli("challenge", stored.path, *arguments, "--out", tmp_path / "apart")
        assert ran.code == 0
        names = sorted(path.suffix for path in (tmp_path / "apart").iterdir())
        assert names == [".challenge", ".evidence"]
        assert standing(stored).challenged == 0


class TestFalseChallenges:
    @pytest.fixture
    def lowered(self, claim, tmp_path):
        stored, reference = claim
        examples, model = examples_of(stored.record, None), opened(reference)
        path = tmp_path / "points.npz"
        write_broken(path, torch.arange(EXAMPLES), pushed(model, examples))
        assert cli("challenge", stored.path, "--evidence", path, "--model", reference).code == 0
        return stored, reference

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
