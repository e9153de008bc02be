"""Networks of timm with local weights: `timm:NAME?weights=FILE`.

>>> from_timm("resnet18", weights="", num_classes=10, image_shape=(3, 32, 32))
Traceback (most recent call last):
...
robust_nc.exceptions.ConfigError: timm:resnet18 names no weights, and nothing is fetched: add \
?weights=FILE, a safetensors file or a state_dict saved with torch.save
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_nc.exceptions import CheckpointError, ConfigError
from robust_nc.models.classifier import Normalise
from robust_nc.models.timm_backbone import create_network
from robust_nc.zoo.code import Tell
from robust_nc.zoo.weight_files import fill, read_weights


def from_timm(
    name: str,
    *,
    weights: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    tell: Tell | None = None,
) -> nn.Module:
    """Build a network of timm and fill it from a file; it takes images (N, C, H, W) in [0, 1].

    They are normalised by the mean and std that timm holds for the network. Raises `ConfigError`
    where timm is missing or has no such network, `InputError` for images that it cannot take,
    `CheckpointError` for weights that do not fit.
    """
    if not weights:
        raise ConfigError(
            f"timm:{name} names no weights, and nothing is fetched: add ?weights=FILE, a "
            "safetensors file or a state_dict saved with torch.save"
        )
    tensors = read_weights(Path(weights))
    with torch.random.fork_rng(devices=[]):
        network, _ = create_network(name, image_shape, num_classes=num_classes)
    normalise = _normalise(name, network, image_shape[0])
    problem = fill(network, tensors)
    if problem is not None:
        raise CheckpointError(
            f"{weights} does not fit timm's {name} with {num_classes} classes and "
            f"{image_shape[0]} channels: it {problem}"
        )
    if tell is not None:
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values.flatten().tolist())
            for values in (normalise.mean, normalise.std)
        )
        tell(f"images are normalised as timm's {name} says: mean {mean}, std {std}")
    return nn.Sequential(OrderedDict(normalise=normalise, network=network))


def _normalise(name: str, network: nn.Module, channels: int) -> Normalise:
    """Return the normalisation that timm holds for a network."""
    held: Any = getattr(network, "pretrained_cfg", None) or {}
    mean, std = (
        held.get(key) if isinstance(held, dict) else getattr(held, key, None)
        for key in ("mean", "std")
    )
    if mean is None or std is None or len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"timm holds no mean and std of {channels} channels for {name}; write a function "
            "that returns the model with its normalisation, and name it as file.py:function"
        )
    return Normalise(tuple(mean), tuple(std))
