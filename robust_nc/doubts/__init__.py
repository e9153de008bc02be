"""Checks that a verdict can be trusted: each doubt has a name, a meaning and a remedy.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Softmax(1))
>>> probes = torch.rand(8, 1, 2, 2)
>>> logits = model(probes).detach()
>>> [doubt.name for doubt in doubts_of_output(model, probes, logits, seed=0)]
['probability-output']
"""

from robust_nc.doubts.named import MEANINGS, Meaning
from robust_nc.doubts.output import doubts_of_output
from robust_nc.doubts.survivors import doubts_of_survivors
from robust_nc.doubts.turns import doubts_of_classes, doubts_of_turns

__all__ = [
    "MEANINGS",
    "Meaning",
    "doubts_of_classes",
    "doubts_of_output",
    "doubts_of_survivors",
    "doubts_of_turns",
]
