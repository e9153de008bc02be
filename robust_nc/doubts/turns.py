"""Doubts that need no pass: which attack broke what, and how many classes there are.

>>> [found] = doubts_of_turns(("apgd-ce", "square"), {"square"}, (40, 3), total=100)
>>> found.name
'black-box-stronger'
>>> doubts_of_classes(10, [("dlr", True)])
()
"""

from collections.abc import Collection, Iterable, Sequence

from robust_nc.doubts.named import doubt
from robust_nc.types import Warned

_POINTS = 0.002  # 0.2 points of accuracy, as AutoAttack has it

_DLR_CLASSES = {False: 3, True: 4}  # untargeted, targeted


def doubts_of_turns(
    names: Sequence[str], gradient_free: Collection[str], broken: Sequence[int], total: int
) -> tuple[Warned, ...]:
    """Return a doubt if an attack without gradients lowered the verdict by more than 0.2 points.

    `names` are the attacks in their order, `gradient_free` those of them without gradients,
    `broken` how many of the `total` examples each was the first to break. An attack counts only
    where one by gradient had its turn before. Of fewer than 500 examples, one is enough.
    """
    white = [index for index, name in enumerate(names) if name not in gradient_free]
    if not white:
        return ()
    worst = [
        (name, count)
        for index, (name, count) in enumerate(zip(names, broken, strict=True))
        if name in gradient_free and index > white[0] and count > _POINTS * total
    ]
    if not worst:
        return ()
    told = ", ".join(f"{name!r} lowered it by {count / total:.1%}" for name, count in worst)
    seen = f"attacks without gradients lowered the robust accuracy after those by gradient: {told}"
    return (doubt("black-box-stronger", f"{seen} ({total} examples)"),)


def doubts_of_classes(num_classes: int, losses: Iterable[tuple[str, bool]]) -> tuple[Warned, ...]:
    """Return a doubt if an attack's loss needs more classes: `losses` are (name, targeted)."""
    needed = [_DLR_CLASSES[targeted] for name, targeted in losses if name == "dlr"]
    if num_classes >= max(needed, default=0):
        return ()
    kind = "DLR loss" if num_classes < _DLR_CLASSES[False] else "targeted DLR loss"
    seen = f"{num_classes} classes are too few for the {kind}, which needs {max(needed)}"
    return (doubt("few-classes", seen),)
