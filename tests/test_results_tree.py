"""The committed results are whole: a review of numbers can then be a review of their values."""

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_exchange import appraised
from helpers_report import config, record_of, write_cell

from robust_nc.exceptions import RobustNCError
from robust_nc.exchange.submission import ready
from robust_nc.io.files import digest, sha256_of
from robust_nc.pipeline.finished_model import SUITE as EVALUATED
from robust_nc.record import COLUMNS, Record, Stored, read_record, unpack_flags, write_record
from robust_nc.record.folder import read_all
from robust_nc.record.schema import broken_seals
from robust_nc.record.standing import standing
from robust_nc.report.board.table import leaderboard
from robust_nc.statistics.intervals import wilson
from robust_nc.verification.consistency import flag_findings, inconsistencies, settings_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
STORED = read_all(RESULTS)
# What two cores can do on CIFAR-10 is one or two seeds, and its rows say so.
FEW_SEEDS = {EVALUATED, "cifar10-wrn22"}
RUNS = [stored for stored in STORED if stored.record.suite not in FEW_SEEDS]

TREE = 22 * 2**20  # bytes of all tracked files; 6 MiB of them for evidence on CIFAR-10
EVIDENCE, EVIDENCE_EXAMPLES = 2_000_000, 1_000
LARGEST = {".json": 2 * 2**20, ".evidence": EVIDENCE, ".npz": EVIDENCE}
# Small weights of ours lie here, so that anyone can check what was said of them.
WEIGHTS, HUB = (EVALUATED, "checkpoints"), {"config.json", "model.safetensors"}
NAME = re.compile(
    r"(?P<cell>[0-9a-f]{16})\."
    r"(json|parquet|evidence|receipt|[0-9a-f]{16}\.(challenge|evidence|npz))"
)


def wrong_record(stored: Stored, results: Path) -> list[str]:
    """What a record says wrong of itself, but for its rows' values, which take long to add up."""
    record = stored.record
    if stored.path != results / record.suite / record.model / f"{record.cell}.json":
        return ["lies in another place than its suite, model and cell"]
    try:  # still a configuration of today
        settings_of(record), standing(stored)
    except RobustNCError as error:
        return [str(error)]
    flags = flag_findings(
        record.verdict, examples=record.data.examples, attacks=len(record.attacks)
    )
    found = [str(finding) for finding in flags]
    if digest(record.config)[:16] != record.cell:
        found.append("its cell is not the digest of its configuration")
    if record.seals or record.suite == EVALUATED:
        found += map(str, broken_seals(json.loads(stored.path.read_text())))
    if list(stored.rows().columns) != list(COLUMNS):
        found.append("its rows have other columns")
    for name, packed in ("clean", record.verdict.clean_correct), ("robust", record.verdict.robust):
        bits, score = unpack_flags(packed), record.scores[name]
        right = wilson(int(bits.sum()), len(bits))
        if not np.allclose([score.value, score.low, score.high, score.n], right[:4]):
            found.append(f"its {name} accuracy is not that of its verdict")
    for path in stored.path.parent.glob(f"{stored.path.stem}.*.challenge"):
        beside = path.parent.glob(f"{path.stem}.*")
        if json.loads(path.read_text())["evidence"] not in map(sha256_of, beside):
            found.append(f"{path.name} has no evidence beside it")
    return found + wrong_evidence(record, stored.path.with_suffix(".evidence"))


def wrong_evidence(record: Record, path: Path) -> list[str]:
    """What is wrong with the evidence that is committed with a record."""
    named, submitted = record.evidence, record.suite == EVALUATED
    if named is None or not path.is_file():
        return ["is submitted without evidence"] if submitted or path.is_file() else []
    found = [] if named.name == path.name else [f"names its evidence {named.name[:80]!r}"]
    if sha256_of(path) != named.sha256:
        found.append("its evidence is not the file that it names")
    examples = named.rows or record.data.examples
    if examples > record.data.examples or (named.rows is None) != (named.full is None):
        found.append("its evidence says wrongly how it was cut")
    return found + ["its evidence is of too many examples"] * (examples > EVIDENCE_EXAMPLES)


def twins(records: list[Stored]) -> list[str]:
    """Cells that lie there twice, and one network judged twice in the same way."""
    seen: dict[Any, Path] = {}
    found = []
    for stored in records:
        record = stored.record
        keys: list[Any] = [record.cell]
        if record.suite == EVALUATED and record.weights.state:
            ball = json.dumps(record.config["threat"], sort_keys=True)
            keys.append((record.weights.state, record.data.fingerprint, ball, record.protocol))
        for key in keys:
            if key in seen:
                found.append(f"{stored.path} is {seen[key]} again")
            seen[key] = stored.path
    return found


def strangers(results: Path, records: list[Stored]) -> list[str]:
    """Files below suite/model/ that no record has, and files that are too large."""
    cells = {(stored.path.parent, stored.record.cell) for stored in records}
    models = [stored.record.config.get("model") for stored in records]
    weights = {str(model.get("reference")) for model in models if isinstance(model, dict)}
    found = []
    for path in results.rglob("*"):
        place = path.relative_to(results).parts
        if path.is_symlink():
            found.append(f"{path} is a link")
        if not path.is_file() or place in {("README.md",)} or place[:2] == ("claims", "answers"):
            continue
        if place[0] == ".index":  # of an earlier `board --sql`, which git ignores
            continue
        name = NAME.fullmatch(path.name)
        known = len(place) == 3 and name and (path.parent, name["cell"]) in cells
        if place[:2] == WEIGHTS and len(place) == 4 and path.name in HUB:
            known = f"{results.name}/{'/'.join(place[:-1])}" in weights
        if not known:
            found.append(f"{path} belongs to no record")
        if path.stat().st_size > LARGEST.get(path.suffix, 2**20):
            found.append(f"{path} is too large")
    return found


def git(root: Path, *words: str) -> str | None:
    names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    ran = subprocess.run(["git", *names, *words], cwd=root, capture_output=True, text=True)
    return ran.stdout if ran.returncode == 0 else None


def base_of(root: Path) -> str | None:
    """The main branch as the remote has it, else the local one, else None."""
    for ref in ("refs/remotes/origin/main", "refs/heads/main"):
        if git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}") is not None:
            return ref
    return None


def moved_scores(root: Path, base: str) -> list[str]:
    """Records whose scores are other than those of the same cell in the version `base`."""
    listed = git(root, "diff", "--no-renames", "--name-only", "-z", base, "--", "results") or ""
    before = git(root, "ls-tree", "-r", "--name-only", "-z", base, "--", "results") or ""
    old = {Path(name).name: name for name in before.split("\0") if name.endswith(".json")}
    changed = {Path(name).name for name in listed.split("\0")} & old.keys()
    found = []
    for name in sorted(name for name in changed if NAME.fullmatch(name)):
        text = git(root, "show", f"{base}:{old[name]}")
        scores = {key: one["value"] for key, one in json.loads(text or "{}")["scores"].items()}
        for place in (root / "results").rglob(name):
            now = {key: one.value for key, one in read_record(place).record.scores.items()}
            found += [
                f"{place}: its {key} accuracy moved from {scores.get(key)} to {now.get(key)}"
                for key in ("clean", "robust")
                if scores.get(key) != now.get(key)
            ]
    return found


def test_there_are_results_and_they_make_a_board() -> None:
    assert STORED
    assert leaderboard(STORED)["robust"].between(0, 1).all()
    assert (leaderboard(RUNS)["seeds"] >= 3).all(), "no single seed in a published row of ours"


def test_every_record_is_what_it_says() -> None:
    found = {
        str(stored.path.relative_to(RESULTS)): wrong_record(stored, RESULTS) for stored in STORED
    }
    assert {path: sentences for path, sentences in found.items() if sentences} == {}


def test_one_record_of_each_suite_agrees_with_its_rows() -> None:
    one = {stored.record.suite: stored for stored in STORED}
    assert {
        suite: found for suite, stored in one.items() if (found := inconsistencies(stored))
    } == {}


def test_nothing_lies_there_twice_and_every_file_belongs_to_a_record() -> None:
    assert twins(STORED) == strangers(RESULTS, STORED) == []


def test_the_tracked_tree_stays_small_enough_to_travel() -> None:
    paths = [ROOT / name for name in (git(ROOT, "ls-files", "-z") or "").split("\0") if name]
    assert 0 < sum(path.stat().st_size for path in paths if path.is_file()) <= TREE


def test_no_score_of_the_main_branch_moved() -> None:
    base = base_of(ROOT)
    if base is None:
        pytest.skip("there is no main branch to compare with")
    assert not moved_scores(ROOT, base)


# What the checks above find, on trees made for it.


def test_a_submission_passes_and_what_is_wrong_with_it_is_found(tmp_path: Path) -> None:
    results = tmp_path / "results"
    path, *_ = ready(appraised(tmp_path), results)
    stored = read_record(path)
    assert wrong_record(stored, results) == strangers(results, [stored]) == twins([stored]) == []
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "head": "etf-2"}))
    assert wrong_record(read_record(path), results) == ["head"]
    scores = {**stored.record.scores, "robust": stored.record.scores["clean"]}
    write_record(path, dataclasses.replace(stored.record, scores=scores))
    assert "its robust accuracy is not that of its verdict" in wrong_record(
        read_record(path), results
    )
    write_record(path, stored.record)
    path.with_suffix(".evidence").write_bytes(bytes(EVIDENCE + 1))
    assert wrong_record(stored, results) == ["its evidence is not the file that it names"]
    assert len(strangers(results, [stored])) == 1
    path.with_suffix(".evidence").unlink()
    assert wrong_record(stored, results) == ["is submitted without evidence"]
    (path.parent / "run.sh").write_text("true")
    (path.parent / f"{'b' * 16}.receipt").write_text("{}")
    assert len(strangers(results, [stored])) == 2
    other = stored._replace(record=dataclasses.replace(stored.record, cell="0" * 16))
    assert len(twins([stored, other])) == 1


def test_a_score_that_moved_against_the_main_branch_is_found(tmp_path: Path) -> None:
    results = tmp_path / "results"
    git(tmp_path, "init", "-b", "main")
    assert base_of(tmp_path) is None
    setting = config()
    stored = write_cell(results / "synthetic", setting)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    base = base_of(tmp_path)
    assert base is not None
    write_cell(results / "synthetic", config(seed=1))  # a new cell moves nothing
    write_record(
        stored.path, dataclasses.replace(stored.record, created="2027-01-01T00:00:00+00:00")
    )
    assert not moved_scores(tmp_path, base)
    write_record(stored.path, record_of(setting, rows=stored.record.rows, correct=170))
    assert "robust accuracy moved from 0.62 to 0.85" in moved_scores(tmp_path, base)[0]
