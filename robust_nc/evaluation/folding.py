"""Fold batch norms into the layers before them, in a copy of a model, whatever its control flow.

In eval mode a batch norm is a scale and a shift per channel, which the convolution or linear layer
before it can take over; where there is none, it becomes just that:

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).eval()
>>> folded = fold(model, torch.rand(2, 1, 8, 8))
>>> folded[1]
Identity()
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.runtime.torch_state import forward_hooks, kept_draws

AGREEMENT = 1e-4  # of the range of the logits: far above rounding, far below a wrong layer

# Exact types: a subclass may compute its weight, and a parametrized layer is a subclass.
_FORWARD = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_FORWARD, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NormPair(NamedTuple):
    """A layer and the batch norm that alone reads its output."""

    layer: nn.Module
    norm: nn.Module


class Traced(NamedTuple):
    """What one forward pass showed: logits `(P, K)`, and the pairs that can be folded."""

    logits: Tensor
    pairs: tuple[NormPair, ...]


class _Call(NamedTuple):
    module: nn.Module
    read: Any  # nodes of the autograd graph: of the input, and of the output
    made: Any
    ndim: int


def fold(model: nn.Module, images: Tensor, logits: Tensor | None = None) -> nn.Module | None:
    """Return a frozen copy in eval mode without batch norms; the model stays as it is.

    `images` (P, C, H, W) are passed once; `logits` (P, K) are what the model answered on them
    (None: asked for here). None where the model cannot be copied, raises, or is random. Whether
    the copy agrees with the model is for the caller to check: an output that is also used outside
    of the graph (detached, or under no_grad) cannot be seen.
    """
    with kept_draws(images.device):
        twin = _frozen_copy(model)
        traced = None if twin is None else trace(twin, images)
        if twin is None or traced is None:
            return None
        again = trace(twin, images) if logits is None else Traced(logits.float(), ())
    if again is None or not agree(traced.logits, again.logits):
        return None
    _fold_pairs(twin, traced.pairs)
    return twin


def _frozen_copy(model: nn.Module) -> nn.Module | None:
    """Return a deep copy in eval mode without gradients of its own, or None if there can be none.

    A model under `torch.compile` is not copied: it would be compiled again.
    """
    if any("_orig_mod" in part._modules for part in model.modules()):
        return None
    try:
        twin = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception:  # whatever a stranger's model raises
        return None
    twin.zero_grad(set_to_none=True)
    return twin


def agree(found: Tensor, wanted: Tensor, tolerance: float = AGREEMENT) -> bool:
    """Whether logits `(P, K)` are the same to a share of their range (never if not finite)."""
    if found.shape != wanted.shape:
        return False
    if not wanted.numel():
        return True
    scale = wanted.max() - wanted.min()
    return bool((found - wanted).abs().max() <= tolerance * scale + 1e-30)


def trace(model: nn.Module, images: Tensor) -> Traced | None:
    """Pass images once and read from the graph of the logits what can be folded.

    A layer and a batch norm are a pair if each is called once, nothing but the batch norm reads
    the layer's output, and neither carries hooks, which includes the older kinds of weight norm
    and spectral norm. None where the model raises or does not return a tensor.
    """
    calls: list[_Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        read = args[0].grad_fn if args else None  # None too where the input came by its name
        calls.append(_Call(module, read, output.grad_fn, output.ndim))

    hooks = forward_hooks((module, note) for module in model.modules() if _is_plain(module))
    try:
        with hooks, torch.enable_grad():
            logits = model(images.detach().requires_grad_())
    except Exception:  # whatever a stranger's model raises
        return None
    if not isinstance(logits, Tensor):
        return None
    return Traced(logits.detach().float(), tuple(_pairs(calls, _readers(logits.grad_fn))))


def _readers(last: Any) -> dict[Any, list[Any]]:
    """Map every node of a graph to the nodes that read its output (backward edges, reversed)."""
    readers: dict[Any, list[Any]] = defaultdict(list)
    waiting, seen = [last] if last is not None else [], {last}
    while waiting:
        node = waiting.pop()
        for source, _ in node.next_functions:
            if source is None:
                continue
            readers[source].append(node)
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return readers


def _pairs(calls: list[_Call], readers: dict[Any, list[Any]]) -> Iterator[NormPair]:
    times: dict[nn.Module, int] = defaultdict(int)
    for call in calls:
        times[call.module] += 1
    once = [call for call in calls if times[call.module] == 1]
    made = {call.made: call for call in once if type(call.module) in _LAYERS and call.made}
    for norm in once:
        layer = made.get(norm.read)
        if layer is None or not is_fixed_norm(norm.module):
            continue
        # A linear layer's last axis is the batch norm's axis of channels in two dimensions only.
        fits = layer.ndim == 2 or type(layer.module) is not nn.Linear
        if fits and readers[layer.made] == [norm.made]:
            yield NormPair(layer.module, norm.module)


def _fold_pairs(model: nn.Module, pairs: tuple[NormPair, ...]) -> None:
    """Put each pair's batch norm into its layer, in place; every other becomes an `Affine`.

    The layer gets new parameters, so that a weight shared with another layer is left alone. The
    model is in eval mode.
    """
    put: dict[nn.Module, nn.Module] = {
        part: Affine(*_scale_and_shift(part)) for part in model.modules() if is_fixed_norm(part)
    }
    for layer, norm in pairs:
        weight, bias = _merged(layer, norm)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = nn.Parameter(bias, requires_grad=False)
        put[norm] = nn.Identity()
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in put:
                parent._modules[name] = put[child]


class Affine(nn.Module):
    """scale * x + shift per channel: a batch norm in eval mode, in one operation."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, values: Tensor) -> Tensor:
        """Return values `(N, C, ...)`, scaled and shifted."""
        shape = (-1, *(1,) * (values.ndim - 2))
        return torch.addcmul(self.shift.view(shape), values, self.scale.view(shape))


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer or a batch norm is what its class says: without hooks, or a patched call."""
    hooks = any(getattr(module, name) for name in _HOOKS)
    return type(module) in (*_LAYERS, *_NORMS) and not hooks and "forward" not in vars(module)


def is_fixed_norm(module: nn.Module) -> bool:
    """Whether a module is a plain batch norm that uses its running statistics."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not _is_plain(module):
        return False
    return module.running_mean is not None and not module.training


@torch.no_grad()
def _scale_and_shift(norm: Any, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm by its running statistics, computed in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    dtype = norm.running_mean.dtype if dtype is None else dtype
    return scale.to(dtype), shift.to(dtype)


@torch.no_grad()
def _merged(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of norm(layer(x)), computed in float64."""
    weight = layer.weight.double()
    scale, bias = _scale_and_shift(norm, torch.float64)
    if layer.bias is not None:
        bias = bias + layer.bias.double() * scale
    if type(layer) in _TRANSPOSED:  # weight (inputs, outputs / groups, ...), inputs by group
        grouped = weight.unflatten(0, (layer.groups, -1))
        factors = scale.view(layer.groups, 1, -1, *(1,) * (weight.ndim - 2))
        weight = (grouped * factors).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    return weight.to(layer.weight), bias.to(layer.weight)
