"""The committed results are whole: a review of numbers can then be a review of their values."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_report import config, record_of, write_cell
from helpers_results import (
    TREE,
    base_of,
    moved_scores,
    strangers,
    tracked_bytes,
    twins,
    wrong_evidence,
    wrong_record,
    wrong_standing,
)

from robust_nc.config import plain
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.finished_model import SUITE as EVALUATED
from robust_nc.pipeline.finished_model import AppraisalConfig, ModelReference, appraisal_id
from robust_nc.record import EvidenceFile, Score, Stored, Weights, read_record, write_record
from robust_nc.record.folder import read_all
from robust_nc.record.schema import sealed
from robust_nc.record.standing import challenge_path
from robust_nc.report.board.table import leaderboard

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
STORED = read_all(RESULTS)
# What two cores can do on CIFAR-10 is one or two seeds, and its rows say so.
FEW_SEEDS = {EVALUATED, "cifar10-wrn22"}
RUNS = [stored for stored in STORED if stored.record.suite not in FEW_SEEDS]


def test_there_are_results_and_they_make_a_board() -> None:
    assert STORED
    assert leaderboard(STORED)["robust"].between(0, 1).all()
    assert (leaderboard(RUNS)["seeds"] >= 3).all(), "no single seed in a published row of ours"


@pytest.mark.parametrize("wrong", [wrong_record, wrong_evidence, wrong_standing])
def test_every_record_is_what_it_says(wrong: Callable[[Stored, Path], list[str]]) -> None:
    found = {str(stored.path.relative_to(RESULTS)): wrong(stored, RESULTS) for stored in STORED}
    assert {path: sentences for path, sentences in found.items() if sentences} == {}


def test_nothing_lies_there_twice() -> None:
    assert not twins(STORED)


def test_every_file_belongs_to_a_record() -> None:
    assert not strangers(RESULTS, STORED)


def test_the_tracked_tree_stays_small_enough_to_travel() -> None:
    assert 0 < tracked_bytes(ROOT) <= TREE


def test_no_score_of_the_main_branch_moved() -> None:
    base = base_of(ROOT)
    if base is None:
        pytest.skip("there is no main branch to compare with")
    assert not moved_scores(ROOT, base)


# What the checks above find, on trees made for it.


def submitted(results: Path, *, seed: int = 0, state: str = "5" * 64) -> Stored:
    """Write a submission: a sealed appraisal with rows and a file in the place of evidence."""
    settings = AppraisalConfig(
        model=ModelReference(reference="net.py:make", state=state), seed=seed
    )
    cell = appraisal_id(settings)
    stored = write_cell(results / EVALUATED, config(), model="net")
    path = stored.path.with_name(f"{cell}.json")
    stored.path.unlink()
    rows = path.with_suffix(".parquet")
    stored.path.with_suffix(".parquet").rename(rows)
    codes = tuple(-1 if i < 124 else 0 if i < 180 else -2 for i in range(200))
    (attack,) = stored.record.attacks
    evidence = path.with_suffix(".evidence")
    evidence.write_bytes(b"adversarial examples")
    record = dataclasses.replace(
        stored.record,
        suite=EVALUATED,
        cell=cell,
        config=plain(settings),
        seed=seed,
        verdict=dataclasses.replace(stored.record.verdict, broken_by=codes),
        attacks=(dataclasses.replace(attack, broke=56),),
        rows=dataclasses.replace(stored.record.rows, path=rows.name),
        weights=Weights(parameters=5, state=state),
        evidence=EvidenceFile(name=evidence.name, sha256=sha256_of(evidence), bytes=20, broken=100),
    )
    write_record(path, sealed(record))
    return read_record(path)


def again(stored: Stored, **changes: Any) -> Stored:
    write_record(stored.path, sealed(dataclasses.replace(stored.record, **changes)))
    return read_record(stored.path)


def complaints(stored: Stored, results: Path) -> str:
    wrong = (wrong_record, wrong_evidence, wrong_standing)
    return "; ".join(sentence for one in wrong for sentence in one(stored, results))


def test_an_appraisal_with_evidence_passes(tmp_path: Path) -> None:
    stored = submitted(tmp_path)
    assert complaints(stored, tmp_path) == ""
    assert not strangers(tmp_path, [stored])


def test_weights_lie_there_only_for_a_record_that_names_them(tmp_path: Path) -> None:
    stored = submitted(tmp_path)
    folder = tmp_path / EVALUATED / "checkpoints" / "net"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    assert strangers(tmp_path, [stored])
    named = {"reference": f"{tmp_path.name}/{EVALUATED}/checkpoints/net", "state": "5" * 64}
    stored = again(stored, config={**stored.record.config, "model": named})
    assert not strangers(tmp_path, [stored])
    (folder / "model.bin").write_bytes(b"")
    assert strangers(tmp_path, [stored])


def test_an_appraisal_that_was_changed_or_has_no_evidence_fails(tmp_path: Path) -> None:
    stored = submitted(tmp_path)
    values = json.loads(stored.path.read_text())
    stored.path.write_text(json.dumps({**values, "head": "etf-2"}))
    assert "head is not as it was sealed" in complaints(read_record(stored.path), tmp_path)
    stored.path.write_text(json.dumps({**values, "seals": {}}))
    assert "seed is not as it was sealed" in complaints(read_record(stored.path), tmp_path)
    assert "without evidence" in complaints(again(stored, evidence=None), tmp_path)


def test_a_score_that_is_not_that_of_the_verdict_fails(tmp_path: Path) -> None:
    stored = submitted(tmp_path)
    better = {**stored.record.scores, "robust": Score(value=0.9, low=0.85, high=0.94, n=200)}
    assert "robust accuracy is not that" in complaints(again(stored, scores=better), tmp_path)


def test_evidence_that_is_another_file_or_too_large_fails(tmp_path: Path) -> None:
    stored = submitted(tmp_path)
    path, named = stored.path.with_suffix(".evidence"), stored.record.evidence
    assert named is not None
    path.write_bytes(bytes(2_000_001))
    assert "not the file" in complaints(stored, tmp_path)
    stored = again(stored, evidence=dataclasses.replace(named, sha256=sha256_of(path)))
    assert "more than 1000 examples" in complaints(stored, tmp_path)
    path.unlink()
    assert "not committed" in complaints(stored, tmp_path)
    stored = again(stored, evidence=dataclasses.replace(named, rows=300, full="0" * 64))
    assert "how it was cut" in complaints(stored, tmp_path)


def test_a_challenge_of_another_cell_and_files_of_no_record_fail(tmp_path: Path) -> None:
    stored = submitted(tmp_path)
    points = stored.path.with_name("points.npz")
    points.write_bytes(b"more adversarial examples")
    challenge = challenge_path(stored.path, sha256_of(points))
    values = {"cell": stored.record.cell, "evidence": sha256_of(points), "broken": [1]}
    challenge.write_text(json.dumps({**values, "created": "2026"}))
    assert "no evidence beside it" in complaints(stored, tmp_path)
    points = points.rename(challenge.with_suffix(".npz"))
    assert complaints(stored, tmp_path) == ""
    assert not strangers(tmp_path, [stored])
    challenge.write_text(json.dumps({**values, "cell": "0" * 16, "created": "2026"}))
    assert "not this one" in complaints(stored, tmp_path)
    stray = stored.path.with_name(f"{'b' * 16}.receipt")
    stray.write_text("{}")
    (stored.path.parent / "run.sh").write_text("true")
    found = "; ".join(strangers(tmp_path, [stored]))
    assert stray.name in found
    assert "run.sh" in found
    assert challenge.name not in found


def test_the_same_network_judged_twice_fails(tmp_path: Path) -> None:
    first, second = submitted(tmp_path), submitted(tmp_path, seed=1)
    assert "again" in twins([first, second])[0]
    assert not twins([first, submitted(tmp_path / "more", state="6" * 64)])


def test_a_score_that_moved_against_the_main_branch_fails(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True)

    results = tmp_path / "results"
    git("init", "-b", "main")
    assert base_of(tmp_path) is None
    setting = config()
    stored = write_cell(results / "synthetic", setting)
    git("add", "."), git("commit", "-m", "first")
    base = base_of(tmp_path)
    assert base is not None
    write_cell(results / "synthetic", config(seed=1))  # a new cell moves nothing
    again(stored, created="2027-01-01T00:00:00+00:00")
    assert not moved_scores(tmp_path, base)
    better = record_of(setting, rows=stored.record.rows, correct=170)
    write_record(stored.path, better)
    assert "robust accuracy of this cell moved from 0.62 to 0.85" in moved_scores(tmp_path, base)[0]
    elsewhere = results / "synthetic" / "renamed" / stored.path.name
    elsewhere.parent.mkdir()
    stored.path.rename(elsewhere)
    git("add", ".")
    assert "moved from 0.62" in moved_scores(tmp_path, base)[0]
