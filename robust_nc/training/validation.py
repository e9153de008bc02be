"""What is measured between epochs: accuracy on held-out images, collapse, memorization.

All leave the model as they found it, and nothing is ever chosen by the test set.

>>> import torch
>>> from robust_nc.data.base import numbered
>>> data = numbered(torch.rand(6, 1, 2, 2), torch.arange(6) % 2)
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
>>> sorted(Validator(data, Ball("Linf", 0.1), seed=0, device="cpu")(model))
['validation_attacked', 'validation_clean']
"""

import torch
from torch import Tensor, nn

from robust_nc.checks import check_labels
from robust_nc.config import Component, build
from robust_nc.data.base import Split, even_rows
from robust_nc.data.batches import Batches
from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.dilation import MEASURES, CorruptionMeter, dilation
from robust_nc.geometry.moments import Moments
from robust_nc.models.classifier import Classifier
from robust_nc.registry import ATTACKS
from robust_nc.runtime.torch_state import device_of, stream_key, untouched
from robust_nc.threat import Ball
from robust_nc.training.data_parallel import Group, present
from robust_nc.types import Attack, Flags, Images, Labels

VALIDATION_EXAMPLES = 500
VALIDATION_STEPS = 10
TRAIN_EXAMPLES, TEST_EXAMPLES = 2_000, 1_000  # that memorization is measured on
_BATCH = 500

Measures = dict[str, float | None]


class Validator:
    """Accuracy on at most 500 held-out images, clean and under PGD-10 (the same draws each time).

    An image counts as right under PGD where it is right both clean and at the attacked point.
    """

    def __init__(
        self, held_out: Split, ball: Ball, *, seed: int, device: torch.device | str
    ) -> None:
        chosen = evenly_chosen(held_out, VALIDATION_EXAMPLES)
        self.batches = Batches(chosen, batch_size=_BATCH, device=device)
        self.ball = ball
        self.seed = stream_key(seed, "validation-attack")
        part = Component(name="pgd", options={"steps": VALIDATION_STEPS})
        self.attack: Attack = build(ATTACKS, part)

    def __call__(self, model: nn.Module) -> Measures:
        """Return `validation_clean` and `validation_attacked`."""
        group = present()
        try:
            found = self._counted(model, group)
        except InputError:  # which may have come in one process alone
            group.agree(True)
            raise
        if group.agree(False):
            raise InputError("the model returned logits that are NaN or infinite elsewhere")
        clean, robust = group.total(*found)
        total = self.batches.num_examples
        return {
            "validation_clean": clean / total,
            "validation_attacked": robust / total,
        }

    def _counted(self, model: nn.Module, group: Group) -> tuple[int, int]:
        """Count the images of this process that are right, clean and under attack."""
        clean = robust = 0
        with untouched(model):
            for images, labels, ids in map(group.part, self.batches.ordered()):
                if not len(labels):
                    continue
                right = _right(model, images, labels)
                points = self.attack(
                    model, images, labels, self.ball, goal="flip", seed=self.seed, ids=ids
                )
                still = right & _right(model, self.ball.project(points, images), labels)
                clean += int(right.sum())
                robust += int(still.sum())
        return clean, robust


class CollapseProbe:
    """Collapse of the penultimate features of some clean train images, by true label."""

    def __init__(self, examples: Split, *, device: torch.device | str) -> None:
        self.batches = Batches(examples, batch_size=_BATCH, device=device)

    def __call__(self, model: nn.Module) -> Measures:
        """Return `nc1_trace`, `nc2_angle` (None where undefined) and `train_accuracy`."""
        assert isinstance(model, Classifier)
        # A process without rows must still know where the others sum.
        moments = Moments(model.num_classes, model.head.dim, device=device_of(model))
        group = present()
        right, finite = 0, True
        with untouched(model), torch.no_grad():
            for images, labels, _ in map(group.part, self.batches.ordered()):
                if not len(labels):
                    continue
                read = read_penultimate(model, images)
                if read is None:
                    finite = False
                    break
                features, predicted = read
                moments.update(features, labels)
                right += int((predicted == labels).sum())
        if group.agree(not finite):
            return dict.fromkeys(("nc1_trace", "nc2_angle", "train_accuracy"))
        measured = collapse(group.moments(moments))
        (right,) = group.total(right)
        return {
            "nc1_trace": measured.nc1_trace,
            "nc2_angle": measured.nc2_angle,
            "train_accuracy": right / self.batches.num_examples,
        }


def read_penultimate(model: Classifier, images: Images) -> tuple[Tensor, Tensor] | None:
    """Return features `(n, D)` and what is predicted `(n,)`; None where one is not finite."""
    read = model.tapped(images, taps=("penultimate",))
    features = read.features["penultimate"]
    finite = bool(torch.isfinite(features).all())
    return (features, read.logits.argmax(1)) if finite else None


def evenly_chosen(split: Split, limit: int) -> Split:
    """Take at most `limit` examples, evenly spread over the split (which may be in class order)."""
    size = len(split.labels)
    return split if size <= limit else split.at(even_rows(size, limit))


def _right(model: nn.Module, images: Images, labels: Labels) -> Flags:
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits.argmax(1) == labels


class MemorizationProbe:
    """What the penultimate features say of wrong training labels, without a trace in the model.

    `train` has the labels that training sees, `original` (N,) the right ones, in the same order; at
    most 2,000 of them and 1,000 of `test` are measured, evenly spread. The test set is measured
    only: nothing is chosen by it. Raises `InputError` for lengths that differ.
    """

    def __init__(
        self, train: Split, original: Tensor, test: Split, *, device: torch.device | str
    ) -> None:
        count = len(train.labels)
        self.original = check_labels(original, count, what="original labels").to(device)
        numbered = train._replace(ids=torch.arange(count))  # batches then say where they are from
        chosen = evenly_chosen(numbered, TRAIN_EXAMPLES)
        self.train = Batches(chosen, batch_size=_BATCH, device=device)
        self.test = Batches(evenly_chosen(test, TEST_EXAMPLES), batch_size=_BATCH, device=device)

    def __call__(self, model: nn.Module) -> Measures:
        """Return the measures of `geometry.dilation`, `memorised` and `dilation`.

        `memorised` is the share of wrongly labelled examples that are predicted as their wrong
        label. None where undefined: no wrong labels among those measured, fewer than two classes
        with two right ones, features that are not finite.
        """
        assert isinstance(model, Classifier)
        with untouched(model), torch.no_grad():
            return self._of_train(model) | {"dilation": self._dilation(model)}

    def _of_train(self, model: Classifier) -> Measures:
        moments = Moments(model.num_classes, model.head.dim)
        corrupted: list[tuple[Tensor, Tensor, Tensor]] = []
        found: Measures = dict.fromkeys((*MEASURES, "memorised"))
        memorised = 0
        for images, labels, ids in self.train.ordered():
            read = read_penultimate(model, images)
            if read is None:
                return found
            features, predicted = read
            original = self.original[ids]
            wrong = labels != original
            moments.update(features[~wrong], labels[~wrong])
            corrupted.append((features[wrong], labels[wrong], original[wrong]))
            memorised += int((predicted == labels)[wrong].sum())
        total = sum(len(labels) for _, labels, _ in corrupted)
        found["memorised"] = memorised / total if total else None
        if int(moments.keep.sum()) >= 2:
            meter = CorruptionMeter(moments.means)
            for features, labels, original in corrupted:
                meter.update(features, labels, original)
            found |= meter.compute().measures()
        return found

    def _dilation(self, model: Classifier) -> float | None:
        moments = Moments(model.num_classes, model.head.dim)
        for images, labels, _ in self.test.ordered():
            read = read_penultimate(model, images)
            if read is None:
                return None
            moments.update(read[0], labels)
        return dilation(moments)
