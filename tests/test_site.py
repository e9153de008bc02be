"""The site of a board: complete, self-contained, written again without waste, and harmless."""

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import helpers_report as helpers
import pandas as pd
import pytest
from PIL import Image

from robust_nc.claims.answers import Answer, read_answers
from robust_nc.claims.figure import write_figure
from robust_nc.exceptions import InputError, RecordError
from robust_nc.pipeline.finished_model import named_dataset
from robust_nc.record import Card, Caution, EvidenceFile, Stored, tidy, write_rows
from robust_nc.record.schema import GeometryUse
from robust_nc.report.board.table import leaderboard
from robust_nc.report.figures import SavedFigure
from robust_nc.report.site.figures import NAME, FigureLimits
from robust_nc.report.site.model import facts, how_to_reproduce, how_to_verify
from robust_nc.report.site.scatter import scatters
from robust_nc.report.site.tables import cell, published_boards, with_pages
from robust_nc.report.site.write import write_site

QUICK = FigureLimits(together=0, own=("leap_rate_per_layer",))
ROW = {"rank", "model", "robust", "nc1_leap_null", "leap_layer", "seeds"}
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


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Two models, two seeds, each judged by a weaker protocol too; one record has a warning."""
    made = helpers.write_grid(tmp_path_factory.mktemp("grid"), objectives=("pgd",), seeds=2)
    warning = Caution(name="gradient masking", message="the loss is flat")
    for index, stored in enumerate(made):
        scores = stored.record.scores | {"robust_beside": stored.record.scores["robust"]}
        config = stored.record.config | {"evaluation": {"beside": "pgd_ce"}}
        warnings = (warning,) if index == 0 else ()
        told = dataclasses.replace(stored.record, scores=scores, config=config, warnings=warnings)
        made[index] = stored._replace(record=told)
    return made


@pytest.fixture(scope="module")
def page(records: list[Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = ("leap_rate_per_layer", "leap_matrix")
    limits = FigureLimits(own=own)
    return write_site(records, tmp_path_factory.mktemp("site"), limits=limits)


def test_the_page_leads_to_every_model(records: list[Stored], page: Path) -> None:
    found = Page(page.read_text())
    links = {link for link in found.all("a", "href") if link.startswith("model/")}
    assert len(links) == len({stored.record.model for stored in records}) == 2
    for link in links:
        assert re.fullmatch(r"model/small_cnn-(etf|linear)-pgd-[0-9a-f]{8}\.html", link)
        model = Page((page.parent / link).read_text())
        assert "robust-nc run synthetic" in model.words
        assert [word for word in model.words if word.startswith("robust-nc verify small_cnn")]
        assert len(model.all("img", "src")) == 2
        assert all(alt for alt in model.all("img", "alt"))
        assert {"stem", "penultimate"} <= set(model.words)
    models = "".join(path.read_text() for path in page.parent.glob("model/*.html"))
    assert models.count("<strong>gradient masking</strong>: the loss is flat") == 1
    for word in ("Linf 0.15", "digits, 4 classes", "threads 1", "by how much pgd_ce flatters"):
        assert word in page.read_text()


def test_a_models_page_says_shows_then_tabulates(page: Path) -> None:
    text = next((page.parent / "model").glob("*linear*.html")).read_text()
    order = ['class="verdict"', 'id="pictures"', 'id="numbers"', 'id="layers"', 'id="evidence"']
    assert sorted(order, key=text.index) == order
    verdict = text.partition('class="verdict">')[2].partition("<")[0]
    assert verdict == (
        "It classifies 60.5 % [60.0, 61.0] of 200 test images, mean of 2 seeds, right under every "
        "attack of protocol pgd within Linf 0.15; 90.0 % are right without an attack. Attacked, "
        "20.5 % of training images leap to the mean of another class, most of them at layer "
        "penultimate."
    )


def test_a_column_with_a_number_that_needs_a_reader_names_it(page: Path) -> None:
    found = Page(page.read_text())
    heads = {str(facts.get("data-key")): facts for tag, facts in found.tags if tag == "th"}
    assert "the layer where most leaps begin" in str(heads["leap_layer"]["data-tip"])
    assert all(
        one["data-tip"] == one["aria-description"] for key, one in heads.items() if key in ROW
    )
    assert found.words.count("penultimate") == 2


def test_the_scatter_shows_others_of_the_same_ball_only(records: list[Stored]) -> None:
    frame = with_pages(leaderboard(records))
    other = {"model": "Some2020Net", "clean": 0.9, "robust": 0.5, "dataset": "digits"}
    theirs = pd.DataFrame([{**other, "ball": ball} for ball in ("Linf 0.15", "L2 1")])
    (found,) = scatters(frame, theirs)
    assert [dot.text for dot in found.theirs] == ["Some2020Net: clean 90.0 %, robust 50.0 %"]
    assert {dot.page for dot in found.ours} == set(frame["page"])
    assert found.theirs[0].x == found.ours[0].x
    assert found.ours[0].y == 200 * (1 - 0.625)


def test_pictures_are_kept_once_they_are_whole(records: list[Stored], tmp_path: Path) -> None:
    calls, missing = [], True

    def pictures(stored: Stored, folder: Path) -> list[SavedFigure]:
        calls.append(stored.record.model)
        if missing:
            return [SavedFigure("adversarial", "", "", None, "the <data> are not here")]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 2)).save(folder / "adversarial-1.png")
        return [SavedFigure("x", "a, taken for <b>", "by c", folder / "adversarial-1.png")]

    for missing in (True, False, False):
        site = write_site(records, tmp_path, limits=QUICK, pictures=pictures).parent
        text = "".join(path.read_text() for path in (site / "model").iterdir())
        assert text.count("The &lt;data&gt; are not here.") == 2 * missing
        assert text.count("<strong>a, taken for &lt;b&gt;.</strong>") == 2 * (not missing)
    assert len(calls) == 4


def test_links_and_figures_lead_to_places_of_the_site(page: Path) -> None:
    paths = [*page.parent.glob("*.html"), *page.parent.glob("model/*.html")]
    for path in paths:
        found = Page(path.read_text())
        places = {identifier for _, facts in found.tags if (identifier := facts.get("id"))}
        for link in found.all("a", "href"):
            target, _, place = link.partition("#")
            assert (path.parent / target).is_file() if target else place in places
        assert all((path.parent / image).is_file() for image in found.all("img", "src"))
    found = Page((page.parent / "figures.html").read_text())
    assert "figures/story.png" in found.all("img", "src")  # which documents point to
    assert "Heads against linear" in found.words


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
    assert [cell(row, board.columns[1])[0] for row in board.rows] == ["60.0", "-"]
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
        "--taps layer1 penultimate --geometry-budget inf"
    )
    passes = record.passes.forward + record.passes.backward
    for use, budget in (
        (GeometryUse(passes=1, allowed=passes, train_examples=1, test_examples=1), ""),
        (GeometryUse(passes=9 * passes, allowed=2**53, train_examples=1, test_examples=1), "inf"),
        (
            GeometryUse(
                passes=1,
                allowed=passes // 5,
                train_examples=1,
                test_examples=1,
                left_out=("attacks",),
            ),
            "0.2",
        ),
    ):
        limited = dataclasses.replace(record, data=data, config=record.config | more, geometry=use)
        assert how_to_reproduce(limited).partition(" --geometry-budget ")[2] == budget
    assert ("geometry left out", f"attacks: beyond {passes // 5:,} passes") in facts([limited])
    mixed = {"path": "x.npz", "shuffle": True}
    config = record.config | {"data": {"dataset": {"name": "npz", "options": mixed}}}
    shuffled = how_to_reproduce(dataclasses.replace(record, data=data, config=config))
    assert "--dataset 'npz?path=x.npz&shuffle=true'" in shuffled
    assert named_dataset("npz?path=x.npz&shuffle=true").options == mixed
    assert named_dataset("npz?path=my+data/x.npz").options == {"path": "my data/x.npz"}
    stored = Stored(record, Path("/results/evaluated/a/b.json"))
    checked = "robust-nc verify a/b.json --model 'my nets/a.py:net' --audit 300"
    assert how_to_verify(stored, Path("/results/evaluated")) == checked
    for evil in ("--out=/etc", "a\nrm -rf", "x" * 1000, ""):
        config = {**record.config, "model": {"reference": evil}}
        assert how_to_reproduce(dataclasses.replace(record, config=config)) == ""


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


def test_figures_are_drawn_once_and_pages_of_models_that_are_gone_go(
    records: list[Stored], tmp_path: Path
) -> None:
    write_site(records, tmp_path, limits=QUICK)
    before = files(tmp_path)
    gone, kept = sorted(name for name in before if name.endswith(".png"))
    (tmp_path / gone).unlink()
    write_site(records, tmp_path, limits=QUICK)
    after = files(tmp_path)
    assert before.keys() == after.keys()
    assert before[kept] == after[kept]
    told = json.loads((tmp_path / NAME).read_text())
    for figures, _ in told["drawn"].values():
        for figure in figures:
            figure[0] = "../../secret.png"
    (tmp_path / NAME).write_text(json.dumps(told))
    write_site(records, tmp_path, limits=QUICK)
    assert all("secret" not in path.read_text() for path in (tmp_path / "model").iterdir())
    (tmp_path / "model" / "mine.html").write_text("not of the site")
    site = write_site(records[:1], tmp_path, limits=QUICK).parent
    left = [name for name in files(site) if name.startswith(("model", "figures/"))]
    assert len(left) == 3  # a page, a figure, and what the site did not write
    assert "model/mine.html" in left


def test_only_so_many_models_are_drawn(records: list[Stored], tmp_path: Path) -> None:
    own = ("leap_rate_per_layer", "leap_matrix")
    limits = QUICK._replace(models=1, all_of=1, own=own)
    site = write_site(records, tmp_path, limits=limits).parent
    texts = [path.read_text() for path in (site / "model").iterdir()]
    counts = sorted(text.count("<img") for text in texts)
    assert counts == [0, 2], "of many models, the first figures of each"
    assert sum("drawn for the first 1 models" in text for text in texts) == 1
    assert "2 models; at most 0 are drawn" in (site / "figures.html").read_text()


def test_a_ledger_that_lies_costs_no_file(records: list[Stored], tmp_path: Path) -> None:
    (tmp_path / "precious.html").write_text("keep")
    site = tmp_path / "site"
    site.mkdir()
    paths = '["../precious.html", "model/../../precious.html", "index.html", 7]'
    for text in ("", "[1, 2]", '{"files": 3, "drawn": 4}', f'{{"files": {paths}}}'):
        (site / NAME).write_text(text)
        write_site(records, site, limits=BARE)
        assert (tmp_path / "precious.html").read_text() == "keep"
        assert (site / "index.html").is_file()


# A stranger's record on the page: its text is shown, and does nothing else.

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


def hostile_answer(evil: str) -> Answer:
    """One of our answers with a text in the fields that hold any."""
    answer = read_answers(Path(__file__).parent.parent / "results/claims/answers")[0]
    return dataclasses.replace(
        answer,
        reason=evil,
        meaning=evil,
        claim=dataclasses.replace(answer.claim, says=evil, source=evil),
        scale=dataclasses.replace(answer.scale, dataset=evil, backbone=evil, ball=evil),
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
        claims=[hostile_answer(evil) for evil in EVILS],
        draw_claim=write_figure,
        limits=FigureLimits(models=4, together=0, own=("collapse_per_layer",)),
    ).parent


def test_no_text_becomes_markup(hostile: Path) -> None:
    pages = sorted(hostile.rglob("*.html"))
    assert len(pages) == 3 + len(EVILS)
    for path in pages:
        tags = Page(path.read_text()).tags
        names = [name for name, _ in tags]
        assert names.count("script") == (2 if path.name == "index.html" else 0)
        assert not {"svg", "iframe", "object", "base"} & set(names)
        assert not [facts for _, facts in tags if any(key.startswith("on") for key in facts)]
        links = [str(facts["href"]) for name, facts in tags if name == "a"]
        assert not [link for link in links if re.match(r"[a-z]+:", link)], "none of them is a link"


def test_texts_are_shown_as_they_are_but_for_what_misleads(hostile: Path) -> None:
    text = "".join(path.read_text() for path in hostile.rglob("*.html"))
    assert text.count("&lt;script&gt;document.title") > 20
    assert "{{7*7}}" in text
    assert not set("\u202e\u2066\u2028\x00\x1b") & set(text)
    assert "(10,013 characters)" in text
    assert len(text) < 3_000_000


def test_no_path_leaves_the_site(hostile: Path) -> None:
    files = [path.relative_to(hostile) for path in hostile.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in files if len(path.parts) > 1} == {"model", "figures"}
    assert all(re.fullmatch(r"[A-Za-z0-9_.=-]{1,90}", path.name) for path in files)
    assert {path.name for path in hostile.parent.iterdir()} == {"records", "site"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 420])
def test_nothing_runs_and_nothing_leaves(
    open_page: Callable[..., Any], hostile: Path, width: int
) -> None:
    page = open_page(hostile / "index.html", width=width)
    for path in (*sorted(hostile.rglob("*.html")), hostile / "index.html"):
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
    assert page.locator("table.compared :is(script, img:not([src^='figures/']))").count() == 0
    assert page.locator("table.compared thead a").count() == len(EVILS)
    assert page.title() != "owned"
