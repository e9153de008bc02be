"""The site of a board: complete, escaped, self-contained; and written again without waste."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import helpers_report as helpers
import pandas as pd
import pytest

from robust_nc.exceptions import InputError, RecordError
from robust_nc.pipeline.finished_model import named_dataset
from robust_nc.record import Caution, EvidenceFile, Stored
from robust_nc.report.site.figures import NAME, FigureLimits
from robust_nc.report.site.model import how_to_reproduce, how_to_verify
from robust_nc.report.site.tables import cell, published_boards
from robust_nc.report.site.write import write_site

QUICK = FigureLimits(together=0, own=("leap_rate_per_layer",))
BARE = FigureLimits(models=0, together=0)


class Page(HTMLParser):
    """Collects what a test asks of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    def all(self, tag: str, attribute: str) -> list[str]:
        return [
            str(found[attribute]) for name, found in self.tags if name == tag and attribute in found
        ]


def changed(stored: Stored, **changes: Any) -> Stored:
    return stored._replace(record=dataclasses.replace(stored.record, **changes))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Two models, two seeds; one record has a warning."""
    out = tmp_path_factory.mktemp("grid")
    first, *others = helpers.write_grid(out, objectives=("pgd",), seeds=2)
    warning = Caution(name="gradient masking", message="the loss is flat")
    return [changed(first, warnings=(warning,)), *others]


@pytest.fixture(scope="module")
def page(records: list[Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(records, tmp_path_factory.mktemp("site"))


def test_the_page_leads_to_every_model(records: list[Stored], page: Path) -> None:
    found = Page(page.read_text())
    links = [link for link in found.all("a", "href") if link.startswith("model/")]
    assert len(links) == len(set(links)) == len({stored.record.model for stored in records}) == 2
    for link in links:
        assert re.fullmatch(r"model/small_cnn-(etf|linear)-pgd-[0-9a-f]{8}\.html", link)
        model = Page((page.parent / link).read_text())
        assert "robust-nc run synthetic" in model.words
        assert [word for word in model.words if word.startswith("robust-nc verify small_cnn")]
        images = model.all("img", "src")
        assert len(images) == 7
        assert all(
            re.fullmatch(r"\.\./figures/[0-9a-f]{16}/[a-z_]+\.png", image) for image in images
        )
        assert all((page.parent / "model" / image).is_file() for image in images)
        assert all(alt for alt in model.all("img", "alt"))
        assert {"stem", "penultimate"} <= set(model.words)
    for word in ("Linf 0.15", "digits, 4 classes", "threads 1", "torch 2.13.0"):
        assert word in page.read_text()


def test_figures_stand_side_by_side_on_a_page_of_their_own(page: Path) -> None:
    found = Page((page.parent / "figures.html").read_text())
    images = found.all("img", "src")
    assert "figures/story.png" in images  # which documents point to
    assert all((page.parent / image).is_file() for image in images)
    assert "Heads against linear" in found.words


def test_only_so_many_models_are_drawn(records: list[Stored], tmp_path: Path) -> None:
    site = write_site(records, tmp_path, limits=QUICK._replace(models=1)).parent
    texts = [path.read_text() for path in (site / "model").iterdir()]
    assert sorted(text.count("<img") for text in texts) == [0, 1]
    assert sum("drawn for the first 1 models" in text for text in texts) == 1
    assert all("Layer by layer" in text and "penultimate" in text for text in texts)
    assert "2 models; at most 0 are drawn" in (site / "figures.html").read_text()


def test_the_gap_stands_on_boards_with_a_weaker_protocol(
    records: list[Stored], page: Path, tmp_path: Path
) -> None:
    assert "gap" not in Page(page.read_text()).all("th", "data-key")
    first, *others = records
    one = changed(
        first,
        config={**first.record.config, "evaluation": {"beside": "pgd_ce"}},
        scores={**first.record.scores, "robust_beside": first.record.scores["robust"]},
    )
    elsewhere = [
        changed(stored, data=dataclasses.replace(stored.record.data, dataset="other"))
        for stored in others
    ]
    text = write_site([one, *elsewhere], tmp_path, limits=BARE).read_text()
    assert Page(text).all("th", "data-key").count("gap") == 2  # all tables have the same columns
    assert text.count("by how much pgd_ce flatters") == 1  # of two boards


def test_links_lead_to_places_of_the_site(page: Path) -> None:
    paths = [page, *page.parent.glob("*.html"), *page.parent.glob("model/*.html")]
    for path in paths:
        found = Page(path.read_text())
        places = {identifier for _, facts in found.tags if (identifier := facts.get("id"))}
        for link in found.all("a", "href"):
            target, _, place = link.partition("#")
            assert (path.parent / target).is_file() if target else place in places


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    for path in (page, page.parent / "figures.html", *page.parent.glob("model/*.html")):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
        found = Page(text)
        policy = found.all("meta", "content")[0]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        scripts = [facts for name, facts in found.tags if name == "script"]
        assert len(scripts) == (2 if path == page else 0)
        assert not any("src" in facts for facts in scripts)
    style = (page.parent / "style.css").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", style)


def test_published_rows_stand_apart() -> None:
    with pytest.raises(InputError, match="lack the columns ball, model"):
        published_boards(pd.DataFrame({"dataset": ["a"], "clean": [0.5], "robust": [0.5]}))
    row = {"dataset": "cifar10", "ball": "Linf 8/255", "model": "Some2020Net", "clean": 0.9}
    rows = [{**row, "robust": 0.6, "link": "https://a.org/x"}, {**row, "robust": float("nan")}]
    (board,) = published_boards(pd.DataFrame(rows))
    assert [row["page"] for row in board.rows] == ["https://a.org/x", ""]
    assert [cell(row, board.columns[2])[0] for row in board.rows] == ["60.0", "-"]
    assert "unverified" in board.caption


def test_an_appraisal_tells_how_to_get_it_again() -> None:
    record = helpers.record(
        suite="evaluated",
        config={
            "model": {"reference": "my nets/a.py:net"},
            "threat": {"norm": "Linf", "eps": 8 / 255},
        },
        evidence=EvidenceFile(name="a.evidence", sha256="0" * 64, bytes=1000, broken=7),
    )
    command = how_to_reproduce(record)
    assert command == (
        "robust-nc evaluate 'my nets/a.py:net' --dataset digits --norm Linf --eps 8/255 "
        "--protocol pgd --n 200 --seed 0 --no-geometry"
    )
    more = {
        "data": {"dataset": {"name": "npz", "options": {"path": "my data/x.npz"}}},
        "evaluation": {"attack": {"name": "mine.py:attack", "options": {}}},
        "measure": {"taps": ["layer1", "penultimate"]},
    }
    data = dataclasses.replace(record.data, dataset="npz")
    whole = how_to_reproduce(dataclasses.replace(record, data=data, config=record.config | more))
    assert whole == (
        "robust-nc evaluate 'my nets/a.py:net' --dataset 'npz?path=my+data/x.npz' --norm Linf "
        "--eps 8/255 --protocol pgd --n 200 --seed 0 --attack mine.py:attack "
        "--taps layer1 penultimate"
    )
    assert named_dataset("npz?path=my+data/x.npz").options == {"path": "my data/x.npz"}
    stored = Stored(record, Path("/results/evaluated/a/b.json"))
    checked = "robust-nc verify a/b.json --model 'my nets/a.py:net' --audit 300"
    assert how_to_verify(stored, Path("/results/evaluated")) == checked
    for evil in ("--out=/etc", "a\nrm -rf", "x" * 1000, ""):
        config = {**record.config, "model": {"reference": evil}}
        assert how_to_reproduce(dataclasses.replace(record, config=config)) == ""


def test_warnings_are_shown(page: Path) -> None:
    text = "".join(path.read_text() for path in page.parent.glob("model/*.html"))
    assert text.count("<strong>gradient masking</strong>: the loss is flat") == 1


def test_nothing_and_damaged_rows_are_refused(records: list[Stored], tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no records"):
        write_site([], tmp_path)
    lost = Stored(records[0].record, tmp_path / "elsewhere.json")
    with pytest.raises(RecordError, match="missing"):
        write_site([lost], tmp_path)
    assert not (tmp_path / "index.html").exists()


# A site that is written again.


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
