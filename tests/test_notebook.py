"""The notebook runs from its first cell to its last, and says about what it said."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/evaluate.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs() -> None:
    """In this process and with less to do: PGD attacks, which may leave a few more."""
    cells = [
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    ]
    outputs = [output for cell in cells for output in cell.outputs]
    before = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    code = "\n".join(cell.source for cell in cells)
    for told, done in (
        ('protocol="standard"', 'protocol="pgd"'),
        ("[(images, labels)]", "[(images[:200], labels[:200])]"),
        ("plt.show()", "shown = fig"),
    ):
        assert told in code
        code = code.replace(told, done)
    names: dict[str, Any] = {}
    after = io.StringIO()
    with contextlib.redirect_stdout(after), plt.rc_context({"backend": "agg"}):
        exec(code, names)
        plt.close(names["shown"])
    assert len(after.getvalue().splitlines()) == len(before.splitlines())
    told, found = (
        [int(share) for share in re.findall(r"(\d+)%", text)] for text in (before, after.getvalue())
    )
    assert len(told) == len(found) == 2
    assert abs(told[0] - found[0]) <= 5, "points, which another machine's training may differ by"
    assert -5 <= found[1] - told[1] <= 10
    assert names["leaps"]["value"].notna().any()
