"""The documentation as pages: that they are whole, and that their links lead somewhere."""

import re
from pathlib import Path

import pytest

from robust_nc.report.site.docs import SOURCE, write_docs

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_docs(ROOT / "docs", tmp_path_factory.mktemp("site") / "docs").parent


def test_every_link_and_picture_leads_somewhere(docs: Path) -> None:
    pages = {path: path.read_text() for path in docs.rglob("*.html")}
    assert len(pages) == 1 + len(list((ROOT / "docs").rglob("*.md")))
    for path, text in pages.items():
        article = text.partition("<article")[2]
        assert " style=" not in text
        for link in re.findall(r'(?:href|src)="([^"]*)"', article):
            if link.startswith(SOURCE):
                found = link.removeprefix(f"{SOURCE}/").partition("#")[0]
                assert (ROOT / found).exists(), (path, link)
            elif "://" not in link:
                target, _, place = link.partition("#")
                there = (path.parent / target).resolve() if target else path
                assert there.is_file(), (path, link)
                assert not place or f'id="{place}"' in there.read_text(), (path, link)


def test_the_workflow_that_publishes_pins_its_actions_and_builds_without_rights() -> None:
    text = (ROOT / ".github" / "workflows" / "pages.yml").read_text()
    uses = re.findall(r"uses: (\S+)", text)
    assert len(uses) == 4
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", one) for one in uses)
    build = text.partition("  build:")[2].partition("  publish:")[0]
    assert "contents: read" in build
    assert "write" not in build


def test_a_page_has_its_title_tables_and_way_back(docs: Path) -> None:
    text = (docs / "leaderboard.html").read_text()
    assert "<title>Read the leaderboard</title>" in text
    assert "<table>" in text
    assert '<a href="../index.html">Leaderboard</a>' in text
    assert '<a href="../../docs/index.html">' in (docs / "adr" / "0009-evidence.html").read_text()
    assert (docs.parent / "style.css").is_file()


def test_markup_in_a_document_is_text(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# <script>alert(1)</script>\n\n<b>x</b> [a](javascript:b)")
    page = write_docs(tmp_path / "docs", tmp_path / "site" / "docs").read_text()
    assert "<script>" not in page
    assert "<b>" not in page
    assert 'href="javascript' not in page
