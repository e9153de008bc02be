"""How the pages here become a site: `make docs`."""

import dataclasses
import inspect
import re
import typing
from importlib.metadata import version as _version
from pathlib import Path

from sphinx.application import Sphinx

import robust_nc

SOURCE = "https://github.com/robust-nc/robust_nc/blob/main"

project = "robust_nc"
author = "The robust_nc authors"
copyright = author
release = _version("robust_nc")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_external_toc",
]
exclude_patterns = ["*.ipynb"]
external_toc_path = "contents.yml"
myst_heading_anchors = 4  # as GitHub names them

default_role = "literal"  # `code` in docstrings is written as in Markdown
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"robust_nc {release}"
html_copy_source = False
html_show_search_summary = False  # it would need a web server
if tags.has("site"):  # beside the leaderboard
    templates_path = ["templates"]
    html_sidebars = {
        "**": [
            "sidebar/brand.html",
            "leaderboard.html",
            "sidebar/search.html",
            "sidebar/scroll-start.html",
            "sidebar/navigation.html",
            "sidebar/scroll-end.html",
        ]
    }


def _annotations_of_configurations() -> None:
    """Show types without what pydantic and tyro alone can read."""
    for part in (*vars(robust_nc.config).values(), robust_nc.Request):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            types = typing.get_type_hints(part)
            taken = inspect.signature(part)
            parameters = [
                one.replace(annotation=types[name]) for name, one in taken.parameters.items()
            ]
            part.__annotations__ = types
            part.__signature__ = taken.replace(parameters=parameters)


def _links_out(app: Sphinx, page: str, text: list[str]) -> None:
    """Let links that leave the documentation lead to the project's source."""
    folder = (Path(app.srcdir) / page).parent

    def target(link: re.Match[str]) -> str:
        there = (folder / link[1]).resolve()
        if there.is_relative_to(app.srcdir) or not there.exists():
            return link[0]
        return f"]({SOURCE}/{there.relative_to(Path(app.srcdir).parent)}"

    text[0] = re.sub(r"\]\((\.\./[^)#]*)", target, text[0])


def _skip(app: Sphinx, kind: str, name: str, part: object, skip: bool, options: object) -> bool:
    """Leave out fields of tuples, which the text of their class tells, and what matplotlib adds."""
    theirs = str(getattr(part, "__module__", "")).startswith("matplotlib.")
    return skip or theirs or str(getattr(part, "__doc__", "")).startswith("Alias for field number")


def setup(app: Sphinx) -> None:
    """Hook into the reading of pages."""
    _annotations_of_configurations()
    app.connect("autodoc-skip-member", _skip)
    app.connect("source-read", _links_out)
