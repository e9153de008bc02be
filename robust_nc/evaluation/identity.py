"""What names an evaluation: a log is continued only by the evaluation that began it."""

import dataclasses
import functools
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.evaluation.scoring import Guarded, checked_logits, halving
from robust_nc.evaluation.state import EvaluationState
from robust_nc.io.digests import tensors_digest
from robust_nc.io.files import digest, sha256_of
from robust_nc.runtime.torch_state import device_of
from robust_nc.threat import Ball
from robust_nc.types import Attack, EvaluationProtocol

PROBES = 16  # images whose predictions help to name an evaluation
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, in its repr: another in each process


@torch.no_grad()
def evaluation_identity(
    model: nn.Module,
    state: EvaluationState,
    ball: Ball,
    plan: EvaluationProtocol,
    seed: int,
    precision: str,
) -> str:
    """Digest of all that the verdict depends on; the batch size is none of it."""
    weights = dict(sorted(model.state_dict().items()))
    # Not all of a model is in its weights: what it predicts tells two apart. Where it answers at
    # random, only its weights do. Its logits would differ from one machine to the next.
    answers = _answers(model, state) if plan.draws == 1 else []
    return digest(
        {
            "model": [_ADDRESS.sub("", repr(model)), *weights],
            "weights": tensors_digest([*weights.values(), *answers]),
            "examples": tensors_digest([state.images, state.labels, state.ids]),
            "ball": [ball.norm, ball.eps, *ball.bounds],
            "attacks": [[label, attack_identity(attack)] for label, attack in plan.attacks],
            "protocol": [plan.name, plan.draws],
            "seed": seed,
            # "auto" was not always there, and goes on with what began as float32.
            "precision": "float32" if precision == "auto" else precision,
        }
    )


def _answers(model: nn.Module, state: EvaluationState) -> list[Tensor]:
    guarded, device = Guarded(model, "the first images"), device_of(model)
    answers: list[Tensor] = []

    def look(rows: Tensor) -> None:
        images, labels = state.images[rows].to(device), state.labels[rows].to(device)
        answers.append(checked_logits(guarded, images, labels).argmax(1))

    halving(look, torch.arange(min(PROBES, len(state.images))), PROBES)
    return answers


def attack_identity(attack: Attack) -> str:
    """Name an attack with its options and, if it is not ours, its code; the same in every process.

    Of an attack that is an object of a plain class only the class is known.
    """
    if isinstance(attack, functools.partial):
        inner = f"{attack_identity(attack.func)} {attack.args} {sorted(attack.keywords.items())}"
        return _ADDRESS.sub("", inner)
    named = attack if hasattr(attack, "__qualname__") else type(attack)  # a function or method
    options = repr(attack) if dataclasses.is_dataclass(attack) else ""
    held = [repr(cell.cell_contents) for cell in getattr(named, "__closure__", None) or ()]
    parts = [f"{named.__module__}.{named.__qualname__}", options, *held, _code(named)]
    return _ADDRESS.sub("", " ".join(parts))


def _code(named: Any) -> str:
    """Digest of the file that a class or function of others was written in, or of its code."""
    if named.__module__.split(".")[0] == "robust_nc":  # a release of ours may improve its code
        return ""
    path = getattr(sys.modules.get(named.__module__), "__file__", None)
    if path is not None and Path(path).is_file():
        return sha256_of(Path(path))
    code = getattr(named, "__code__", None)
    return "" if code is None else f"{code.co_code.hex()} {code.co_consts}"
