"""The pages are true: their code runs, their tables are those of the code."""

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_runner import cli

from robust_nc.claims.answers import read_answers
from robust_nc.claims.page import answers_page
from robust_nc.claims.reading import read_claims
from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.geometry.measures import measures_table
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.suite import read_suite
from robust_nc.record.folder import read_all

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Fenced blocks of a page: (language, file name or "", text)."""
    return BLOCK.findall((ROOT / page).read_text())


def follow(page: str, folder: Path) -> str:
    """Write the files of a page and run its commands, as a reader would; return what they print."""
    for _, name, text in blocks(page):
        if name:
            (folder / name).write_text(text)
    site = folder / "site"
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    printed = ""
    for language, _, text in blocks(page):
        if language != "console":
            continue
        for command in text.strip().splitlines():
            if command.startswith("robust-nc") and not site.exists():  # nothing was installed
                with contextlib.chdir(folder):
                    words = shlex.split(command)[1:]
                    files = [sorted(folder.glob(w)) if "*" in w else [w] for w in words]
                    ran = cli(*itertools.chain(*files))
                assert ran.code == 0, ran.err
                printed += ran.out
                continue
            # Into a folder of the test instead of the environment, and without the network.
            line = command.replace(
                "pip install", f"python -m pip install -q --no-build-isolation --target {site}"
            )
            done = subprocess.run(
                line, shell=True, cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            printed += done.stdout
    return printed


def test_the_page_on_defenses_can_be_followed(tmp_path: Path) -> None:
    printed = follow("docs/adding_a_defense.md", tmp_path)
    records = [stored.record for stored in read_all(tmp_path / "out" / "one-step")]
    assert {record.objective for record in records} == {"standard", "one_step"}
    assert all(record.model in printed for record in records)


def test_the_page_on_attacks_can_be_followed(tmp_path: Path) -> None:
    printed = follow("docs/adding_an_attack.md", tmp_path)
    assert re.fullmatch(r"clean \d+\.\d%, robust \d+\.\d%\n", printed)


def test_the_page_on_evaluating_can_be_followed(tmp_path: Path) -> None:
    printed = follow("docs/evaluating.md", tmp_path)
    found = {path.suffix for path in (tmp_path / "out/net").iterdir() if path.is_file()}
    assert {".json", ".parquet", ".evidence", ".html", ".receipt"} <= found
    assert "net-trained on digits, Linf 0.05, protocol standard" in printed
    assert "schema ok, upper bound proven, audited 20" in printed


def test_the_page_on_publishing_can_be_followed(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()  # of the clone that the reader has
    printed = follow("docs/publishing.md", tmp_path)
    (stored,) = read_all(tmp_path / "results")
    assert stored.path.parent == tmp_path / "results/evaluated/Two-layers"
    assert stored.record.card is not None
    assert stored.record.card.authors == "Ada Lovelace, Alan Turing"
    assert "schema ok, upper bound proven" in printed


def test_the_suites_of_the_page_can_be_run_and_its_tree_read(tmp_path: Path) -> None:
    for _, name, text in [block for block in blocks("docs/suites.md") if block[0] == "toml"]:
        (tmp_path / name).write_text(text)
    assert len(read_suite(str(tmp_path / "suite.toml")).cells) == 2
    assert read_hierarchy(str(tmp_path / "tree.toml")).distances()[0].tolist() == [0, 1, 2]
    ran = cli("run", tmp_path / "more.toml", "--out", tmp_path / "out", "--workers", 1)
    assert "2 cells made, 0 kept, 0 failed" in ran.err


def test_the_python_of_the_page_on_systems_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(t for language, _, t in blocks("docs/systems.md") if language == "python")
    exec(compile(code, "systems.md", "exec"), {})
    assert "nc1_trace" in capsys.readouterr().out


def test_the_page_on_measures_lists_every_measure() -> None:
    """Its table is what `python -m robust_nc.geometry.measures` prints."""
    assert f"\n\n{measures_table()}\n\n" in (ROOT / "docs/measures.md").read_text()


def test_the_page_of_claims_is_what_the_answers_say() -> None:
    """Numbers of the page are those of the answers, of claims that are as they were decided."""
    claims, folder = read_claims(), "results/claims/answers/"
    found = {answer.claim.id: answer for answer in read_answers(ROOT / folder)}
    answers = [found.pop(plan.claim.id) for plan in claims.plans]
    assert not found
    assert [one.claim_digest for one in answers] == [plan.digest for plan in claims.plans]
    page = answers_page(answers, description=claims.description, folder=f"../{folder}")
    assert (ROOT / "docs/claims.md").read_text().startswith(page)
    for answer in answers:
        for used in answer.records:
            record = ROOT / "results" / answer.claim.suite / used.model / f"{used.cell}.json"
            assert sha256_of(record) == used.record


def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", BLOCK.sub("", page.read_text()))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert dead == []


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(t for language, _, t in blocks("README.md") if language == "python")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "robust" in printed
    assert "penultimate" in printed
