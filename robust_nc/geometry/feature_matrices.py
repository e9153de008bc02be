"""What a layer has learnt: its neural feature matrix against its average gradient outer product.

For a layer z = W x + b inside a network, W (out x in): NFM = W^T W, and AGOP = W^T G W with
G = mean J^T J, J the Jacobian of the logits with respect to z, is the average gradient outer
product with respect to x. Neural feature ansatz (Radhakrishnan et al., Science 2024, arXiv
2212.13881; Beaglehole et al., arXiv 2402.13728): in trained networks NFM is proportional to a
power of AGOP, the root above all. Both are Gram matrices F^T F, and their Pearson correlation over
entries needs the factors alone:

>>> import torch
>>> weight = torch.tensor([[1.0, 2, 0], [0, 1, 1]], dtype=torch.float64)
>>> round(gram_correlation(weight, 3 * weight), 9)
1.0
>>> gram_correlation(weight, torch.ones(1, 3).double()) is None  # all entries are equal
True
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeGuard

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robust_nc.exceptions import InputError
from robust_nc.geometry.jacobians import (
    MEMORY,
    checked_images,
    chunk_size,
    chunks,
    differentiable,
    logit_gradients,
    logits_of,
)
from robust_nc.runtime.torch_state import forward_hooks

_CONSTANT = 1e-10  # share of the mean square of entries that their variance has to exceed
_NO_INITIAL = "needs the initial weights"
_SAME = "undefined: all entries of NFM or of AGOP are equal"
_UNMOVED = "undefined: the weights are the initial ones, or all entries of AGOP are equal"
_IDLE = "did not run, or gave no tensor"
_LAST = "1 by construction: the layer gives the logits"
_MEASURES = ("nfm_agop", "nfm_agop_root", "nfm_agop_centred", "nfm_agop_root_centred")


class HasVertices(Protocol):
    """A head whose output is g(features) vertices()^T + bias, linear in what it reads."""

    def vertices(self) -> Tensor:
        """Rows of the map that is applied, `(K, D)`."""
        ...


@dataclass(frozen=True, kw_only=True)
class LayerAgop:
    """Pearson correlations of one layer, in [-1, 1]; None with a reason in `notes`.

    Of NFM = W^T W with AGOP, and with the root of AGOP; `_centred`: of (W - W_0)^T (W - W_0) with
    the same two. `shape` is (out, in), in = channels times kernel for a convolution.
    """

    nfm_agop: float | None = None
    nfm_agop_root: float | None = None
    nfm_agop_centred: float | None = None
    nfm_agop_root_centred: float | None = None
    shape: tuple[int, int]
    notes: Mapping[str, str]

    def measures(self) -> dict[str, float | None]:
        """All correlations by name."""
        return {name: getattr(self, name) for name in _MEASURES}


def layer_features(
    model: nn.Module,
    images: Tensor,
    *,
    initial: nn.Module | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
) -> dict[str, LayerAgop]:
    """Correlate NFM and AGOP of every linear map of a network, by the module's dotted name.

    Linear maps are `nn.Linear`, `nn.Conv2d` with one group (linear on its patches: W reshaped to
    (out, in * kernel), J averaged over places; likewise over tokens), and heads with `vertices()`.
    `images` `(N, C, H, W)` in [0, 1]; `initial` is the same network before training. One forward
    and K backward passes for all layers together; G is summed up in float64, and no in x in matrix
    is formed.

    `memory` (bytes): half is for the G of all layers, r x r with r = min(out, in), half for the
    graph of a chunk of images (at most `batch_size`). A layer whose G does not fit beside those
    before it, or whose weights, afterwards, do not (8 (4 out in + 6 r^2) bytes), has no values and
    a note, and so has one that did not run, ran several times, or is another kind of map. For the
    layer that gives the logits NFM and AGOP are equal by construction; a note says so.

    The model runs in eval mode and is left as it was found. Raises `InputError` for an `initial`
    of another architecture, and as `input_agop` does.
    """
    pixels = checked_images(images)
    with differentiable(model):
        layers, found = _layers(model)
        starts = {name: _initial_weight(layer, initial) for name, layer in layers.items()}
        reader = _Reader()
        hooks = ((each.module, partial(reader.open_graph, name)) for name, each in layers.items())
        with forward_hooks(hooks):
            size = chunk_size(model, pixels, memory // 2, batch_size)  # runs one image
            found |= _unfit(layers.values(), reader, memory)
            kept = [layer for name, layer in layers.items() if name not in found]
            last = [_accumulate(kept, reader, model, c) for c in chunks(model, pixels, size)][-1]
        reader.clear()
        for layer in kept:
            found[layer.name] = layer.correlate(starts[layer.name], gives_logits=layer.name == last)
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def _accumulate(
    layers: list["_Layer"], reader: "_Reader", model: nn.Module, images: Tensor
) -> str | None:
    """Add one chunk of images to every layer; return which of all layers gave the logits."""
    reader.clear()
    logits = logits_of(model, images)
    outputs = [reader.outputs[layer.name][0] for layer in layers]
    for gradients in logit_gradients(logits, outputs) if outputs else ():
        for layer, gradient in zip(layers, gradients, strict=True):
            layer.update(gradient)
    return reader.gave(logits)


def gram_correlation(left: Float64[Tensor, "p d"], right: Float64[Tensor, "q d"]) -> float | None:
    """Pearson correlation over the entries of left^T left and right^T right, `(D, D)` each.

    From p x q products only: the sum over entries of the product of two Gram matrices is the
    squared Frobenius norm of left right^T. None where the entries of one are all equal.
    """
    left, right = _scaled(left), _scaled(right)

    def product(one: Tensor, other: Tensor) -> float:
        return float(torch.linalg.vector_norm(one @ other.T).square()) / one.shape[1] ** 2

    means = [float(f.sum(1).square().sum()) / f.shape[1] ** 2 for f in (left, right)]
    squares = [product(left, left), product(right, right)]
    spread = [square - mean**2 for square, mean in zip(squares, means, strict=True)]
    if any(s <= _CONSTANT * q for s, q in zip(spread, squares, strict=True)):
        return None
    shared = product(left, right) - means[0] * means[1]
    return max(-1.0, min(1.0, shared / float(spread[0] ** 0.5 * spread[1] ** 0.5)))


def _scaled(factor: Tensor) -> Tensor:
    largest = factor.abs().amax() if factor.numel() else factor.new_zeros(())
    return factor / largest if bool(largest > 0) else factor


def root_factor(factor: Float64[Tensor, "p d"]) -> Float64[Tensor, "p d"]:
    """Return R with R^T R = (F^T F)^(1/2), from the p x p matrix F F^T."""
    squares, left = torch.linalg.eigh(factor @ factor.T)
    squares = squares.clamp_min(0)
    large = squares > squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
    scale = torch.where(large, squares, torch.inf) ** -0.25
    root: Tensor = scale[:, None] * (left.T @ factor)
    return root


class _Layer:
    """One linear map: its weight, and the sum of J^T J over examples and places.

    A correlation does not ask for the mean. Where out > in, J is taken on the columns Q of
    W = Q R, which span all that W can put out.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        outputs, inputs = _matrix(module).shape
        self.shape = (outputs, inputs)
        self.channels = 1 if isinstance(module, nn.Conv2d) else -1
        self._columns: Tensor | None = None
        self._sum: Tensor | None = None

    @property
    def rank(self) -> int:
        """Side of the matrix that is summed up."""
        return min(self.shape)

    def update(self, gradient: Tensor) -> None:
        """Add the gradient of one logit with respect to the output, one row per place."""
        rows = gradient.movedim(self.channels, -1).reshape(-1, self.shape[0]).double()
        if self._sum is None:
            self._sum = rows.new_zeros(self.rank, self.rank)
            if self.rank < self.shape[0]:
                self._columns = torch.linalg.qr(_matrix(self.module).to(rows))[0]
        if self._columns is not None:
            rows = rows @ self._columns
        self._sum.addmm_(rows.T, rows)

    def correlate(self, initial: Tensor | None, *, gives_logits: bool) -> LayerAgop:
        """Return all correlations; `initial` (out, in) are the weights before training."""
        assert self._sum is not None
        weight = _matrix(self.module).to(self._sum)
        learnt = weight if self._columns is None else self._columns.T @ weight
        sizes, vectors = torch.linalg.eigh(self._sum)
        agop = sizes.clamp_min(0).sqrt()[:, None] * (vectors.T @ learnt)
        root = root_factor(agop)
        values = {
            "nfm_agop": gram_correlation(learnt, agop),
            "nfm_agop_root": gram_correlation(learnt, root),
        }
        reasons = dict.fromkeys(_MEASURES[:2], _SAME) | dict.fromkeys(_MEASURES[2:], _NO_INITIAL)
        if initial is not None:
            moved = weight - initial.to(weight)
            if self._columns is not None:  # (W - W_0)^T (W - W_0) needs no more rows than columns
                moved = torch.linalg.qr(moved)[1]
            values["nfm_agop_centred"] = gram_correlation(moved, agop)
            values["nfm_agop_root_centred"] = gram_correlation(moved, root)
            reasons |= dict.fromkeys(_MEASURES[2:], _UNMOVED)
        notes = {name: reasons[name] for name in _MEASURES if values.get(name) is None}
        if gives_logits:
            notes.setdefault("nfm_agop", _LAST)
        return LayerAgop(**values, shape=self.shape, notes=notes)


class _Reader:
    """What hooks have read that cut the graph open behind every layer."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[Tensor]] = {}
        self._passed: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forget the last pass."""
        self.outputs.clear()
        self._passed.clear()

    def gave(self, logits: Tensor) -> str | None:
        """Name the layer whose output of the last pass is the logits, if one is."""
        return next((name for name, passed in self._passed.items() if passed is logits), None)

    def reason(self, layer: _Layer) -> str | None:
        """Why a layer has no Jacobian, going by a pass of one image; None where it has one."""
        outputs = self.outputs.get(layer.name, [])
        if len(outputs) != 1:
            return f"ran {len(outputs)} times in one pass; once is needed" if outputs else _IDLE
        shape = outputs[0].shape
        if shape[0] == 1 and shape[layer.channels] == layer.shape[0]:
            return None
        return f"gave {tuple(shape)} for one image; one row per image is needed"

    def open_graph(self, name: str, _module: nn.Module, _: Any, output: Any) -> Tensor | None:
        """Cut the graph open behind one layer: the hook of it."""
        if not isinstance(output, Tensor):
            return None
        anchor = output if output.requires_grad else output.detach().requires_grad_()
        self.outputs.setdefault(name, []).append(anchor)
        # What follows may work in place, and would put its own output in the anchor's place.
        self._passed[name] = anchor.clone()
        return self._passed[name]


def _layers(model: nn.Module) -> tuple[dict[str, _Layer], dict[str, LayerAgop]]:
    """Return the linear maps of a model, and the maps of other kinds, each with its reason."""
    layers, others = {}, {}
    for name, module in model.named_modules():
        own = [tensor for tensor in module.parameters(recurse=False) if tensor.ndim >= 2]
        plain = isinstance(module, nn.Linear) or _is_head(module)
        if plain or (isinstance(module, nn.Conv2d) and module.groups == 1):
            layers[name] = _Layer(name, module)
        elif own:
            kind = type(module).__name__
            kind = f"{kind} of several groups" if isinstance(module, nn.Conv2d) else kind
            shape = (own[0].shape[0], own[0][0].numel())
            others[name] = _nothing(shape, f"skipped: {kind} is no linear map of its input")
    return layers, others


def _is_head(module: nn.Module) -> TypeGuard[HasVertices]:
    return callable(getattr(module, "vertices", None))


def _matrix(module: nn.Module) -> Tensor:
    """W as a matrix (out, in), without its graph."""
    if _is_head(module):
        return module.vertices().detach()
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return module.weight.detach().flatten(1)


def _nothing(shape: tuple[int, int], reason: str) -> LayerAgop:
    return LayerAgop(shape=shape, notes=dict.fromkeys(_MEASURES, reason))


def _unfit(layers: Iterable[_Layer], reader: _Reader, memory: int) -> dict[str, LayerAgop]:
    """Layers without values, going by a pass of one image, and by what fits `memory`."""
    unfit, used = {}, 0
    for layer in layers:
        sums = 8 * layer.rank**2
        weights = 8 * 4 * layer.shape[0] * layer.shape[1] + 6 * sums
        reason = reader.reason(layer)
        if reason is None and (used + sums > memory // 2 or weights > memory):
            reason = f"needs more than the {memory:,} bytes of `memory`"
        if reason is None:
            used += sums
        else:
            unfit[layer.name] = _nothing(layer.shape, reason)
    return unfit


def _initial_weight(layer: _Layer, initial: nn.Module | None) -> Tensor | None:
    """Return the weights of the same layer before training, `(out, in)`."""
    if initial is None:
        return None
    module = dict(initial.named_modules()).get(layer.name)
    if not isinstance(module, type(layer.module)) or _matrix(module).shape != layer.shape:
        raise InputError(
            f"initial has no layer {layer.name!r} of shape {layer.shape} as the model has; give "
            "the same network before training"
        )
    return _matrix(module)
