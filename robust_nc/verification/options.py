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
    """The model (as for evaluate): then every verdict against it is checked as well. One that is
    code runs in a process of its own."""
    trusted: bool = False
    """Run the model's code in this process, where it can forge what is found."""
    audit: int | None = None
    """Attack N examples that are claimed robust again, drawn by --seed, and say how much the claim
    may overstate."""
    seed: int | None = None
    """Seed of the audit (default: drawn, and told)."""
    reproduce: bool = False
    """Audit as many as show that robust accuracy is at most 1 point lower (95 %), or all."""
    sign: Path | None = None
    """Leave a receipt beside the record, signed with this key of OpenSSH. It counts where
    allowed_signers in the folder of results holds the key."""
    root: Path | None = None
    """Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc)."""

    @property
    def again(self) -> bool:
        """Whether attacks and measures are to be made again."""
        return self.reproduce or self.audit is not None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot be, or that do not go together."""
        if self.again and self.model is None:
            raise ConfigError(
                "--audit and --reproduce attack the model again; name it with --model"
            )
        if self.reproduce and self.audit is not None:
            raise ConfigError("--reproduce chooses how many are audited; leave out --audit")
        if self.audit is not None and self.audit < 1:
            raise ConfigError(f"--audit must be at least 1, found {self.audit}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, found {self.seed}")
