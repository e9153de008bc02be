"""A deep recursive feature machine as a network: differentiable, attackable, kept as any other.

Its features are the kernel between the last layer and the centers, so that a linear head without
bias on them is the last kernel machine. `solve` fits it in closed form, head included:

>>> import torch
>>> from robust_nc.models.heads import LinearHead
>>> backbone = DeepRfmBackbone((1, 4, 4), layers=2, width=32, centers=20)
>>> backbone.tap_names
('layer1', 'layer2', 'penultimate')
>>> head = LinearHead(2, backbone.dim, seed=0, bias=False)
>>> images, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
>>> machine = backbone.solve(images, labels, head)
>>> torch.equal(head(backbone(images)).argmax(1), machine.predict(images.flatten(1)))
True
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.backbones import Backbone, ImageShape, at_least
from robust_nc.models.deep_rfm import (
    Activation,
    DeepRFM,
    KernelName,
    RandomMap,
    draw_map,
    unit_sphere,
)
from robust_nc.models.heads import Head, LinearHead
from robust_nc.models.taps import PENULTIMATE
from robust_nc.runtime.progress import Report
from robust_nc.types import Features, Images


class DeepRfmBackbone(Backbone):
    """Layers of a `DeepRFM` on flattened images, then the kernel with the centers.

    Taps: `layer1` to `layerL`, the rows on the unit sphere after each layer, `(N, width)`; the
    penultimate is k(x, centers), `(N, centers)`. Options as for `DeepRFM`. All is in buffers: of a
    layer, its random map times M^1/2 in one matrix. Before `solve` M is the identity and the
    centers are random, so that a head can be trained on it as on fixed random features. Takes one
    image size only.
    """

    name = "deep_rfm"
    one_size = True
    centers: Tensor

    def __init__(
        self,
        image_shape: ImageShape,
        *,
        layers: int = 4,
        width: int = 512,
        centers: int = 1000,
        kernel: KernelName = "laplace",
        bandwidth: float = 2.0,
        ridge: float = 1e-3,
        activation: Activation = "relu",
        agop: bool = True,
    ) -> None:
        names = [f"layer{index}" for index in range(1, at_least("layers", layers, 1) + 1)]
        super().__init__(
            image_shape, dim=at_least("centers", centers, 2), tap_names=(*names, PENULTIMATE)
        )
        self._unfitted = DeepRFM(
            layers,
            width=width,
            kernel=kernel,
            bandwidth=bandwidth,
            ridge=ridge,
            activation=activation,
            agop=agop,
        )
        channels, height, columns = image_shape
        inputs = [channels * height * columns] + [width] * (layers - 1)
        maps = (draw_map(dim, width, activation, bandwidth, None) for dim in inputs)
        self.layers = nn.ModuleList(_Layer(phi) for phi in maps)
        self.register_buffer("centers", unit_sphere(torch.rand(centers, width)))

    def blocks(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """Yield the rows of each layer, `(N, width)`, and their kernel, `(N, centers)`."""
        rows = unit_sphere(images.flatten(1))
        for name, layer in zip(self.tap_names, self.layers, strict=False):
            rows = unit_sphere(layer(rows))
            yield name, rows
        yield PENULTIMATE, self._unfitted.kernel(rows, self.centers)

    def solve(
        self, images: Tensor, labels: Tensor, head: Head, *, report: Report | None = None
    ) -> DeepRFM:
        """Fit all layers and the head, in float64, and return the machine that they now are.

        `images` (centers, C, H, W) as `forward` takes them, that is normalised; `labels` int64. The
        random maps are those that the backbone was built with. Raises `ConfigError` for a head that
        is not linear without bias, `InputError` for another number of images than of centers.
        """
        head = plain_head(head)
        if len(images) != self.dim:
            raise InputError(
                f"deep_rfm has {self.dim} centers and needs that many training images, found "
                f"{len(images)}; set the backbone's option centers to {len(images)}"
            )
        layers = [layer for layer in self.layers if isinstance(layer, _Layer)]
        machine = copy.copy(self._unfitted).fit(
            images.detach().flatten(1),
            labels,
            num_classes=head.num_classes,
            maps=[layer.drawn() for layer in layers],
            report=report,
        )
        with torch.no_grad():
            for layer, phi, root in zip(layers, machine.maps_, machine.roots_, strict=True):
                layer.weight.copy_(phi.after(root).weight)
            self.centers.copy_(machine.centers_)
            head.weight.copy_(machine.coefficients_.T * head.temperature)
        return machine


class _Layer(nn.Module):
    """Phi(x M^1/2): `weight` is that of the random map, `random`, times M^1/2."""

    random: Tensor
    weight: Tensor
    phase: Tensor | None

    def __init__(self, phi: RandomMap) -> None:
        super().__init__()
        self.register_buffer("random", phi.weight)
        self.register_buffer("weight", phi.weight.clone())
        self.register_buffer("phase", phi.phase)

    def drawn(self) -> RandomMap:
        """Return the random map alone."""
        return RandomMap(self.random, self.phase)

    def forward(self, rows: Features) -> Tensor:
        """Return the features `(N, width)`."""
        return RandomMap(self.weight, self.phase)(rows)


def plain_head(head: Head) -> LinearHead:
    """Return a head that deep_rfm can be solved for, or raise `ConfigError`."""
    if not (
        isinstance(head, LinearHead)
        and head.bias is None
        and not head.normalise_features
        and not head.normalise_weight
        and head.scale == 1
    ):
        raise ConfigError(
            "deep_rfm is solved for a linear head that has no bias and changes neither features "
            "nor weight; set head = { name = 'linear', bias = false } and "
            "normalise_features = false"
        )
    return head
