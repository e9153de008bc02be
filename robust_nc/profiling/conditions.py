"""Conditions under which examples are measured: clean, attacked, noise of the same size.

>>> tuple(NOISES), tuple(TARGETS)
(('gaussian', 'sign'), ('cyclic', 'random', 'nearest', 'farthest', 'hierarchy'))
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from robust_nc.config import Component, build
from robust_nc.geometry.nearest import vertex_logits
from robust_nc.geometry.severity import farthest_classes
from robust_nc.registry import ATTACKS, CONTROLS
from robust_nc.runtime.torch_state import device_of, keyed_uniform
from robust_nc.threat import Ball
from robust_nc.types import Attack, Labels

NOISES = {"gaussian": "L2", "sign": "Linf"}  # which norm of the attack each control matches


class Attacking(NamedTuple):
    """The geometry attack: PGD on CE of logits divided by `scale`, and on the margin."""

    steps: int
    restarts: int
    scale: float

    def __str__(self) -> str:
        return f"pgd ce/{self.scale:.3g} and margin, {self.steps} steps, {self.restarts} restarts"


class Aim(NamedTuple):
    """What the choice of a target may depend on.

    `labels` (N,); `features` (N, D) clean features of the last tap and `vertices` (K, D) there, a
    class without one a row of NaN; `distances` (K, K) between classes, or None; `seed`, `ids` (N,).
    """

    labels: Tensor
    features: Tensor
    vertices: Tensor
    distances: Tensor | None
    seed: int
    ids: Tensor


def _cyclic(aim: Aim) -> Labels:
    return (aim.labels + 1) % len(aim.vertices)


def _random(aim: Aim) -> Labels:
    others = len(aim.vertices) - 1
    draws = keyed_uniform(aim.seed, aim.ids, "random-target", 1)[:, 0]
    step = (draws.double() * others).long().clamp_max(others - 1)
    return (aim.labels + 1 + step) % len(aim.vertices)


def _nearest(aim: Aim) -> Labels:
    logits = vertex_logits(aim.features.double(), aim.vertices.double())
    return logits.scatter(1, aim.labels[:, None], -torch.inf).argmax(1)


def _farthest(aim: Aim) -> Labels:
    logits = vertex_logits(aim.features.double(), aim.vertices.double())
    far = torch.where(torch.isinf(logits), torch.inf, logits)  # a class without a vertex is nowhere
    return far.scatter(1, aim.labels[:, None], torch.inf).argmin(1)


def _hierarchy(aim: Aim) -> Labels:
    assert aim.distances is not None
    return farthest_classes(aim.distances, aim.labels)


# How the target of a targeted attack is chosen; never the label itself.
TARGETS: dict[str, Callable[[Aim], Labels]] = {
    "cyclic": _cyclic,
    "random": _random,
    "nearest": _nearest,
    "farthest": _farthest,
    "hierarchy": _hierarchy,
}
BY_FEATURES = ("nearest", "farthest")  # the others need no features
SEVEREST = "severest"  # per example the target that turns out farthest; no function of an Aim
BY_TREE = ("hierarchy", SEVEREST)  # these need distances between the classes


def attack_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    attacking: Attacking,
    *,
    targets: Tensor | None = None,
    seed: int,
    ids: Tensor,
    batch_size: int,
    report: Callable[[float], None],
    distances: Tensor | None = None,
) -> Tensor:
    """Attack to the end (`goal="maximise"`), untargeted or towards `targets` (N,).

    With `distances` (K, K) between the classes, towards the farthest class that can be reached.
    Returns images `(N, C, H, W)` in the ball, on the CPU.
    """
    device = device_of(model)
    attack = _attack(attacking, distances)
    made = [images[:0]]
    for rows in torch.split(torch.arange(len(images)), batch_size):
        origin, wanted, keys = (part[rows].to(device) for part in (images, labels, ids))
        aim = None if targets is None else targets[rows].to(device)
        found = attack(
            model, origin, wanted, ball, goal="maximise", targets=aim, seed=seed, ids=keys
        )
        made.append(ball.project(found, origin).cpu())
        report((int(rows[-1]) + 1) / len(images))
    return torch.cat(made)


def _attack(attacking: Attacking, distances: Tensor | None) -> Attack:
    """The geometry attack; with distances, the one that tries target after target with it."""
    options: dict[str, Any] = dict(attacking._asdict())
    if distances is None:
        return cast(Attack, build(ATTACKS, Component(name="geometry", options=options)))
    table = tuple(tuple(row) for row in distances.tolist())
    return cast(Attack, CONTROLS.load(SEVEREST)(distances=table, **options))


def noisy_images(
    images: Tensor,
    attacked: Tensor,
    ball: Ball,
    *,
    kind: str,
    seed: int,
    ids: Tensor,
    batch_size: int,
) -> Tensor:
    """Add noise that is, per example and after clipping, as large as the attack was."""
    matched_noise = CONTROLS.load("matched_noise")
    parts = [images[:0]]
    for rows in torch.split(torch.arange(len(images)), batch_size):
        parts.append(
            matched_noise(
                images[rows],
                attacked[rows],
                kind=kind,
                norm=NOISES[kind],
                bounds=ball.bounds,
                seed=seed,
                ids=ids[rows],
            )
        )
    return torch.cat(parts)
