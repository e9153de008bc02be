"""The objective of a deep recursive feature machine: no descent, one fit in closed form.

The model needs the backbone `deep_rfm` and a linear head without bias; `train.epochs` is 0:

>>> from robust_nc.config import ModelConfig, component
>>> from robust_nc.data.base import numbered
>>> from robust_nc.models.build import build_model
>>> backbone = component({"name": "deep_rfm", "layers": 1, "width": 16, "centers": 20})
>>> head = component({"name": "linear", "bias": False})
>>> config = ModelConfig(backbone=backbone, head=head, num_classes=2, image_shape=(1, 4, 4))
>>> model = build_model(config)
>>> data = numbered(torch.rand(20, 1, 4, 4), torch.arange(20) % 2)
>>> DeepRfm().solve(model, data, seed=0, report=lambda event: None)
>>> bool((model(data.images).argmax(1) == data.labels).all())
True
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_nc.data.base import Split
from robust_nc.data.load import to_unit
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.classifier import Classifier
from robust_nc.models.deep_rfm_backbone import DeepRfmBackbone, plain_head
from robust_nc.models.necks import without_neck
from robust_nc.runtime.torch_state import device_of
from robust_nc.training.objectives import BestBy
from robust_nc.training.progress import TrainEvent, TrainReport
from robust_nc.training.validation import evenly_chosen
from robust_nc.types import Loss

_STEPS = 1000  # of a report's share


@dataclass(frozen=True)
class DeepRfm:
    """Kernel ridge regressions layer by layer, with their AGOP (arXiv 2402.13728).

    The centers are training images spread evenly over the split.
    """

    best_by: ClassVar[BestBy] = "validation_clean"

    def check(self, model: Classifier) -> DeepRfmBackbone:
        """Return the backbone to fit.

        Raises `ConfigError` for another one, a neck, or a head that is not linear without bias.
        """
        backbone = without_neck(model.backbone)
        if not isinstance(backbone, DeepRfmBackbone):
            raise ConfigError(
                f"the objective deep_rfm fits the backbone 'deep_rfm', found {backbone.name!r}; "
                "set backbone = 'deep_rfm', or choose another objective"
            )
        if backbone is not model.backbone:
            raise ConfigError(
                "the objective deep_rfm fits its backbone and a head that reads it, and nothing "
                "between them; leave out model.neck"
            )
        plain_head(model.head)
        return backbone

    def solve(
        self, model: Classifier, train: Split, *, seed: int, report: TrainReport | None = None
    ) -> None:
        """Fit the backbone and the head of `model` to the training images, in place.

        `seed` changes nothing: the random maps are those that the model was built with. Raises as
        `check`, and `InputError` for fewer training images than centers.
        """
        del seed
        backbone = self.check(model)
        if len(train.labels) < backbone.dim:
            raise InputError(
                f"deep_rfm has {backbone.dim} centers, but there are only {len(train.labels)} "
                f"training images; set the backbone's option centers to {len(train.labels)} or less"
            )
        chosen = evenly_chosen(train, backbone.dim)
        device = device_of(model)
        with torch.no_grad():
            images = model.normalise(to_unit(chosen.images.to(device)))

        def tell(share: float, _text: str) -> None:
            if report is not None:  # the share of the fit as the step of a training
                report(TrainEvent(epoch=0, epochs=0, step=round(share * _STEPS), steps=_STEPS))

        backbone.solve(images, chosen.labels.to(device), model.head, report=tell)

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int, ids: Tensor
    ) -> Loss:
        """Refuse a step: there is nothing to descend."""
        raise ConfigError(
            "the objective deep_rfm is fitted in closed form and takes no steps; set "
            "train.epochs = 0"
        )
