"""Warnings that need no pass: which attack broke what, and how many classes there are.

>>> [found] = attack_warnings(("apgd-ce", "square"), (False, True), (40, 3), total=100)
>>> found.name
'black-box-stronger'
>>> class_warnings(10, [("dlr", True)])
()
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from robust_nc.evaluation.referee import PROBES, Evaluation
from robust_nc.evaluation.sanity.meanings import named_warning
from robust_nc.evaluation.sanity.output import output_warnings
from robust_nc.evaluation.sanity.survivors import survivor_warnings
from robust_nc.types import EvaluationProtocol, Warned

_POINTS = 0.002  # 0.2 points of accuracy, as AutoAttack has it

_FEWEST = 10  # examples that tell chance from a model that answers
_DLR_CLASSES = {False: 3, True: 4}  # untargeted, targeted


def attack_warnings(
    names: Sequence[str], gradient_free: Sequence[bool], broken: Sequence[int], total: int
) -> tuple[Warned, ...]:
    """Return a warning if an attack without gradients lowered the verdict by more than 0.2 points.

    For each attack, in their order: its name, whether it needs no gradient, and how many of the
    `total` examples it was the first to break. It counts only where an attack by gradient had its
    turn before. Of fewer than 500 examples, one is enough.
    """
    worst, after_gradients = [], False
    for name, free, count in zip(names, gradient_free, broken, strict=True):
        if free and after_gradients and count > _POINTS * total:
            worst.append((name, count))
        after_gradients |= not free
    if not worst:
        return ()
    told = ", ".join(f"{count / total:.1%} ({name!r})" for name, count in worst)
    seen = f"without gradients, after attacks by gradient, {told} of {total} examples were broken"
    return (named_warning("black-box-stronger", seen),)


def class_warnings(num_classes: int, losses: Iterable[tuple[str, bool]]) -> tuple[Warned, ...]:
    """Return a warning if an attack's loss needs more classes: `losses` are (name, targeted)."""
    needed = [_DLR_CLASSES[targeted] for name, targeted in losses if name == "dlr"]
    if num_classes >= max(needed, default=0):
        return ()
    kind = "DLR loss" if num_classes < _DLR_CLASSES[False] else "targeted DLR loss"
    seen = f"{num_classes} classes are too few for the {kind}, which needs {max(needed)}"
    return (named_warning("few-classes", seen),)


def accuracy_warnings(correct: int, total: int, num_classes: int) -> tuple[Warned, ...]:
    """Return a warning if no more examples are `correct` than guessing would have it.

    Fewer than 10 say nothing.

    >>> [found] = accuracy_warnings(0, 40, 10)
    >>> found.message.partition(":")[0]
    '0.0% clean, where guessing among 10 classes has 10.0%'
    """
    if total < _FEWEST or correct * num_classes > total:
        return ()
    guess = f"where guessing among {num_classes} classes has {1 / num_classes:.1%}"
    return (named_warning("chance-accuracy", f"{correct / total:.1%} clean, {guess}"),)


def sanity_warnings(evaluation: Evaluation, plan: EvaluationProtocol) -> list[Warned]:
    """Look for what makes the verdict doubtful; most of it only where examples survived.

    A model that fails here keeps its verdict, with the warning `unchecked`.
    """
    state = evaluation.state
    right = int(state.clean_correct.sum())
    chance = accuracy_warnings(right, len(state.images), state.logits.shape[1])
    if not plan.attacks:
        return list(chance)
    found = [
        *chance,
        *_asked(partial(_of_output, evaluation)),
        *_asked(partial(_of_survivors, evaluation)),
        *_of_attacks(evaluation, plan),
    ]
    return list({warned.name: warned for warned in found}.values())


def _asked(check: Callable[[], Sequence[Warned]]) -> Sequence[Warned]:
    try:
        return check()
    except Exception as error:  # a stranger's model may raise anything
        return [named_warning("unchecked", f"the model raised {type(error).__name__}: {error}")]


def _of_output(evaluation: Evaluation) -> Sequence[Warned]:
    state = evaluation.state
    if evaluation.scorer.draws > 1:  # it is random, and judged as such
        return ()
    rows = torch.arange(min(PROBES, len(state.images), evaluation.batch_size))
    logits = state.logits[rows].to(evaluation.device)
    return output_warnings(
        evaluation.scorer.model, evaluation.given(rows)[0], logits, seed=evaluation.seed
    )


def _of_survivors(evaluation: Evaluation) -> Sequence[Warned]:
    rows = evaluation.state.robust.nonzero().flatten()[: min(PROBES, evaluation.batch_size)]
    if not len(rows):
        return ()
    images, labels = evaluation.given(rows)
    return survivor_warnings(
        evaluation.scorer.model, images, labels, evaluation.ball, seed=evaluation.seed
    )


def _of_attacks(evaluation: Evaluation, plan: EvaluationProtocol) -> Sequence[Warned]:
    state, attacks = evaluation.state, [attack for _, attack in plan.attacks]
    free = [bool(getattr(attack, "gradient_free", False)) for attack in attacks]
    broken = [int((state.broken_by == place).sum()) for place in range(len(attacks))]
    losses = [
        (attack.loss, attack.num_targets is not None)
        for attack in attacks
        if hasattr(attack, "loss") and hasattr(attack, "num_targets")
    ]
    # Attacks of other libraries say what is known to be wrong with them.
    known = [attack.defects(evaluation.ball) for attack in attacks if hasattr(attack, "defects")]
    return [
        *(warned for defects in known for warned in defects),
        *attack_warnings([name for name, _ in plan.attacks], free, broken, len(state.images)),
        *class_warnings(state.logits.shape[1], losses),
    ]
