"""The wheel holds the package, the attacks and the suites, and no top-level `attacks`."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"robust_nc": "robust_nc", "attacks": "robust_nc/attacks"}
KINDS = {".py", ".toml", ".csv", ".html", ".css", ".js", ".json", ".jsonl", ".typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, tracked):  # a copy: a stale build/ would hide what is missing
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
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
