"""The wheel holds the package, the attacks and the suites, and no top-level `attacks`."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"robust_nc": "robust_nc", "attacks": "robust_nc/attacks"}
KINDS = {".py", ".toml", ".csv", ".html", ".css", ".js", ".json", ".jsonl", ".typed"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as it is, as a stale build/ would hide what is missing."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    return source


@pytest.fixture(scope="module")
def wheel(source: Path) -> list[str]:
    folder = source.parent
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "-w", folder, source], check=True, env=environment)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_every_source_file(wheel: list[str]) -> None:
    expected = {
        f"{inside}/{path.relative_to(ROOT / folder)}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in KINDS and "__pycache__" not in path.parts
    }
    assert len(expected) > 50
    assert expected <= set(wheel), expected - set(wheel)


def test_of_the_benchmarks_the_wheel_holds_the_suites_alone(wheel: list[str]) -> None:
    inside = {name for name in wheel if name.startswith("robust_nc/benchmarks/")}
    suites = {path.name for path in (ROOT / "benchmarks").glob("*.toml")}
    assert inside == {f"robust_nc/benchmarks/{name}" for name in suites | {"__init__.py"}}


def test_nothing_but_robust_nc_is_installed(wheel: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"robust_nc"}


def test_the_source_distribution_brings_documentation_examples_and_tests(source: Path) -> None:
    code = (
        "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, source.parent],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    with tarfile.open(source.parent / made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        *("docs/index.md", "docs/figures/story.png", "examples/publish.sh", "CHANGELOG.md"),
        *("tests/conftest.py", "attacks/apgd.py", "benchmarks/quickstart.toml", "pyproject.toml"),
    }
    assert wanted <= names, wanted - names
    assert not [name for name in names if name.startswith("results/")]


def test_every_link_of_the_readme_leads_somewhere_on_the_page_of_the_release(source: Path) -> None:
    """There the README stands alone, so `make release` gives its links the project's address."""
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"\tsed (-E -i.*?README\.md)\n", makefile, re.S)
    url = re.search(r"^URL := (\S+)", makefile, re.M)
    assert recipe
    assert url
    readme = source / "build/release/README.md"
    readme.parent.mkdir(parents=True)
    readme.write_text((ROOT / "README.md").read_text())
    command = f"sed {recipe[1]}".replace("$(URL)", url[1])
    subprocess.run(command, cwd=source, shell=True, check=True)
    links = re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", readme.read_text(), flags=re.S))
    assert links
    assert all(link.startswith("https://") for link in links)
    kinds = {"/raw/main/": ".png", "/blob/main/": ""}
    for kind, ending in kinds.items():
        inside = [link.partition(kind)[2] for link in links if kind in link]
        assert inside
        assert all((ROOT / path).exists() and path.endswith(ending) for path in inside)
