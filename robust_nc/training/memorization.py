"""Memorization of wrong labels between epochs, and the dilation of the test features beside it.

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.data.base import numbered
>>> from robust_nc.models.build import build_model
>>> images, labels = torch.rand(30, 1, 8, 8), torch.arange(30) % 10
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8)))
>>> clean = numbered(images, labels)
>>> given = clean._replace(labels=torch.where(torch.arange(30) < 10, 9 - labels, labels))
>>> sorted(MemorizationProbe(given, labels, clean, device="cpu")(model))[:3]
['corruption_bias', 'dilation', 'memorised']
"""

import torch
from torch import Tensor, nn

from robust_nc.checks import check_labels
from robust_nc.data.base import Split
from robust_nc.data.batches import Batches
from robust_nc.geometry.dilation import MEASURES, CorruptionMeter, dilation
from robust_nc.geometry.moments import Moments
from robust_nc.models.classifier import Classifier
from robust_nc.runtime.torch_state import untouched
from robust_nc.training.validation import Measures, evenly_chosen, read_penultimate

TRAIN_EXAMPLES, TEST_EXAMPLES = 2_000, 1_000
_BATCH = 500


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
            seen = read_penultimate(model, images)
            if seen is None:
                return found
            original = self.original[ids]
            wrong = labels != original
            moments.update(seen.features[~wrong], labels[~wrong])
            corrupted.append((seen.features[wrong], labels[wrong], original[wrong]))
            memorised += int((seen.predicted == labels)[wrong].sum())
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
            seen = read_penultimate(model, images)
            if seen is None:
                return None
            moments.update(seen.features, labels)
        return dilation(moments)
