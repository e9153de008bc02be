"""The turns of an evaluation, in order: clean images first, then every attack on what stands.

>>> from robust_nc.types import EvaluationProtocol
>>> plan_turns(EvaluationProtocol("clean", ()), "float32")
[]
"""

from collections.abc import Callable
from typing import cast

import torch

from robust_nc.evaluation.acceleration import (
    Accelerated,
    Precision,
    accelerate,
    fastest,
    lowered,
)
from robust_nc.evaluation.referee import PROBES, Evaluation, Turn
from robust_nc.evaluation.state import Entry
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.runtime.progress import PassCounter, Progress
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


def run_turns(
    evaluation: Evaluation,
    turns: list[Turn],
    *,
    accelerated: bool = True,
    tune: bool = True,
    resize: bool = True,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Make the clean verdict, take over what the log holds, and give each attack its turn.

    If `accelerated`, attacks run on a faster copy of the model, where one agrees with it. With
    `tune`, where much is ahead, it is measured which copy is fastest, and which batch size if
    `resize`.
    """
    state = evaluation.state
    evaluation.open()
    for line in evaluation.log.lines():
        state.replay(line.turn, Entry(*line.tensors))
    classes = state.logits.shape[1]
    refereed = [turn for turn in turns if isinstance(turn.attack, RefereedAttack)]
    costs = [turn.cost(classes) for turn in turns]
    evaluation.pace = PassCounter(report, costs, note=evaluation.log.damage)
    # Also where the log says that all of them are broken by now: the record names the copy.
    fast = None
    if accelerated and refereed and bool(state.clean_correct.any()):
        fast = _take_faster(evaluation)
    for turn in turns:
        evaluation.turn(turn)
        ahead = evaluation.pace.seconds_left() or 0.0
        if fast is not None and tune and turn in refereed[:-1] and ahead >= _WORTH:
            following = refereed[refereed.index(turn) + 1]
            with lowered(following.precision, evaluation.device):
                _take_fastest(evaluation, fast, seconds=_EFFORT * ahead, resize=resize)
            fast = None


def run_more(
    evaluation: Evaluation, turns: list[Turn], report: Callable[[Progress], None] | None
) -> None:
    """Give more attacks their turns, after those of the protocol."""
    classes = evaluation.state.logits.shape[1]
    costs = [*[0] * turns[0].number, *(turn.cost(classes) for turn in turns)]
    evaluation.pace = PassCounter(report, costs, note=evaluation.log.damage)
    doubted = "no-gradient" in evaluation.warnings
    for turn in turns:
        evaluation.turn(turn)
    if not doubted:  # a stand-in without a way back says nothing of the model
        evaluation.warnings.pop("no-gradient", None)


def _take_faster(evaluation: Evaluation) -> Accelerated | None:
    """Attack a faster copy of the model from now on, if it agrees with it on a few examples."""
    state, own = evaluation.state, evaluation.scorer.model
    if evaluation.scorer.draws > 1:
        return None
    rows = torch.arange(min(PROBES, len(state.images)))
    images, labels = evaluation.given(rows)
    logits = state.logits[rows].to(evaluation.device)
    try:
        fast = accelerate(own, images, labels, evaluation.ball, logits)
    except Exception as error:  # a stranger's model may raise anything
        if ran_out(error):
            return None
        raise InputError(
            f"the model failed when a faster copy was compared with it on {len(images)} images:"
            f" {type(error).__name__}: {error}; accelerate=False leaves the comparison out"
        ) from error
    evaluation.fast, evaluation.accelerated = fast.model, fast.names
    evaluation.warnings |= {warned.name: warned for warned in fast.warnings}
    return fast


def _take_fastest(
    evaluation: Evaluation, fast: Accelerated, *, seconds: float, resize: bool
) -> None:
    """Measure which copy and which batch size are fastest, and go on with them."""
    sizes = _BATCHES.get(evaluation.device.type, _BATCHES["cpu"]) if resize else ()
    sizes = tuple(sorted({*sizes, evaluation.batch_size}))
    rows = evaluation.state.robust.nonzero().flatten()[: max(sizes)]
    images, labels = evaluation.given(rows)
    own = evaluation.scorer.model
    try:
        best = fastest(own, fast, images, labels, batch_sizes=sizes, seconds=seconds)
    except Exception:  # a model may refuse a batch of another size: it keeps what it has
        return
    evaluation.fast, evaluation.batch_size = best.model, best.batch_size
    evaluation.accelerated = best.names
