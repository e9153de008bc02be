"""What strangers wrote, as one line of bounded length that can be shown.

>>> one_line("two\\nlines\\x1b[31m  and spaces")
'two lines?[31m and spaces'
>>> one_line("x" * 2_000)[-4:]
'x...'
"""

import re
from urllib.parse import quote, urlsplit

LONGEST = 500
_PLAIN = "-._~:/?&=+,;@%#"  # what a link may hold as it is, beside letters and digits
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def one_line(text: str, *, limit: int = LONGEST) -> str:
    """Return text without breaks and control characters, at most `limit` characters of it."""
    words = " ".join(_BREAK.sub(" ", text[: 4 * limit]).split())
    shown = "".join(one if one.isprintable() else "?" for one in words)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def safe_link(text: str) -> str:
    r"""Return an http(s) link with all but plain characters percent-encoded, "" for other text.

    >>> safe_link("https://arxiv.org/abs/1706.06083"), safe_link("javascript:alert(1)")
    ('https://arxiv.org/abs/1706.06083', '')
    >>> safe_link("https://x.org/a}\\b")
    'https://x.org/a%7D%5Cb'
    """
    text = text.strip()
    if len(text) > LONGEST or re.search(r"\s", text) or not text.isprintable():
        return ""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        return ""
    return quote(text, safe=_PLAIN)


def safe_name(text: str, *, limit: int = 80) -> str:
    """Return text as a plain file name.

    >>> safe_name("../My model (v2)"), safe_name("...")
    ('My_model_v2', 'unnamed')
    """
    name = re.sub(r"[^A-Za-z0-9_.+=-]+", "_", text[: 4 * limit])[:limit].strip("._-+=")
    return name or "unnamed"
