r"""What strangers wrote, made fit to be shown: on a terminal, a page, a Hub card, in LaTeX.

A name, a card or a warning may come from anybody. `printable` is what all that shows text sends it
through; `one_line` bounds it as well; `safe_link` says what may be a link; the two `escape` are for
LaTeX and Markdown.

>>> printable("a\u202eb\u200bc\x1b[31m\nd")
'a?b?c?[31m d'
>>> one_line("two\nlines  and spaces"), one_line("x" * 2_000)[-4:]
('two lines and spaces', 'x...')
>>> print(escape_latex("50% of a_b"), escape_markdown("a|b"))
50\% of a\_b a\|b
"""

import re
from urllib.parse import quote

LONGEST = 500  # characters of a line
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_JOINERS = frozenset("\u200c\u200d")  # of scripts that are written with them, and of emoji
_LINK = re.compile(r"https?://[a-z0-9.-]{1,253}(:[0-9]{1,5})?([/?#]\S*)?", re.IGNORECASE)
_PLAIN = "-._~:/?&=+,;@%#"  # what a link may hold as it is, beside letters and digits
_MARKUP = frozenset(r"\`*_[]<>|~#&")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def printable(text: str) -> str:
    """Replace what a terminal would obey or no reader sees; any white space becomes a space."""
    if text.isprintable():
        return text
    return "".join(map(_shown, text, f"{text[1:]} "))


def _shown(one: str, after: str) -> str:
    if one.isspace():
        return " "
    joins = one in _JOINERS and after.isprintable() and not after.isascii()
    return one if joins or one.isprintable() else "?"


def one_line(text: str, *, limit: int = LONGEST) -> str:
    """Return printable text without repeated spaces, at most `limit` characters of it."""
    shown = printable(" ".join(_BREAK.sub(" ", text[: 4 * limit]).split()))
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def safe_link(text: str) -> str:
    r"""Return an http(s) link with all but plain characters percent-encoded, "" for other text.

    >>> safe_link("https://arxiv.org/abs/1706.06083"), safe_link("javascript:alert(1)")
    ('https://arxiv.org/abs/1706.06083', '')
    >>> safe_link("https://x.org/a}\\b"), safe_link("https://user@x.org")
    ('https://x.org/a%7D%5Cb', '')
    """
    text = text.strip()
    fine = len(text) <= LONGEST and text.isprintable() and _LINK.fullmatch(text)
    return quote(text, safe=_PLAIN) if fine else ""


def escape_latex(text: str) -> str:
    """Escape what LaTeX would read as commands."""
    return "".join(_LATEX.get(character, character) for character in printable(text))


def escape_markdown(text: str) -> str:
    """Escape what Markdown would read as markup, HTML or a column."""
    return "".join(f"\\{one}" if one in _MARKUP else one for one in printable(text))
