"""The turns of an evaluation, in order: clean images first, then every attack on what stands.

>>> from robust_nc.types import EvaluationProtocol
>>> plan_turns(EvaluationProtocol("clean", ()), "float32")
[]
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from robust_nc.evaluation.acceleration import Accelerated, Precision, accelerate, choose
from robust_nc.evaluation.referee import PROBES, Judge, Turn
from robust_nc.evaluation.state import Entry
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.runtime.progress import Pace, Progress
from robust_nc.runtime.torch_state import ran_out
from robust_nc.types import EvaluationProtocol, RefereedAttack

PRECISIONS = ("float32", "tf32", "bf16", "tf32-only", "bf16-only")
_BATCHES = {"cpu": (32, 64, 128, 256), "cuda": (128, 256, 512, 1024, 2048)}
_WORTH = 60.0  # seconds of attack ahead from which a choice is measured
_EFFORT = 0.03  # share of them that the measuring may take


def plan_turns(plan: EvaluationProtocol, precision: str) -> list[Turn]:
    """List the turns: in lower precision first, if asked for; then in float32, unless told not to.

    Raises `ConfigError` for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"unknown precision {precision!r}; valid: {', '.join(PRECISIONS)} "
            "(without -only, what survives is attacked again in float32)"
        )
    kinds = [precision.removesuffix("-only")]
    if precision in ("tf32", "bf16"):
        kinds.append("float32")
    count = len(plan.attacks)
    return [
        Turn(turn * count + index, index, name, attack, cast(Precision, kind))
        for turn, kind in enumerate(kinds)
        for index, (name, attack) in enumerate(plan.attacks)
    ]


@dataclass
class Campaign:
    """Runs the turns of a judge, on a faster copy of the model where that helps.

    With `tune` it measures, where much is ahead, which copy is fastest, and which batch size if
    `resize`.
    """

    judge: Judge
    turns: list[Turn]
    accelerate: bool = True
    tune: bool = True
    resize: bool = True
    accelerated: tuple[str, ...] = ()

    def run(self, report: Callable[[Progress], None] | None = None) -> None:
        """Make the clean verdict, take over what the log holds, and give each attack its turn."""
        judge = self.judge
        judge.open()
        for line in judge.log.lines():
            judge.docket.replay(line.turn, Entry(*line.tensors))
        classes = judge.docket.logits.shape[1]
        refereed = [turn for turn in self.turns if isinstance(turn.attack, RefereedAttack)]
        costs = [_cost(turn, classes) for turn in self.turns]
        judge.pace = Pace(report, costs, note=judge.log.damage)
        # Also where the log says that all of them are broken by now: the record names the copy.
        fast = self._faster() if refereed and bool(judge.docket.clean_correct.any()) else None
        for turn in self.turns:
            judge.turn(turn)
            if fast is not None and turn in refereed[:-1] and self._choose(fast):
                fast = None

    def _faster(self) -> Accelerated | None:
        """Find a faster copy of the model that agrees with it, on a few examples."""
        judge, docket = self.judge, self.judge.docket
        if not self.accelerate or judge.scorer.draws > 1:
            return None
        rows = torch.arange(min(PROBES, len(docket.images)))
        images, labels = judge.given(rows)
        logits = docket.logits[rows].to(judge.device)
        own = judge.scorer.model
        try:
            fast = accelerate(own, images, labels, judge.ball, logits)
        except Exception as error:  # a stranger's model may raise anything
            if ran_out(error):
                return None
            raise InputError(
                f"the model failed when a faster copy was compared with it on {len(images)} images:"
                f" {type(error).__name__}: {error}; accelerate=False leaves the comparison out"
            ) from error
        judge.fast, self.accelerated = fast.model, fast.names
        judge.warnings |= {warned.name: warned for warned in fast.warnings}
        return fast

    def _choose(self, fast: Accelerated) -> bool:
        """Measure which copy and which batch size are fastest, where much is still to be done."""
        judge, ahead = self.judge, self.judge.pace.seconds_left()
        if not self.tune or ahead is None or ahead < _WORTH:
            return not self.tune
        sizes = _BATCHES.get(judge.device.type, _BATCHES["cpu"]) if self.resize else ()
        rows = judge.docket.robust.nonzero().flatten()[: max((*sizes, judge.batch_size))]
        images, labels = judge.given(rows)
        sizes = tuple(sorted({*sizes, judge.batch_size}))
        try:
            best = choose(
                judge.scorer.model,
                fast,
                images,
                labels,
                batch_sizes=sizes,
                seconds=_EFFORT * ahead,
            )
        except Exception:  # a model may refuse a batch of another size: it keeps what it has
            return True
        judge.fast, judge.batch_size, self.accelerated = best.model, best.batch_size, best.names
        return True


def _cost(turn: Turn, classes: int) -> int | None:
    return turn.attack.cost(classes) if isinstance(turn.attack, RefereedAttack) else None
