"""Models for tests: one small configuration per backbone and head, with batch norm warmed up."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nc.config import ModelConfig, component
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier


def make(
    backbone: object = "small_cnn",
    head: object = "linear",
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    seed: int = 0,
    normalise_features: bool = False,
) -> Classifier:
    """Build a classifier; `backbone` and `head` are names or tables with `name`."""
    config = ModelConfig(
        backbone=component(backbone),
        head=component(head),
        num_classes=num_classes,
        image_shape=shape,
        normalise_features=normalise_features,
    )
    return build_model(config, seed=seed)


def warmed_up(model: Classifier) -> Classifier:
    """Give batch norm statistics other than its initial ones; return the model in eval mode."""
    with torch.no_grad():
        model.train()(some_images(16, model.image_shape, seed=5))
    return model.eval()


def some_images(count: int, shape: tuple[int, int, int], *, seed: int = 0) -> Tensor:
    """Draw uniform images."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def learnt(
    model: Classifier, images: Tensor, labels: Tensor, *, steps: int, lr: float = 0.1, size: int = 0
) -> float:
    """Train for some rounds, on all images at once or in batches; the accuracy in train mode."""
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randperm(len(labels), generator=order) if size else torch.arange(len(labels))
        for batch in rows.split(size or len(labels)):
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        return float((model.train()(images).argmax(1) == labels).float().mean())
