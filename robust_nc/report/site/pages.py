"""The pages of a site: templates, and what they have in common; all text in them is escaped.

>>> environment().from_string("{{ name }}").render(name="<script>")
'&lt;script&gt;'
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robust_nc.io.files import write_text
from robust_nc.io.text import printable, safe_link
from robust_nc.report.board.formats import number, percent
from robust_nc.report.site.tables import LONG, cell, cut


class Pages:
    """What the pages of a site share: folder, title, and which of the optional pages there are."""

    def __init__(
        self, out: Path, title: str, *, claims: bool = False, published: bool = False
    ) -> None:
        self.out, self.title, self.claims, self.published = out, title, claims, published
        self._templates = environment()

    def write(self, path: str, template: str, *, up: str = "", **values: Any) -> Path:
        """Fill a template and write it to `path`, from where `up` leads to the site's folder."""
        page = self._templates.get_template(template).render(
            {"hashes": "", "site": self, "up": up, **values}
        )
        write_text(self.out / path, page + "\n")
        return self.out / path

    def write_style(self) -> Path:
        """Write the style that all pages share."""
        write_text(self.out / "style.css", self.source("style.css"))
        return self.out / "style.css"

    def source(self, name: str) -> str:
        """Return a style or a script as it is."""
        assert self._templates.loader is not None
        return self._templates.loader.get_source(self._templates, name)[0]


def environment() -> Environment:
    """Return the templates' environment: all output visible and escaped, no undefined names."""
    templates = Environment(
        loader=PackageLoader("robust_nc.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    for written in (cell, cut, file_size, number, percent, safe_link):
        templates.filters[written.__name__] = written
    templates.globals["LONG"] = LONG
    return templates


def script_hash(script: str) -> str:
    """Source expression that lets a content security policy run this script and no other.

    >>> script_hash("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    found = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(found).decode()}"


def file_size(amount: int) -> str:
    """Write a number of bytes.

    >>> file_size(1_234_567)
    '1.2 MB'
    """
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next((f"{amount / n:.1f} {unit}" for unit, n in units if amount >= n), f"{amount} B")


def _finalize(value: Any) -> Any:
    # Markup is what a template itself made; everything else is text.
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
