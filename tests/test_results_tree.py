"""The committed results are whole, and what a pull request may not do to them is refused."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_appraisal import judge
from helpers_exchange import appraised
from helpers_models import small_config
from helpers_report import challenged, resealed, signed, trust
from helpers_runner import cli
from safetensors.torch import save_file

from robust_nc.config import plain
from robust_nc.data.load import dataset_info
from robust_nc.evaluation.evaluate_model import evaluate
from robust_nc.exceptions import DataError
from robust_nc.exchange.submission import ready
from robust_nc.pipeline.finished_model import SUITE as EVALUATED
from robust_nc.record import Stored, read_record, write_record
from robust_nc.record.folder import read_all
from robust_nc.record.schema import sealed
from robust_nc.record.standing import challenge_path, receipt_path
from robust_nc.report.board.table import leaderboard
from robust_nc.threat import Ball
from robust_nc.training.run import resolve_model
from robust_nc.verification import check, results_tree
from robust_nc.verification.audit import write_broken
from robust_nc.verification.originals import examples_of
from robust_nc.verification.results_tree import check_tree, results_command

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
STORED = read_all(RESULTS)
# What two cores can do on CIFAR-10, and the first suite in minutes, is one or two seeds, and their
# rows say so.
FEW_SEEDS = {EVALUATED, "cifar10-wrn22", "quickstart"}
RUNS = [stored for stored in STORED if stored.record.suite not in FEW_SEEDS]

TREE = 30 * 2**20  # bytes of all tracked files; 6 MiB of them for evidence on CIFAR-10


def git(*words: str) -> bytes | None:
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True)
    return ran.stdout if ran.returncode == 0 else None


def test_the_models_whose_weights_lie_here_are_reproduced_and_ranked(signing_key: Path) -> None:
    ours = {path.name for path in (RESULTS / EVALUATED / "checkpoints").iterdir()}
    frame = leaderboard([stored for stored in STORED if stored.record.model in ours])
    assert set(frame["state"]) == {"reproduced"}
    assert frame["rank"].tolist() == [1, 1, 2, 2, 3, 4]
    assert (frame["bound"] <= 0.01).all()


def test_there_are_results_and_they_make_a_board() -> None:
    assert STORED
    assert leaderboard(STORED)["robust"].between(0, 1).all()
    assert (leaderboard(RUNS)["seeds"] >= 3).all(), "no single seed in a published row of ours"


def test_the_committed_results_are_what_they_say_and_no_score_moved(tmp_path: Path) -> None:
    """Against the main branch as the remote has it, else the local one, else themselves."""
    refs = ("refs/remotes/origin/main", "refs/heads/main")
    packed = next(filter(None, (git("archive", ref, "results") for ref in refs)), None)
    if packed is not None:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(tmp_path, filter="data")
    found = check_tree(tmp_path / "results" if packed else RESULTS, RESULTS, maintainer=True)
    assert found.refused == []


def test_the_tracked_tree_stays_small_enough_to_travel() -> None:
    paths = [ROOT / name for name in (git("ls-files", "-z") or b"").decode().split("\0") if name]
    assert 0 < sum(path.stat().st_size for path in paths if path.is_file()) <= TREE


def test_workflows_pin_what_they_use_and_run_nothing_that_a_pull_request_names() -> None:
    for path in (ROOT / ".github" / "workflows").iterdir():
        text = path.read_text()
        used = re.findall(r"uses: *(.*)", text)
        assert all(re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", one) for one in used), path
        assert "pull_request_target" not in text
        assert not re.search(r"run: .*\$\{\{", text)
    text = (ROOT / ".github" / "workflows" / "results.yml").read_text()
    assert re.findall(r"permissions:((?:\n +.*)+)", text) == ["\n  contents: read"]
    assert "secrets." not in text


# What pull requests may do, on trees made for it.


def submitted(results: Path, count: int, model: str = "net", **changes: Any) -> Stored:
    """Put a whole submission where it belongs."""
    made = resealed(appraised(results.parent / f"out-{model}", count=count), model=model, **changes)
    return read_record(ready(made, results)[0])


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, of one record, and `head`, of another as well."""
    folder = tmp_path_factory.mktemp("trees")
    submitted(folder / "base", 200)
    (folder / "base" / "README.md").write_text("Results")
    shutil.copytree(folder / "base", folder / "head")
    submitted(folder / "head", 150, "mine")
    return folder


@pytest.fixture
def base(trees: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trees / "base", tmp_path / "base")


@pytest.fixture
def head(trees: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trees / "head", tmp_path / "head")


def record_in(results: Path, model: str = "mine") -> Stored:
    (path,) = (results / EVALUATED / model).glob("*.json")
    return read_record(path)


def refused(base: Path, head: Path, **options: Any) -> str:
    return "\n".join(map(str, check_tree(base, head, **options).refused))


def test_a_submission_passes_and_the_exit_code_says_so(base, head, capsys) -> None:
    (head / "README.md").write_text("Results, told better")
    assert results_command([str(base), str(head)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 files changed; 0 findings refuse them"
    (head / EVALUATED / "mine" / "::error::\u202e\n").write_text("true")
    assert results_command([str(base), str(head)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"REFUSED      {EVALUATED}/mine/::error::? : comes from maintainers only"
    link = head.with_name("link")
    link.symlink_to(base)
    for wrong in ([head / "nowhere"], [link], []):
        assert results_command([str(base), *map(str, wrong)]) == 2
    next((base / EVALUATED / "net").glob("*.json")).write_text("{")
    assert results_command([str(base), str(head)]) == 2
    assert "is not JSON" in capsys.readouterr().err


def _edit(stored: Stored, **changes: Any) -> None:
    values = json.loads(stored.path.read_text())
    stored.path.write_text(json.dumps({**values, **changes}))


def _without(stored: Stored, suffix: str) -> None:
    stored.path.with_suffix(suffix).unlink()


def _scores(stored: Stored) -> None:
    scores = {**stored.record.scores, "robust": stored.record.scores["clean"]}
    resealed(stored, scores=scores)


def _unsealed(stored: Stored) -> None:
    write_record(stored.path, dataclasses.replace(stored.record, seals={}))


def _again(stored: Stored) -> None:
    other = stored.path.parent.with_name("other") / stored.path.name
    shutil.copytree(stored.path.parent, other.parent)
    resealed(read_record(other), model="other")


def _link(stored: Stored) -> None:
    (stored.path.parent / f"{'a' * 16}.json").symlink_to(stored.path)


def _renamed(stored: Stored) -> None:
    name = f"{'b' * 16}.parquet"
    stored.path.with_suffix(".parquet").rename(stored.path.parent / name)
    resealed(stored, rows=dataclasses.replace(stored.record.rows, path=name))


WRONG: dict[str, tuple[Callable[[Stored], object], str]] = {
    "edited": (lambda it: _edit(it, head="etf-2"), "head: is not what it was when"),
    "no record": (lambda it: it.path.write_text("[1"), "is not JSON"),
    "scores": (_scores, "scores.robust.value: is 0.9, but 105 of 150 flags are set"),
    "no seals": (_unsealed, "comes without seals"),
    "elsewhere": (lambda it: resealed(it, model="theirs"), "another place than its suite, model"),
    "no rows": (lambda it: _without(it, ".parquet"), "is missing"),
    "renamed rows": (_renamed, "should be named by its cell"),
    "no evidence": (lambda it: _without(it, ".evidence"), "has no evidence beside it"),
    "other evidence": (
        lambda it: it.path.with_suffix(".evidence").write_bytes(b"a"),
        "is not the file that the record names",
    ),
    "other images": (
        lambda it: resealed(it, data=dataclasses.replace(it.record.data, fingerprint="0" * 64)),
        "is not that of the evidence: other images",
    ),
    "too large": (
        lambda it: it.path.with_suffix(".evidence").write_bytes(bytes(2_000_001)),
        ".evidence: is larger than 2,000,000 bytes",
    ),
    "a link": (_link, "is a link, or no plain file"),
    "a repository": (lambda it: (it.path.parent / "sub").mkdir(), "is a folder without files"),
    "a script": (lambda it: (it.path.parent / "run.sh").write_text("true"), "belongs to no record"),
    "hidden": (lambda it: (it.path.parent / ".x").write_text("true"), "comes from maintainers"),
    "stray": (
        lambda it: (it.path.parent / f"{'b' * 16}.receipt").write_text("{}"),
        f"{'b' * 16}.receipt: belongs to no record",
    ),
    "points alone": (
        lambda it: it.path.with_suffix(f".{'b' * 16}.npz").write_bytes(b"PK"),
        f"{'b' * 16}.npz: belongs to no record",
    ),
    "again": (_again, "again"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_submission_is_found(case: str, base: Path, head: Path) -> None:
    change, words = WRONG[case]
    change(record_in(head))
    assert words in refused(base, head)


def test_what_is_there_changes_and_goes_by_a_maintainer_alone(base: Path, head: Path) -> None:
    stored = record_in(head, "net")
    write_record(stored.path, sealed(dataclasses.replace(stored.record, created="2027-01-01")))
    answer = head / "claims" / "answers" / "C1.json"
    answer.parent.mkdir(parents=True)
    answer.write_text("{}")
    found = refused(base, head)
    assert f"{stored.path.relative_to(head)}: was changed; only a maintainer" in found
    assert "C1.json: comes from maintainers only" in found
    assert refused(base, head, maintainer=True) == ""
    shutil.rmtree(stored.path.parent)
    assert refused(base, head).count("was removed; only a maintainer removes results") == 3
    assert refused(base, head, maintainer=True) == ""


def test_a_score_that_moved_is_found_whoever_moved_it(base: Path, head: Path) -> None:
    _scores(record_in(head, "net"))
    assert "robust accuracy moved from 0.7 to 0.9" in refused(base, head, maintainer=True)
    _scores(record_in(base, "net"))
    assert "moved" not in refused(base, head, maintainer=True)


@pytest.mark.parametrize("name", ["net", "NET"])
def test_nobody_joins_the_row_of_another(name: str, base: Path, head: Path) -> None:
    (head / EVALUATED / "mine").rename(head / EVALUATED / "moved")
    shutil.copytree(head / EVALUATED / "moved", head / EVALUATED / name, dirs_exist_ok=True)
    shutil.rmtree(head / EVALUATED / "moved")
    for path in (head / EVALUATED / name).glob("*.json"):
        resealed(read_record(path), model=name)
    assert "is another's, whose row it would be averaged with" in refused(base, head)


def test_receipts_count_by_the_keys_of_the_main_branch(base, head, signing_key) -> None:
    stored = signed(record_in(head), signing_key)
    found = refused(base, head)
    assert "allowed_signers: comes from maintainers only" in found
    assert f"{receipt_path(stored.path).relative_to(head)}: receipts come from maintainers" in found
    assert refused(base, head, maintainer=True) == ""
    trust(record_in(base, "net"), signing_key)
    assert refused(base, head) == ""
    signed(stored, signing_key, record="0" * 64)
    assert "no key of allowed_signers signed this for the record" in refused(base, head)


class TestChallenges:
    """Of `mine`, whose model is nowhere; then of one whose weights lie in the tree."""

    @pytest.fixture
    def challenge(self, base: Path, head: Path) -> tuple[Path, Stored]:
        """A challenge to the record of the base, with a point that lies in the ball."""
        stored = record_in(head, "net")
        examples = examples_of(stored.record, None)
        path = head.parent / "points.npz"
        write_broken(path, torch.tensor([1]), examples.images[1:2])
        return challenged(stored.path, rows=(1,), content=path.read_bytes()), stored

    def test_what_cannot_be_judged_here_is_said(self, challenge, base, head) -> None:
        path, _ = challenge
        found = check_tree(base, head)
        assert found.refused == []
        place = path.relative_to(head).as_posix()
        assert f"{place}: not judged here: its model is not at hand" in map(str, found.unchecked)

    @pytest.mark.parametrize("suffix", [".npz", ".evidence"])
    def test_without_images_its_evidence_is_read_at_least(
        self, suffix, challenge, base, head, monkeypatch
    ) -> None:
        def gone(*_: object) -> None:
            raise DataError("the images are not here")

        monkeypatch.setattr(results_tree, "examples_of", gone)
        monkeypatch.setattr(check, "examples_of", gone)
        path, stored = challenge
        content = path.with_suffix(".npz").read_bytes()
        if suffix == ".evidence":
            content = stored.path.with_suffix(suffix).read_bytes()
        for part, damaged in ((content, False), (content[:-1], True)):
            for old in stored.path.parent.glob(f"{stored.path.stem}.*.*"):
                old.unlink()
            made = challenged(stored.path, rows=(1,), content=part)
            made.with_suffix(".npz").rename(made.with_suffix(suffix))
            found = check_tree(base, head)
            assert (f"{made.relative_to(head)}: " in refused(base, head)) == damaged
            told = any("not judged here: its data is not" in one.text for one in found.unchecked)
            assert told != damaged

    def test_points_elsewhere_and_none_are_refused(self, challenge, base, head) -> None:
        path, stored = challenge
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "broken": [1, 2]}))
        assert f"{path.relative_to(head)}: it has no point in the ball for example 2" in refused(
            base, head
        )
        path.write_text(json.dumps({**values, "broken": []}))
        assert "it lowers nothing" in refused(base, head)
        path.write_text(json.dumps(values))
        other = challenge_path(stored.path, "c" * 64)
        path.rename(other)
        path.with_suffix(".npz").rename(other.with_suffix(".npz"))
        assert "another than it is named by" in refused(base, head)

    def test_one_against_weights_in_the_tree_is_judged_again(
        self, tmp_path, monkeypatch, digits_network
    ) -> None:
        monkeypatch.chdir(tmp_path)
        reference, results = f"results/{EVALUATED}/checkpoints/small", tmp_path / "results"
        Path(reference).mkdir(parents=True)
        config = plain(resolve_model(small_config().model, dataset_info("digits")))
        Path(reference, "config.json").write_text(json.dumps({"robust_nc": {"model": config}}))
        save_file(digits_network.state_dict(), Path(reference, "model.safetensors"))
        ball = Ball("Linf", 0.1)
        made = judge(reference, tmp_path / "out", protocol="clean", ball=ball).stored
        stored = read_record(ready(made, results)[0])
        (tmp_path / "empty").mkdir()
        assert refused(tmp_path / "empty", results) == ""
        base = shutil.copytree(results, tmp_path / "base")
        examples = examples_of(stored.record, None)
        model = digits_network.eval()
        outcome = evaluate(model, examples.images, examples.labels, ball, protocol="pgd")
        rows = (outcome.clean_correct & ~outcome.robust).nonzero().flatten()
        write_broken(tmp_path / "points.npz", rows, outcome.adversarials[rows])
        ran = cli("challenge", stored.path, "--evidence", "points.npz", "--model", reference)
        assert ran.code == 0, ran.out + ran.err
        found = check_tree(base, results)
        assert found.refused == []
        assert not [one for one in found.unchecked if "not judged" in one.text]
        (row, *_) = outcome.robust.nonzero().flatten().tolist()
        write_broken(tmp_path / "clean.npz", torch.tensor([row]), examples.images[[row]])
        content = Path("clean.npz").read_bytes()
        false = challenged(stored.path, rows=[row], content=content)
        told = refused(base, results)
        assert f"challenge {false.name}: its evidence does not break example {row}" in told
