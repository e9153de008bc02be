"""Whether a verdict can be trusted: the doubts of `doubts.py`, put to a finished evaluation."""

from typing import Any

import torch

from robust_nc.doubts import (
    doubts_of_classes,
    doubts_of_output,
    doubts_of_survivors,
    doubts_of_turns,
)
from robust_nc.judging import Judge
from robust_nc.types import EvaluationProtocol, Warned

PROBES = 8


def doubts(judge: Judge, plan: EvaluationProtocol) -> list[Warned]:
    """Look for what makes the verdict doubtful; most of it only where examples survived."""
    docket, model = judge.docket, judge.scorer.model
    if not plan.attacks:
        return []
    rows = torch.arange(min(PROBES, len(docket.images)))
    logits = docket.logits[rows].to(judge.device)
    found: list[Any] = []
    if plan.draws == 1:
        found += doubts_of_output(model, judge.given(rows)[0], logits, seed=judge.seed)
    survivors = docket.robust.nonzero().flatten()[:PROBES]
    if len(survivors):
        images, labels = judge.given(survivors)
        found += doubts_of_survivors(model, images, labels, judge.ball, seed=judge.seed)
    for _, attack in plan.attacks:
        if hasattr(attack, "defects"):  # an attack of another library that is known to be wrong
            found += attack.defects(judge.ball)
    names = [name for name, _ in plan.attacks]
    free = [bool(getattr(attack, "gradient_free", False)) for _, attack in plan.attacks]
    broken = [int((docket.broken_by == index).sum()) for index in range(len(names))]
    found += doubts_of_turns(names, free, broken, len(docket.images))
    losses = [
        (attack.loss, attack.num_targets is not None)
        for _, attack in plan.attacks
        if hasattr(attack, "loss") and hasattr(attack, "num_targets")
    ]
    found += doubts_of_classes(docket.logits.shape[1], losses)
    return found
