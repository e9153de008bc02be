"""Doubts that need no pass: which attack broke what, and how many classes there are.

>>> [found] = doubts_of_turns(("apgd-ce", "square"), (False, True), (40, 3), total=100)
>>> found.name
'black-box-stronger'
>>> doubts_of_classes(10, [("dlr", True)])
()
"""

from collections.abc import Iterable, Sequence

from robust_nc.doubts.named import doubt
from robust_nc.types import Warned

_POINTS = 0.002  # 0.2 points of accuracy, as AutoAttack has it

_DLR_CLASSES = {False: 3, True: 4}  # untargeted, targeted


def doubts_of_turns(
    names: Sequence[str], gradient_free: Sequence[bool], broken: Sequence[int], total: int
) -> tuple[Warned, ...]:
    """Return a doubt if an attack without gradients lowered the verdict by more than 0.2 points.

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
    return (doubt("black-box-stronger", seen),)


def doubts_of_classes(num_classes: int, losses: Iterable[tuple[str, bool]]) -> tuple[Warned, ...]:
    """Return a doubt if an attack's loss needs more classes: `losses` are (name, targeted)."""
    needed = [_DLR_CLASSES[targeted] for name, targeted in losses if name == "dlr"]
    if num_classes >= max(needed, default=0):
        return ()
    kind = "DLR loss" if num_classes < _DLR_CLASSES[False] else "targeted DLR loss"
    seen = f"{num_classes} classes are too few for the {kind}, which needs {max(needed)}"
    return (doubt("few-classes", seen),)
