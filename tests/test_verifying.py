"""Evidence is compared with its record and its images, and the model makes every verdict again."""

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers_appraisal import BALL, EXAMPLES, altered, changed_weights, opened, resealed
from helpers_exchange import appraised
from helpers_runner import cli
from torch import Tensor, nn

from robust_nc.evidence.file import read_evidence
from robust_nc.exceptions import DataError, RecordError
from robust_nc.exchange.submission import EXAMPLES as TAKEN
from robust_nc.exchange.submission import ready
from robust_nc.io.untrusted import read_json
from robust_nc.record import Caution, Stored, read_record
from robust_nc.record.standing import Receipt, receipt_path, standing
from robust_nc.threat import Ball
from robust_nc.verification.evidence import check_evidence, find_evidence, inside, original_findings
from robust_nc.verification.originals import RecordExamples, ball_of, dataset_of, examples_of
from robust_nc.verification.rejudge import (
    Looked,
    bounded,
    certain,
    look_again,
    repeated_clean,
    repeated_flips,
)


def seen(margins: list[float], *, votes: list[int] | None = None) -> Looked:
    """What a model says of points: one range of logits, 10."""
    values = torch.tensor(margins)
    flipped = values > 0
    counts = flipped.long() if votes is None else torch.tensor(votes)
    return Looked(flipped if votes is None else counts > 10, counts, values, values * 0 + 10)


class TestTolerance:
    def test_a_flip_is_proven_whatever_its_margin(self):
        found = repeated_flips(seen([1e-6, 3.0]), torch.tensor([5.0, -1.0]), 1)
        assert found.proven.tolist() == [True, True]

    @pytest.mark.parametrize(
        ("here", "stored", "tolerated"),
        [
            (-0.004, 0.004, True),  # 8e-4 of the range
            (0.0, 0.009, True),
            (-0.004, 0.007, False),  # 1.1e-3 of the range
            (-0.02, 0.001, False),
            (-0.001, 0.5, False),  # near here, far there: that is no rounding
            (-5.0, -5.0, False),  # a stored margin that admits that nothing was broken
            (-0.001, -0.001, False),
            (-0.001, float("nan"), False),
        ],
    )
    def test_a_flip_that_is_none_here(self, here, stored, tolerated):
        found = repeated_flips(seen([here]), torch.tensor([stored]), 1)
        assert (bool(found.tolerated), bool(found.refuted)) == (tolerated, not tolerated)

    @pytest.mark.parametrize(("margin", "tolerated"), [(0.009, True), (0.011, False)])
    def test_a_clean_verdict_that_is_another_here(self, margin, tolerated):
        for sign, correct in ((1, True), (-1, False)):
            found = repeated_clean(seen([sign * margin]), torch.tensor([correct]), 1)
            assert bool(found.tolerated) == tolerated
            assert not found.proven

    def test_a_class_that_is_never_meant_makes_no_verdict_tolerable(self):
        plain = seen([-2.0, -3.0, 1.0, 0.0])
        spare = plain._replace(ranges=plain.ranges + 1e6)
        correct = torch.tensor([True, True, True, False])
        found = repeated_clean(bounded(spare, spare), correct, 1)
        assert repeated_clean(spare, correct, 1).refuted.tolist() == [False] * 4
        assert found.refuted.tolist() == [False, False, True, False]
        assert torch.equal(bounded(plain, plain).ranges, plain.ranges)

    def test_few_votes_of_a_random_model_are_no_accident(self):
        votes = [20, 11, 10, 3, 2, 1, 0]
        found = repeated_flips(seen([0.0] * 7, votes=votes), torch.zeros(7), 20)
        assert found.proven.tolist() == [True, True, *[False] * 5]
        assert found.tolerated.tolist() == [False, False, True, True, True, False, False]
        clean = repeated_clean(seen([0.0] * 7, votes=votes), torch.zeros(7).bool(), 20)
        assert torch.equal(clean.proven, found.proven)
        assert torch.equal(clean.tolerated, found.tolerated)

    def test_a_random_model_is_challenged_by_more_votes_than_a_coin_gives(self):
        votes = [20, 19, 18, 11, 10]
        looked = seen([1.0] * 5, votes=votes)._replace(flipped=torch.tensor(votes) > 10)
        assert certain(looked, 20).tolist() == [True, True, False, False, False]


class Noisy(nn.Module):
    """Answers at random: class 1 with the probability of the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        ones = (torch.rand(len(images)) < images[:, 0, 0, 0]).float()
        return torch.stack([1 - ones, ones], 1)


class TestLookingAgain:
    def test_batches_do_not_matter_and_the_model_is_left_as_it_was(self):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
        images, labels = torch.rand(600, 1, 2, 2), torch.arange(600) % 3
        found = look_again(model, images, labels)
        assert all(module.training for module in model.modules())
        with torch.no_grad():
            logits = model.eval()(images)
        assert torch.equal(found.flipped, logits.argmax(1) != labels)
        assert torch.allclose(found.ranges, logits.amax(1) - logits.amin(1))

    def test_draws_of_a_random_model_are_counted_and_keyed(self):
        images = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 1, 1)
        labels = torch.zeros(3, dtype=torch.int64)
        first = look_again(Noisy(), images, labels, draws=20, seed=3)
        again = look_again(Noisy(), images, labels, draws=20, seed=3)
        assert first.votes[[0, 2]].tolist() == [0, 20]
        assert 0 < int(first.votes[1]) < 20
        assert torch.equal(first.votes, again.votes)

    def test_nothing_to_look_at(self):
        found = look_again(nn.Flatten(), torch.zeros(0, 1, 2, 2), torch.zeros(0).long())
        assert len(found.flipped) == len(found.margins) == 0


class TestOriginals:
    def test_they_are_those_of_the_record(self, verdict):
        stored, _ = verdict
        examples = examples_of(stored.record, None)
        assert examples.fingerprint == stored.record.data.fingerprint
        assert (len(examples.images), examples.images.dtype) == (EXAMPLES, torch.float32)
        assert ball_of(stored.record.config) == BALL

    def test_other_images_are_said_to_be_others(self, verdict):
        stored, _ = verdict
        other = dataclasses.replace(stored.record.data, fingerprint="0" * 64)
        with pytest.raises(DataError, match=r"images of test of digits here are others"):
            examples_of(dataclasses.replace(stored.record, data=other), None)

    @pytest.mark.parametrize(
        "path", ["no/such.npz", "/dev/zero", "~nobody-of-this-name/a.npz", "a" * 5_000, "a\0b"]
    )
    def test_a_path_of_a_stranger_that_is_no_file_is_not_opened(self, path):
        table = {"data": {"dataset": {"name": "npz", "options": {"path": path}}}}
        with pytest.raises(DataError, match="not here"):
            dataset_of(table)

    @pytest.mark.parametrize(
        "options",
        [{"test_size": 10**12}, {"train_size": 10**12}, {"image_shape": [1, 10**5, 10**5]}],
    )
    def test_images_to_a_strangers_measure_are_not_made(self, verdict, options):
        config = {"data": {"dataset": {"name": "synthetic", "options": options}}}
        record = dataclasses.replace(verdict[0].record, config=config)
        with pytest.raises(DataError, match="pixels of them; at most"):
            examples_of(record, None)

    @pytest.mark.parametrize("config", [{}, {"data": 3}, {"data": {"dataset": None}}])
    def test_a_configuration_without_data_is_refused(self, config):
        with pytest.raises(RecordError, match=r"config\.data\.dataset"):
            dataset_of(config)

    def test_what_is_not_a_number_is_not_in_the_ball(self):
        origins = torch.full((3, 1, 2, 2), 0.5)
        points = origins.clone()
        points[0, 0, 0, 0] = float("nan")
        points[1] += 0.2
        assert inside(Ball("Linf", 0.1), points, origins).tolist() == [False, False, True]


class Trembling(nn.Module):
    """A model whose answers move by a little each time, with the tensors of another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images)
        return logits + 0.3 * torch.randn_like(logits)

    def state_dict(self, *args, **kwargs):
        return self.inner.state_dict(*args, **kwargs)


@pytest.fixture(scope="module")
def examples(verdict):
    return examples_of(verdict[0].record, None)


@pytest.fixture(scope="module")
def evidence(verdict, examples):
    return read_evidence(find_evidence(verdict[0]), examples.images)


@pytest.fixture
def model(verdict):
    return opened(verdict[1])


class TestWhole:
    def test_without_a_model_nothing_is_wrong_and_nothing_is_proven(self, verdict, examples):
        found = check_evidence(verdict[0], examples=examples, model=None)
        assert (found.wrong, found.unchecked, found.placed) == ([], [], True)
        assert not found.proves
        assert found.upper is None

    def test_with_the_model_the_bound_is_proven(self, verdict, examples, model):
        found = check_evidence(verdict[0], examples=examples, model=model)
        assert (found.wrong, found.unchecked) == ([], [])
        assert found.proves
        assert found.clean.proven.all()
        assert 10 < len(found.adversarials.proven) < EXAMPLES
        tolerated = int(found.adversarials.tolerated.sum())
        claimed = verdict[0].record.scores["robust"].value
        assert found.upper == pytest.approx(claimed + tolerated / EXAMPLES)

    def test_without_images_or_evidence_it_says_what_was_not_checked(self, verdict_copy, model):
        stored, _ = verdict_copy
        find_evidence(stored).unlink()
        found = check_evidence(stored, examples=None, model=model)
        assert found.wrong == []
        assert "is not beside it" in found.unchecked[0]
        assert found.same_model, "weights.state of the record says so"
        assert not found.proves

    def test_another_model_is_named_by_its_tensors(self, verdict, examples, model):
        with torch.no_grad():
            model[1].weight[3, 5] += 1e-6
        found = check_evidence(verdict[0], examples=examples, model=model)
        (finding,) = found.wrong
        assert finding.place == "model"
        assert "another model: 1 tensor differs" in finding.text
        assert "1.weight" in finding.text
        assert not found.proves

    def test_a_model_that_breaks_less_refutes(self, verdict, examples, model):
        with torch.no_grad():
            model[5].weight.zero_()
            model[5].bias.copy_(torch.arange(10.0))
        found = check_evidence(verdict[0], examples=examples, model=model)
        assert {"model", "clean verdicts"} <= {finding.place for finding in found.wrong}
        assert found.clean.refuted.any()

    def test_a_model_that_cannot_answer_is_a_finding(self, verdict, examples):
        found = check_evidence(verdict[0], examples=examples, model=nn.Flatten())
        assert {finding.place for finding in found.wrong} >= {"model"}

    def test_a_model_that_answers_at_random_is_named_unless_the_record_says_so(
        self, verdict_copy, examples, model
    ):
        stored, trembling = verdict_copy[0], Trembling(model)
        found = check_evidence(stored, examples=examples, model=trembling)
        assert "warnings" in {finding.place for finding in found.wrong}
        told = resealed(stored, warnings=(Caution(name="random-output", message="it does"),))
        found = check_evidence(told, examples=examples, model=trembling)
        assert "warnings" not in {finding.place for finding in found.wrong}

    def test_an_adversarial_outside_of_the_ball_is_named(self, examples, evidence):
        points = evidence.adversarials.clone()
        points[4, 0, 2, 2] = (points[4, 0, 2, 2] + 0.5) % 1
        (finding,) = original_findings(dataclasses.replace(evidence, adversarials=points), examples)
        assert finding.place == "evidence.adversarials"
        assert f"example {int(evidence.broken[4])}" in finding.text

    def test_another_label_is_named(self, examples, evidence):
        labels = examples.labels.clone()
        labels[17] = (labels[17] + 1) % 10
        changed = RecordExamples(examples.images, labels, examples.ids, examples.fingerprint)
        (finding,) = original_findings(evidence, changed)
        assert str(finding) == "evidence.labels: differ from the data's in example 17"


class TestCommand:
    def test_one_screen_says_what_holds(self, verdict_copy):
        stored, reference = verdict_copy
        ran = cli("verify", stored.path, "--model", reference, "--save")
        assert ran.code == 0, ran.out + ran.err
        assert len(ran.out.splitlines()) < 24
        for words in ("schema       ok", "0 refuted", "is at most", "upper bound proven"):
            assert words in ran.out
        assert "verified" not in ran.out
        receipt = read_json(receipt_path(stored.path))
        assert receipt["badges"] == ["schema ok", "upper bound proven"]
        assert set(receipt) == {field.name for field in dataclasses.fields(Receipt)}
        assert standing(stored).badges == ("schema ok", "upper bound proven")

    def test_without_a_model_the_badge_is_schema_ok(self, verdict_copy):
        stored, _ = verdict_copy
        ran = cli("verify", stored.path)
        assert (ran.code, ran.out.splitlines()[-1]) == (0, "  badges       schema ok")

    def test_one_that_fails_does_not_stop_the_others(self, verdict_copy, tmp_path):
        stored, _ = verdict_copy
        (tmp_path / "out" / "broken.json").write_text("{")
        altered(stored, lambda values: values.update(seed=7), seal=False)
        ran = cli("verify", tmp_path / "out", Path("results/hierarchy"))
        assert ran.code == 1
        assert "INVALID" in ran.out
        assert "WRONG        seed" in ran.out
        assert "2 with something wrong" in ran.out

    def test_records_of_earlier_versions_pass_as_what_they_are(self):
        ran = cli("verify", Path("results/fixed-heads"))
        assert ran.code == 0
        assert "not sealed (of an earlier version)" in ran.out
        assert "carries no evidence" in ran.out

    def test_a_strangers_text_does_not_drive_the_terminal(self, verdict_copy):
        stored, _ = verdict_copy
        resealed(stored, model="\x1b[2Jclean")
        ran = cli("verify", stored.path)
        assert "\x1b" not in ran.out
        assert "?[2Jclean" in ran.out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["no/such/place"], "no/such/place"),
            (["RECORD", "--audit", "5"], "--model"),
            (["RECORD", "--audit", "0", "--model", "x:y"], "at least 1"),
            (["RECORD", "--seed", "-1"], "at least 0"),
            (["RECORD", "--model", "no/such.py:make"], "no/such.py"),
        ],
    )
    def test_bad_input_is_said_in_one_sentence(self, verdict, arguments, words):
        stored, _ = verdict
        given = [str(stored.path) if word == "RECORD" else word for word in arguments]
        ran = cli("verify", *given)
        assert ran.code == 2
        assert words in ran.err
        assert "Traceback" not in ran.err

    def test_a_weight_that_changed_in_its_file_is_named(self, verdict, tmp_path):
        stored, reference = verdict
        other = changed_weights(reference, tmp_path / "model", 1e-4)
        ran = cli("verify", stored.path, "--model", other)
        assert ran.code == 1
        assert "another model: 1 tensor differs" in ran.out
        assert "5.bias" in ran.out


# Evidence that was cut for a submission is checked as far as it goes, and proves no more.


class Submitted(NamedTuple):
    """A record with more examples than are taken, its submission, and the images."""

    whole: Stored
    cut: Stored
    evidence: Path
    examples: RecordExamples


@pytest.fixture
def submitted(tmp_path: Path) -> Submitted:
    whole = appraised(tmp_path / "out", count=TAKEN + 500)
    examples = examples_of(whole.record, None)
    made = ready(whole, tmp_path / "results", examples.images)
    return Submitted(whole, read_record(made[0]), made[1], examples)


def test_it_is_placed_and_proves_no_bound(submitted: Submitted) -> None:
    found = check_evidence(submitted.cut, examples=submitted.examples, model=None)
    assert (found.wrong, found.rows, found.placed, found.proves) == ([], TAKEN, True, False)
    assert any("first 1,000" in reason for reason in found.unchecked)


def test_it_is_compared_with_the_record_without_the_images(submitted: Submitted) -> None:
    found = check_evidence(submitted.cut, examples=None, model=None)
    assert (found.wrong, found.rows) == ([], TAKEN)
    assert not found.placed


def test_the_full_file_in_its_place_counts_as_whole(submitted: Submitted) -> None:
    shutil.copy(submitted.whole.path.with_suffix(".evidence"), submitted.evidence)
    found = check_evidence(submitted.cut, examples=submitted.examples, model=None)
    assert (found.wrong, found.rows, found.placed) == ([], None, True)


@pytest.mark.parametrize("rows", [TAKEN - 100, TAKEN + 100])
def test_a_lie_about_its_length_is_found(submitted: Submitted, rows: int) -> None:
    record = submitted.cut.record
    assert record.evidence is not None
    told = dataclasses.replace(record.evidence, rows=rows)
    lying = resealed(submitted.cut, evidence=told)
    assert check_evidence(lying, examples=submitted.examples, model=None).wrong


def test_the_command_says_what_it_is(submitted: Submitted) -> None:
    ran = cli("verify", submitted.cut.path)
    assert ran.code == 0
    assert "first 1,000" in ran.out
