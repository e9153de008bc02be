"""The reference is made from docstrings, for every public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import robust_nc

MAKEFILE = Path(__file__).parent.parent / "Makefile"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make api` writes, by its own command."""
    recipe = re.search(r"^api:.*?\n(.*?)\n\n", MAKEFILE.read_text(), re.MULTILINE | re.DOTALL)
    assert recipe is not None
    out = tmp_path_factory.mktemp("api")
    words = recipe[1].replace("\\\n", " ").split()
    words = [str(out) if word == "out/api" else word for word in words[1:]]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    return out


def test_every_public_name_has_its_entry(pages: Path) -> None:
    page = (pages / "robust_nc.html").read_text()
    assert not [name for name in robust_nc.__all__ if f'id="{name}"' not in page]


def test_every_module_of_the_reference_has_a_page(pages: Path) -> None:
    assert (pages / "index.html").is_file()
    assert (pages / "robust_nc/report/figures.html").is_file()
    assert "AutoAttack" in (pages / "robust_nc/attacks.html").read_text()
