"""What strangers wrote comes out the same wherever it is shown, and nothing obeys it."""

import re
from pathlib import Path

import pytest
from helpers_exchange import HOSTILE, card_of, filed
from helpers_report import resealed

from robust_nc.exchange import bibliography
from robust_nc.exchange.bibliography import bibtex, entries, entry
from robust_nc.exchange.hub_card import model_card
from robust_nc.exchange.robustbench_published import published_cards
from robust_nc.io.text import LONGEST, printable, safe_link
from robust_nc.record import Card
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.table import leaderboard
from robust_nc.report.site.figures import FigureLimits
from robust_nc.report.site.write import environment, write_site

EVIL = "a\u200bb\u202ec\x1b[31md\ne"
SHOWN = "a?b?c?[31md e"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each surface shows of `EVIL` in a model's name and card, and of links good and bad."""
    folder = tmp_path_factory.mktemp("shown")
    cards = [
        Card(name=EVIL, authors=EVIL, paper=EVIL, venue=EVIL, link="http://example.org/paper"),
        Card(name=EVIL, authors=EVIL, paper=EVIL, venue=EVIL, link="javascript:alert(1)"),
    ]
    records = [filed(folder / "results", seed=seed, card=card) for seed, card in enumerate(cards)]
    records = [resealed(one, model=EVIL) for one in records]
    frame = leaderboard(records)
    for one in records:
        write_site([one], folder / str(one.record.seed), limits=FigureLimits(models=0, together=0))
    return {
        "terminal": format_table(frame, "table"),
        "markdown": format_table(frame, "markdown").replace("\\", ""),
        "latex": format_table(frame, "latex"),
        "bibtex": "\n".join(entry(card, "key") for card in cards),
        "hub": "\n".join(map(model_card, records)).replace("\\", ""),
        "site": "".join(path.read_text() for path in folder.rglob("*.html")),
    }


def test_text_is_the_same_on_every_surface(shown: dict[str, str]) -> None:
    for surface, text in shown.items():
        assert SHOWN in text, surface
        assert not {"\u200b", "\u202e", "\x1b"} & set(text), surface


def test_a_link_is_one_everywhere_or_nowhere(shown: dict[str, str]) -> None:
    assert 'href="http://example.org/paper"' in shown["site"]
    assert "<http://example.org/paper>" in shown["hub"]
    assert "url = {http://example.org/paper}" in shown["bibtex"]
    for surface, text in shown.items():
        assert not re.search("[<{\"'(]javascript:", text), surface


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, M\u00fcller, \u4e2d\u6587 \U0001f600", None),
        ("one\r\ntwo\tthree\u00a0four\u2028five", "one  two three four five"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647", None),
        ("a\u200cb\u200d\u200d\u200bc\ufeff\ud800\x00", "a?b???c???"),
    ],
)
def test_what_no_reader_sees_is_replaced_and_alphabets_stay(
    text: str, expected: str | None
) -> None:
    expected = text if expected is None else expected
    assert printable(text) == expected
    assert environment().from_string("{{ text }}").render(text=text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(6)",
        "data:text/html,<script>alert(8)</script>",
        'https://example.org/" onmouseover="alert(7)',
        "https://user@example.org/",
        "https://ex\u0430mple.org/",
        "https:///nowhere",
        "https://example.org/\u202e",
        "ftp://example.org",
        "https://example.org/" + "x" * LONGEST,
        "",
    ],
)
def test_what_is_no_plain_address_is_no_link(text: str) -> None:
    assert safe_link(text) == ""


def test_an_address_stays_one() -> None:
    for link in ("https://arxiv.org/abs/2311.07444?x=1#a", "http://localhost:8000/a_b/~c"):
        assert safe_link(f" {link}\n") == link
    assert safe_link('https://x.org/"><b>') == "https://x.org/%22%3E%3Cb%3E"


# BibTeX entries: right for a plain card, harmless for any other.

PLAIN = re.compile(r"@(misc|software)\{[a-z0-9_-]+,\n(  [a-z]+ = \{.*\},\n)+\}")


def well_formed(text: str) -> bool:
    """Whether it is a list of entries for BibTeX, which counts braces also behind a backslash."""
    for one in text.strip().split("\n\n"):
        if not PLAIN.fullmatch(one):
            return False
        for line in one.splitlines()[1:-1]:
            depths = [line[: i + 1].count("{") - line[: i + 1].count("}") for i in range(len(line))]
            if min(depths) < 0 or depths[-1] != 0 or 0 in depths[line.index("{") : -2]:
                return False
    return True


def test_a_paper_becomes_an_entry() -> None:
    card = Card(
        authors="Jérôme Rony; Ismail Ben Ayed and Eric Granger",
        paper="Decoupling & more",
        venue="CVPR 2019",
        link="https://arxiv.org/abs/1811.09600",
    )
    (found,) = entries([card, card])
    assert found.splitlines() == [
        "@misc{rony2019decoupling,",
        r"  title = {{Decoupling \& more}},",
        "  author = {Jérôme Rony and Ismail Ben Ayed and Eric Granger},",
        "  year = {2019},",
        "  howpublished = {CVPR 2019},",
        "  url = {https://arxiv.org/abs/1811.09600},",
        "}",
    ]


def test_keys_are_unique_and_do_not_depend_on_the_order() -> None:
    cards = [Card(authors="A B", paper=f"Same word {i}", venue="2020") for i in range(3)]
    found = entries(cards)
    assert [one.split("{")[1].split(",")[0] for one in found] == [
        "b2020same",
        "b2020same-2",
        "b2020same-3",
    ]
    assert entries(cards[::-1]) == found
    published = entries(published_cards().values())
    assert well_formed("\n\n".join(published))
    assert len({one.split("{")[1].split(",")[0] for one in published}) == len(published) == 81
    assert entries([Card(authors="robust_nc", paper="x")])[0].startswith("@misc{robustnc,")


def test_records_give_the_benchmark_and_their_papers(tmp_path: Path) -> None:
    cards = [Card(paper="One"), Card(paper="Two"), Card(paper="One"), None, Card(notes="no paper")]
    stored = [filed(tmp_path, seed=seed, card=card) for seed, card in enumerate(cards)]
    text = bibtex(stored)
    assert text.count("@software{robust_nc,") == 1
    assert text.count("@misc{") == 2
    assert well_formed(text)


@pytest.mark.parametrize("text", [*HOSTILE, "a } b { c {", "\\"])
def test_hostile_cards_give_one_harmless_entry_of_bounded_length(text: str) -> None:
    found = entry(card_of(text), "key")
    assert well_formed(found) or found == "@misc{key,\n}"
    assert len(found) < 20_000
    assert "\\input{" not in found
    assert "\\write" not in found
    assert len(entries([card_of(text)])) == bool(text)


def test_the_entry_of_the_benchmark_is_that_of_the_citation_file() -> None:
    path = Path(__file__).parent.parent / "CITATION.cff"
    told = dict(re.findall(r"^ *-? *([\w-]+): *\"?(.*?)\"?$", path.read_text(), re.MULTILINE))
    assert told["title"] == bibliography.TITLE
    assert told["version"] == bibliography.VERSION
    assert told["date-released"][:4] == bibliography.YEAR
    assert told["name"] == bibliography.AUTHORS
