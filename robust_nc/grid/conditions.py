"""Conditions under which examples are measured: clean, attacked, noise of the same size."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.config import Component, build
from robust_nc.registry import ATTACKS, CONTROLS
from robust_nc.runtime import device_of
from robust_nc.threat import Ball

NOISES = {"gaussian": "L2", "sign": "Linf"}  # which norm of the attack each control matches


class Attacking(NamedTuple):
    """The geometry attack: PGD on CE of logits divided by `scale`, and on the margin."""

    steps: int
    restarts: int
    scale: float

    def __str__(self) -> str:
        return f"pgd ce/{self.scale:.3g} and margin, {self.steps} steps, {self.restarts} restarts"


def make_conditions(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    attacking: Attacking,
    *,
    seed: int,
    ids: Tensor,
    batch_size: int,
    report: Callable[[float], None],
) -> dict[str, Tensor]:
    """Return images `(N, C, H, W)` by condition, on the CPU.

    The attack runs to the end (`goal="maximise"`); each noise control has, per example, the norm
    that the attack reached after clipping.
    """
    device = device_of(model)
    options = {"steps": attacking.steps, "restarts": attacking.restarts, "scale": attacking.scale}
    attack = build(ATTACKS, Component(name="geometry", options=options))
    matched_noise = CONTROLS.load("matched_noise")
    made: dict[str, list[Tensor]] = {"attacked": [], **{kind: [] for kind in NOISES}}
    for rows in torch.split(torch.arange(len(images)), batch_size):
        origin, wanted, keys = (part[rows].to(device) for part in (images, labels, ids))
        found = attack(model, origin, wanted, ball, goal="maximise", seed=seed, ids=keys)
        found = ball.project(found, origin)
        made["attacked"].append(found.cpu())
        for kind, norm in NOISES.items():
            twin = matched_noise(
                origin, found, kind=kind, norm=norm, bounds=ball.bounds, seed=seed, ids=keys
            )
            made[kind].append(twin.cpu())
        report((int(rows[-1]) + 1) / len(images))
    return {"clean": images, **{kind: torch.cat(parts) for kind, parts in made.items()}}
