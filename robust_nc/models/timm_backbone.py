"""Backbones of timm by name, where timm is installed.

`{ name = "timm", model = "resnet18" }` in a suite. timm is imported when one is built, not before:
options are checked without it.

>>> from robust_nc.config import check_options, component
>>> from robust_nc.registry import BACKBONES
>>> check_options(BACKBONES, component({"name": "timm", "model": "resnet18"}), {"image_shape"})
{'model': 'resnet18'}
"""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.backbones import Backbone, ImageShape
from robust_nc.models.taps import PENULTIMATE
from robust_nc.runtime.third_party import import_peer
from robust_nc.runtime.torch_state import forward_hooks
from robust_nc.types import Features, Images

_WHOLE = "features"  # the tap of a network that names no stages


class TimmBackbone(Backbone):
    """A network of timm without its last layer, built for `image_shape`.

    Weights are drawn as timm draws them, from the global generator; `pretrained` fetches published
    ones instead, from the internet if they are not in timm's cache: they expect the mean and std
    of their own training. A network with a grid of tokens takes one image size only. Taps: the
    stages that timm names (`feature_info`), as maps `(N, C, h, w)` or tokens `(N, T, C)` without
    class tokens, or else "features" (`forward_features`); penultimate: the input of timm's last
    layer. Raises `ConfigError` where timm is missing, has no such model or cannot get the weights,
    `InputError` for images that the model cannot take.
    """

    name = "timm"

    def __init__(self, image_shape: ImageShape, *, model: str, pretrained: bool = False) -> None:
        network, fixed_size = create_network(model, image_shape, pretrained=pretrained)
        stages, dim = _probe(network, model, image_shape)
        super().__init__(image_shape, dim=dim, tap_names=(*stages, PENULTIMATE))
        self.network = network
        self.model = model
        self.fixed_size = fixed_size

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield the stages, and the features `(N, dim)`."""
        stages, features = _read(self.network, images, self.tap_names[:-1])
        yield from stages.items()
        yield PENULTIMATE, features

    def forward(self, images: Images) -> Features:
        """Return the features `(N, dim)`, without hooks on the way."""
        network: Any = self.network
        features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
        return features

    def check_shape(self, shape: ImageShape) -> None:
        """Refuse another channel count and, where the network has a grid, another size."""
        super().check_shape(shape)
        if shape != self.image_shape and self.fixed_size:
            raise InputError(
                f"timm's {self.model} was built for images of shape {self.image_shape}, found "
                f"{shape}; build the model with image_shape={shape}"
            )


def create_network(
    model: str, image_shape: ImageShape, *, pretrained: bool = False, num_classes: int = 0
) -> tuple[nn.Module, bool]:
    """Build a network of timm, for 0 classes without its last layer, from the global generator.

    Beside it, whether it takes one image size only.
    Raises `ConfigError` where timm is missing, has no such model or cannot get the weights,
    `InputError` for images that the model cannot take.
    """
    timm: Any = import_peer("timm", "timm")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ConfigError(f"timm has no model {model!r}; {hint}timm.list_models() names all")
    published = timm.get_pretrained_cfg(model)
    fixed_size = published is not None and bool(published.fixed_input_size)
    sizes: dict[str, Any] = {"img_size": image_shape[1:]} if fixed_size else {}
    try:
        network: nn.Module = timm.create_model(
            model,
            pretrained=pretrained,
            num_classes=num_classes,
            in_chans=image_shape[0],
            **sizes,
        )
    except Exception as error:  # of the network, of the download, of a check of sizes
        if pretrained:
            raise ConfigError(
                f"timm's {model} with its published weights cannot be had ({_told(error)}); they "
                "take the internet or timm's cache: set pretrained = false to draw weights"
            ) from None
        raise _unfit(model, image_shape, error) from None
    return network, fixed_size


@torch.no_grad()
def _probe(network: nn.Module, model: str, image_shape: ImageShape) -> tuple[tuple[str, ...], int]:
    """Return which stages can be read, in depth order, and the width of the features."""
    listed = [stage["module"] for stage in getattr(network, "feature_info", None) or ()]
    modules = dict(network.named_modules())
    wanted = tuple(name for name in listed if name in modules)
    training = network.training
    try:
        stages, features = _read(network.eval(), torch.zeros(2, *image_shape), wanted)
        if not stages:
            stages, features = _read(network, torch.zeros(2, *image_shape), (_WHOLE,))
    except Exception as error:  # whatever a network makes of images that do not fit
        raise _unfit(model, image_shape, error) from None
    network.train(training)
    if features.ndim != 2:
        raise InputError(
            f"timm's {model} gives features of shape {tuple(features.shape)}, not (N, D); "
            "choose another model"
        )
    return tuple(name for name in (*wanted, _WHOLE) if name in stages), features.shape[1]


def _read(network: Any, images: Tensor, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Return what some modules give that can be measured, in order, and the features."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            _keep(found, name, output, network)

        return keep

    parts = [name for name in names if name != _WHOLE]
    with forward_hooks((network.get_submodule(name), keeper(name)) for name in parts):
        whole = network.forward_features(images)
    if _WHOLE in names:
        _keep(found, _WHOLE, whole, network)
    features: Tensor = network.forward_head(whole, pre_logits=True)
    return {name: found[name] for name in names if name in found}, features


def _keep(found: dict[str, Tensor], name: str, output: Any, network: Any) -> None:
    """Keep a map with its channels first, or tokens without the class tokens; no other output."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return
    if output.ndim == 3:
        output = output[:, getattr(network, "num_prefix_tokens", None) or 0 :]
    elif str(getattr(network, "output_fmt", "NCHW")) == "NHWC":
        output = output.permute(0, 3, 1, 2)
    found[name] = output.clone()  # the next layer may work in place


def _unfit(model: str, image_shape: ImageShape, error: Exception) -> InputError:
    return InputError(
        f"timm's {model} cannot take images of shape {image_shape} ({_told(error)}); "
        "choose another model, or larger images"
    )


def _told(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
