"""Attack a model and say what it withstands: trust no attack, re-project, re-score, keep the worst.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
>>> images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
>>> outcome = evaluate(model, images, labels, Ball("Linf", 0.1), protocol="pgd")
>>> bool((outcome.robust <= outcome.clean_correct).all())
True
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.checks import check_images, check_labels
from robust_nc.evaluation_log import open_log
from robust_nc.exceptions import ConfigError
from robust_nc.files import digest
from robust_nc.fingerprints import tensors_digest
from robust_nc.judging import UNBROKEN, WRONG, Block, Judge
from robust_nc.registry import PROTOCOLS
from robust_nc.runtime import device_of, full_precision, untouched
from robust_nc.threat import Ball
from robust_nc.types import Attack, EvaluationProtocol, Warned

CLEAN = "clean"  # `broken_by` of an example that is misclassified as it is
DEFAULT_BATCH = 256
PROBES = 16  # images whose logits help to name an evaluation


class Outcome(NamedTuple):
    """The verdict on N examples, on the CPU.

    `clean_correct`, `robust` (N,) bool; `broken_by` N names of attacks ("" where none succeeded,
    "clean" where none was needed); `adversarials` (N, C, H, W): in the ball, the point of largest
    margin loss found; `forward_passes`, `backward_passes` (N,) int64.
    """

    clean_correct: Tensor
    robust: Tensor
    broken_by: tuple[str, ...]
    adversarials: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    warnings: tuple[Warned, ...]

    @property
    def clean_accuracy(self) -> float:
        """Share of examples that are classified correctly."""
        return float(self.clean_correct.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that no attack broke."""
        return float(self.robust.double().mean())


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    protocol: str | EvaluationProtocol,
    seed: int = 0,
    batch_size: int | None = None,
    log: str | Path | None = None,
    report: Callable[[int, int, int], None] | None = None,
) -> Outcome:
    """Attack `model` on N images and return the worst case per example.

    `images` (N, C, H, W) float32 in [0, 1]; `labels` (N,) int64; `model` maps images to logits
    (N, K) and is left as it was found. `protocol` names a list of attacks (or is one). `log` is a
    file of finished blocks: a second call with the same arguments goes on after the last whole one.
    `report(done, total, robust)` is called after each block. Draws depend on the seed and the place
    of an example among the N. Computed in float32 proper, whatever the caller allows.

    Raises `InputError` for data that cannot be used or logits that are not finite, and
    `RecordError` for a log of another evaluation.
    """
    images, labels = check_images(images), check_labels(labels, len(images))
    size = _batch_size(batch_size)
    plan = protocol if isinstance(protocol, EvaluationProtocol) else find_protocol(protocol)
    judge = Judge(model, ball, plan, seed=seed)
    judge.warnings |= _warn_of_mode(model)
    device = device_of(model)
    blocks: list[Block] = []
    ids = torch.arange(len(images))
    with untouched(model), full_precision():
        finished = open_log(log, _identity(model, images, labels, ball, plan, seed, size))
        judge.warnings |= {name: Warned(name, told) for name, told in finished.warnings.items()}
        for number, chosen in enumerate(_blocks(ids, size)):
            block = finished.get(number, Block)
            if block is None:
                block = judge.block(
                    images[chosen].to(device), labels[chosen].to(device), chosen.to(device)
                )
                told = {name: warned.message for name, warned in judge.warnings.items()}
                finished.put(number, block, told)
            blocks.append(block)
            if report is not None:
                robust = sum(int(b.robust.sum()) for b in blocks)
                report(min((number + 1) * size, len(images)), len(images), robust)
    return _outcome(blocks, images, plan, tuple(judge.warnings.values()))


def find_protocol(name: str) -> EvaluationProtocol:
    """Look a protocol up by name; an unknown one is answered with the nearest."""
    plan = PROTOCOLS.load(name)
    assert isinstance(plan, EvaluationProtocol)
    return plan


def _outcome(
    blocks: list[Block], images: Tensor, plan: EvaluationProtocol, warnings: tuple[Warned, ...]
) -> Outcome:
    names = {UNBROKEN: "", WRONG: CLEAN} | {i: name for i, (name, _) in enumerate(plan.attacks)}
    if not blocks:
        none = torch.zeros(0, dtype=torch.int64)
        return Outcome(none.bool(), none.bool(), (), images, none, none, warnings)
    whole = Block(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
    return Outcome(
        clean_correct=whole.clean_correct,
        robust=whole.robust,
        broken_by=tuple(names[int(code)] for code in whole.broken_by),
        adversarials=whole.points,
        forward_passes=whole.forwards,
        backward_passes=whole.backwards,
        warnings=warnings,
    )


def _warn_of_mode(model: nn.Module) -> dict[str, Warned]:
    if not any(module.training for module in model.modules()):
        return {}
    message = "the model was in train mode; it was judged in eval mode and left as it was"
    return {"train-mode": Warned("train-mode", message)}


def _batch_size(batch_size: int | None) -> int:
    if batch_size is None:
        return DEFAULT_BATCH
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")
    return batch_size


def _blocks(ids: Tensor, size: int) -> Iterator[Tensor]:
    return iter(torch.split(ids, size)) if len(ids) else iter(())


def _identity(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    plan: EvaluationProtocol,
    seed: int,
    size: int,
) -> Callable[[], str]:
    """Return a function (hashing costs, and only a log needs it) that names this evaluation."""

    @torch.no_grad()
    def name() -> str:
        weights = dict(sorted(model.state_dict().items()))
        # Not all of a model is in its weights: what it answers tells two apart.
        answers = [model(images[:PROBES].to(device_of(model)))] if len(images) else []
        return digest(
            {
                "model": [repr(model), *weights],
                "weights": tensors_digest([*weights.values(), *answers]),
                "examples": tensors_digest([images, labels]),
                "ball": [ball.norm, ball.eps, *ball.bounds],
                "attacks": [[label, _told(attack)] for label, attack in plan.attacks],
                "protocol": plan.name,
                "seed": seed,
                "batch_size": size,
            }
        )

    return name


def _told(attack: Attack) -> str:
    """Name an attack with its options, the same in every process."""
    kind = attack if inspect.isfunction(attack) else type(attack)
    options = repr(attack) if dataclasses.is_dataclass(attack) else ""
    return f"{kind.__module__}.{kind.__qualname__} {options}"
