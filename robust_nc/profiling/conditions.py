"""Conditions under which examples are measured: clean, attacked, noise of the same size, targets.

They are made one after another, so that few images are held at a time, in functions of a shard that
an executor can call anywhere; the images stay where they were made.

>>> tuple(NOISES), tuple(TARGETS)
(('gaussian', 'sign'), ('cyclic', 'random', 'nearest', 'farthest', 'hierarchy'))
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError
from robust_nc.geometry.nearest import vertex_logits
from robust_nc.geometry.severity import farthest_classes
from robust_nc.plugins import find_protocol
from robust_nc.profiling.measurement import (
    ATTACKED,
    CLEAN,
    ConditionImages,
    Examples,
    Measurement,
    VertexMoments,
)
from robust_nc.profiling.shards import Shard, SplitCondition, SplitShards
from robust_nc.registry import CONTROLS
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report, throttled
from robust_nc.runtime.torch_state import (
    PassMeter,
    counted_gradients,
    device_of,
    keyed_uniform,
    stream_key,
)
from robust_nc.types import Labels

NOISES = {"gaussian": "L2", "sign": "Linf"}  # which norm of the attack each control matches


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
    "cyclic": lambda aim: (aim.labels + 1) % len(aim.vertices),
    "random": _random,
    "nearest": _nearest,
    "farthest": _farthest,
    "hierarchy": _hierarchy,
}
BY_FEATURES = ("nearest", "farthest")  # the others need no features
SEVEREST = "severest"  # per example the target that turns out farthest; no function of an Aim
BY_TREE = ("hierarchy", SEVEREST)  # these need distances between the classes


def check_settings(measurement: Measurement) -> None:
    """Refuse what would fail later, before anything is attacked."""
    settings, distances = measurement.settings, measurement.distances
    measurement.attacking.build(distances if SEVEREST in settings.targets else None)
    if settings.adaptive is not None:
        find_protocol(settings.adaptive)
    by_tree = [kind for kind in settings.targets if kind in BY_TREE]
    if not by_tree:
        return
    if distances is None:
        raise InputError(
            f"targets by {by_tree[0]!r} need distances between the classes; give "
            f"profile(distances=) a (K, K) matrix, or leave {by_tree[0]!r} out of measure.targets"
        )
    farthest_classes(distances, torch.arange(measurement.num_classes))


def split_conditions(
    split: SplitShards, vertices: VertexMoments, report: Report
) -> Iterator[SplitCondition]:
    """Yield clean, attacked, noise of the attack's size, then one per choice of targets.

    `vertices` are those of the first feature, whose last tap targets are chosen by. Raises
    `StoppedError` between two of them, if the work was asked to stop.
    """
    known = split.executor.keep(vertices)
    yield split.clean()
    stopping.heed()
    attacked = split.make(ATTACKED, attack_shard, known, ATTACKED, report=report)
    yield attacked
    for kind in NOISES:
        stopping.heed()
        yield split.make(kind, noise_shard, kind, beside=attacked, report=report)
    del attacked  # one condition at a time
    for kind in split.measurement.settings.targets:
        stopping.heed()
        targeted = kind != SEVEREST
        yield split.make(kind, attack_shard, known, kind, targeted=targeted, report=report)


def attack_shard(
    model: nn.Module,
    measurement: Measurement,
    shard: Shard,
    vertices: VertexMoments,
    kind: str,
    *,
    report: Report,
) -> ConditionImages:
    """Attack a shard, untargeted (`kind` "attacked") or towards a kind of targets."""
    examples = shard.examples
    what = "attack" if kind == ATTACKED else f"attack, {kind} targets"
    targets = distances = None
    if kind == SEVEREST:  # the prediction says which target it came to
        distances = measurement.distances
    elif kind != ATTACKED:
        targets = _targets(model, measurement, shard, vertices, kind)
    with counted_gradients() as count:
        found = attack_examples(
            model,
            measurement,
            examples,
            targets,
            report=lambda share: report(share, what),
            distances=distances,
        )
    # As far from the attacked image as that is from its own.
    mirrored = 2 * found - examples.images
    key = stream_key(examples.key(measurement.seed), "return")
    noisy = noisy_images(measurement, examples, found, mirrored, "gaussian", key, device_of(model))
    return ConditionImages(kind, found, targets, noisy, (count.seen, count.unusable))


def noise_shard(
    model: nn.Module,
    measurement: Measurement,
    shard: Shard,
    kind: str,
    attacked: ConditionImages,
    *,
    report: Report,
) -> ConditionImages:
    """Make noise on a shard that is as large as its attack was."""
    assert attacked.images is not None
    examples, key = shard.examples, shard.examples.key(measurement.seed)
    device = device_of(model)
    found = noisy_images(measurement, examples, examples.images, attacked.images, kind, key, device)
    return ConditionImages(kind, found)


def attack_examples(
    model: nn.Module,
    measurement: Measurement,
    examples: Examples,
    targets: Tensor | None = None,
    *,
    report: Callable[[float], None],
    eps: float | None = None,
    distances: Tensor | None = None,
) -> Tensor:
    """Attack to the end (`goal="maximise"`), untargeted or towards `targets` (N,).

    In the measurement's ball or one of another `eps`; with `distances` (K, K) between the classes,
    towards the farthest class that can be reached. Returns images `(N, C, H, W)`, on the CPU.
    """
    ball = measurement.ball if eps is None else dataclasses.replace(measurement.ball, eps=eps)
    device, count = device_of(model), len(examples.labels)
    attack = measurement.attacking.build(distances)
    seed = examples.key(measurement.seed)
    made = [examples.images[:0]]
    for rows in torch.split(torch.arange(count), measurement.settings.batch_size):
        given = (examples.images, examples.attacked_labels, examples.ids)
        origin, labels, ids = (part[rows].to(device) for part in given)
        aim = None if targets is None else targets[rows].to(device)
        through, size = int(rows[0]), len(rows)

        def told(share: float, through: int = through, size: int = size) -> None:
            report((through + share * size) / count)

        with _told_inside(model, size * measurement.attacking.forwards, told):
            found = attack(
                model, origin, labels, ball, goal="maximise", targets=aim, seed=seed, ids=ids
            )
        made.append(ball.project(found, origin).cpu())
        report((int(rows[-1]) + 1) / count)
    return torch.cat(made)


@contextmanager
def _told_inside(model: nn.Module, passes: int, report: Callable[[float], None]) -> Iterator[None]:
    """Report now and then how many of about `passes` forward a model has made."""
    meter = PassMeter(model, throttled(lambda: report(min(1.0, meter.forwards / passes))))
    with meter:
        yield


def stated(measurement: Measurement, condition: str) -> dict[str, object]:
    """Say what was done to the images of a condition: columns `eps` and `attack`."""
    if condition == CLEAN:
        return {"eps": 0.0, "attack": ""}
    text = str(measurement.attacking)
    if condition in NOISES:
        text = f"{condition} noise, {NOISES[condition]} of: {text}"
    elif condition in (*TARGETS, SEVEREST):
        text = f"{condition} targets, {text}"
    return {"eps": measurement.ball.eps, "attack": text}


def noisy_images(
    measurement: Measurement,
    examples: Examples,
    origin: Tensor,
    other: Tensor,
    kind: str,
    key: int,
    device: torch.device,
) -> Tensor:
    """Add noise to images `origin`, per example and after clipping as far as `other` is.

    Made on the device, returned on the CPU.
    """
    matched_noise = CONTROLS.load("matched_noise")
    return torch.cat(
        [
            matched_noise(
                origin[rows].to(device),
                other[rows].to(device),
                kind=kind,
                norm=NOISES[kind],
                bounds=measurement.ball.bounds,
                seed=key,
                ids=examples.ids[rows].to(device),
            ).cpu()
            for rows in torch.split(torch.arange(len(origin)), measurement.settings.batch_size)
        ]
    )


def _targets(
    model: nn.Module, measurement: Measurement, shard: Shard, moments: VertexMoments, kind: str
) -> Tensor:
    """Choose targets, batch by batch where they depend on the clean features of the last tap."""
    tap, examples = measurement.taps[-1], shard.examples
    device, distances = device_of(model), measurement.distances
    vertices = moments[tap].means.to(device)
    whole = [(slice(0, len(examples.labels)), vertices[:0])]
    bank = shard.bank(model, measurement, measurement.features[0])
    batches = ((batch.rows, batch.features[tap]) for batch in bank.batches(CLEAN))
    chosen = [
        TARGETS[kind](
            Aim(
                labels=examples.attacked_labels[rows].to(device),
                features=features,
                vertices=vertices,
                distances=None if distances is None else distances.to(device),
                seed=examples.key(measurement.seed),
                ids=examples.ids[rows].to(device),
            )
        ).cpu()
        for rows, features in (batches if kind in BY_FEATURES else whole)
    ]
    return torch.cat(chosen)
