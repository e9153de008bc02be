"""Lists of attacks by name, whose per-example worst case is a verdict.

>>> [name for name, attack in PGD_WORST.attacks]
['pgd-ce', 'pgd-margin']
"""

from robust_nc.attacks.pgd import FGSM, PGD
from robust_nc.types import EvaluationProtocol

CLEAN = EvaluationProtocol("clean", ())

FGSM_ONLY = EvaluationProtocol("fgsm", (("fgsm", FGSM()),))

PGD_WORST = EvaluationProtocol(
    "pgd", (("pgd-ce", PGD(steps=20)), ("pgd-margin", PGD(steps=20, loss="margin")))
)
