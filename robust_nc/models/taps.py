"""Read the layers of any model, ours or someone else's.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(
...     nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
... )
>>> module_taps(model)
('2', 'penultimate')
>>> read = read_taps(model, torch.rand(5, 1, 8, 8))
>>> {name: tuple(values.shape) for name, values in read.features.items()}
{'2': (5, 4), 'penultimate': (5, 16)}
"""

import contextlib
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime.model_outputs import ExportedModel, LogitsOf, first_tensor
from robust_nc.types import Features

FEATURES = ("gap", "flatten")

PENULTIMATE = "penultimate"

_RESHAPING = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)


class Tapped(NamedTuple):
    """Logits `(N, K)`, and by tap, in depth order, features `(N, D)`."""

    logits: Tensor
    features: dict[str, Tensor]


@runtime_checkable
class HasTaps(Protocol):
    """A model that reads its own layers, as `Classifier` does."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the measurable layers, in depth order."""

    def tapped(
        self, images: Tensor, *, taps: Collection[str] | None = None, feature: str = "gap"
    ) -> Tapped:
        """Return logits and features from one pass."""


def module_taps(model: nn.Module) -> tuple[str, ...]:
    """Name sensible layers of a model, in the order in which it registers them.

    A block is a child with children of its own, or a layer with weights together with the plain
    layers that follow it (batch norm, activation, pooling; the tap is the last of them). Wrappers
    around one network, sequences of blocks (`layer1` of a ResNet), and what holds a list of like
    blocks (the encoder of a transformer) are looked into. Last comes
    "penultimate", the input of the layer that gives the logits. `read_taps` takes any other name
    of `model.named_modules()` as well.
    """
    model = _bare(model)
    if isinstance(model, HasTaps):
        return model.taps
    last = _output_layers(model)[-1:]
    blocks = _group(_expand(*_unwrap("", model)))
    names = [name for name, block in blocks if not any(part in last for part in block.modules())]
    return (*names, PENULTIMATE)


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """Names of all modules of a model, by its own paths."""
    return tuple(name for name, _ in _bare(model).named_modules() if name)


def read_taps(
    model: nn.Module,
    images: Tensor,
    names: Collection[str] | None = None,
    feature: str = "gap",
) -> Tapped:
    """Return logits and features `(N, D)` of some taps (None: all of `module_taps`), in one pass.

    `names` are taps, or modules by their dotted path; features come in the order of the model's
    modules and keep their graph. A module that runs several times is read at its last run; its
    output `(N, ., ., .)` is taken to have its channels first. Hooks are removed also when the model
    raises. Raises `UnknownNameError` for a name that is no module, `InputError` for one that gave
    no features of these images, or where the layer that gives the logits cannot be told.
    """
    check_feature(feature)
    model = _bare(model)
    if isinstance(model, HasTaps):
        return model.tapped(images, taps=names, feature=feature)
    modules = dict(model.named_modules())
    wanted = set(module_taps(model) if names is None else names)
    for name in wanted:
        if name not in {*modules, PENULTIMATE} - {""}:
            raise unknown_name("tap", name, {*modules, PENULTIMATE} - {""})
    reader = _Reader(len(images), feature)
    with contextlib.ExitStack() as hooks:
        for name in wanted - {PENULTIMATE}:
            handle = modules[name].register_forward_hook(partial(reader.keep, name))
            hooks.callback(handle.remove)
        for module in _output_layers(model) if PENULTIMATE in wanted else ():
            hooks.callback(module.register_forward_pre_hook(reader.enter).remove)
            hooks.callback(module.register_forward_hook(reader.leave).remove)
        answer = model(images)
    logits = getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError("the model must return logits (N, K), found another shape or type")
    if PENULTIMATE in wanted:
        reader.read_penultimate(logits)
    missing = wanted - set(reader.features)
    if missing and names is not None:
        raise InputError(
            f"tap {min(missing)!r} did not run, or gave no (N, D), (N, T, C) or (N, C, H, W) "
            f"for {len(images)} images; choose another layer"
        )
    order = [name for name in (*modules, PENULTIMATE) if name in reader.features]
    if names is None:
        # Which layer gives the logits is certain only now; it is no layer of features.
        order = [name for name in order if name == PENULTIMATE or not reader.ends(modules[name])]
    return Tapped(logits, {name: reader.features[name] for name in order})


def check_feature(feature: str) -> None:
    """Refuse a word other than "gap" and "flatten"."""
    if feature not in FEATURES:
        raise unknown_name("feature", feature, FEATURES)


def pool_features(output: Tensor, feature: str) -> Features:
    """Turn a layer's output into one row per example, at least float32.

    "gap" averages over space `(N, C, H, W)` or tokens `(N, T, C)`; "flatten" keeps all values. Rows
    `(N, D)` stay as they are.
    """
    values = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if values.ndim not in (2, 3, 4):
        raise InputError(
            "a tap must give (N, D), (N, T, C) or (N, C, H, W), "
            f"found shape {tuple(output.shape)}; choose another layer"
        )
    if feature == "flatten" or values.ndim == 2:
        return values.flatten(1)
    return values.mean((2, 3)) if values.ndim == 4 else values.mean(1)


class _Reader:
    """What the hooks of one pass have read so far."""

    def __init__(self, num_images: int, feature: str) -> None:
        self.features: dict[str, Tensor] = {}
        self._num_images = num_images
        self._feature = feature
        self._last: tuple[nn.Module, Any] | None = None  # the layer that was entered last
        self._last_shape: tuple[int, ...] | None = None

    def keep(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Keep a module's output, if it is features of the images."""
        self._keep(name, output)

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note the layer and what it reads."""
        self._last = (module, inputs[0] if inputs else None)
        self._last_shape = None

    def leave(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Note the shape that the layer gave, if no other was entered within it."""
        if self._last is not None and self._last[0] is module and isinstance(output, Tensor):
            self._last_shape = tuple(output.shape)

    def ends(self, module: nn.Module) -> bool:
        """Whether the layer that was entered last is in this module."""
        return self._last is not None and any(part is self._last[0] for part in module.modules())

    def read_penultimate(self, logits: Tensor) -> None:
        """Keep what the last layer read, if that layer gave the logits."""
        if self._last is not None and self._last_shape == tuple(logits.shape):
            self._keep(PENULTIMATE, self._last[1])
        if PENULTIMATE not in self.features:
            raise InputError(
                "cannot tell which layer gives the logits: the last one that ran gave shape "
                f"{self._last_shape}, the model {tuple(logits.shape)}; name other taps"
            )

    def _keep(self, name: str, output: Any) -> None:
        output = first_tensor(output)
        if isinstance(output, Tensor) and output.is_floating_point() and 2 <= output.ndim <= 4:
            # Pooled from a copy: the next layer may work in place.
            pooled = pool_features(output.clone(), self._feature)
            if len(pooled) == self._num_images:
                self.features[name] = pooled


def _bare(model: nn.Module) -> nn.Module:
    """Take off what is wrapped around a model, so that layers have its own names."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = inner.module
    return inner.model if isinstance(inner, LogitsOf | ExportedModel) else inner


def _output_layers(model: nn.Module) -> list[nn.Module]:
    """Layers that may give the logits: those with a matrix, learnt or fixed.

    Which of them does is known only when the model runs: it is the last to run.
    """
    return [module for module in model.modules() if _has_matrix(module, fixed=True)]


def _has_matrix(module: nn.Module, *, fixed: bool) -> bool:
    own = [*module.parameters(recurse=False), *(module.buffers(recurse=False) if fixed else ())]
    return any(tensor.ndim >= 2 for tensor in own)


def _unwrap(prefix: str, module: nn.Module) -> tuple[str, nn.Module]:
    """Go down while one child, itself made of layers, holds every parameter."""
    weighty = [(n, c) for n, c in module.named_children() if any(True for _ in c.parameters())]
    own = any(True for _ in module.parameters(recurse=False))
    if own or len(weighty) != 1 or not any(True for _ in weighty[0][1].children()):
        return prefix, module
    name, child = weighty[0]
    return _unwrap(f"{prefix}{name}.", child)


def _expand(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children, and in place of a sequence its members."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) or _holds_blocks(child):
            yield from _expand(f"{prefix}{name}.", child)
        else:
            yield f"{prefix}{name}", child


def _holds_blocks(module: nn.Module) -> bool:
    """Whether most of a module is a list of blocks of one class, as in a transformer."""
    whole = sum(tensor.numel() for tensor in module.parameters())
    for part in module.modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1:
            compound = all(any(True for _ in block.children()) for block in part)
            held = sum(tensor.numel() for tensor in part.parameters())
            if compound and len({type(block) for block in part}) == 1 and 2 * held > whole:
                return True
    return False


def _group(layers: Iterator[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Keep one layer per block: the block itself, or the last plain layer after one with weights.

    Returns (name, module) pairs; of a block of plain layers, the module that holds the weights.
    """
    kept: list[tuple[str, nn.Module]] = []
    open_block = False
    for name, module in layers:
        compound = any(True for _ in module.children())
        if compound or _has_matrix(module, fixed=False):
            kept.append((name, module))
            open_block = not compound
        elif open_block and not isinstance(module, _RESHAPING):
            kept[-1] = (name, kept[-1][1])
    return kept
