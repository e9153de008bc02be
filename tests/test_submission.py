"""A submission is whole, small enough to be committed, and passes the checks of the tree."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_exchange import appraised
from helpers_report import challenged, resealed
from helpers_runner import cli

from robust_nc.evidence.file import read_evidence
from robust_nc.exceptions import RecordError
from robust_nc.exchange import submission
from robust_nc.exchange.submission import ready, remarks
from robust_nc.io.files import sha256_of
from robust_nc.record import Score, Stored, read_record, write_record
from robust_nc.record.standing import standing
from robust_nc.verification.consistency import inconsistencies
from robust_nc.verification.evidence import check_evidence
from robust_nc.verification.originals import examples_of


def is_whole(path: Path) -> bool:
    """Whether a record that was made ready agrees with itself and all that lies beside it."""
    stored = read_record(path)
    standing(stored)
    assert stored.record.evidence is not None
    assert stored.record.evidence.sha256 == sha256_of(path.with_suffix(".evidence"))
    return not [*inconsistencies(stored), *check_evidence(stored, examples=None, model=None).wrong]


def test_a_small_record_is_copied_to_the_byte(tmp_path: Path) -> None:
    stored, results = appraised(tmp_path / "out"), tmp_path / "results"
    made = ready(stored, results)
    folder = results / "evaluated" / "net"
    cell = stored.record.cell
    assert made[0] == folder / f"{cell}.json"
    assert {path.name for path in made} == {
        f"{cell}.{ending}" for ending in ("json", "evidence", "parquet")
    }
    assert all(path.read_bytes() == (tmp_path / "out" / path.name).read_bytes() for path in made)
    assert is_whole(made[0])


def test_much_evidence_is_cut_and_the_record_names_what_is_committed(tmp_path: Path) -> None:
    stored, results = appraised(tmp_path / "out", count=1_500), tmp_path / "results"
    examples = examples_of(stored.record, None)
    with pytest.raises(RecordError, match="needs the clean images"):
        ready(stored, tmp_path / "other")
    made = ready(stored, results, examples.images)
    record = read_record(made[0]).record
    told, full = record.evidence, stored.record.evidence
    assert told is not None
    assert full is not None
    assert (told.rows, told.full) == (1_000, full.sha256)
    assert told.sha256 == sha256_of(made[1]) != full.sha256
    assert is_whole(made[0])
    assert dataclasses.replace(record, evidence=None, seals={}) == dataclasses.replace(
        stored.record, evidence=None, seals={}
    ), "nothing else changed"
    whole = read_evidence(stored.path.with_suffix(".evidence"), examples.images)
    cut = read_evidence(made[1], examples.images[:1_000])
    kept = whole.broken < 1_000
    assert torch.equal(cut.adversarials, whole.adversarials[kept])
    assert torch.equal(cut.robust, whole.robust[:1_000])
    assert told.broken == len(cut.broken) == int(kept.sum())
    again = ready(read_record(made[0]), tmp_path / "second")  # a cut record elsewhere
    assert again[0].read_bytes() == made[0].read_bytes()


def test_evidence_of_large_images_is_cut_to_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "LARGEST", 5_000)
    stored, results = appraised(tmp_path / "out", count=300), tmp_path / "results"
    assert stored.path.with_suffix(".evidence").stat().st_size > 5_000
    made = ready(stored, results, examples_of(stored.record, None).images)
    told = read_record(made[0]).record.evidence
    assert told is not None
    assert told.bytes == made[1].stat().st_size <= 5_000
    assert told.rows is not None
    assert 1 <= told.rows < 300
    assert is_whole(made[0])
    monkeypatch.setattr(submission, "LARGEST", 10)
    with pytest.raises(RecordError, match="cannot be cut"):
        ready(stored, tmp_path / "more", examples_of(stored.record, None).images)
    assert not [path for path in (tmp_path / "more").rglob("*") if path.is_file()]


def test_a_cell_that_is_there_is_refused_and_says_whether_the_score_moved(tmp_path: Path) -> None:
    stored, results = appraised(tmp_path / "out"), tmp_path / "results"
    (path, *_) = ready(stored, results)
    with pytest.raises(RecordError, match=r"same robust accuracy, 70\.0 %; there is nothing"):
        ready(stored, results)
    record = stored.record
    lower = {**record.scores, "robust": Score(value=0.5, low=0.43, high=0.57, n=200)}
    path.unlink()
    write_record(results / "elsewhere" / path.name, dataclasses.replace(record, scores=lower))
    with pytest.raises(RecordError, match=r"moved by \+20.0 points, from 50.0 % to 70.0 %"):
        ready(stored, results)


def changed(stored: Stored, **values: object) -> Stored:
    """Write a record with other values under its old seals."""
    plain = json.loads(stored.path.read_text())
    stored.path.write_text(json.dumps({**plain, **values}))
    return read_record(stored.path)


def test_records_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    stored, results = appraised(tmp_path / "out"), tmp_path / "results"
    good = stored.record
    with pytest.raises(RecordError, match="has no seals"):
        ready(changed(stored, seals={}), results)
    with pytest.raises(RecordError, match="changed after it was written, in head"):
        ready(changed(resealed(stored), head="better"), results)
    with pytest.raises(RecordError, match="carries no evidence"):
        ready(resealed(stored, evidence=None), results)
    for names in ({"suite": "../.."}, {"model": "a/b"}, {"model": ".hidden"}):
        with pytest.raises(RecordError, match="plain file name"):
            ready(resealed(stored, **names), results)
    assert good.evidence is not None
    for name in ("../x.evidence", "other.json"):
        wrong = dataclasses.replace(good.evidence, name=name)
        with pytest.raises(RecordError, match="should be named by its cell"):
            ready(resealed(stored, evidence=wrong), results)
    stored = resealed(stored)
    for ending in (".parquet", ".evidence"):
        path = stored.path.with_suffix(ending)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"!")
        with pytest.raises(RecordError, match="not the file"):
            ready(stored, results)
        path.unlink()
        with pytest.raises(RecordError, match="must lie beside it"):
            ready(stored, results)
        path.write_bytes(content)
    assert not list(results.rglob("*"))


def test_challenges_come_along_and_receipts_stay(tmp_path: Path) -> None:
    stored, results = appraised(tmp_path / "out"), tmp_path / "results"
    path = challenged(stored.path, rows=(1, 2))
    stored.path.with_suffix(".receipt").write_text("{}")
    made = ready(stored, results)
    endings = {".json", ".parquet", ".evidence", ".challenge", ".npz"}
    assert {path.suffix for path in made} == endings
    assert is_whole(made[0])
    told = "\n".join(remarks(stored))
    for words in ("1 of the challenges beside it", "fewer than 1,000 are not ranked", "no card"):
        assert words in told
    path.with_suffix(".npz").write_bytes(b"something else")
    with pytest.raises(RecordError, match="no evidence beside it, or another"):
        ready(stored, tmp_path / "more")


@pytest.mark.parametrize("inside", [True, False])
def test_the_command_makes_a_submission_and_its_printed_steps_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    stored, clone = appraised(tmp_path / "out", count=1_200), tmp_path / "my clone (2)"
    results = clone / "results"
    ran = cli("submit", stored.path, "--to", results)
    assert ran.code == 2
    assert "clone the leaderboard" in ran.err
    remote, shell = tmp_path / "remote.git", {"check": True, "capture_output": True, "text": True}
    for words in (["init", "-q", "--bare", remote], ["clone", "-q", remote, clone]):
        subprocess.run(["git", *words], **shell)
    results.mkdir()
    (results / "README.md").write_text("What is checked.")
    monkeypatch.chdir(clone if inside else tmp_path)
    ran = cli("submit", stored.path, "--to", results.relative_to(Path.cwd()))
    assert ran.code == 0, ran.err
    assert "no card" in ran.err
    record = Path(ran.out.partition("  ")[0])
    assert is_whole(record)
    # To the letter, in the shell and the folder that the user is in.
    steps = "\n".join(line for line in ran.err.splitlines() if line.startswith("  "))
    names = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "EMAIL"), "a@b.c")
    subprocess.run(["bash", "-e", "-c", steps], env=os.environ | names, **shell)
    (branch,) = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname:short)"], cwd=remote, **shell
    ).stdout.split()
    assert branch == f"result-{stored.record.model}-{stored.record.cell}".replace(".", "-")
    listed = subprocess.run(["git", "ls-tree", "-r", "--name-only", branch], cwd=remote, **shell)
    assert record.resolve().relative_to(clone).as_posix() in listed.stdout.splitlines()
    assert len(listed.stdout.splitlines()) == 3
    for more, words in (
        (("--to", results), "same robust accuracy"),
        (("--hub", "a"), "OWNER/NAME"),
    ):
        ran = cli("submit", stored.path, *more)
        assert (ran.code, words in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("count", "part", "change", "words"),
    [
        (200, "passes", {"forward": 7}, "does not hold: passes.forward"),
        (200, "data", {"fingerprint": "0" * 64}, "are others than the record's"),
        (1_200, "data", {"fingerprint": "0" * 64}, "are others than the record's"),
    ],
)
def test_a_record_that_its_evidence_or_images_contradict_is_refused(
    tmp_path: Path, count: int, part: str, change: dict[str, Any], words: str
) -> None:
    stored, results = appraised(tmp_path / "out", count=count), tmp_path / "results"
    results.mkdir()
    other = dataclasses.replace(getattr(stored.record, part), **change)
    stored = resealed(stored, **{part: other})
    ran = cli("submit", stored.path, "--to", results)
    assert ran.code == 2
    assert words in ran.err
    assert not list(results.rglob("*.json"))
