"""Strangers' text on a page: escaped, cut, printable.

>>> environment().from_string("{{ name }}").render(name="<script>")
'&lt;script&gt;'
"""

import base64
import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robust_nc.io.text import printable

SHORT, LONG = 80, 2000  # characters that are shown in a cell, and of a text


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


def script_hash(script: str) -> str:
    """Source expression that lets a content security policy run this script and no other.

    >>> script_hash("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    found = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(found).decode()}"


def _finalize(value: Any) -> Any:
    # Markup is what a template itself made; everything else is text.
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
