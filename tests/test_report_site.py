"""The page: complete, escaped, self-contained."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import helpers_report as helpers
import pytest

from robust_nc.exceptions import RecordError
from robust_nc.record import Caution, Stored, read_record, tidy, write_record, write_rows
from robust_nc.report.site import write_site

EVIL = "<script>alert('x')</script>\"'&{{7*7}}"


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


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Two models, two seeds; one record has a warning."""
    out = tmp_path_factory.mktemp("grid")
    first, *others = helpers.write_grid(out, objectives=("pgd",), seeds=2)
    warning = Caution(name="gradient masking", message="the loss is flat")
    return [first._replace(record=dataclasses.replace(first.record, warnings=(warning,))), *others]


@pytest.fixture(scope="module")
def page(records: list[Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(records, tmp_path_factory.mktemp("site"))


def test_the_page_has_every_model_and_figure(records: list[Stored], page: Path) -> None:
    found = Page(page.read_text())
    for name in {stored.record.model for stored in records}:
        assert found.words.count(name) >= 2  # in the board and as a heading of its own
    images = found.all("img", "src")
    assert len(images) == 6
    assert all((page.parent / image).is_file() for image in images)
    assert all(alt for alt in found.all("img", "alt"))
    assert "robust-nc run synthetic" in found.words
    assert "1 to 2 seeds" not in page.read_text()
    for word in ("Linf 0.15", "digits, 4 classes", "threads 1", "torch 2.13.0"):
        assert word in page.read_text()


def test_numbers_stand_in_the_board_to_sort_by(page: Path) -> None:
    found = Page(page.read_text())
    values = [float(value) for value in found.all("td", "data-value")]
    # 124 and 126 of 200 for etf, 120 and 122 for linear.
    assert values.count(0.625) == 1
    assert values.count(0.605) == 1
    assert "62.5 [62.0, 63.0]" in found.words
    assert found.all("th", "aria-sort") == ["descending"]
    assert "nan" not in page.read_text().lower().replace("nanoseconds", "")


def test_the_gap_stands_on_boards_with_a_weaker_protocol(
    records: list[Stored], page: Path, tmp_path: Path
) -> None:
    assert not {"gap", "gap, points"} & set(Page(page.read_text()).words)
    assert "gap to robust" not in page.read_text()
    first, *others = records
    told = dataclasses.replace(
        first.record,
        config={**first.record.config, "evaluation": {"beside": "pgd_ce"}},
        scores={**first.record.scores, "robust_beside": first.record.scores["robust"]},
    )
    one = first._replace(record=told)
    elsewhere = [
        stored._replace(
            record=dataclasses.replace(
                stored.record, data=dataclasses.replace(stored.record.data, dataset="other")
            )
        )
        for stored in others
    ]
    found = Page(write_site([one, *elsewhere], tmp_path / "site").read_text())
    assert found.words.count("gap, points") == 1  # of two boards
    assert found.words.count("gap") == 1


def test_links_lead_to_places_on_the_page(page: Path) -> None:
    found = Page(page.read_text())
    places = {identifier for _, attributes in found.tags if (identifier := attributes.get("id"))}
    links = found.all("a", "href")
    assert len(links) == 2
    assert all(link.startswith("#") and link[1:] in places for link in links)


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    found = Page(text)
    assert [a for name, a in found.tags if name == "script"] == [{}]
    assert found.all("link", "href") == ["data:,"]


def poisoned(stored: Stored, out: Path) -> Stored:
    """The same record with a script in every text that a record holds."""

    def poison(value: Any, key: str = "") -> Any:
        if key in {"rows", "config", "verdict", "cell"} or isinstance(value, bool):
            return value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value)]
            changes = {name: poison(getattr(value, name), name) for name in names}
            return dataclasses.replace(value, **changes)
        if isinstance(value, dict):
            return {
                f"{k}{EVIL}" if key != "scores" and key != "summary" else k: poison(v)
                for k, v in value.items()
            }
        if isinstance(value, tuple):
            return tuple(poison(one) for one in value)
        return EVIL if isinstance(value, str) else value

    record = dataclasses.replace(
        stored.record, warnings=(Caution(name="masking", message="careful"),)
    )
    record = poison(record)
    config = {**record.config, "model": {"backbone": {"name": EVIL}}, "threat": {"norm": EVIL}}
    rows = tidy(helpers.rows_of("standard", "etf", 0))
    rows = rows.assign(tap=rows["tap"] + EVIL, feature=EVIL, note=EVIL)
    file = write_rows(out / "evil.parquet", rows)
    path = out / "evil.json"
    write_record(path, dataclasses.replace(record, config=config, rows=file))
    return read_record(path)


def test_everything_from_records_is_escaped(records: list[Stored], tmp_path: Path) -> None:
    evil = poisoned(records[0], tmp_path)
    text = write_site([evil], tmp_path / "site").read_text()
    found = Page(text)
    assert [name for name, _ in found.tags].count("script") == 1
    assert text.count("&lt;script&gt;alert") > 20
    assert "alert('x')" not in text
    assert "7*7" in text
    assert not [a for _, a in found.tags if any(name.startswith("on") for name in a)]
    assert {path.parent for path in tmp_path.rglob("*.png")} == {tmp_path / "site" / "figures"}


def test_warnings_are_shown(page: Path) -> None:
    assert "<strong>gradient masking</strong>: the loss is flat" in page.read_text()


def test_nothing_and_damaged_rows_are_refused(records: list[Stored], tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no records"):
        write_site([], tmp_path)
    lost = Stored(records[0].record, tmp_path / "elsewhere.json")
    with pytest.raises(RecordError, match="missing"):
        write_site([lost], tmp_path)
    assert not (tmp_path / "index.html").exists()
