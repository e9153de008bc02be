"""The notebook runs from its first cell to its last, and says about what it said."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs/evaluate.ipynb"


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What its cells print, line by line."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output["text"] for output in outputs if output.get("name") == "stdout"]
    return "".join(texts).splitlines()


def shares(lines: list[str]) -> list[int]:
    """Clean and robust accuracy in percent, as the first line has them."""
    return [int(share) for share in re.findall(r"(\d+)%", lines[0])]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    before = printed(stored)
    run = NotebookClient(stored, timeout=300, kernel_name="python3").execute()
    after = printed(run)
    assert len(before) == len(after)
    for shown, found in zip(shares(before), shares(after), strict=True):
        assert abs(shown - found) <= 5, "points, which another machine's training may differ by"
    assert len(shares(before)) == 2
    assert any("image/png" in o.get("data", {}) for c in run.cells for o in c.get("outputs", []))
