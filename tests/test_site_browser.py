"""The page in a real Chromium: what a reader does with it, by mouse and by keyboard."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_report as helpers
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from robust_nc.claims.answers import read_answers
from robust_nc.claims.figure import write_figure
from robust_nc.cli.compare import compare_command
from robust_nc.cli.options import CompareOptions
from robust_nc.record import tidy, write_rows
from robust_nc.report.site.figures import FigureLimits
from robust_nc.report.site.write import write_site

pytestmark = pytest.mark.browser
OpenPage = Callable[..., Any]
MODELS = 6  # of the sample site
PUBLISHED = 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with every page: six models (two with figures), two rows of others, our claims."""
    rows = [
        {
            "dataset": "cifar10",
            "ball": "Linf 8/255",
            "model": f"Someone202{i}",
            "clean": 0.9,
            "robust": 0.5 + 0.01 * i,
            "link": "https://example.org/paper",
            "authors": "A. Author",
            "extra_data": True,
        }
        for i in range(PUBLISHED)
    ]
    folder = tmp_path_factory.mktemp("site")
    docs = [Path(__file__).parent.parent / "docs", folder / "docs"]
    subprocess.run([sys.executable, "-m", "sphinx", "--quiet", "--tag", "site", *docs], check=True)
    made = helpers.write_grid(tmp_path_factory.mktemp("grid"), seeds=2)
    sides = (made[0].path, made[-1].path)
    compare_command(CompareOptions(*sides, folder), Console(file=io.StringIO()))
    return write_site(
        made,
        folder,
        published=pd.DataFrame(rows),
        claims=read_answers(Path(__file__).parent.parent / "results" / "claims" / "answers"),
        draw_claim=write_figure,
        limits=FigureLimits(models=2, together=0),
    ).parent


@pytest.fixture
def page(open_page: OpenPage, site: Path) -> Any:
    return open_page(site / "index.html")


def column(page: Any, key: str) -> list[str]:
    """The texts of a column of our first table, in the order in which they stand."""
    return page.evaluate(
        """key => {
            const table = document.querySelector("table.ours");
            const at = [...table.tHead.rows[0].cells].findIndex(c => c.dataset.key === key);
            return [...table.tBodies[0].rows].filter(r => !r.hidden)
                .map(r => r.cells[at].textContent);
        }""",
        key,
    )


def numbers(page: Any, key: str) -> list[float]:
    return [float(text.split()[0]) for text in column(page, key)]


def shown(page: Any) -> str:
    return page.inner_text("#count")


def header(page: Any, key: str) -> Any:
    return page.locator(f"table.ours th[data-key={key}]")


def told(page: Any, words: str) -> None:
    """Wait for the live region."""
    page.locator("#count", has_text=words).wait_for()


def test_clicks_and_keys_sort_and_say_so(page: Any) -> None:
    assert numbers(page, "robust") == sorted(numbers(page, "robust"), reverse=True)
    header(page, "nc1_attacked").locator("button").click()
    assert numbers(page, "nc1_attacked") == sorted(numbers(page, "nc1_attacked"), reverse=True)
    assert header(page, "nc1_attacked").get_attribute("aria-sort") == "descending"
    assert page.locator("table.ours th[aria-sort]").count() == 1
    button = header(page, "model").locator("button")
    button.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert button.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert column(page, "model") == sorted(column(page, "model"))
    page.keyboard.press("Space")
    assert column(page, "model") == sorted(column(page, "model"), reverse=True)


def test_filters_and_search_count_aloud_and_a_missing_number_stays_last(page: Any) -> None:
    for order in ("landed", "-landed"):
        page.goto(page.url.split("#")[0] + f"#?columns=landed&sort={order}")
        page.reload()
        texts = column(page, "landed")
        known = [text for text in texts if text != "-"]
        assert texts[: len(known)] == known != texts
    page.click("#reset")
    total = MODELS + PUBLISHED
    assert shown(page) == f"{total} of {total} rows"
    assert page.locator("#count").get_attribute("role") == "status"
    page.select_option("select[name=head]", "etf")
    told(page, f"3 of {total} rows")
    assert set(column(page, "head")) == {"etf"}
    page.fill("input[type=search]", "TRADES etf")
    told(page, f"1 of {total} rows")
    page.fill("input[type=search]", "no such model")
    told(page, "No row matches")
    page.click("#reset")
    told(page, f"{total} of {total} rows")
    page.select_option("select[name=state]", "unverified")
    told(page, f"{PUBLISHED} of {total} rows")
    assert page.locator("section.board:visible").count() == 1


def test_columns_are_chosen(page: Any) -> None:
    assert not header(page, "parameters").is_visible()
    assert header(page, "nc1_clean").is_visible()
    page.click("details.columns summary")
    page.check("input[value=parameters]")
    page.uncheck("input[value=nc1_clean]")
    header(page, "parameters").wait_for()
    header(page, "nc1_clean").wait_for(state="hidden")
    assert "parameters" in page.url


def test_an_address_says_it_all(page: Any, open_page: OpenPage) -> None:
    page.select_option("select[name=objective]", "pgd")
    told(page, "2 of")
    page.fill("input[type=search]", "cnn")
    header(page, "clean").locator("button").click()
    page.locator("table.ours tbody tr:visible input").nth(0).check()
    page.locator("table.ours tbody tr:visible input").nth(1).check()
    page.wait_for_url("**q=cnn**")
    before = (column(page, "model"), shown(page))
    other = open_page(page.url)
    for _ in range(2):
        assert (column(other, "model"), shown(other)) == before
        assert other.input_value("input[type=search]") == "cnn"
        assert header(other, "clean").get_attribute("aria-sort") == "descending"
        assert other.locator("table.compared thead a").count() == 2
        other.reload()


def test_a_foreign_address_does_no_harm(open_page: OpenPage, site: Path) -> None:
    fragment = "#?sort=-%3Cimg%3E&head=%22%3E&columns=__proto__,rank&compare=zz,../x"
    page = open_page((site / "index.html").as_uri() + fragment)
    assert shown(page).startswith(f"{MODELS + PUBLISHED} of")
    page.goto(page.url.split("#")[0] + "#published")
    assert page.locator("#published").is_visible()


def test_links_lead_to_models_and_back(page: Any) -> None:
    page.select_option("select[name=head]", "etf")
    told(page, "3 of")
    name = column(page, "model")[0]
    page.click(f"table.ours th a:text-is('{name}')")
    page.wait_for_url("**/model/*.html")
    assert page.inner_text("h1") == name
    assert "robust-nc run synthetic" in page.inner_text("main")
    assert "robust-nc verify" in page.inner_text("main")
    pictures = page.locator("figure img")
    assert pictures.count() >= 6
    for index in range(pictures.count()):
        pictures.nth(index).scroll_into_view_if_needed()
    page.wait_for_function("() => [...document.images].every(one => one.naturalWidth > 0)")
    page.go_back()
    told(page, "3 of")
    for link in ("Figures", "Claims", "Published", "Leaderboard"):
        page.click(f"nav a:text-is('{link}')")
    assert page.inner_text("h1").startswith("robust_nc")


def test_models_side_by_side(page: Any) -> None:
    assert not page.locator("#compare").is_visible()
    boxes = page.locator("table.ours tbody input")
    for index in range(3):
        boxes.nth(index).check()
    page.click("#show")
    table = page.locator("table.compared")
    assert table.locator("thead a").all_inner_texts() == column(page, "model")[:3]
    rows = {row.locator("th").inner_text(): row for row in table.locator("tbody tr").all()}
    assert rows["robust %"].locator("td").all_inner_texts() == column(page, "robust")[:3]
    assert rows["robust %"].locator("circle").count() == 3
    assert {"NC1 clean", "leap layer", "collapse radius"} <= set(rows)
    table.locator("button").first.click()
    assert table.locator("thead a").count() == 2
    page.click("#clear")
    assert not page.locator("#compare").is_visible()
    assert page.locator("table.ours input:checked").count() == 0


def test_a_comparison_tells_p_examples_and_pictures(open_page: OpenPage, tmp_path: Path) -> None:
    made = []
    for name, robust in (("pgd", helpers.flags(600)), ("trades", helpers.flags(560, start=40))):
        rows = tidy(helpers.rows_of(name, "etf", 0))
        (tmp_path / name).mkdir()
        about = write_rows(tmp_path / name / "rows.parquet", rows)
        made.append(helpers.written(tmp_path / name, robust, objective=name, rows=about))
    page = open_page(write_site(made, tmp_path / "site"))
    for box in page.locator("table.ours tbody input").all():
        box.check()
    table = page.locator("table.compared")
    rows = table.locator("tbody tr").all()
    told = {row.locator("th").inner_text(): row.locator("td") for row in rows}
    assert told["robust, minus the first"].nth(1).inner_text() == "-4.0 points"
    p = float(told["p, paired"].nth(1).inner_text())
    assert p == pytest.approx(stats.binomtest(0, 40).pvalue, rel=0.06)
    first = ", ".join(map(str, range(12)))
    assert told["the first alone withstands"].nth(1).inner_text() == f"40: number {first}, ..."
    assert told["it alone withstands"].nth(1).inner_text() == "0"
    assert table.locator("img").count() == 4
    page.wait_for_function("() => [...document.images].every(one => one.naturalWidth > 0)")


@pytest.mark.parametrize("width", [1400, 420])
def test_what_counts_is_on_the_screen(open_page: OpenPage, site: Path, width: int) -> None:
    page = open_page(site / "index.html", width=width)
    for key in ("rank", "model", "robust", "state"):
        box = header(page, key).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_a_word_on_a_number_shows_on_focus(open_page: OpenPage, site: Path) -> None:
    shown = "one => getComputedStyle(one, '::after').content"
    page = open_page(site / "index.html")
    head = header(page, "nc1_leap_null")
    assert head.evaluate(shown) == "none"
    head.locator("button").focus()
    assert "what leaps alone cost" in head.evaluate(shown)
    for path in (site / "index.html", next((site / "model").glob("*.html"))):
        page = open_page(path, java_script_enabled=False)
        head = page.locator("th[data-tip]:visible").nth(3)
        head.focus()
        assert head.evaluate(shown) == f'"{head.get_attribute("aria-description")}"'


def test_dots_lead_to_models_by_keyboard(page: Any) -> None:
    dot = page.locator(".dots a").first
    assert page.locator(".dots a").count() == MODELS
    dot.focus()
    assert dot.locator("text").evaluate("one => getComputedStyle(one).visibility") == "visible"
    page.keyboard.press("Enter")
    page.wait_for_url("**/model/*.html")


def test_it_reads_without_scripts(open_page: OpenPage, site: Path) -> None:
    page = open_page(site / "index.html", java_script_enabled=False)
    assert page.locator("table.ours tbody tr:visible").count() == MODELS
    assert page.locator("th[data-key=parameters]").is_visible()
    assert not page.locator("#controls").is_visible()
    assert page.locator("input:visible").count() == 0


CONTRASTS = """() => {
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const over = (top, below) => {
        const a = top.length > 3 ? top[3] : 1;
        return [0, 1, 2].map(k => a * top[k] + (1 - a) * below[k]);
    };
    const ground = one => one === null ? [255, 255, 255]
        : over(parse(getComputedStyle(one).backgroundColor), ground(one.parentElement));
    const texts = [...document.querySelectorAll("body *")].filter(one => one.checkVisibility()
        && [...one.childNodes].some(child => child.nodeType === 3 && child.data.trim()));
    return texts.map(one => {
        const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.outerHTML.slice(0, 80)];
    }).sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_both_widths_and_both_colours(
    open_page: OpenPage, site: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    model = next((site / "model").glob("*.html"))
    names = ("index", "figures", "claims", "compare")
    for path in (model, *(site / f"{name}.html" for name in names)):
        page = open_page(path, width=width, color_scheme="dark" if dark else "light")
        picture = tmp_path / f"{path.stem[:20]}-{width}.png"
        page.screenshot(path=picture)
        assert picture.stat().st_size > 5000
        # A table scrolls inside its box, and never the page sideways.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        contrast, where = page.evaluate(CONTRASTS)
        assert contrast >= 4.5, where
        assert not page.evaluate(
            "[...document.querySelectorAll('main table')]"
            ".filter(one => one.checkVisibility() && !one.caption).length"
        )


@pytest.mark.parametrize("width", [420, 1400])
def test_the_documentation_fits_is_searched_and_leads_back(
    open_page: OpenPage, site: Path, width: int
) -> None:
    for name in ("index", "reference", "lab_book"):
        page = open_page(site / "docs" / f"{name}.html", width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page = open_page(f"{(site / 'docs/search.html').as_uri()}?q=leaderboard", width=1400)
    page.locator("#search-results li a", has_text="Read the leaderboard").wait_for()
    page.locator("aside a", has_text="Leaderboard").first.click()
    assert page.url == (site / "index.html").as_uri()
