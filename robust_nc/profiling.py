"""The geometry of one model: every tap, clean, attacked and under noise, on train and test.

The result is a list of rows for the tidy frame of `record.py`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from robust_nc.conditions import NOISES, Attacking, make_conditions
from robust_nc.config import RunConfig
from robust_nc.data.base import Split
from robust_nc.data.load import to_unit
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import InputError
from robust_nc.geometry.layers import leap_layer, leap_layer_histogram
from robust_nc.geometry.moments import Moments
from robust_nc.models.classifier import Classifier
from robust_nc.registry import CONTROLS
from robust_nc.runtime import device_of, full_precision, stream_key, untouched
from robust_nc.tap_rows import Row, Sweep, TapMeter
from robust_nc.tapbank import TapBank
from robust_nc.threat import Ball
from robust_nc.training.watch import spread

Report = Callable[[float, str], None]

CALIBRATION = 1_000  # clean training images that set the scale of the logits


class Examples(NamedTuple):
    """The examples of one split under every condition, and their features at every tap."""

    split: str
    labels: Tensor
    bank: TapBank


def profile_cell(
    model: Classifier, train: Split, test: Split, config: RunConfig, *, report: Report
) -> list[Row]:
    """Measure collapse and leaps of a model; rows as `record.COLUMNS` says.

    The attack runs on the finished weights with `goal="maximise"`, on train and on test; vertices
    are the clean class means of the measured training examples.
    """
    ball, settings = config.threat.ball(), config.measure
    sets = {
        "train": spread(train, settings.train_examples or len(train.labels)),
        "test": _first(test, settings.test_examples),
    }
    _check_enough(sets["train"], model.num_classes)
    device = device_of(model)
    calibration = to_unit(sets["train"].images[:CALIBRATION]).to(device)
    scale = CONTROLS.load("logit_scale")(model, calibration)
    attacking = Attacking(settings.steps, settings.restarts, scale)
    rows: list[Row] = []
    reference: dict[str, Moments] = {}
    with untouched(model), full_precision():
        for split, chosen in sets.items():
            examples = _examples(model, split, chosen, ball, attacking, config, report)
            if not reference:
                reference = _vertices(examples, model.num_classes)
            for row in _split_rows(model, examples, reference, config.seed, report):
                stated = _stated(row["condition"], ball, attacking)
                rows.append({"feature": settings.feature, "split": split} | stated | row)
    return rows


def sweep_rows(model: Classifier, test: Split, config: RunConfig) -> list[Row]:
    """Accuracy against eps, each under the protocol that the configuration has for the sweep."""
    settings = config.evaluation
    count = min(settings.sweep_examples, len(test.labels))
    rows = []
    for eps in settings.sweep:
        outcome = evaluate(
            model,
            to_unit(test.images[:count]),
            test.labels[:count],
            Ball(config.threat.norm, eps),
            protocol=settings.sweep_protocol,
            seed=config.seed,
            batch_size=settings.batch_size,
            checks=False,
        )
        value = {"measure": "accuracy", "value": outcome.robust_accuracy, "n": count}
        place = {"tap": "output", "condition": "attacked", "split": "test"}
        rows.append(place | value | {"eps": eps, "attack": settings.sweep_protocol})
    return rows


def _first(split: Split, limit: int | None) -> Split:
    return split if limit is None else Split(*(part[:limit] for part in split))


def _check_enough(train: Split, num_classes: int) -> None:
    """Refuse training examples that give fewer than two vertices, before they are attacked."""
    enough = int((train.labels.bincount(minlength=num_classes) >= 2).sum())
    if enough < 2:
        raise InputError(
            f"of the {len(train.labels)} training examples to measure, {enough} of {num_classes} "
            "classes have two or more, and two such classes are needed; raise data.train_limit or "
            "measure.train_examples"
        )


def _examples(
    model: Classifier,
    split: str,
    chosen: Split,
    ball: Ball,
    attacking: Attacking,
    config: RunConfig,
    report: Report,
) -> Examples:
    settings = config.measure
    images = make_conditions(
        model,
        to_unit(chosen.images),
        chosen.labels,
        ball,
        attacking,
        seed=stream_key(config.seed, "geometry", split),
        ids=chosen.ids,
        batch_size=settings.batch_size,
        report=lambda share: report(share, f"geometry: attack on {split}"),
    )
    bank = TapBank(
        model,
        images,
        feature=settings.feature,
        batch_size=settings.batch_size,
        taps=settings.taps,
    )
    return Examples(split, chosen.labels, bank)


def _vertices(examples: Examples, num_classes: int) -> dict[str, Moments]:
    """Moments of the clean training features by true label, for every tap."""
    dims = examples.bank.dims()
    moments = {tap: Moments(num_classes, dim) for tap, dim in dims.items()}
    for batch in examples.bank.batches("clean"):
        for tap, features in batch.features.items():
            moments[tap].update(features, examples.labels[batch.rows])
    return moments


def _split_rows(
    model: Classifier,
    examples: Examples,
    reference: dict[str, Moments],
    seed: int,
    report: Report,
) -> Iterator[Row]:
    """Yield the rows of one split, condition by condition and tap by tap."""
    conditions = tuple(examples.bank.images)
    for done, condition in enumerate(conditions):
        report(done / len(conditions), f"geometry: measure {examples.split}, {condition}")
        own = examples.split == "train" and condition == "clean"
        meters = {
            tap: TapMeter(moments, condition=condition, own=own)
            for tap, moments in reference.items()
        }
        for sweep in (TapMeter.first, TapMeter.second):
            for batch in _paired(examples, condition):
                for tap, meter in meters.items():
                    sweep(meter, batch[tap])
        rows = [
            {"tap": tap, "depth": model.taps.index(tap)} | row
            for tap, meter in meters.items()
            for row in meter.rows(model.head if tap == model.taps[-1] else None, seed=seed)
        ]
        for row in (*rows, *_layer_rows(model, meters), _accuracy_row(examples, condition)):
            yield {"condition": condition} | row


def _paired(examples: Examples, condition: str) -> Iterator[dict[str, Sweep]]:
    """Yield batches of a condition beside their clean twins, by tap."""
    bank = examples.bank
    for clean, here in zip(bank.batches("clean"), bank.batches(condition), strict=True):
        labels = examples.labels[here.rows].to(here.predicted.device)
        yield {
            tap: Sweep(
                clean=clean.features[tap],
                here=here.features[tap],
                labels=labels,
                clean_predicted=clean.predicted,
                predicted=here.predicted,
            )
            for tap in bank.taps
        }


def _layer_rows(model: Classifier, meters: dict[str, TapMeter]) -> list[Row]:
    """Count examples by their leap layer; tap "none" for those that end where they began."""
    leaps = [found for meter in meters.values() if (found := meter.leaps()) is not None]
    if not leaps:
        return []
    layers = leap_layer(
        [found.origin for found in leaps], [found.destination for found in leaps], leaps[-1].labels
    )
    layer = leap_layer_histogram(layers, len(leaps))
    counted = sum(layer.counts) + layer.none
    common = {"measure": "leap_layer", "vertices": "clean-train", "grouping": "none", "n": counted}
    places = [(tap, model.taps.index(tap)) for tap in meters]
    return [
        common | {"tap": tap, "depth": depth, "value": count}
        for (tap, depth), count in zip(
            [*places, ("none", -1)], [*layer.counts, layer.none], strict=True
        )
    ]


def _accuracy_row(examples: Examples, condition: str) -> Row:
    """Accuracy of the network itself on these images."""
    labels = examples.labels
    right = sum(
        int((batch.predicted.cpu() == labels[batch.rows]).sum())
        for batch in examples.bank.batches(condition)
    )
    share = right / len(labels)
    return {"tap": "output", "measure": "accuracy", "value": share, "n": len(labels)}


def _stated(condition: str, ball: Ball, attacking: Attacking) -> Row:
    """Say what was done to the images of a condition."""
    if condition == "clean":
        return {"eps": 0.0, "attack": ""}
    if condition == "attacked":
        return {"eps": ball.eps, "attack": str(attacking)}
    return {"eps": ball.eps, "attack": f"{condition} noise, {NOISES[condition]} of: {attacking}"}
