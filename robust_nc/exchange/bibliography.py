r"""BibTeX of what records rest on: the papers that their cards name, and this benchmark.

>>> card = Card(authors="Ada Lovelace, Alan Turing", paper="50% robust", venue="ICLR 2026")
>>> print(entry(card, "lovelace2026robust"))
@misc{lovelace2026robust,
  title = {{50\% robust}},
  author = {Ada Lovelace and Alan Turing},
  year = {2026},
  howpublished = {ICLR 2026},
}
>>> "@software{robust_nc," in bibtex([])
True
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from robust_nc.io.text import escape_latex, one_line, safe_link
from robust_nc.record.schema import Card, Stored

# As in CITATION.cff, which no wheel holds; a test compares the two.
TITLE = (
    "robust_nc: adversarial robustness and the simplex geometry of neural collapse, "
    "measured together"
)
AUTHORS, VERSION, YEAR = "The robust_nc authors", "0.1.0", "2026"

_MOST_AUTHORS = 50
# BibTeX counts braces also behind a backslash, so one alone in a title would eat the rest.
_BRACES = {r"\{": r"\textbraceleft{}", r"\}": r"\textbraceright{}"}


def bibtex(stored: Sequence[Stored]) -> str:
    """Return BibTeX entries: this benchmark's, then one per paper that a card names, by its key."""
    cards = [one.record.card for one in stored if one.record.card is not None]
    ours = {
        "title": f"{{{_latex(TITLE)}}}",
        "author": f"{{{_latex(AUTHORS)}}}",
        "year": YEAR,
        "version": VERSION,
    }
    return "\n\n".join([_entry("software", "robust_nc", ours), *entries(cards)]) + "\n"


def entries(cards: Iterable[Card]) -> list[str]:
    """Return one entry per paper, sorted by key; cards without paper and link are left out."""
    papers = {_paper(card): card for card in cards if card.paper.strip() or safe_link(card.link)}
    keys: set[str] = {"robust_nc"}
    made = {}
    for paper in sorted(papers):  # so that the keys do not depend on the order of the records
        plain = key = _key(papers[paper])
        number = 1
        while key in keys:
            number += 1
            key = f"{plain}-{number}"
        keys.add(key)
        made[key] = entry(papers[paper], key)
    return [made[key] for key in sorted(made)]


def entry(card: Card, key: str) -> str:
    """Return the entry of one card."""
    title = one_line(card.paper) or one_line(card.name) or safe_link(card.link)
    link = safe_link(card.link)
    fields = {
        "title": f"{{{_latex(title)}}}",
        "author": " and ".join(_latex(one_line(name, limit=80)) for name in _authors(card)),
        "year": _year(card),
        "howpublished": _latex(one_line(card.venue)),
        "url": link,
    }
    return _entry("misc", key, fields)


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _paper(card: Card) -> tuple[str, ...]:
    return tuple(one_line(text).lower() for text in (card.paper, card.authors, card.link))


def _authors(card: Card) -> list[str]:
    names = re.split(r"\s*[,;]\s*|\s+and\s+", one_line(card.authors, limit=4_000))
    found = [name for name in names if name]
    return found if len(found) <= _MOST_AUTHORS else [*found[:_MOST_AUTHORS], "others"]


def _year(card: Card) -> str:
    found = re.findall(r"(?<![0-9])(?:19|20)[0-9]{2}(?![0-9])", one_line(card.venue))
    return found[-1] if found else ""


def _key(card: Card) -> str:
    """Last name of the first author, year, first long word of the title; ASCII letters only."""
    first = _authors(card)[:1]
    last = _ascii(first[0].split()[-1]) if first and first[0].split() else ""
    words = [_ascii(word) for word in one_line(card.paper).split()]
    word = next((word for word in words if len(word) > 3), "")
    return f"{last[:30]}{_year(card)}{word[:30]}" or "model"


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain.lower())


def _latex(text: str) -> str:
    escaped = escape_latex(text)
    return re.sub(r"\\[{}]", lambda brace: _BRACES[brace[0]], escaped)
