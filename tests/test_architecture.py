"""The house: public names stand once, modules say what they are for, texts name no machine.

The layers of imports are held by import-linter (`make lint`, its contracts are in pyproject.toml).
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    path.relative_to(ROOT): path.read_text()
    for name in ("robust_nc", "attacks")
    for path in (ROOT / name).rglob("*.py")
}


@pytest.fixture(scope="module")
def modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(text) for path, text in SOURCES.items()}


def test_a_public_class_or_function_has_one_name_in_the_tree(
    modules: dict[Path, ast.Module],
) -> None:
    homes = defaultdict(list)
    for path, module in modules.items():
        for node in module.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_every_module_opens_with_what_it_is_for(modules: dict[Path, ast.Module]) -> None:
    assert [path for path, module in modules.items() if not ast.get_docstring(module)] == []


def test_the_repository_speaks_of_the_project_alone() -> None:
    """No machine path and no registry host in any tracked text."""
    hosts = ["pypi.", "npmjs.", "debian.org", "/" + "work/", "/" + "tmp/"]
    texts = [
        *(ROOT / path for path in SOURCES),
        ROOT / "README.md",
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]
    texts += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
    found = {path: [host for host in hosts if host in path.read_text().lower()] for path in texts}
    assert {path: named for path, named in found.items() if named} == {}
