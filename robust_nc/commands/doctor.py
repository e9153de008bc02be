"""`robust-nc doctor`: what this environment has, and what to do about what it has not."""

import importlib
import importlib.util
from importlib import metadata
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from robust_nc.environment import hardware, versions
from robust_nc.runtime import default_device


class Part(NamedTuple):
    """One optional or required package: what it is for."""

    module: str
    distribution: str
    purpose: str


_PARTS = (
    Part("seaborn", "seaborn", "figures"),
    Part("pyarrow", "pyarrow", "rows of records"),
    Part("sklearn", "scikit-learn", "the digits data"),
    Part("pyautoattack", "pyautoattack", "reference for our attacks (tests)"),
    Part("torchvision", "torchvision", "models of others (optional)"),
    Part("torchattacks", "torchattacks", "attacks of others (optional)"),
    Part("robustbench", "robustbench", "models of others (optional)"),
)


def doctor_command() -> int:
    """Print the report; the exit code is 1 if a part is installed but does not import."""
    console = Console()
    facts = {**versions(), **{key: str(value) for key, value in _machine().items()}}
    for key, value in facts.items():
        console.print(f"{key:>16}  {value}", highlight=False)
    table = Table("part", "version", "state", "for")
    broken = False
    for part in _PARTS:
        version, state = _state(part)
        broken |= state.startswith("broken")
        table.add_row(part.distribution, version, state, part.purpose)
    console.print(table)
    return 1 if broken else 0


def _machine() -> dict[str, object]:
    return {**hardware(default_device()), "cuda_available": torch.cuda.is_available()}


def _state(part: Part) -> tuple[str, str]:
    if importlib.util.find_spec(part.module) is None:
        return "-", f"not installed; pip install {part.distribution}"
    try:
        importlib.import_module(part.module)
    except Exception as error:  # a broken package may raise anything on import
        return _version(part), f"broken: {type(error).__name__}: {str(error)[:80]}"
    return _version(part), "works"


def _version(part: Part) -> str:
    try:
        return metadata.version(part.distribution)
    except metadata.PackageNotFoundError:
        return "?"
