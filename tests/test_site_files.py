"""A site that is written again: no figure is drawn twice, no page of what is gone stays."""

import json
from pathlib import Path

import helpers_report as helpers
import pytest

from robust_nc.record import Stored
from robust_nc.report.site.figures import FigureLimits
from robust_nc.report.site.ledger import NAME
from robust_nc.report.site.write import write_site


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    return helpers.write_grid(tmp_path_factory.mktemp("grid"), objectives=("pgd",), seeds=1)


QUICK = FigureLimits(together=0, own=("leap_rate_per_layer",))


def files(folder: Path) -> dict[str, int]:
    """Files of a site, and when each was written."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def test_figures_are_drawn_once(records: list[Stored], tmp_path: Path) -> None:
    write_site(records, tmp_path, limits=QUICK)
    before = files(tmp_path)
    write_site(records, tmp_path, limits=QUICK)
    after = files(tmp_path)
    figures = {name for name in after if name.endswith(".png")}
    assert before.keys() == after.keys()
    assert len(figures) == 2
    assert all(before[name] == after[name] for name in figures)
    gone = sorted(figures)[0]
    (tmp_path / gone).unlink()
    write_site(records, tmp_path, limits=QUICK)
    assert gone in files(tmp_path)


def test_pages_of_models_that_are_gone_go(records: list[Stored], tmp_path: Path) -> None:
    write_site(records, tmp_path, limits=QUICK)
    (tmp_path / "model" / "mine.html").write_text("not of the site")
    write_site(records[:1], tmp_path, limits=QUICK)
    left = [name for name in files(tmp_path) if name.startswith(("model", "figures/"))]
    assert len(left) == 3  # a page, a figure, and what the site did not write
    assert "model/mine.html" in left


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        '{"files": 3, "drawn": 4}',
        '{"files": ["../precious.html", "model/../../precious.html", "index.html", 7]}',
    ],
)
def test_a_ledger_that_lies_costs_no_file(records: list[Stored], tmp_path: Path, text: str) -> None:
    (tmp_path / "precious.html").write_text("keep")
    site = tmp_path / "site"
    site.mkdir()
    (site / NAME).write_text(text)
    write_site(records, site, limits=QUICK)
    assert (tmp_path / "precious.html").read_text() == "keep"
    assert (site / "index.html").is_file()


def test_a_ledger_names_no_figure_from_elsewhere(records: list[Stored], tmp_path: Path) -> None:
    write_site(records, tmp_path, limits=QUICK)
    told = json.loads((tmp_path / NAME).read_text())
    for figures, _ in told["drawn"].values():
        for figure in figures:
            figure[0] = "../../secret.png"
    (tmp_path / NAME).write_text(json.dumps(told))
    write_site(records, tmp_path, limits=QUICK)
    assert all("secret" not in path.read_text() for path in (tmp_path / "model").iterdir())


def test_sites_of_many_models_draw_the_first_figures_of_each(
    records: list[Stored], tmp_path: Path
) -> None:
    own = ("leap_rate_per_layer", "leap_matrix")
    write_site(records, tmp_path, limits=QUICK._replace(all_of=1, own=own))
    assert len([name for name in files(tmp_path) if name.endswith(".png")]) == 2
