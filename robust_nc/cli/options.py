"""The options of the smaller verbs, as the command line gives them; nothing is checked here.

>>> SubmitOptions(Path("cell.json")).to
PosixPath('results')
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

_Record = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")]


@dataclass(frozen=True)
class ChallengeOptions:
    """Lower someone's row: adversarial examples that verify count against the record."""

    record: _Record
    """The record that claims too much."""
    evidence: Path
    """File of adversarial examples: evidence of ours, or an .npz with ids and images."""
    model: str
    """The model (as for evaluate). One that is code runs in a process of its own."""
    trusted: bool = False
    """Run the model's code in this process, where it can forge what is found."""
    out: Path | None = None
    """Where the challenge goes (default: beside the record)."""
    root: Path | None = None
    """Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc)."""


@dataclass(frozen=True)
class CompareOptions:
    """Compare two records on the same examples, or two methods over their common seeds."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """A record, or a folder with the seeds of one method."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The other."""
    out: Path | None = None
    """Also write a page into this folder: figures with shared axes, and the examples on which two
    models differ."""


@dataclass(frozen=True)
class SubmitOptions:
    """Make a record ready for a pull request to the leaderboard, or push it to the Hub."""

    record: _Record
    """The record to submit, as `evaluate` or `run` left it."""
    to: Path = Path("results")
    """The results folder of a clone of the leaderboard."""
    hub: str | None = None
    """Instead: the repository OWNER/NAME of the Hugging Face Hub to push the card, the record and
    its evidence to."""
    root: Path | None = None
    """Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc)."""


@dataclass(frozen=True)
class DataOptions:
    """List the data sets, or fetch one and verify it."""

    action: Annotated[Literal["list", "fetch"], tyro.conf.Positional] = "list"
    """list or fetch."""
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """The data set to fetch."""
    root: Path | None = None
    """Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc)."""


@dataclass(frozen=True)
class SuitesOptions:
    """List the suites, or show one as TOML with every default."""

    action: Annotated[Literal["list", "show"], tyro.conf.Positional] = "list"
    """list or show."""
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """The suite to show: a name, or a path that ends with .toml."""


@dataclass(frozen=True)
class DoctorOptions:
    """Say what this environment has, what is broken, and the remedy."""
