"""Make the conditions of one split, one after another, so that few images are held at a time."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.severity import farthest_classes
from robust_nc.grid.conditions import (
    BY_FEATURES,
    BY_TREE,
    NOISES,
    SEVEREST,
    TARGETS,
    Aim,
    attack_images,
    noisy_images,
)
from robust_nc.grid.rows import ATTACKED, CLEAN
from robust_nc.grid.side import Side
from robust_nc.grid.subject import Condition, Examples, Subject
from robust_nc.plugins import find_protocol
from robust_nc.runtime import stream_key

Report = Callable[[float, str], None]


def check_settings(subject: Subject) -> None:
    """Refuse what would fail later, before anything is attacked."""
    if subject.settings.adaptive is not None:
        find_protocol(subject.settings.adaptive)
    by_tree = [kind for kind in subject.settings.targets if kind in BY_TREE]
    if not by_tree:
        return
    if subject.distances is None:
        raise InputError(
            f"targets by {by_tree[0]!r} need distances between the classes; give "
            f"profile(distances=) a (K, K) matrix, or leave {by_tree[0]!r} out of measure.targets"
        )
    farthest_classes(subject.distances, torch.arange(subject.num_classes))


def conditions(
    subject: Subject, examples: Examples, side: Side, report: Report
) -> Iterator[Condition]:
    """Yield clean, attacked, noise of the attack's size, then one per choice of targets.

    `side` gives the clean features and vertices of the last tap, which targets are chosen by.
    """
    yield Condition(CLEAN, examples.images)
    key = examples.key(subject.seed)
    attacked = attack(subject, examples, None, partial(_told, report, "attack"))
    yield Condition(ATTACKED, attacked, None, _on_top(subject, examples, attacked, key))
    for kind in NOISES:
        yield Condition(kind, _noise(subject, examples, examples.images, attacked, kind, key))
    del attacked  # one condition at a time
    for kind in subject.settings.targets:
        told = partial(_told, report, f"attack, {kind} targets")
        if kind == SEVEREST:
            targets = None  # the prediction says which target it came to
            found = attack(subject, examples, None, told, distances=subject.distances)
        else:
            targets = _targets(subject, examples, side, kind, key)
            found = attack(subject, examples, targets, told)
        yield Condition(kind, found, targets, _on_top(subject, examples, found, key))


def attack(
    subject: Subject,
    examples: Examples,
    targets: Tensor | None,
    report: Callable[[float], None],
    *,
    radius: float | None = None,
    distances: Tensor | None = None,
) -> Tensor:
    """Run the geometry attack on a split, in the subject's ball or one of another radius.

    With `distances` (K, K) it tries target after target for the farthest mistake.
    """
    ball = subject.ball if radius is None else dataclasses.replace(subject.ball, eps=radius)
    return attack_images(
        subject.model,
        examples.images,
        examples.attacked_labels,
        ball,
        subject.attacking,
        targets=targets,
        seed=examples.key(subject.seed),
        ids=examples.ids,
        batch_size=subject.settings.batch_size,
        report=report,
        distances=distances,
    )


def stated(subject: Subject, condition: str) -> dict[str, object]:
    """Say what was done to the images of a condition: columns `eps` and `attack`."""
    if condition == CLEAN:
        return {"eps": 0.0, "attack": ""}
    text = str(subject.attacking)
    if condition in NOISES:
        text = f"{condition} noise, {NOISES[condition]} of: {text}"
    elif condition in (*TARGETS, SEVEREST):
        text = f"{condition} targets, {text}"
    return {"eps": subject.ball.eps, "attack": text}


def _told(report: Report, what: str, share: float) -> None:
    report(share, what)


def _on_top(subject: Subject, examples: Examples, attacked: Tensor, key: int) -> Tensor:
    """Gaussian noise of the attack's size, on top of the attack."""
    mirrored = 2 * attacked - examples.images  # as far from the attacked image as that is from its
    key = stream_key(key, "return")
    return _noise(subject, examples, attacked, mirrored, "gaussian", key)


def _noise(
    subject: Subject, examples: Examples, origin: Tensor, other: Tensor, kind: str, key: int
) -> Tensor:
    return noisy_images(
        origin,
        other,
        subject.ball,
        kind=kind,
        seed=key,
        ids=examples.ids,
        batch_size=subject.settings.batch_size,
    )


def _targets(subject: Subject, examples: Examples, side: Side, kind: str, key: int) -> Tensor:
    """Choose targets, batch by batch where they depend on the clean features of the last tap."""
    tap = subject.taps[-1]
    vertices = side.reference[tap].means
    device, distances = vertices.device, subject.distances
    whole = [(slice(0, len(examples.labels)), vertices[:0])]
    batches = ((batch.rows, batch.features[tap]) for batch in side.bank.batches(CLEAN))
    chosen = [
        TARGETS[kind](
            Aim(
                labels=examples.attacked_labels[rows].to(device),
                features=features,
                vertices=vertices,
                distances=None if distances is None else distances.to(device),
                seed=key,
                ids=examples.ids[rows].to(device),
            )
        ).cpu()
        for rows, features in (batches if kind in BY_FEATURES else whole)
    ]
    return torch.cat(chosen)
