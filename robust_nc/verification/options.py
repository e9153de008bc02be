"""What `robust-nc verify` may be asked: one class, from the command line to the check.

>>> CheckOptions((), model="net.py:make", audit=300).check()
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robust_nc.exceptions import ConfigError


@dataclass(frozen=True)
class CheckOptions:
    """Check records: schema, digests, and that each adversarial example proves what it should."""

    records: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")]
    """Records, or folders of them."""
    model: str | None = None
    """The model (as for evaluate): then every verdict against it is checked as well."""
    audit: int | None = None
    """Attack N examples that are claimed robust again, drawn by --seed, and say how much the claim
    may overstate."""
    seed: int | None = None
    """Seed of the audit (default: drawn, and told)."""
    save: bool = False
    """Leave a receipt beside the record, which the board shows as its badge."""
    root: Path | None = None
    """Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc)."""

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot be, or that do not go together."""
        if self.audit is not None and self.model is None:
            raise ConfigError("--audit attacks the model again; name it with --model")
        if self.audit is not None and self.audit < 1:
            raise ConfigError(f"--audit must be at least 1, found {self.audit}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, found {self.seed}")
