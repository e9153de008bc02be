"""The turns of an evaluation, in order: clean images first, then every attack on what stands.

>>> from robust_nc.types import EvaluationProtocol
>>> plan_turns(EvaluationProtocol("clean", ()), "float32")
[]
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import cast

import torch
from torch import nn

from robust_nc.evaluation.acceleration import (
    LOWER,
    Accelerated,
    Precision,
    Probes,
    accelerate,
    fastest,
    lower_precision,
    lowered,
    one_pass,
)
from robust_nc.evaluation.referee import PROBES, Evaluation, Turn
from robust_nc.evaluation.state import Entry
from robust_nc.exceptions import ConfigError, InputError, RecordError
from robust_nc.runtime.progress import PassCounter, Progress
from robust_nc.runtime.threads import fastest_threads
from robust_nc.runtime.torch_state import counted_gradients, kept_draws, ran_out
from robust_nc.types import EvaluationProtocol, RefereedAttack

AUTO = "auto"
PRECISIONS = (AUTO, "float32", "tf32", "bf16", "tf32-only", "bf16-only")
NEAR = 0.1  # of the boundary: 50 times what bf16 was seen to miss by (docs/lab_book.md)
_REPAID = 20  # how often the passes of a measurement must be ahead
_BATCHES = {"cpu": (32, 64, 128, 256), "cuda": (128, 256, 512, 1024, 2048)}
_WORTH = 60.0  # seconds of attack ahead from which a choice is measured
_EFFORT = 0.03  # share of them that the measuring may take


def plan_turns(plan: EvaluationProtocol, precision: str) -> list[Turn]:
    """List the turns: in lower precision first, if asked for; then in float32, unless told not to.

    For "auto" those in float32. Raises `ConfigError` for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"unknown precision {precision!r}; valid: {', '.join(PRECISIONS)} "
            "(without -only, what survives is attacked again in float32)"
        )
    kinds = ["float32" if precision == AUTO else precision.removesuffix("-only")]
    if precision in ("tf32", "bf16"):
        kinds.append("float32")
    count = len(plan.attacks)
    return [
        Turn(turn * count + index, index, name, attack, cast(Precision, kind))
        for turn, kind in enumerate(kinds)
        for index, (name, attack) in enumerate(plan.attacks)
    ]


def lower_turns(turns: list[Turn], kind: Precision, *, start: int) -> list[Turn]:
    """List the refereed turns in a lower precision, with numbers from `start`, for each its own."""
    first = start + LOWER.index(kind) * len(turns)
    return [
        turn._replace(number=first + place, precision=kind, near=NEAR)
        for place, turn in enumerate(turns)
        if isinstance(turn.attack, RefereedAttack)
    ]


def run_turns(
    evaluation: Evaluation,
    turns: list[Turn],
    *,
    accelerated: bool = True,
    tune: bool = True,
    resize: bool = True,
    lower: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Make the clean verdict, take over what the log holds, and give each attack its turn.

    If `accelerated`, attacks run on a faster copy of the model, where one agrees with it. With
    `tune`, where much is ahead, it is measured which copy is fastest, which batch size if `resize`,
    and how many threads; and, given `lower`, the number of the first turn in lower precision,
    whether attacks are so much faster there that they run there first, and in float32 on what is
    near. Raises `RecordError` for a log that holds turns in lower precision where there are none.
    """
    state = evaluation.state
    evaluation.open()
    for line in evaluation.log.lines():
        if line.turn >= state.finished.shape[1]:
            raise RecordError(
                f"{evaluation.log.path} is the log of an evaluation with precision={AUTO!r}, part "
                "of which ran in lower precision; go on with that, or give another file"
            )
        state.replay(line.turn, Entry(*line.tensors))
    classes = state.logits.shape[1]
    evaluation.pace = PassCounter(report, note=evaluation.log.damage)
    # Also where the log says that all of them are broken by now: the record names the copy.
    fast = None
    refereed = _refereed(turns)
    if accelerated and refereed and bool(state.clean_correct.any()):
        fast = _take_faster(evaluation)
    if tune and refereed:
        _take_threads(evaluation, turns)
    if lower is not None and tune and fast is not None:
        kind = _lower(evaluation, turns, fast.model, lower)
        if kind != "float32":
            first = lower_turns(turns, kind, start=lower)
            turns = [*first, *_on_the_near(turns, first)]
            refereed = _refereed(turns)
    evaluation.pace.plan([turn.cost(classes) for turn in turns])
    ahead = 0.0
    for place, turn in enumerate(turns):
        if tune and turn in refereed and ahead >= _WORTH:
            _take_threads(evaluation, turns[place:])
        evaluation.turn(turn)
        ahead = evaluation.pace.seconds_left() or 0.0
        if fast is not None and tune and turn in refereed[:-1] and ahead >= _WORTH:
            following = refereed[refereed.index(turn) + 1]
            with lowered(following.precision, evaluation.device):
                _take_fastest(evaluation, fast, seconds=_EFFORT * ahead, resize=resize)
            fast = None


def _refereed(turns: list[Turn]) -> list[Turn]:
    return [turn for turn in turns if isinstance(turn.attack, RefereedAttack)]


def run_more(evaluation: Evaluation, turns: list[Turn]) -> None:
    """Give more attacks their turns, after those of the protocol."""
    classes = evaluation.state.logits.shape[1]
    evaluation.pace.plan([turn.cost(classes) for turn in turns])
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


def _on_the_near(turns: list[Turn], first: list[Turn]) -> list[Turn]:
    """Return turns in float32 after those in lower precision; what only runs once stays whole."""
    after, places = tuple(turn.number for turn in first), {turn.place for turn in first}
    return [t._replace(near=NEAR, after=after) if t.place in places else t for t in turns]


def _lower(evaluation: Evaluation, turns: list[Turn], model: nn.Module, start: int) -> Precision:
    """Return the precision to begin in: lower where a pass gains enough and much is ahead.

    With two classes there is no measure of what is near; what began in float32 stays there.
    """
    state = evaluation.state
    classes, standing = state.logits.shape[1], state.robust.nonzero().flatten()
    attacks = [turn.attack for turn in turns if isinstance(turn.attack, RefereedAttack)]
    batch = standing[: evaluation.batch_size]
    calls = sum(attack.cost(2) for attack in attacks) / 2
    passes = sum(  # there and back; forward alone is a third of that
        attack.cost(classes) / (3 if getattr(attack, "gradient_free", False) else 2)
        for attack in attacks
        if not hasattr(attack, "above")  # what only the near get, these get in float32
    ) * (len(standing) / max(len(batch), 1))
    if classes < 3 or passes < _REPAID * 8:
        return "float32"
    if state.finished[:, : len(turns)].any() and not state.finished[:, start:].any():
        return "float32"
    few = batch[:PROBES]
    probes = Probes(
        *evaluation.given(few), state.logits[few].to(evaluation.device), evaluation.ball
    )
    try:
        given = evaluation.given(batch)
        return lower_precision(model, probes, *given, passes=passes, calls=calls)
    except Exception:  # memory, whatever a model raises: if it does so again, the attack names it
        return "float32"


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


def _take_threads(evaluation: Evaluation, turns: list[Turn]) -> None:
    """Measure at how many threads a batch passes fastest, and go on with them."""
    size, pending = evaluation.batch_size, evaluation.state.pending
    turns = [turn for turn in turns if len(pending(turn.number))]
    if evaluation.device.type != "cpu" or not turns:
        return
    turn, rows = turns[0], pending(turns[0].number)
    images, labels = evaluation.given(rows[:size])
    call = partial(one_pass, evaluation.attacked(turn.precision), images, labels)
    costs = (turn.cost(evaluation.state.logits.shape[1]) for turn in turns)
    passes = sum(cost or 0 for cost in costs)
    torch.set_num_threads(evaluation.most_threads)
    with (
        suppress(Exception),  # the attack will tell what the model raises
        lowered(turn.precision, evaluation.device),
        kept_draws(evaluation.device),
        counted_gradients(),
    ):
        count = fastest_threads(call, ahead=passes * -(-len(rows) // size))
        if count < evaluation.most_threads:
            evaluation.threads = (f"{count} thread{'s' * (count > 1)}",)
