"""Lists of attacks by name, whose per-example worst case is a verdict.

>>> [name for name, attack in STANDARD.attacks]
['apgd-ce', 'apgd-t', 'fab-t', 'square']
"""

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.gated import Gated
from robust_nc.attacks.pgd import FGSM, PGD
from robust_nc.attacks.rays import RayS
from robust_nc.attacks.smooth import Smooth
from robust_nc.attacks.square import Square
from robust_nc.types import EvaluationProtocol

CLEAN = EvaluationProtocol("clean", ())

FGSM_ONLY = EvaluationProtocol("fgsm", (("fgsm", FGSM()),))

PGD_WORST = EvaluationProtocol(
    "pgd", (("pgd-ce", PGD(steps=20)), ("pgd-margin", PGD(steps=20, loss="margin")))
)

# What most papers report: blind where the loss saturates or the logits are bounded.
PGD_CE = EvaluationProtocol("pgd_ce", (("pgd-ce", PGD(steps=20)),))

_TARGETS = 9
_FAB_T = ("fab-t", FAB(num_targets=_TARGETS))
_SQUARE = ("square", Square())

# AutoAttack (Croce and Hein, ICML 2020; L1: Croce and Hein, ICML 2021).
STANDARD = EvaluationProtocol(
    "standard",
    (
        ("apgd-ce", APGD()),
        ("apgd-t", APGD(loss="dlr", num_targets=_TARGETS)),
        _FAB_T,
        _SQUARE,
    ),
    by_norm={
        "L1": (
            ("apgd-ce", APGD(restarts=5, enlarged=True)),
            ("apgd-t", APGD(loss="dlr", num_targets=5, enlarged=True)),
            _FAB_T,
            _SQUARE,
        )
    },
)

_LONG_START = (("apgd-ce", APGD(restarts=5)), ("apgd-dlr", APGD(loss="dlr", restarts=5)))

PLUS = EvaluationProtocol(
    "plus",
    (
        *_LONG_START,
        ("fab", FAB(restarts=5)),
        _SQUARE,
        ("apgd-t", APGD(loss="dlr", num_targets=_TARGETS)),
        _FAB_T,
    ),
)

# Ours: short attacks, aimed by the worst point so far, and long ones where it is near the boundary.
FAST = EvaluationProtocol(
    "fast",
    (
        ("apgd-ce", APGD(steps=20)),
        ("apgd-t", APGD(loss="dlr", num_targets=3, steps=40, targets_at="worst")),
        ("square", Square(queries=150)),
        ("apgd-t-near", Gated(APGD(loss="dlr", num_targets=6, targets_at="worst"), above=-0.15)),
        ("square-near", Gated(Square(queries=2500), above=-0.1)),
        ("fab-t-near", Gated(FAB(num_targets=3, targets_at="worst"), above=-0.07)),
    ),
    by_norm={
        "L2": (
            ("apgd-ce", APGD(steps=20)),
            ("fab-t", FAB(steps=20, num_targets=3, targets_at="worst")),
            ("apgd-t", APGD(loss="dlr", num_targets=3, steps=40, targets_at="worst")),
            ("square", Square(queries=300)),
            ("apgd-t-near", Gated(APGD(loss="dlr", num_targets=6, targets_at="worst"), above=-0.4)),
            ("fab-t-near", Gated(FAB(num_targets=4, targets_at="worst"), above=-0.35)),
            ("square-near", Gated(Square(queries=3500), above=-0.25)),
        ),
        "L1": (
            ("apgd-ce", APGD(steps=50, restarts=5, enlarged=True)),
            ("fab-t", FAB(steps=30, num_targets=5, targets_at="worst")),
            (
                "apgd-t",
                APGD(loss="dlr", num_targets=4, steps=50, targets_at="worst", enlarged=True),
            ),
            ("square", Square(queries=500)),
            ("fab-t-near", Gated(FAB(num_targets=5, targets_at="worst"), above=-0.35)),
            ("square-near", Gated(Square(queries=3500), above=-0.35)),
        ),
    },
)

# Where gradients are doubtful: one attack that finds a way back, one that needs none.
SECOND = EvaluationProtocol("second", (("smooth", Smooth()), ("rays", RayS())))

RAND = EvaluationProtocol(
    "rand",
    (("apgd-ce", APGD(eot=20)), ("apgd-dlr", APGD(loss="dlr", eot=20))),
    draws=20,
)
