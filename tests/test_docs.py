"""The pages are true: their code runs, their tables are those of the code."""

import contextlib
import io
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runner import cli

import robust_nc
from robust_nc.attacks.gated import Gated
from robust_nc.attacks.protocols import FAST
from robust_nc.attacks.square import Square
from robust_nc.claims.answers import read_answers
from robust_nc.claims.page import answers_page
from robust_nc.claims.reading import read_claims
from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.geometry.measures import measures_table
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import read_suite
from robust_nc.record.folder import read_all
from robust_nc.registry import ATTACKS, OBJECTIVES, PROTOCOLS
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.table import leaderboard
from robust_nc.report.site import write as site
from robust_nc.runtime.progress import no_report
from robust_nc.threat import NORMS, Ball

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Fenced blocks of a page: (language, file name or "", text)."""
    return BLOCK.findall((ROOT / page).read_text())


def run_python(code: Callable[[], object]) -> str:
    """Return what it prints; global draws and the modules of the page are left behind."""
    printed, known = io.StringIO(), set(sys.modules)
    with contextlib.redirect_stdout(printed), torch.random.fork_rng(devices=[]):
        code()
    for name in set(sys.modules) - known:
        place = str(getattr(sys.modules[name], "__file__", ""))
        if place.startswith(str(Path.cwd())) and name.split(".")[0] != "robust_nc":
            del sys.modules[name]
    return printed.getvalue()


def install(folder: Path) -> None:
    """Install the package of a page into a folder of the test, without the network."""
    options = ["-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands, and where Python and the registries find what is installed."""
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "site", tmp_path):
        monkeypatch.syspath_prepend(place)
    for registry in (ATTACKS, OBJECTIVES, PROTOCOLS):  # as they are before any use
        monkeypatch.setattr(registry, "_scanned", False)
        monkeypatch.setattr(registry, "_entries", {})
    return tmp_path


def follow(page: str, folder: Path) -> str:
    """Write the files of a page and run its commands, as a reader would; return what they print."""
    for _, name, text in blocks(page):
        if name:
            (folder / name).write_text(text)
    commands = [text for language, _, text in blocks(page) if language == "console"]
    printed = ""
    for program, *words in map(shlex.split, "".join(commands).splitlines()):
        if program == "pip":
            assert words == ["install", "--no-deps", "."]
            install(folder)
        elif program == "python":
            printed += run_python(lambda file=words[0]: runpy.run_path(file, run_name="__main__"))
        else:
            assert program == "robust-nc"
            files = [sorted(folder.glob(w)) if "*" in w else [w] for w in words]
            ran = cli(*itertools.chain(*files))
            assert ran.code == 0, ran.err
            printed += ran.out
    return printed


def test_the_page_on_defenses_can_be_followed(folder: Path) -> None:
    printed = follow("docs/adding_a_defense.md", folder)
    records = [stored.record for stored in read_all(folder / "out" / "one-step")]
    own = "one_step_defense.py:OneStep"
    assert {record.objective for record in records} == {"standard", own}
    models = {record.model for record in records}
    assert models == {"small_cnn-linear-OneStep", "small_cnn-linear-standard"}
    assert all(model in printed for model in models)


def test_the_page_on_heads_can_be_followed(folder: Path) -> None:
    printed = follow("docs/adding_a_head.md", folder)
    records = [stored.record for stored in read_all(folder / "out" / "corners")]
    assert {record.head for record in records} == {"linear", "corner_head.py:CornerHead"}
    models = {record.model for record in records}
    assert models == {"small_cnn-CornerHead-standard", "small_cnn-linear-standard"}
    assert "leads with" in printed
    rows = read_all(folder / "out" / "corners")[0].rows()
    assert "nc3" in set(rows["measure"])


def test_the_page_on_attacks_can_be_followed(folder: Path) -> None:
    printed = follow("docs/adding_an_attack.md", folder)
    assert re.fullmatch(r"clean \d+\.\d%, robust \d+\.\d%\n", printed)


def test_the_page_on_evaluating_can_be_followed(folder: Path) -> None:
    printed = follow("docs/evaluating.md", folder)
    found = {path.suffix for path in (folder / "out/net").iterdir() if path.is_file()}
    assert {".json", ".parquet", ".evidence", ".html"} <= found
    assert "net-trained on digits, Linf 0.1, protocol standard" in printed
    assert "of 10 broken by standard" in printed
    assert "state        checked" in printed


def test_the_page_on_publishing_can_be_followed(folder: Path, monkeypatch) -> None:
    # Drawn above.
    monkeypatch.setattr(site, "write_model", lambda one, _: one.path.parent / "index.html")
    (folder / "results").mkdir()  # of the clone that the reader has
    printed = follow("docs/publishing.md", folder)
    (stored,) = read_all(folder / "results")
    assert stored.path.parent == folder / "results/evaluated/Two-layers"
    assert stored.record.card is not None
    assert stored.record.card.authors == "Ada Lovelace, Alan Turing"
    assert "state        reproduced" in printed


def test_the_suites_of_the_page_can_be_run_and_its_tree_read(tmp_path: Path) -> None:
    for _, name, text in [block for block in blocks("docs/suites.md") if block[0] == "toml"]:
        (tmp_path / name).write_text(text)
    assert len(read_suite(str(tmp_path / "suite.toml")).cells) == 2
    assert read_hierarchy(str(tmp_path / "tree.toml")).distances()[0].tolist() == [0, 1, 2]
    cells = read_suite(str(tmp_path / "more.toml")).cells
    for cell in cells:
        run_cell(cell, "more", tmp_path / "out", None, report=no_report)
    assert len(read_all(tmp_path / "out")) == len(cells) == 2


FOLLOWED = {"adding_a_defense", "adding_a_head", "adding_an_attack", "evaluating", "publishing"}
PRINTS = {
    "README.md": ["robust", "penultimate"],
    "docs/gallery.md": [],
    "docs/protocols.md": ["attack 2 of 5", "adaptive"],
    "docs/suites.md": ["small_cnn-linear-standard", "1 2."],
    "docs/systems.md": ["nc1_trace"],
}
ATTACK = """
from robust_nc.attacks.pgd import PGD

def adaptive(**options):
    return PGD(steps=2)
"""


def test_every_page_with_python_is_run() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")]
    names = {str(page.relative_to(ROOT)) for page in pages}
    found = {name for name in names if "python" in [block[0] for block in blocks(name)]}
    assert found == {f"docs/{name}.md" for name in FOLLOWED} | set(PRINTS)


@pytest.mark.parametrize("page", PRINTS)
def test_the_python_of_a_page_runs(page: str, folder: Path) -> None:
    """In a folder with the results; `protocols` goes on from the names of the README."""
    (folder / "results").symlink_to(ROOT / "results")
    (folder / "my_attacks.py").write_text(ATTACK)
    code = "\n".join(text for language, _, text in blocks(page) if language == "python")
    torch.manual_seed(0)
    images, labels = robust_nc.load_dataset("digits", split="test", limit=8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    names = {"robust_nc": robust_nc, "model": model, "images": images, "labels": labels}
    given = names if page == "docs/protocols.md" else {}
    printed = run_python(lambda: exec(compile(code, page, "exec"), given))
    assert all(word in printed for word in PRINTS[page]), printed


def told(attack: Any) -> str:
    """Cell of an attack in the table of `fast`."""
    gate = f"{attack.above:g}: " if isinstance(attack, Gated) else ""
    inner = attack.attack if isinstance(attack, Gated) else attack
    black_box = isinstance(inner, Square)
    words = [f"{inner.queries:,} queries" if black_box else f"{inner.steps} steps"]
    words += [f"{inner.num_targets} targets"] if inner.num_targets else []
    words += [f"{inner.restarts} restarts"] if inner.restarts > 1 else []
    words += ["shrinking balls"] if getattr(inner, "enlarged", False) else []
    return gate + ", ".join(words)


def test_the_page_on_protocols_lists_the_attacks_and_gates_of_fast_in_each_norm() -> None:
    lists = [dict(FAST.under(Ball(norm, 1.0)).attacks) for norm in NORMS]
    names = {name for attacks in lists for name in attacks}
    section = (ROOT / "docs/protocols.md").read_text().split("\n## fast\n")[1]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    page = {name.strip("`"): told_of for name, *told_of in cells if len(told_of) == len(lists)}
    assert page == {
        name: [told(attacks[name]) if name in attacks else "" for attacks in lists]
        for name in names
    }


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
    page = answers_page(answers, description=claims.description, folder="answers/")
    assert (ROOT / "results/claims/README.md").read_text().startswith(page)
    for answer in answers:
        for used in answer.records:
            record = ROOT / "results" / answer.claim.suite / used.model / f"{used.cell}.json"
            assert sha256_of(record) == used.record


@pytest.mark.parametrize(
    ("page", "suite", "format"),
    [
        ("README.md", "quickstart", "table"),
        ("docs/fashion.md", "fashion", "markdown"),
        ("docs/cifar10.md", "cifar10-wrn22", "markdown"),
    ],
)
def test_the_table_of_a_page_is_that_of_its_records(page: str, suite: str, format: str) -> None:
    frame = leaderboard(ROOT / "results" / suite)
    assert format_table(frame, format, width=132).strip() in (ROOT / page).read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation beside the leaderboard, as `make site` builds it."""
    out = tmp_path_factory.mktemp("site") / "docs"
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--tag", "site"]
    assert " ".join(["sphinx", *options]) in (ROOT / "Makefile").read_text()
    command = [sys.executable, "-m", "sphinx", *options, ROOT / "docs", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_has_every_page_the_reference_every_public_name(built: Path) -> None:
    """Links between pages are Sphinx's to check; a warning of its is an error."""
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert not [page for page in pages if not (built / page).with_suffix(".html").is_file()]
    reference = (built / "reference.html").read_text()
    assert not [name for name in robust_nc.__all__ if f'id="robust_nc.{name}"' not in reference]
    assert "Annotated" not in reference
    assert '<a class="sidebar-brand" href="../index.html">' in reference
    assert 'href="../../index.html">Leaderboard' in (built / "adr/0009-evidence.html").read_text()


def test_links_of_the_site_that_leave_it_lead_to_the_source(built: Path) -> None:
    source = "https://github.com/robust-nc/robust_nc/blob/main/"
    found = {
        link.partition("#")[0]
        for page in built.rglob("*.html")
        for link in re.findall(f'href="{source}([^"]*)"', page.read_text())
    }
    assert {"README.md", "SECURITY.md", "results/README.md"} <= found
    assert not [link for link in found if not (ROOT / link).exists()]


def test_the_index_and_the_list_of_decisions_name_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.*")} - {"conf.py", "contents.yml"}
    linked = re.findall(r"\]\(([\w.]+)\)", (ROOT / "docs/index.md").read_text())
    assert set(linked) == pages - {"index.md"}
    listed = re.findall(r"\]\((.*?)\)", (ROOT / "docs/decisions.md").read_text())
    assert listed == [f"adr/{path.name}" for path in sorted((ROOT / "docs/adr").glob("*.md"))]


@pytest.mark.parametrize("workflow", ["pages.yml", "release.yml"])
def test_a_workflow_that_publishes_pins_its_actions_and_builds_without_rights(
    workflow: str,
) -> None:
    text = (ROOT / ".github" / "workflows" / workflow).read_text()
    uses = re.findall(r"uses: (\S+)", text)
    assert len(uses) >= 4
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one) for one in uses)
    build = text.partition("  build:")[2].partition("  publish:")[0]
    assert "contents: read" in build
    assert "write" not in build


def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", BLOCK.sub("", page.read_text()))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert dead == []
