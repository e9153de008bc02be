"""Which half of a fully connected layer collapses its classes: the matrix or the activation.

For x -> s(W x) with W = U S V^T (Beaglehole et al., arXiv 2402.13728): NC1 of x, of S V^T x, and of
s(W x). U has orthonormal columns, so NC1 of S V^T x is that of W x, and a bias moves all examples
alike: the middle point is the layer's own output. S and V^T are also what W^T W is made of, so the
first step is the one that the feature matrix explains.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
>>> found = svd_argument(model, torch.rand(8, 1, 2, 2), torch.arange(8) % 2, num_classes=2)
>>> list(found), found["3"].notes["activation"]
(['1', '3'], 'no activation module follows directly')
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.jacobians import checked_images, chunks
from robust_nc.geometry.moments import Moments
from robust_nc.runtime.torch_state import forward_hooks, full_precision, untouched

POINTS = ("features", "linear", "activation")

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Hardsigmoid,
)
_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm, nn.LayerNorm)
_PLAIN = (nn.Dropout, nn.Identity)
_NONE_FOLLOWS = "no activation module follows directly"


@dataclass(frozen=True, kw_only=True)
class SvdNc1:
    """`nc1_trace` by true label before a layer, after its matrix, and after its activation.

    None with a reason in `notes`; `notes["activation"]` also names a normalisation that lies
    between matrix and activation, and is counted with the activation.
    """

    features: float | None = None
    linear: float | None = None
    activation: float | None = None
    num_examples: int
    notes: Mapping[str, str]


def svd_argument(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    batch_size: int = 64,
) -> dict[str, SvdNc1]:
    """Measure NC1 around every `nn.Linear` of a network, by the module's dotted name.

    `images` `(N, C, H, W)` in [0, 1], `labels` `(N,)`. The activation is the module that reads the
    layer's output, or that of a normalisation or dropout which reads it; an activation that is a
    function call is not seen. Where the layer reads tokens, each counts as an example. One pass,
    from streaming sums. A layer that did not run, or ran several times, has no values and a note.

    The model runs in eval mode and is left as it was found. Raises `InputError` for images and
    labels that cannot be used.
    """
    pixels = checked_images(images)
    labels = check_labels(labels, len(pixels), num_classes)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    reader = _Reader(model, num_classes)
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = forward_hooks((module, reader.hook) for module in leaves)
    with torch.no_grad(), untouched(model), full_precision(), hooks:
        for start, chunk in enumerate(chunks(model, pixels, batch_size)):
            reader.begin(labels[start * batch_size :][: len(chunk)].to(chunk.device))
            model(chunk)
    return reader.results()


class _Layer:
    """Moments at the points around one linear layer."""

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self.inside: tuple[str, ...] = ()
        self.runs = 0  # in the current pass
        self.reason: str | None = None  # why there are no values

    def add(self, point: str, values: Tensor, labels: Tensor, num_classes: int) -> None:
        """Add one batch at a point; axes before the last are examples."""
        rows = values.detach().flatten(0, -2)
        if len(values) != len(labels):
            self.reason = f"gave {len(values)} outputs for {len(labels)} image(s)"
            return
        if point not in self.moments:
            self.moments[point] = Moments(num_classes, rows.shape[1])
        self.moments[point].update(rows, labels.repeat_interleave(len(rows) // len(labels)))

    def result(self) -> SvdNc1:
        """NC1 at every point that was reached."""
        reason = self.reason or (None if self.moments else "did not run")
        if reason is not None:
            return SvdNc1(num_examples=0, notes=dict.fromkeys(POINTS, reason))
        values: dict[str, float | None] = {}
        notes = {"activation": _NONE_FOLLOWS}
        if self.inside:
            notes["activation"] = f"with {' and '.join(self.inside)} inside"
        elif "activation" in self.moments:
            del notes["activation"]
        for point, moments in self.moments.items():
            measured = collapse(moments)
            values[point] = measured.nc1_trace
            if measured.nc1_trace is None:
                notes[point] = measured.notes["nc1_trace"]
        count = self.moments["features"].total
        return SvdNc1(**values, num_examples=count, notes=notes)


class _Reader:
    """Follows the output of each linear layer from module to module, while a pass runs."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        self._num_classes = num_classes
        self._names = {m: name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        self._layers = {name: _Layer() for name in self._names.values()}
        self._labels = torch.empty(0)
        self._open: tuple[_Layer, Tensor, tuple[str, ...]] | None = None

    def begin(self, labels: Tensor) -> None:
        """Start a pass over images with these labels."""
        self._labels = labels
        self._open = None
        for layer in self._layers.values():
            layer.runs = 0

    def results(self) -> dict[str, SvdNc1]:
        """Return what was measured, by layer."""
        return {name: layer.result() for name, layer in self._layers.items()}

    def hook(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Follow one module that has run."""
        given = inputs[0] if inputs else None
        follows = self._open is not None and given is self._open[1]
        if isinstance(module, nn.Linear) and isinstance(given, Tensor):
            self._enter(self._layers[self._names[module]], given, output)
        elif self._open is not None and follows and isinstance(module, _NORMS + _PLAIN):
            layer, _, inside = self._open
            if isinstance(module, _NORMS):
                inside = (*inside, type(module).__name__)
            self._open = (layer, output, inside)
        elif self._open is not None and follows and isinstance(module, _ACTIVATIONS):
            layer, _, layer.inside = self._open
            layer.add("activation", output, self._labels, self._num_classes)
            self._open = None
        else:
            self._open = None

    def _enter(self, layer: _Layer, given: Tensor, output: Tensor) -> None:
        layer.runs += 1
        if layer.runs > 1:
            layer.reason = "ran several times in one pass; once is needed"
            self._open = None
            return
        layer.add("features", given, self._labels, self._num_classes)
        layer.add("linear", output, self._labels, self._num_classes)
        self._open = (layer, output, ())
