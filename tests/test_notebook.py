"""The notebook runs from its first cell to its last, and says what it said."""

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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    before = printed(stored)
    run = NotebookClient(stored, timeout=300, kernel_name="python3").execute()
    after = printed(run)
    assert len(before) == len(after)
    assert after[0].startswith("clean 9")
    assert any("image/png" in o.get("data", {}) for c in run.cells for o in c.get("outputs", []))
