"""A stranger's record on the page: its text is shown, and does nothing else."""

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers_report as helpers
import pandas as pd
import pytest

from robust_nc.record import (
    Card,
    Caution,
    EvidenceFile,
    Stored,
    tidy,
    write_rows,
)
from robust_nc.report.site.figures import FigureLimits
from robust_nc.report.site.write import write_site

EVILS = (
    "<script>document.title='owned'; alert(1)</script>",
    '"><img src=x onerror="document.title=\'owned\'; alert(2)">',
    "' onfocus=alert(3) autofocus x='",
    "</script></style></textarea></title><svg onload=alert(4)>",
    "javascript:alert(5)",
    "{{7*7}}{% for x in range(9) %}{{ site }}{% endfor %}",
    "evil\u202eexe.gpj\u2066\u2028\x00\x1b[31mend",
    "<!--<script>-->&lt;b&gt;&#60;i&#62;",
    "$\\frac{x$ %s {0} \u4e2d\u6587 \U0001f600",
    "=HYPERLINK(1)" + "A" * 10_000,
    "../../../../" * 20 + "etc/passwd",
)
LINKS = (
    "javascript:alert(6)",
    'https://example.org/" onmouseover="alert(7)',
    "data:text/html,<script>alert(8)</script>",
    "http://user@example.org/",
    "https://user@example.org/",
)
KEPT = {"rows", "verdict", "scores", "summary", "seals"}


def poison(value: Any, evil: str, key: str = "") -> Any:
    """Put a text into every field that holds one."""
    if key in KEPT or isinstance(value, bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(
            value, **{name: poison(getattr(value, name), evil, name) for name in names}
        )
    if isinstance(value, dict):
        return {f"{name}{evil}": poison(one, evil) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(poison(one, evil) for one in value)
    return evil if isinstance(value, str) else value


def write_evil(folder: Path, evil: str, link: str, seed: int) -> Stored:
    rows = tidy(helpers.rows_of("pgd", "etf", 0))
    rows = rows.assign(tap=rows["tap"] + evil, note=evil)
    full = helpers.record(
        seed=seed,
        rows=write_rows(folder / f"{seed}.parquet", rows),
        card=Card(**{field.name: "x" for field in dataclasses.fields(Card) if field.type is str}),
        warnings=(Caution(name="a", message="b"),),
        evidence=EvidenceFile(name="a", sha256="b", bytes=12, broken=3),
        accelerated=("a",),
    )
    made = poison(full, evil)
    config = {
        "model": {"backbone": {"name": evil, "options": {evil: evil}}, "reference": evil},
        "threat": {"norm": evil, "eps": 0.1},
        "evaluation": {"beside": evil},
    }
    card = dataclasses.replace(made.card, link=link)
    return Stored(dataclasses.replace(made, card=card, config=config), folder / f"{seed}.json")


def answer(evil: str) -> SimpleNamespace:
    """An answer to a claim with a text in every field that holds one."""
    summary = SimpleNamespace(values=(), mean=0.5, low=0.4, high=0.6, level=0.95)
    return SimpleNamespace(
        claim=SimpleNamespace(
            id=evil, says=evil, source=evil, expect=evil, reference=0.0, effect=0.1
        ),
        verdict=evil,
        reason=evil,
        tests=(SimpleNamespace(quantity=evil, summary=summary, p=0.1, p_holm=1.0),),
        scale=SimpleNamespace(
            dataset=evil, train_limit=None, backbone=evil, epochs=1, seeds=(0,), ball=evil
        ),
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    (folder / "records").mkdir()
    records = [
        write_evil(folder / "records", evil, LINKS[index % len(LINKS)], index)
        for index, evil in enumerate(EVILS)
    ]
    keys = ("dataset", "ball", "model", "authors", "venue", "architecture", "notes")
    published = pd.DataFrame(
        [
            {**dict.fromkeys(keys, evil), "clean": 0.9, "robust": 0.5, "link": link}
            for evil in EVILS
            for link in LINKS
        ]
    )
    return write_site(
        records,
        folder / "site",
        published=published,
        claims=list(map(answer, EVILS)),
        limits=FigureLimits(together=0, own=("collapse_per_layer",)),
    ).parent


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_text_becomes_markup(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 3 + len(EVILS)
    for path in pages:
        tags = Tags(path.read_text()).found
        names = [name for name, _ in tags]
        assert names.count("script") == (2 if path.name == "index.html" else 0)
        assert not {"svg", "iframe", "object", "base"} & set(names)
        assert not [facts for _, facts in tags if any(key.startswith("on") for key in facts)]
        links = [str(facts["href"]) for name, facts in tags if name == "a"]
        assert not [link for link in links if re.match(r"[a-z]+:", link)], "none of them is a link"


def test_texts_are_shown_as_they_are_but_for_what_misleads(site: Path) -> None:
    text = "".join(path.read_text() for path in site.rglob("*.html"))
    assert text.count("&lt;script&gt;document.title") > 20
    assert "{{7*7}}" in text
    assert not set("\u202e\u2066\u2028\x00\x1b") & set(text)
    assert "(10,013 characters)" in text
    assert len(text) < 3_000_000


def test_no_path_leaves_the_site(site: Path) -> None:
    files = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in files if len(path.parts) > 1} == {"model", "figures"}
    assert all(re.fullmatch(r"[A-Za-z0-9_.=-]{1,90}", path.name) for path in files)
    assert {path.name for path in site.parent.iterdir()} == {"records", "site"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 420])
def test_nothing_runs_and_nothing_leaves(
    open_page: Callable[..., Any], site: Path, width: int
) -> None:
    page = open_page(site / "index.html", width=width)
    for path in (*sorted(site.rglob("*.html")), site / "index.html"):
        page.goto(path.as_uri())
        assert page.title() != "owned"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in page.locator("table.ours tbody input").all():
        box.check()
    page.click("#show")
    for index in range(page.locator("form select").count()):
        page.locator("form select").nth(index).select_option(index=1)
    page.fill("input[type=search]", EVILS[1])
    page.wait_for_timeout(200)
    page.reload()
    assert page.locator("table.compared img, table.compared script").count() == 0
    assert page.locator("table.compared thead a").count() == len(EVILS)
    assert page.title() != "owned"
