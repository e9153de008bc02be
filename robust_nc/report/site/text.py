"""Strangers' text on a page: escaped, cut, stripped of what steers a reader's eyes or a terminal.

>>> environment().from_string("{{ name }}").render(name="<script>")
'&lt;script&gt;'
>>> https_link("javascript:alert(1)"), https_link("https://arxiv.org/abs/2311.07444")
('', 'https://arxiv.org/abs/2311.07444')
"""

import base64
import hashlib
import re
import unicodedata
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SHORT, LONG = 80, 2000  # characters that are shown in a cell, and of a text
_REPLACED = "\ufffd"
_SPACES = frozenset("\n\r\t")
# Marks that turn the direction of the text after them.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Controls, half of a surrogate pair, ends of lines that only some programs see.
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_LINK = re.compile(r"https://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?([/?#][!#-;=?-~]{0,500})?")


def environment() -> Environment:
    """Return the templates' environment: all output visible and escaped, no undefined names."""
    return Environment(
        loader=PackageLoader("robust_nc.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def visible(text: str) -> str:
    """Replace controls and marks of direction; spaces of any kind become a space.

    >>> visible("a\\u202eb\\nc")
    'a\\ufffdb c'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def cut(text: str, most: int = SHORT) -> str:
    """Cut a text that is longer than a reader wants, and say so.

    >>> cut("abcdef", 3), cut("abc", 3)
    ('abc... (6 characters)', 'abc')
    """
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def file_stem(text: str, digest: str) -> str:
    """Name a file after a stranger's text: safe characters, and a digest that tells it apart.

    >>> file_stem("../../etc/passwd", "0123456789abcdef"), file_stem("...", "01234567")
    ('etc_passwd-01234567', 'x-01234567')
    """
    words = re.sub(r"[^A-Za-z0-9._=-]+", "_", text[:200]).strip("._-")
    return f"{words[:60] or 'x'}-{digest[:8]}"


def https_link(text: str) -> str:
    """Return a text that is a plain https address, or ""."""
    return text if _LINK.fullmatch(text) else ""


def script_hash(script: str) -> str:
    """Source expression that lets a content security policy run this script and no other.

    >>> script_hash("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    found = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(found).decode()}"


def _visible(character: str) -> str:
    if character in _SPACES:
        return " "
    hidden = character in _TURNING or unicodedata.category(character) in _UNSEEN
    return _REPLACED if hidden else character


def _finalize(value: Any) -> Any:
    # Markup is what a template itself made; everything else is text.
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
