"""What names an evaluation: a log is continued only by the evaluation that began it."""

import dataclasses
import functools

import torch
from torch import Tensor, nn

from robust_nc.docket import Docket
from robust_nc.files import digest
from robust_nc.fingerprints import tensors_digest
from robust_nc.runtime import device_of
from robust_nc.scoring import Guarded, checked_logits, halving
from robust_nc.threat import Ball
from robust_nc.types import Attack, EvaluationProtocol

PROBES = 16  # images whose logits help to name an evaluation


@torch.no_grad()
def evaluation_identity(
    model: nn.Module,
    docket: Docket,
    ball: Ball,
    plan: EvaluationProtocol,
    seed: int,
    precision: str,
) -> str:
    """Digest of all that the verdict depends on; the batch size is none of it."""
    weights = dict(sorted(model.state_dict().items()))
    # Not all of a model is in its weights: what it answers tells two apart. Where it answers at
    # random, only its weights do.
    answers = _answers(model, docket) if plan.draws == 1 else []
    return digest(
        {
            "model": [repr(model), *weights],
            "weights": tensors_digest([*weights.values(), *answers]),
            "examples": tensors_digest([docket.images, docket.labels, docket.ids]),
            "ball": [ball.norm, ball.eps, *ball.bounds],
            "attacks": [[label, told(attack)] for label, attack in plan.attacks],
            "protocol": [plan.name, plan.draws],
            "seed": seed,
            "precision": precision,
        }
    )


def _answers(model: nn.Module, docket: Docket) -> list[Tensor]:
    guarded, device = Guarded(model, "the first images"), device_of(model)
    answers: list[Tensor] = []

    def look(rows: Tensor) -> None:
        images, labels = docket.images[rows].to(device), docket.labels[rows].to(device)
        answers.append(checked_logits(guarded, images, labels))

    halving(look, torch.arange(min(PROBES, len(docket.images))), PROBES)
    return answers


def told(attack: Attack) -> str:
    """Name an attack with its options, the same in every process.

    Of an attack that is an object of a plain class only the class is known.
    """
    if isinstance(attack, functools.partial):
        return f"{told(attack.func)} {attack.args} {sorted(attack.keywords.items())}"
    named = attack if hasattr(attack, "__qualname__") else type(attack)  # a function or method
    options = repr(attack) if dataclasses.is_dataclass(attack) else ""
    return f"{named.__module__}.{named.__qualname__} {options}"
