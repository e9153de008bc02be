"""What `robustbench.benchmark` reads back when it was given a path for the state."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class EvaluationState:
    """Which examples withstood, as the tensor of 0 and 1 of which robustbench takes the mean."""

    robust_flags: torch.Tensor | None = None

    @classmethod
    def from_disk(cls, path: Path) -> "EvaluationState":
        """Refuse: the engine keeps its own log, and robustbench has the points themselves."""
        raise NotImplementedError(
            f"{path}: on the engine of robust_nc, call robustbench.benchmark without "
            "aa_state_path; to resume, use robust_nc.evaluate(..., log=path)"
        )
