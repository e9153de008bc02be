"""The outer step of a training: logits and losses of a batch, and what the head learns from it.

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.models.build import build_model
>>> from robust_nc.training.losses import cross_entropy
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8)))
>>> found = outer(model, torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), cross_entropy)
>>> found.logits.shape, found.losses.shape
(torch.Size([3, 10]), torch.Size([3]))
"""

import dataclasses
from typing import Any, NamedTuple

from torch import Tensor, nn

from robust_nc.exceptions import ConfigError
from robust_nc.models.classifier import Classifier
from robust_nc.models.heads import Head
from robust_nc.training.losses import FeatureLoss, PerExampleLoss, Seen
from robust_nc.types import Images, Labels


class Outputs(NamedTuple):
    """Logits `(N, K)` and losses `(N,)` of a batch."""

    logits: Tensor
    losses: Tensor


class Outer(nn.Module):
    """A model and a loss as one module, `(images, labels) -> Outputs`.

    So `torch.func.functional_call` can ask for the losses at other weights: parameter `p` of the
    model is `model.p` here. A head that learns from features without a gradient (`Head.observe`)
    does so with each call, before the logits are made, unless `observe` is false.
    """

    def __init__(
        self, model: nn.Module, loss: PerExampleLoss | FeatureLoss, *, observe: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.observe = observe

    def forward(self, images: Images, labels: Labels) -> Outputs:
        """Return logits and losses; raises `ConfigError` where the loss needs a head of ours."""
        head = getattr(self.model, "head", None)
        observing = self.observe and isinstance(head, Head) and head.observes
        if not isinstance(self.loss, FeatureLoss) and not observing:
            logits = self.model(images)
            return Outputs(logits, self.loss(logits, labels))
        classifier = self._classifier()
        features = classifier.features(images)
        if observing:
            classifier.head.observe(features.detach(), labels)
        logits = classifier.head(features)
        if isinstance(self.loss, FeatureLoss):
            return Outputs(logits, self.loss(Seen(logits, features, classifier.head), labels))
        return Outputs(logits, self.loss(logits, labels))

    def _classifier(self) -> Classifier:
        if isinstance(self.model, Classifier):
            return self.model
        if isinstance(getattr(self.model, "_orig_mod", None), Classifier):
            raise ConfigError(
                "this loss or head reads the features before the head, which a compiled model "
                "does not give; set train.compile = false"
            )
        raise ConfigError(
            "this loss or head reads the features before the head, and the model is no "
            "robust_nc.Classifier; choose a loss of logits, such as 'ce'"
        )


def outer(
    model: nn.Module, images: Images, labels: Labels, loss: PerExampleLoss | FeatureLoss
) -> Outputs:
    """Return logits and losses of a batch, once per step and with the gradient on."""
    found: Outputs = Outer(model, loss)(images, labels)
    return found


def at_progress(objective: Any, progress: float) -> Any:
    """Return the objective at a share of the training, below 1; itself unless its loss changes."""
    loss = getattr(objective, "loss", None)
    if not isinstance(loss, FeatureLoss) or not loss.scheduled:
        return objective
    return dataclasses.replace(objective, loss=loss.at(progress))
