"""Build a classifier from its configuration and a seed.

>>> from robust_nc.config import ModelConfig
>>> model = build_model(ModelConfig(num_classes=3, image_shape=(1, 8, 8)), seed=1)
>>> model.num_classes, model.taps[-1]
(3, 'penultimate')
"""

import torch

from robust_nc.config import ModelConfig, build
from robust_nc.exceptions import ConfigError
from robust_nc.models.backbones import Backbone
from robust_nc.models.classifier import Classifier, Normalise
from robust_nc.models.heads import Head
from robust_nc.models.necks import Necked
from robust_nc.registry import BACKBONES, HEADS, NECKS
from robust_nc.runtime.torch_state import generator

NUM_CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)
MEAN = STD = 0.5


def build_model(config: ModelConfig, *, seed: int = 0) -> Classifier:
    """Return a new classifier on the CPU, in train mode.

    Fields that are None: 10 classes, images (3, 32, 32), mean and std 0.5 in every channel, which
    brings pixels into [-1, 1]. Backbone and head draw from streams of their own, so models of one
    seed that differ in the head share the backbone to the bit; a neck draws after the backbone,
    which is the same with and without. The global generator is left as it was. Raises
    `ConfigError` for wrong options, `InputError` for sizes that do not fit.
    """
    image_shape = config.image_shape or IMAGE_SHAPE
    num_classes = config.num_classes or NUM_CLASSES
    normalise = Normalise(
        _per_channel("mean", config.mean, image_shape[0], MEAN),
        _per_channel("std", config.std, image_shape[0], STD),
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would reseed the accelerators as well, which the fork does not restore.
        torch.default_generator.manual_seed(generator(seed, "init-backbone").initial_seed())
        backbone: Backbone = build(BACKBONES, config.backbone, image_shape=image_shape)
        if config.neck is not None:
            neck = build(NECKS, config.neck, dim=backbone.dim, num_classes=num_classes)
            backbone = Necked(backbone, neck)
        head: Head = build(
            HEADS,
            config.head,
            num_classes=num_classes,
            dim=backbone.dim,
            seed=seed,
            normalise_features=config.normalise_features,
            temperature=config.temperature,
        )
    return Classifier(normalise, backbone, head)


def _per_channel(
    name: str, values: tuple[float, ...] | None, channels: int, default: float
) -> tuple[float, ...]:
    if values is not None and len(values) != channels:
        raise ConfigError(
            f"model.{name} needs one value per channel, {channels}, found {len(values)}: {values}"
        )
    return values or (default,) * channels
