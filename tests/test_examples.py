"""The scripts of `examples/` run as they are, in a folder of the test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAYS = {
    "compare_heads.py": r"small_cnn-etf-pgd +2 ",
    "evaluate_model.py": r"Outcome of 60 examples\n(.*\n)+wrote broken.png",
    "own_defense.py": r"own_defense.py:NoisyImages\nOutcome of 100 examples",
    "profile_network.py": r"penultimate +0\.\d+(.*\n)+wrote layers.png",
    "publish.sh": r"bound .*is at most (.*\n)+.*state +reproduced",
}


def test_every_example_is_tried() -> None:
    assert {path.name for path in (ROOT / "examples").iterdir()} - {"__pycache__"} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    program = sys.executable if name.endswith(".py") else "sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [program, ROOT / "examples" / name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "TMPDIR": str(tmp_path), "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout), done.stdout
    assert not list((ROOT / "examples").glob("*.png"))
