"""Evidence is compared with its record and its images, and the model makes every verdict again;
whatever is changed in a record or beside it is found, and named.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_appraisal import EXAMPLES, altered, opened
from helpers_exchange import appraised
from helpers_report import resealed
from helpers_runner import cli
from torch import Tensor, nn

from robust_nc.evidence.file import read_evidence
from robust_nc.exceptions import DataError, RecordError
from robust_nc.exchange.submission import EXAMPLES as TAKEN
from robust_nc.exchange.submission import ready
from robust_nc.io.files import digest, sha256_of
from robust_nc.record import Caution, Stored, pack_flags, read_record, unpack_flags, write_rows
from robust_nc.record.standing import Receipt, receipt_path, standing
from robust_nc.threat import Ball
from robust_nc.verification.consistency import inconsistencies
from robust_nc.verification.evidence import check_evidence, find_evidence, inside, original_findings
from robust_nc.verification.originals import RecordExamples, dataset_of, examples_of
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
        assert repeated_flips(seen([1e-6]), torch.tensor([stored]), 1).proven, "whatever its margin"

    def test_a_clean_verdict_that_is_another_here(self):
        margins, correct = [0.009, 0.011, -0.009, -0.011], torch.tensor([True, True, False, False])
        found = repeated_clean(seen(margins), correct, 1)
        assert found.tolerated.tolist() == [True, False, True, False]
        assert not found.proven.any()

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
    def test_draws_of_a_random_model_are_counted_and_keyed(self):
        images = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 1, 1)
        labels = torch.zeros(3, dtype=torch.int64)
        first = look_again(Noisy(), images, labels, draws=20, seed=3)
        again = look_again(Noisy(), images, labels, draws=20, seed=3)
        assert first.votes[[0, 2]].tolist() == [0, 20]
        assert 0 < int(first.votes[1]) < 20
        assert torch.equal(first.votes, again.votes)


class TestOriginals:
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
    def test_with_the_model_the_bound_is_proven(self, verdict, examples, model):
        found = check_evidence(verdict[0], examples=examples, model=None)
        assert (found.wrong, found.unchecked, found.placed) == ([], [], True)
        assert (found.proves, found.upper) == (False, None)
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
        found = check_evidence(verdict[0], examples=examples, model=nn.Flatten())  # cannot answer
        assert {finding.place for finding in found.wrong} >= {"model"}

    def test_a_model_that_answers_at_random_is_named_unless_the_record_says_so(
        self, verdict_copy, examples, model
    ):
        stored = verdict_copy[0]
        model.register_forward_hook(lambda _, images, out: out + 0.3 * torch.randn_like(out))
        found = check_evidence(stored, examples=examples, model=model)
        assert "warnings" in {finding.place for finding in found.wrong}
        told = resealed(stored, warnings=(Caution(name="random-output", message="it does"),))
        found = check_evidence(told, examples=examples, model=model)
        assert "warnings" not in {finding.place for finding in found.wrong}

    def test_an_adversarial_outside_of_the_ball_and_another_label_are_named(
        self, examples, evidence
    ):
        points, labels = evidence.adversarials.clone(), examples.labels.clone()
        points[4, 0, 2, 2] = (points[4, 0, 2, 2] + 0.5) % 1
        (finding,) = original_findings(dataclasses.replace(evidence, adversarials=points), examples)
        assert finding.place == "evidence.adversarials"
        assert f"example {int(evidence.broken[4])}" in finding.text
        labels[17] = (labels[17] + 1) % 10
        changed = RecordExamples(examples.images, labels, examples.ids, examples.fingerprint)
        (finding,) = original_findings(evidence, changed)
        assert str(finding) == "evidence.labels: differ from the data's in example 17"


class TestCommand:
    def test_one_screen_says_what_holds(self, verdict_copy, signing_key):
        stored, reference = verdict_copy
        ran = cli("verify", stored.path, "--model", reference, "--sign", signing_key)
        assert ran.code == 0, ran.out + ran.err
        assert len(ran.out.splitlines()) < 24
        for words in ("schema       ok", "0 refuted", "is at most", "state        checked"):
            assert words in ran.out
        assert "verified" not in ran.out
        assert "counts for nothing: no such key in" in ran.err
        receipt = json.loads(receipt_path(stored.path).read_text().partition("-----")[0])
        assert (receipt["state"], receipt["signer"]) == ("checked", "tester")
        assert set(receipt) == {field.name for field in dataclasses.fields(Receipt)}
        assert standing(stored).state == "claimed"

    def test_one_that_fails_does_not_stop_the_others(self, verdict_copy, tmp_path):
        stored, _ = verdict_copy
        (tmp_path / "out" / "broken.json").write_text("{")
        altered(stored, lambda values: values.update(seed=7), seal=False)
        earlier = next(Path("results/hierarchy").rglob("*.json"))
        ran = cli("verify", tmp_path / "out", earlier)
        assert ran.code == 1
        assert "INVALID" in ran.out
        assert "WRONG        seed" in ran.out
        assert "2 with something wrong" in ran.out
        assert "not sealed (of an earlier version)" in ran.out
        assert "carries no evidence" in ran.out

    def test_a_strangers_text_does_not_drive_the_terminal(self, verdict_copy):
        stored, _ = verdict_copy
        resealed(stored, model="\x1b[2Jclean")
        ran = cli("verify", stored.path)
        assert (ran.code, ran.out.splitlines()[-1].split(";")[0]) == (0, "  state        claimed")
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


def test_evidence_that_was_cut_is_checked_as_far_as_it_goes_and_proves_no_more(tmp_path):
    whole = appraised(tmp_path / "out", count=TAKEN + 500)
    examples = examples_of(whole.record, None)
    record, evidence, *_ = ready(whole, tmp_path / "results", examples.images)
    cut = read_record(record)
    found = check_evidence(cut, examples=examples, model=None)
    assert (found.wrong, found.rows, found.placed, found.proves) == ([], TAKEN, True, False)
    assert any("first 1,000" in reason for reason in found.unchecked)
    found = check_evidence(cut, examples=None, model=None)
    assert (found.wrong, found.rows, found.placed) == ([], TAKEN, False)
    ran = cli("verify", record)
    assert (ran.code, "first 1,000" in ran.out) == (0, True)
    for rows in (TAKEN - 100, TAKEN + 100):
        lying = resealed(cut, evidence=dataclasses.replace(cut.record.evidence, rows=rows))
        assert check_evidence(lying, examples=examples, model=None).wrong
    shutil.copy(whole.path.with_suffix(".evidence"), evidence)
    found = check_evidence(cut, examples=examples, model=None)
    assert (found.wrong, found.rows, found.placed) == ([], None, True)


# Whatever is changed in a record or beside it is found, and named.

Values = dict[str, Any]


@pytest.fixture
def copied(verdict_copy: tuple[Stored, str]) -> Stored:
    return verdict_copy[0]


def places(stored: Stored, reference: str | None = None) -> set[str]:
    """Everything that is named as wrong, with the images and without or with the model."""
    model = None if reference is None else opened(reference)
    found = check_evidence(stored, examples=examples_of(stored.record, None), model=model)
    return {finding.place for finding in (*inconsistencies(stored), *found.wrong)}


def broken_row(values: Values) -> int:
    return int(np.flatnonzero(np.array(values["verdict"]["broken_by"]) >= 0)[0])


def flip_flag(values: Values) -> None:
    """Claim an example to be robust that was broken."""
    flags = unpack_flags(values["verdict"]["robust"])
    flags[broken_row(values)] = True
    values["verdict"]["robust"] = pack_flags(flags)


def leave_the_credit_out(values: Values) -> None:
    values["verdict"]["broken_by"][broken_row(values)] = -1


def change_eps_and_name(values: Values) -> None:
    values["config"]["threat"]["eps"] *= 2
    values["cell"] = digest(values["config"])[:16]


def count_anew(values: Values) -> None:
    """Make a second cell of one model."""
    values["config"]["evaluation"]["examples"] += 1
    values["cell"] = digest(values["config"])[:16]


def put(place: str, change: Callable[[Any], Any]) -> Callable[[Values], None]:
    """Change the value at a dotted place."""

    def changed(values: Values) -> None:
        *outer, last = place.split(".")
        inner: Any = values
        for name in outer:
            inner = inner[int(name) if name.isdigit() else name]
        inner[last] = change(inner[last])

    changed.__name__ = place
    return changed


def zeros(_: object) -> str:
    return "0" * 64


# What is changed; the field that its seal names; what else gives it away to a forger who seals it.
CHANGES: list[tuple[Callable[[Values], None], str, set[str]]] = [
    (flip_flag, "verdict", {"verdict.broken_by", "verdict.robust"}),
    (put("scores.robust.value", lambda v: v + 0.05), "scores", {"scores.robust.value"}),
    (put("scores.robust.high", lambda v: v + 0.001), "scores", {"scores.robust.high"}),
    (put("config.threat.eps", lambda v: 2 * v), "config", {"cell", "config.threat"}),
    (change_eps_and_name, "config", {"config.threat"}),
    (leave_the_credit_out, "verdict", {"verdict.broken_by"}),
    (put("attacks.0.broke", lambda v: v + 1), "attacks", {"attacks.0.broke"}),
    (put("passes.forward", lambda v: v - 1), "passes", {"passes.forward"}),
    (put("weights.state", zeros), "weights", {"weights.state"}),
    (put("rows.sha256", zeros), "rows", {"rows"}),
    (put("evidence.sha256", zeros), "evidence", {"evidence.sha256"}),
    (put("evidence.broken", lambda v: v - 1), "evidence", {"evidence.broken"}),
    (put("data.dataset", lambda v: "cifar10"), "data", {"data.dataset"}),
    (put("seed", lambda v: v + 1), "seed", {"seed", "evidence.seed"}),
    (put("evidence.full", zeros), "evidence", {"evidence.full"}),
    (
        put("data.which", lambda v: "the first 1000 of test in the official order"),
        "data",
        {"data.which"},
    ),
    (count_anew, "config", {"config.evaluation.examples"}),
]
NAMES = [change.__name__ for change, *_ in CHANGES]


def test_what_was_not_touched_is_whole(verdict):
    stored, reference = verdict
    assert places(stored, reference) == set()


@pytest.mark.parametrize(("change", "field", "named"), CHANGES, ids=NAMES)
def test_a_change_breaks_a_seal_and_sealed_anew_contradicts_something_else(
    copied, change, field, named
):
    before = copied.path.read_text()
    assert field in places(altered(copied, change, seal=False))
    copied.path.write_text(before)
    found = places(altered(copied, change, seal=True))
    assert named <= found
    assert "seals" not in found


def test_a_date_is_named_by_its_seal_alone_and_a_size_by_the_model(copied, verdict):
    before = copied.path.read_text()
    backdate = put("created", lambda date: "2020-01-01T00:00:00+00:00")
    assert places(altered(copied, backdate, seal=False)) == {"created"}
    assert places(altered(copied, backdate, seal=True)) == set(), "nothing else knows the date"
    assert "seals" in places(altered(copied, lambda values: values.pop("seals"), seal=False))
    copied.path.write_text(before)
    halve = put("weights.parameters", lambda number: number // 2)
    assert places(altered(copied, halve, seal=True), verdict[1]) == {"weights.parameters"}


def test_a_forger_who_knows_it_all_is_refuted_by_the_model_and_the_evidence(copied, verdict):
    """Everything in the record agrees, but the evidence says otherwise."""

    def forge(values: Values) -> None:
        row = broken_row(values)
        attack = values["verdict"]["broken_by"][row]
        values["verdict"]["broken_by"][row] = -1
        values["attacks"][attack]["broke"] -= 1
        flags = unpack_flags(values["verdict"]["robust"])
        flags[row] = True
        values["verdict"]["robust"] = pack_flags(flags)

    found = places(altered(copied, forge, seal=True))
    assert {"verdict.robust", "verdict.broken_by", "scores.robust.value"} <= found


@pytest.mark.parametrize("place", [0.05, 0.999])
def test_one_byte_of_the_evidence_or_the_rows_is_found(copied, place):
    rows, evidence = copied.path.parent / copied.record.rows.path, find_evidence(copied)
    for path, named in ((rows, {"rows"}), (evidence, {"evidence.sha256", "evidence"})):
        whole = path.read_bytes()
        content = bytearray(whole)
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)
        found = places(copied)
        assert named <= found if path == evidence else found == named
        path.write_bytes(whole)
    for size in (0, 7, 100):
        evidence.write_bytes(whole[:size])
        assert {"evidence.sha256", "evidence"} <= places(copied)


def test_rows_that_were_written_anew_contradict_the_scores(copied):
    frame = copied.rows()
    frame.loc[frame["condition"] == "attacked", "value"] += 0.1
    file = write_rows(copied.path.parent / copied.record.rows.path, frame)
    point = put("rows.sha256", lambda digest: file.sha256)
    assert places(altered(copied, point, seal=True)) == {"scores.robust.value"}


def test_rows_that_are_no_rows_are_named(copied):
    path = copied.path.parent / copied.record.rows.path
    point = put("rows.sha256", lambda digest: sha256_of(path))
    for content in (b"PAR1 nothing PAR1", b""):
        path.write_bytes(content)
        assert places(altered(copied, point, seal=True)) == {"rows"}
    pd.DataFrame({"value": [1.0]}).to_parquet(path)
    assert places(altered(copied, point, seal=True)) == {"rows"}
    path.unlink()
    assert places(copied) == {"rows"}


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", ".hidden"])
def test_no_name_leaves_the_folder(copied, path):
    def point(values: Values) -> None:
        values["evidence"]["name"] = values["rows"]["path"] = path

    assert {"evidence.name", "rows"} <= places(altered(copied, point, seal=True))


def test_a_wild_record_is_never_a_crash(copied):
    """Values of the right type and no sense."""
    wild = [put("verdict.robust", lambda _, flags=flags: flags) for flags in ("3:ff", "no flags")]
    wild += [
        put("verdict.broken_by", lambda _, codes=codes: codes)
        for codes in ([], [-9] * 120, [99] * 120, [2**62] * 120)
    ]
    wild += [
        put("scores", lambda _: {}),
        put("scores.robust.n", lambda _: 0),
        put("scores.robust.value", lambda _: -3.0),
        put("config", lambda _: {}),
        put("created", lambda _: "yesterday"),
        put("data.examples", lambda _: -5),
        put("attacks", lambda _: []),
    ]
    before = copied.path.read_text()
    less = altered(copied, put("data.examples", lambda v: v - 1), seal=True)
    found = {finding.place for finding in inconsistencies(less)}
    assert {"verdict.robust", "verdict.broken_by"} <= found
    for change in wild:
        stored = altered(copied, change, seal=True)
        assert inconsistencies(stored), change.__name__
        check_evidence(stored, examples=None, model=None)
        copied.path.write_text(before)
