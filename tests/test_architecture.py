"""The house: public names stand once, modules say what they are for, texts name no machine.

The layers of imports are held by import-linter (`make lint`, its contracts are in pyproject.toml).
"""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [path for name in ("robust_nc", "attacks") for path in (ROOT / name).rglob("*.py")]


def test_a_public_class_or_function_has_one_name_in_the_tree() -> None:
    homes = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_every_module_opens_with_what_it_is_for() -> None:
    silent = [path for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_the_repository_speaks_of_the_project_alone() -> None:
    """No machine path and no registry host in any tracked text."""
    hosts = ["pypi.", "npmjs.", "debian.org", "/" + "work/", "/" + "tmp/"]
    texts = [*SOURCES, ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    texts += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
    found = {path: [host for host in hosts if host in path.read_text().lower()] for path in texts}
    assert {path: named for path, named in found.items() if named} == {}
