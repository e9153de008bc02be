"""The module `autoattack`, on the engine of robust_nc: what `robustbench.benchmark` imports."""

from pathlib import Path
from typing import Any

from torch import Tensor

from autoattack.state import EvaluationState
from robust_nc.attacks.autoattack import AutoAttack as _Engine

__all__ = ["AutoAttack"]


class AutoAttack(_Engine):
    """The drop-in of robust_nc; beside the log of `state_path` it leaves what is read back."""

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int | None = None,
        return_labels: bool | None = None,
        state_path: str | Path | None = None,
        **others: Any,
    ) -> Any:
        """Attack as the drop-in does; see `robust_nc.attacks.autoattack`."""
        found = super().run_standard_evaluation(
            x_orig, y_orig, bs, return_labels, state_path, **others
        )
        if state_path is not None:
            points = found[0] if isinstance(found, tuple) else found
            EvaluationState.measured(self.get_logits, points, y_orig).to_disk(Path(state_path))
        return found
