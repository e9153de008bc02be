"""The documentation as pages of a site: its Markdown as HTML, its pictures beside.

`python -m robust_nc.report.site.docs docs out/site/docs`, as `make site` does.

>>> _slug("Find, compare, share")
'find-compare-share'
"""

import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markupsafe import Markup

from robust_nc.io.files import write_text
from robust_nc.report.site.write import Pages

SOURCE = "https://github.com/robust-nc/robust_nc/blob/main"
_FIRST = "README.md"
_SCROLLING = {  # by keyboard as well; in a text all of these are escaped
    "<table>": '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>',
    "</table>": "</table></div>",
    "<pre>": '<pre tabindex="0">',
}


def write_docs(folder: Path, out: Path) -> Path:
    """Write every Markdown file below `folder`, and the README beside it, as a page below `out`.

    Pictures come along. Links between them lead to pages, others to the project's source. Returns
    the first page, that of the README.
    """
    folder = folder.resolve()
    readme = folder.parent / _FIRST
    pages = Pages(out.parent, "Documentation", docs=True)
    write_text(out.parent / "style.css", pages.source("style.css"))
    for file in [readme, *sorted(folder.rglob("*.md"))]:
        place = _place(file, folder)
        assert place is not None
        body, title = _html(file, folder)
        up = "../" * len(place.parts)
        pages.write(f"{out.name}/{place}", "docs.html", up=up, body=Markup(body), title=title)
    for picture in folder.rglob("*.png"):
        copy = out / picture.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)
    return out / "index.html"


def _place(file: Path, folder: Path) -> Path | None:
    """Return where a file stands among the pages, None for one that does not."""
    if file == folder.parent / _FIRST:
        return Path("index.html")
    if not file.is_relative_to(folder) or file.suffix not in (".md", ".png"):
        return None
    place = file.relative_to(folder)
    return place.with_suffix(".html") if file.suffix == ".md" else place


def _html(file: Path, folder: Path) -> tuple[str, str]:
    """Turn a file into HTML, with its title."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    text = re.sub(r"<!--.*?-->\n?", "", file.read_text("utf-8"), flags=re.DOTALL)
    tokens, title = reader.parse(text), ""
    for token, after in zip(tokens, [*tokens[1:], *tokens[:1]], strict=True):
        if token.type == "heading_open":
            token.attrSet("id", _slug(after.content))
            title = title or after.content
        if "right" in str(token.attrs.pop("style", "")):  # styles in the page are not allowed
            token.attrSet("class", "n")
        for inner in token.children or []:
            for name in ("href", "src"):
                link = inner.attrGet(name)
                if isinstance(link, str) and not urlsplit(link).scheme and link[:1] != "#":
                    inner.attrSet(name, _target(link, file, folder))
    body = reader.renderer.render(tokens, reader.options, {})
    for plain, scrolling in _SCROLLING.items():
        body = body.replace(plain, scrolling)
    return body, title


def _target(link: str, file: Path, folder: Path) -> str:
    """Return where a link of a file leads to from its page."""
    path, mark, anchor = link.partition("#")
    found = (file.parent / path).resolve()
    here, there = _place(file, folder), _place(found, folder)
    if here is not None and there is not None:
        return f"{os.path.relpath(there, here.parent)}{mark}{anchor}"
    return f"{SOURCE}/{os.path.relpath(found, folder.parent)}{mark}{anchor}"


def _slug(heading: str) -> str:
    """Name a heading as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


if __name__ == "__main__":
    print(f"wrote {write_docs(Path(sys.argv[1]), Path(sys.argv[2]))}")
