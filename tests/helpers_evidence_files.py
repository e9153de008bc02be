"""Evidence of a small model, and files of it that were forged with their digests."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from helpers_attacks import BALL, examples, own
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.evidence.collecting import collect
from robust_nc.evidence.contents import Evidence
from robust_nc.evidence.file import pack_file, unpack_file
from robust_nc.threat import Ball


class Case(NamedTuple):
    """A model, N examples, the verdict on them and its evidence."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    outcome: Outcome
    evidence: Evidence


def case(ball: Ball = BALL, *, count: int = 30) -> Case:
    """Some examples are misclassified, some broken, some robust."""
    model, images, labels = examples(count)
    protocol = own(APGD(steps=10), "apgd-ce")
    outcome = evaluate(model, images, labels, ball, protocol=protocol, checks=False)
    return Case(model, images, labels, outcome, collected(model, images, labels, outcome, ball))


def collected(
    model: nn.Module, images: Tensor, labels: Tensor, outcome: Outcome, ball: Ball, **other: Any
) -> Evidence:
    about: dict[str, Any] = {"fingerprint": "f" * 64, "seed": 0, "draws": 1} | other
    return collect(model, images, labels, torch.arange(len(images)), outcome, ball, **about)


def outcome_of(points: Tensor, *, ball: Ball = BALL) -> Outcome:
    """A verdict by which every example was correct and is broken, at these points."""
    count = len(points)
    yes, passes = torch.ones(count, dtype=torch.bool), torch.full((count,), 7)
    attacks = (("own", APGD(steps=1)),)
    return Outcome(yes, ~yes, torch.zeros_like(passes), points, passes, passes, (), attacks)


def forge(path: Path, **changes: Any) -> None:
    """Change tensors or fields of the head, and make all digests anew."""
    head, arrays = unpack_file(path.read_bytes(), what="file")
    values = {name: changes.pop(name) for name in set(changes) - set(arrays)}
    for name, value in values.items():
        object.__setattr__(head, name, value)
    path.write_bytes(pack_file(head, {**arrays, **changes}))


def differences(first: Evidence, second: Evidence) -> list[str]:
    """Fields in which two evidences differ."""
    found = []
    for name in Evidence.__annotations__:
        left, right = getattr(first, name), getattr(second, name)
        same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
        found += [] if same else [name]
    return found
