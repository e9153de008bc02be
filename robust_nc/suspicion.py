"""Whether a verdict can be trusted: the doubts of `doubts.py`, put to a finished evaluation."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from robust_nc.doubts import (
    doubts_of_classes,
    doubts_of_output,
    doubts_of_survivors,
    doubts_of_turns,
)
from robust_nc.doubts.named import doubt
from robust_nc.judging import PROBES, Judge
from robust_nc.types import EvaluationProtocol, Warned


def doubts(judge: Judge, plan: EvaluationProtocol) -> list[Warned]:
    """Look for what makes the verdict doubtful; most of it only where examples survived.

    A model that fails here keeps its verdict, with the doubt `unchecked`.
    """
    if not plan.attacks:
        return []
    found = [
        *_asked(partial(_of_output, judge)),
        *_asked(partial(_of_survivors, judge)),
        *_of_attacks(judge, plan),
    ]
    return list({warned.name: warned for warned in found}.values())


def _asked(check: Callable[[], Sequence[Warned]]) -> Sequence[Warned]:
    try:
        return check()
    except Exception as error:  # a stranger's model may raise anything
        return [doubt("unchecked", f"the model raised {type(error).__name__}: {error}")]


def _of_output(judge: Judge) -> Sequence[Warned]:
    docket = judge.docket
    if judge.scorer.draws > 1:  # it is random, and judged as such
        return ()
    rows = torch.arange(min(PROBES, len(docket.images), judge.batch_size))
    logits = docket.logits[rows].to(judge.device)
    return doubts_of_output(judge.scorer.model, judge.given(rows)[0], logits, seed=judge.seed)


def _of_survivors(judge: Judge) -> Sequence[Warned]:
    rows = judge.docket.robust.nonzero().flatten()[: min(PROBES, judge.batch_size)]
    if not len(rows):
        return ()
    images, labels = judge.given(rows)
    return doubts_of_survivors(judge.scorer.model, images, labels, judge.ball, seed=judge.seed)


def _of_attacks(judge: Judge, plan: EvaluationProtocol) -> Sequence[Warned]:
    docket, attacks = judge.docket, [attack for _, attack in plan.attacks]
    free = [bool(getattr(attack, "gradient_free", False)) for attack in attacks]
    broken = [int((docket.broken_by == place).sum()) for place in range(len(attacks))]
    losses = [
        (attack.loss, attack.num_targets is not None)
        for attack in attacks
        if hasattr(attack, "loss") and hasattr(attack, "num_targets")
    ]
    # Attacks of other libraries say what is known to be wrong with them.
    known = [attack.defects(judge.ball) for attack in attacks if hasattr(attack, "defects")]
    return [
        *(warned for defects in known for warned in defects),
        *doubts_of_turns([name for name, _ in plan.attacks], free, broken, len(docket.images)),
        *doubts_of_classes(docket.logits.shape[1], losses),
    ]
