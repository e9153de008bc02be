"""What `robust-nc evaluate` and `robust_nc.appraise` may be asked: one class for both.

>>> from robust_nc.threat import Ball
>>> Request(model="net.py:make", dataset="digits", ball=Ball("Linf", 0.1)).protocol
'standard'
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from robust_nc.record.schema import Card
    from robust_nc.threat import Ball
else:  # what the command line takes for them, which starts without torch
    Ball, Card = Any, Path


def _ball(eps: str, norm: Literal["Linf", "L2", "L1"] = "Linf") -> Ball:
    """Make the ball that is asked for.

    Args:
        eps: Radius of the ball in pixels of [0, 1], such as 8/255 or 0.5.
        norm: Norm of the ball.
    """
    from robust_nc.threat import Ball, parse_eps

    return Ball(norm, parse_eps(eps))


@dataclass(frozen=True, kw_only=True)
class Request:
    """Judge a finished model: attack it, measure its layers, leave a record with evidence."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """package.module:factory, path/to/file.py:factory, the folder of one of our checkpoints, a
    folder or id of the Hugging Face Hub (hf:OWNER/NAME for one that is fetched),
    robustbench:NAME?weights=FILE, or timm:NAME?weights=FILE. Code of a file or module that you name
    is run."""
    dataset: str
    """A data set's name, a .npz file, or a folder of images."""
    ball: Annotated[Ball, tyro.conf.arg(name="", constructor=_ball)]
    protocol: str = "standard"
    """The attacks whose worst case is the verdict."""
    n: int | None = None
    """Judge the first N test images (default: all)."""
    shuffle: bool = False
    """Take files of your own in an order of chance (always the same), where they lie by class."""
    out: Path | None = None
    """Folder for the record, its evidence and the page (default: out/evaluate/<model>)."""
    isolated: bool = False
    """Run the model in a process of its own, which cannot touch its verdict; without geometry."""
    taps: tuple[str, ...] | None = None
    """Layers to measure (default: those that are found)."""
    geometry: bool = True
    """Whether to measure collapse and leaps."""
    geometry_budget: float = 1.0
    """Passes that the geometry may cost, in passes of the attacks: 1 for as many, inf for all."""
    attack: str | None = None
    """An attack of your own that joins the worst case: module:factory or file.py:factory."""
    card: Card | Path | None = None
    """TOML file with name, authors, paper, link, venue, architecture, extra_data, notes."""
    seed: int = 0
    """Seed of all draws."""
    batch_size: int | None = None
    """Images at a time (default: measured)."""
    root: Path | None = None
    """Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc)."""
