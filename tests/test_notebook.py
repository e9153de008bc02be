"""The notebooks run from their first cells to their last; the first says about what it said."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest

DOCS = Path(__file__).parent.parent / "docs"


def cells_of(name: str) -> list[Any]:
    cells = nbformat.read(DOCS / name, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def run(code: str, changes: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Run code with less to do; return its names, and what it prints."""
    for told, done in changes.items():
        assert told in code
        code = code.replace(told, done)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), plt.rc_context({"backend": "agg"}):
        exec(code, names)
        plt.close("all")
    return names, printed.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_on_evaluating_runs() -> None:
    """In this process and with less to do: PGD attacks, which may leave a few more."""
    cells = cells_of("evaluate.ipynb")
    outputs = [output for cell in cells for output in cell.outputs]
    before = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    changes = {
        'protocol="standard"': 'protocol="pgd"',
        "[(images, labels)]": "[(images[:200], labels[:200])]",
    }
    names, after = run("\n".join(cell.source for cell in cells), changes)
    assert len(after.splitlines()) == len(before.splitlines())
    told, found = (
        [int(share) for share in re.findall(r"(\d+)%", text)] for text in (before, after)
    )
    assert len(told) == len(found) == 2
    assert abs(told[0] - found[0]) <= 5, "points, which another machine's training may differ by"
    assert -5 <= found[1] - told[1] <= 10
    assert names["leaps"]["value"].notna().any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_for_a_gpu_runs() -> None:
    """On the CPU, on digits: it installs the package and fetches its data by itself."""
    sources = [cell.source for cell in cells_of("gpu.ipynb")]
    commands = [source for source in sources if source.startswith(("%", "!"))]
    assert commands == ["%pip install --quiet robust-nc", "!robust-nc data fetch cifar10"]
    code = "\n".join(source for source in sources if source not in commands)
    changes = {
        '"cifar10", "preact_resnet18", 10': '"digits", "small_cnn", 1',
        "limit=500": "limit=30",
        "limit=2_000": "limit=100",
        "MeasureConfig(": "MeasureConfig(steps=2, ",
    }
    names, _ = run(code, changes)
    assert len(names["outcome"].robust) == 30
    assert [len(names[axes].lines) > 0 for axes in ("above", "below")] == [True, True]
