"""Make the conditions of one split, one after another, so that few images are held at a time.

Images are made shard by shard, in functions that an executor can call anywhere, and stay where they
were made: `conditions` knows their handles only.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.geometry.severity import farthest_classes
from robust_nc.plugins import find_protocol
from robust_nc.profiling.conditions import (
    BY_FEATURES,
    BY_TREE,
    NOISES,
    SEVEREST,
    TARGETS,
    Aim,
    attack_images,
    noisy_images,
)
from robust_nc.profiling.measurement import Condition, Examples, Reference, Subject
from robust_nc.profiling.rows import ATTACKED, CLEAN
from robust_nc.profiling.shards import Crew, Sent, Shard, at_work
from robust_nc.profiling.split_rows import Made, clean_bank
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report
from robust_nc.runtime.torch_state import device_of, stream_key


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
    subject: Subject, examples: Examples, reference: Reference, crew: Crew, report: Report
) -> Iterator[Made]:
    """Yield clean, attacked, noise of the attack's size, then one per choice of targets.

    `reference` are the vertices of the first feature, whose last tap targets are chosen by. Raises
    `StoppedError` between two of them, if the work was asked to stop.
    """
    shards = crew.shards(subject, examples)
    who, vertices = crew.keep(subject), crew.keep(reference)
    yield Made(CLEAN, [Condition(CLEAN)] * len(shards))
    stopping.heed()
    heads = [(who, shard, vertices, ATTACKED) for shard in shards]
    attacked = Made(ATTACKED, crew.map(attack_shard, heads, report=report))
    yield attacked
    for kind in NOISES:
        stopping.heed()
        yield Made(kind, crew.map(noise_shard, _beside(who, shards, attacked, kind), report=report))
    del attacked  # one condition at a time
    for kind in subject.settings.targets:
        stopping.heed()
        heads = [(who, shard, vertices, kind) for shard in shards]
        found = crew.map(attack_shard, heads, report=report)
        yield Made(kind, found, targeted=kind != SEVEREST)


def attack_shard(
    sent: Sent, subject: Subject, shard: Shard, reference: Reference, kind: str, *, report: Report
) -> Condition:
    """Attack a shard, untargeted (`kind` "attacked") or towards a kind of targets."""
    subject = subject.of(sent.model)
    with at_work(sent):
        examples = shard.examples
        what = "attack" if kind == ATTACKED else f"attack, {kind} targets"
        targets = distances = None
        if kind == SEVEREST:  # the prediction says which target it came to
            distances = subject.distances
        elif kind != ATTACKED:
            targets = _targets(subject, shard, reference, kind)
        told = partial(_told, report, what)
        found = attack(subject, examples, targets, told, distances=distances)
        return Condition(kind, found, targets, _on_top(subject, examples, found))


def noise_shard(
    sent: Sent, subject: Subject, shard: Shard, attacked: Condition, kind: str, *, report: Report
) -> Condition:
    """Make noise on a shard that is as large as its attack was."""
    assert attacked.images is not None
    examples, key = shard.examples, shard.examples.key(subject.seed)
    found = _noise(subject, examples, examples.images, attacked.images, kind, key)
    return Condition(kind, found)


def sweep_shard(
    sent: Sent, subject: Subject, shard: Shard, condition: str, radius: float, *, report: Report
) -> Condition:
    """Attack a shard, untargeted, in a ball of another radius."""
    subject = subject.of(sent.model)
    with at_work(sent):
        found = attack(subject, shard.examples, None, partial(_told, report, ""), radius=radius)
        return Condition(condition, found)


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


def _on_top(subject: Subject, examples: Examples, attacked: Tensor) -> Tensor:
    """Gaussian noise of the attack's size, on top of the attack."""
    mirrored = 2 * attacked - examples.images  # as far from the attacked image as that is from its
    key = stream_key(examples.key(subject.seed), "return")
    return _noise(subject, examples, attacked, mirrored, "gaussian", key)


def _beside(
    who: object, shards: Sequence[object], made: Made, kind: str
) -> list[tuple[object, ...]]:
    """Arguments of `noise_shard` beside a condition."""
    return [(who, *pair, kind) for pair in zip(shards, made.shards, strict=True)]


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


def _targets(subject: Subject, shard: Shard, reference: Reference, kind: str) -> Tensor:
    """Choose targets, batch by batch where they depend on the clean features of the last tap."""
    tap, examples = subject.taps[-1], shard.examples
    device, distances = device_of(subject.model), subject.distances
    vertices = reference[tap].means.to(device)
    whole = [(slice(0, len(examples.labels)), vertices[:0])]
    bank = clean_bank(subject, shard, subject.features[0])
    batches = ((batch.rows, batch.features[tap]) for batch in bank.batches(CLEAN))
    chosen = [
        TARGETS[kind](
            Aim(
                labels=examples.attacked_labels[rows].to(device),
                features=features,
                vertices=vertices,
                distances=None if distances is None else distances.to(device),
                seed=examples.key(subject.seed),
                ids=examples.ids[rows].to(device),
            )
        ).cpu()
        for rows, features in (batches if kind in BY_FEATURES else whole)
    ]
    return torch.cat(chosen)
