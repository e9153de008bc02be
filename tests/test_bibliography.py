"""BibTeX entries: right for a plain card, harmless for any other."""

import re
from pathlib import Path

import pytest
from helpers_exchange import HOSTILE, card_of, filed

from robust_nc.exchange import bibliography
from robust_nc.exchange.bibliography import bibtex, entries, entry
from robust_nc.exchange.robustbench_published import published_cards
from robust_nc.record import Card

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
    assert entries([Card(authors="robust_nc", paper="x")])[0].startswith("@misc{robustnc,")


def test_records_give_the_benchmark_and_their_papers(tmp_path: Path) -> None:
    cards = [Card(paper="One"), Card(paper="Two"), Card(paper="One"), None, Card(notes="no paper")]
    stored = [filed(tmp_path, seed=seed, card=card) for seed, card in enumerate(cards)]
    text = bibtex(stored)
    assert text.count("@software{robust_nc,") == 1
    assert text.count("@misc{") == 2
    assert well_formed(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_cards_give_one_harmless_entry_of_bounded_length(text: str) -> None:
    found = entry(card_of(text), "key")
    assert well_formed(found) or found == "@misc{key,\n}"
    assert len(found) < 20_000
    assert "\\input{" not in found
    assert "\\write" not in found
    assert len(entries([card_of(text)])) == bool(text)


def test_a_brace_alone_cannot_eat_the_rest() -> None:
    found = entry(Card(paper="a } b { c {", venue="\\"), "key")
    assert well_formed(found)
    assert r"a \textbraceright{} b \textbraceleft{} c" in found


def test_all_published_cards_make_entries() -> None:
    found = entries(published_cards().values())
    assert well_formed("\n\n".join(found))
    keys = [one.split("{")[1].split(",")[0] for one in found]
    assert len(set(keys)) == len(keys) == 81


def test_the_entry_of_the_benchmark_is_that_of_the_citation_file() -> None:
    path = Path(__file__).parent.parent / "CITATION.cff"
    told = dict(re.findall(r"^ *-? *([\w-]+): *\"?(.*?)\"?$", path.read_text(), re.MULTILINE))
    assert told["title"] == bibliography.TITLE
    assert told["version"] == bibliography.VERSION
    assert told["date-released"][:4] == bibliography.YEAR
    assert told["name"] == bibliography.AUTHORS
