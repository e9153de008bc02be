"""Which examples withstood: what `robustbench.benchmark` reads back from a path of a state."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_BATCH = 128


@dataclass(frozen=True)
class EvaluationState:
    """Flags of the examples, `(N,)`: 1.0 withstood, 0.0 did not (robustbench takes their mean)."""

    robust_flags: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def measured(
        cls, logits: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor
    ) -> "EvaluationState":
        """Flags of attacked images `(N, C, H, W)`, by the model's own logits."""
        parts = [logits(part).argmax(1).cpu() for part in points.split(_BATCH)]
        predicted = torch.cat(parts) if parts else labels.cpu()
        return cls((predicted == labels.cpu()).float())

    def to_disk(self, path: Path) -> None:
        """Write the flags beside the log of the evaluation."""
        flags = [] if self.robust_flags is None else self.robust_flags.tolist()
        _beside(path).write_text(json.dumps({"robust_flags": flags}))

    @classmethod
    def from_disk(cls, path: Path) -> "EvaluationState":
        """Read them back."""
        flags = json.loads(_beside(Path(path)).read_text())["robust_flags"]
        return cls(torch.tensor(flags, dtype=torch.float32))


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.flags.json")
