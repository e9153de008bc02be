"""Deep recursive feature machines: a network that is fitted layer by layer, in closed form.

Each layer puts its rows on the unit sphere, fits a kernel ridge regression to targets +-1, and
turns the rows by the root of its AGOP, M = sum of g g^T over the gradients g of the regression at
the rows, divided by its largest entry; a random map follows: X <- Phi(X M^1/2). A last kernel
machine reads what comes out (Beaglehole, Sukenik, Mondelli, Belkin, NeurIPS 2024, arXiv 2402.13728,
algorithm 1). A kernel machine is f(x) = sum_j k(x, z_j) alpha_j: centers z_j `(m, D)`, coefficients
`(m, K)`.

>>> import torch
>>> draws = torch.Generator().manual_seed(0)
>>> labels = torch.arange(60) % 3
>>> features = torch.eye(8)[labels] + 0.3 * torch.randn(60, 8, generator=draws)
>>> machine = DeepRFM(num_layers=2, width=64).fit(features, labels)
>>> machine.layers_[["layer", "point"]].values.tolist()[:3]
[[1, 'X'], [1, 'M^1/2 X'], [1, 'Phi(M^1/2 X)']]
>>> torch.equal(machine.predict(features), labels)
True
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.inputs import as_features
from robust_nc.geometry.moments import Moments
from robust_nc.runtime.progress import Report, no_report
from robust_nc.runtime.torch_state import generator
from robust_nc.types import Features

KernelName = Literal["laplace", "gaussian"]
Points = Float64[Tensor, "n d"]
Told = Callable[[float], None]
"""What is told how far a computation is, a share in [0, 1]."""

# Squared distances are differences of numbers near 1 in float64, so rounding alone reaches 1e-15;
# two points of the sphere that are closer than 1e-7 count as one.
_SAME = 1e-14
_BLOCK_BYTES = 2**25  # of one block of rows against all centers


@dataclass(frozen=True)
class Kernel(ABC):
    """A kernel of the distance: `kernel(x, z)` is `(n, m)`, in the precision of `x`.

    Distances are computed in float64 whatever the precision of the points: deep layers bring them
    so close together that float32 would lose their differences. Differentiable; the gradient with
    respect to `x` is finite everywhere, and 0 where `x` is a center.
    """

    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < float("inf"):
            raise InputError(f"bandwidth must be finite and above 0, found {self.bandwidth}")

    def __call__(self, points: Float[Tensor, "n d"], centers: Float[Tensor, "m d"]) -> Tensor:
        """Return k(x_i, z_j) for all points and centers."""
        return self.values(_squared_distances(points, centers)).to(points.dtype)

    @abstractmethod
    def values(self, squares: Tensor) -> Tensor:
        """Return the kernel of squared distances."""

    @abstractmethod
    def pull(self, squares: Tensor) -> Tensor:
        """Return p of squared distances, where the gradient of k in x is -p (x - z)."""


class Laplace(Kernel):
    """k = `exp(-|x - z| / L)`.

    It has a kink at x = z, where its gradient is undefined: 0 stands there, the mean of the
    gradients around it.
    """

    def values(self, squares: Tensor) -> Tensor:
        """exp(-distance / L); no gradient passes where points coincide."""
        same = squares <= _SAME
        distances = squares.masked_fill(same, 1.0).sqrt().masked_fill(same, 0.0)
        return torch.exp(-distances / self.bandwidth)

    def pull(self, squares: Tensor) -> Tensor:
        """k / (L distance), and 0 where points coincide."""
        same = squares <= _SAME
        distances = squares.masked_fill(same, 1.0).sqrt()
        pulls = torch.exp(-distances / self.bandwidth) / (self.bandwidth * distances)
        return pulls.masked_fill(same, 0.0)


class Gaussian(Kernel):
    """k = `exp(-|x - z|^2 / (2 L^2))`."""

    def values(self, squares: Tensor) -> Tensor:
        """exp(-distance^2 / (2 L^2))."""
        return torch.exp(squares / (-2 * self.bandwidth**2))

    def pull(self, squares: Tensor) -> Tensor:
        """k / L^2."""
        return self.values(squares) / self.bandwidth**2


def make_kernel(name: str, bandwidth: float) -> Kernel:
    """Return the kernel called "laplace" or "gaussian"; raises `UnknownNameError` for another."""
    kernels: dict[str, type[Kernel]] = {"laplace": Laplace, "gaussian": Gaussian}
    if name not in kernels:
        raise unknown_name("kernel", name, kernels)
    return kernels[name](bandwidth)


def unit_sphere(rows: Features) -> Features:
    """Divide each row by its length; a row of zeros stays zero, with a finite gradient."""
    # Before squaring, so that tiny rows do not vanish; it cancels out, and so needs no gradient.
    largest = rows.detach().abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    rows = rows / largest
    squares = rows.square().sum(1, keepdim=True)
    scale: Tensor = squares.masked_fill(squares == 0, 1.0).rsqrt()
    return rows * scale


def solve_ridge(
    centers: Points,
    targets: Float64[Tensor, "n k"],
    kernel: Kernel,
    *,
    ridge: float,
    batch_size: int | None = None,
) -> Float64[Tensor, "n k"]:
    """Return alpha = (k(Z, Z) + ridge I)^-1 targets.

    Holds two n x n matrices at its peak: the kernel matrix, factored in place (Cholesky), and what
    the factorisation needs. Raises `InputError` where `ridge` is too small for that.
    """
    size = len(centers)
    matrix = centers.new_empty(size, size)
    for rows in row_blocks(size, size, batch_size):
        matrix[rows] = kernel(centers[rows], centers)
    matrix.diagonal().add_(ridge)
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, info))
    if int(info):
        raise InputError(
            f"the kernel matrix of {size} examples cannot be inverted with ridge={ridge}; raise it"
        )
    solved: Tensor = torch.cholesky_solve(targets, matrix)
    return solved


def kernel_agop(
    centers: Points,
    coefficients: Float64[Tensor, "n k"],
    kernel: Kernel,
    *,
    batch_size: int | None = None,
    told: Told | None = None,
) -> Float64[Tensor, "d d"]:
    """Return M = (1/n) sum_i sum_c g_ic g_ic^T, g_ic the gradient of f_c at center i.

    f is the kernel machine of these centers. Takes 2 n^2 D K multiplications, and `batch_size` x n
    numbers at a time (None: 32 MiB).
    """
    size, dim = centers.shape
    total = centers.new_zeros(dim, dim)
    for rows in row_blocks(size, size, batch_size):
        points = centers[rows]
        pulls = kernel.pull(_squared_distances(points, centers))
        for column in coefficients.T:
            weights = pulls * column
            gradients = torch.addmm(points * -weights.sum(1, keepdim=True), weights, centers)
            total.addmm_(gradients.T, gradients)
        if told is not None:
            told(min(rows.stop / size, 1.0))
    return total / size


def matrix_root(matrix: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def row_blocks(num_rows: int, num_columns: int, batch_size: int | None) -> Iterator[slice]:
    """Cut rows into blocks of `batch_size`, or of 32 MiB in float64."""
    step = batch_size or max(1, _BLOCK_BYTES // (8 * max(num_columns, 1)))
    return (slice(start, start + step) for start in range(0, num_rows, step))


def _squared_distances(points: Float[Tensor, "n d"], centers: Float[Tensor, "m d"]) -> Tensor:
    """`|x_i - z_j|^2`, `(n, m)` float64."""
    points, centers = points.double(), centers.double()
    lengths = points.square().sum(1)[:, None] + centers.square().sum(1)
    squares: Tensor = torch.addmm(lengths, points, centers.T, alpha=-2)
    return squares.clamp_min(0)


Activation = Literal["relu", "cosine"]

POINTS = ("X", "M^1/2 X", "Phi(M^1/2 X)")
_MEASURES = ("nc1_trace", "nc2_norm", "nc2_angle", "nc2_gram")


class RandomMap(NamedTuple):
    """Phi: ReLU of random projections, or random cosine features where there is a `phase`.

    `weight` (width, D), `phase` (width,) or None.
    """

    weight: Tensor
    phase: Tensor | None

    def __call__(self, rows: Features) -> Tensor:
        """Return the features `(n, width)` of rows `(n, D)`."""
        projected = rows @ self.weight.T
        if self.phase is None:
            return projected.relu()
        scale: float = (2 / len(self.weight)) ** 0.5
        return scale * torch.cos(projected + self.phase)

    def after(self, root: Tensor | None) -> "RandomMap":
        """Return the map that first multiplies rows by `root` (symmetric; None: by nothing)."""
        return self if root is None else self._replace(weight=self.weight @ root)

    def double(self, device: torch.device) -> "RandomMap":
        """Return the map in float64 on a device."""
        weight = self.weight.to(device, torch.float64)
        return RandomMap(weight, None if self.phase is None else self.phase.to(weight))


def draw_map(
    dim: int, width: int, activation: Activation, bandwidth: float, source: torch.Generator | None
) -> RandomMap:
    """Draw a random map; from the global generator where `source` is None.

    "relu": weights uniform in +-1/sqrt(D), torch's default for a linear layer, without a bias.
    "cosine": sqrt(2 / width) cos(W x + b), W ~ N(0, 1/L^2) and b uniform in [0, 2 pi), whose inner
    products approximate the Gaussian kernel of bandwidth L (Rahimi and Recht, NIPS 2007).
    """
    if activation == "relu":
        return RandomMap((torch.rand(width, dim, generator=source) * 2 - 1) * dim**-0.5, None)
    weight = torch.randn(width, dim, generator=source) / bandwidth
    return RandomMap(weight, torch.rand(width, generator=source) * 2 * torch.pi)


class DeepRFM:
    """Deep recursive feature machine for features `(n, D)` of K >= 2 classes.

    `kernel` "laplace" `exp(-|x - z| / L)` or "gaussian" `exp(-|x - z|^2 / 2L^2)`, L = `bandwidth`;
    `ridge` is added to the diagonal of the kernel matrix; `activation` and `width` are those of the
    random map Phi (`draw_map`); without `agop`, M is the identity. `batch_size`: rows whose kernel
    against all centers is held at a time (None: 32 MiB of them). All is computed in float64, on
    the device of the features. The maps depend on `seed` alone.

    `fit` leaves `layers_`, one row per layer (from 1) and point ("X": rows on the unit sphere,
    "M^1/2 X", "Phi(M^1/2 X)"): `nc1_trace`, `nc2_norm`, `nc2_angle`, `nc2_gram` as in
    `robust_nc.geometry.collapse` (missing where undefined), and `train_accuracy` of the layer's own
    kernel machine, which reads X. Beside it `maps_`, `roots_` (M^1/2 `(D, D)` of each layer; None
    without `agop`), and the last kernel machine: `centers_` `(n, width)`, `coefficients_` `(n, K)`.
    """

    layers_: pd.DataFrame
    maps_: list[RandomMap]
    roots_: list[Tensor | None]
    centers_: Tensor
    coefficients_: Tensor

    def __init__(
        self,
        num_layers: int = 4,
        *,
        width: int = 512,
        kernel: str = "laplace",
        bandwidth: float | int = 2.0,
        ridge: float | int = 1e-3,
        activation: str = "relu",
        agop: bool = True,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        counts = {"num_layers": num_layers, "width": width, "batch_size": batch_size}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise InputError(f"{name} must be at least 1, found {count}")
        if activation not in get_args(Activation):
            raise unknown_name("activation", activation, get_args(Activation))
        if not 0 < ridge < float("inf"):
            raise InputError(f"ridge must be finite and above 0, found {ridge}")
        self.num_layers = num_layers
        self.width = width
        self.kernel = make_kernel(kernel, float(bandwidth))
        self.ridge = ridge
        self.activation: Activation = cast(Activation, activation)
        self.agop = agop
        self.batch_size = batch_size
        self.seed = seed

    def fit(
        self,
        features: Any,
        labels: Any,
        *,
        num_classes: int | None = None,
        maps: Sequence[RandomMap] | None = None,
        report: Report | None = None,
    ) -> "DeepRFM":
        """Fit all layers to features `(n, D)` and labels `(n,)` int64; returns self.

        `num_classes` K (None: as the labels say); `maps` are the random maps of the layers (None:
        drawn from `seed`); `report` is called with a share in [0, 1] and a line. Raises
        `InputError` for features or labels that cannot be used, for features that are all the same,
        and for another number of maps than of layers.
        """
        rows = as_features(features, "features").double()
        labels = check_labels(labels, len(rows), num_classes).to(rows.device)
        if not len(labels) or int(labels.min()) == int(labels.max()):
            raise InputError("labels must be of at least two classes to tell them apart")
        targets = rows.new_full((len(rows), num_classes or int(labels.max()) + 1), -1.0)
        targets[torch.arange(len(rows), device=rows.device), labels] = 1.0
        drawn = self._draw(rows.shape[1]) if maps is None else maps
        if len(drawn) != self.num_layers:
            raise InputError(
                f"maps must be one for each of the {self.num_layers} layers, found {len(drawn)}"
            )
        maps = [phi.double(rows.device) for phi in drawn]
        roots: list[Tensor | None] = []
        measured: list[dict[str, Any]] = []
        for layer, phi in enumerate(maps, 1):
            told = _stage(report, layer - 1, self.num_layers + 1, f"layer {layer}")
            rows = unit_sphere(rows)
            coefficients = self._solve(rows, targets)
            outputs = self._decide(rows, rows, coefficients)
            right = float((outputs.argmax(1) == labels).double().mean())
            root = self._root(layer, rows, coefficients, told) if self.agop else None
            turned = rows if root is None else rows @ root
            mapped = phi(turned)
            told(1.0)
            for point, values in zip(POINTS, (rows, turned, mapped), strict=True):
                place = {"layer": layer, "point": point}
                measured.append(place | _collapse(values, labels) | {"train_accuracy": right})
            roots.append(root)
            rows = mapped
        self.centers_ = unit_sphere(rows)
        self.coefficients_ = self._solve(self.centers_, targets)
        self.maps_ = maps
        self.roots_ = roots
        self.layers_ = pd.DataFrame(measured)
        _stage(report, self.num_layers, self.num_layers + 1, "last kernel machine")(1.0)
        return self

    def transform(self, features: Any, layer: int) -> Tensor:
        """Return the rows on the unit sphere after `layer` layers, float64.

        0 are the features themselves; `num_layers` is what the last kernel machine reads.
        """
        if not hasattr(self, "coefficients_"):
            raise InputError("this DeepRFM is not fitted; call fit(features, labels) first")
        if not 0 <= layer <= self.num_layers:
            raise InputError(f"layer must be in 0..{self.num_layers}, found {layer}")
        dim = self.maps_[0].weight.shape[1]
        rows = as_features(features, "features", dim=dim).to(self.centers_)
        for phi, root in zip(self.maps_[:layer], self.roots_, strict=False):
            rows = phi.after(root)(unit_sphere(rows))
        return unit_sphere(rows)

    def decision(self, features: Any) -> Tensor:
        """Return the outputs of the last kernel machine, `(n, K)` float64: the logits."""
        return self._decide(self.transform(features, self.num_layers))

    def predict(self, features: Any) -> Tensor:
        """Return the class of the largest output, `(n,)` int64."""
        return self.decision(features).argmax(1)

    def _draw(self, dim: int) -> list[RandomMap]:
        dims = [dim] + [self.width] * (self.num_layers - 1)
        return [
            draw_map(
                inputs,
                self.width,
                self.activation,
                self.kernel.bandwidth,
                generator(self.seed, "rfm-map", layer),
            )
            for layer, inputs in enumerate(dims, 1)
        ]

    def _root(
        self, layer: int, rows: Tensor, coefficients: Tensor, told: Callable[[float], None]
    ) -> Tensor:
        matrix = kernel_agop(rows, coefficients, self.kernel, batch_size=self.batch_size, told=told)
        largest = matrix.max()  # on the diagonal, as M is positive semidefinite
        if not float(largest) > 0:
            raise InputError(
                f"layer {layer} sees all examples at one point, so there is nothing to learn; "
                "raise width, or check the features"
            )
        return matrix_root(matrix / largest)

    def _solve(self, rows: Tensor, targets: Tensor) -> Tensor:
        return solve_ridge(rows, targets, self.kernel, ridge=self.ridge, batch_size=self.batch_size)

    def _decide(
        self, rows: Tensor, centers: Tensor | None = None, coefficients: Tensor | None = None
    ) -> Tensor:
        """Evaluate a kernel machine (None: the last one) by blocks of rows."""
        centers = self.centers_ if centers is None else centers
        coefficients = self.coefficients_ if coefficients is None else coefficients
        parts: Iterator[slice] = row_blocks(len(rows), len(centers), self.batch_size)
        found = [self.kernel(rows[part], centers) @ coefficients for part in parts]
        return torch.cat(found) if found else rows.new_zeros(0, coefficients.shape[1])


def _collapse(rows: Tensor, labels: Tensor) -> dict[str, float | None]:
    moments = Moments(int(labels.max()) + 1, rows.shape[1])
    moments.update(rows, labels)
    measured = collapse(moments).measures()
    return {name: measured[name] for name in _MEASURES}


def _stage(report: Report | None, stage: int, stages: int, text: str) -> Callable[[float], None]:
    """Return what tells a share of one stage as a share of all."""
    heard = report or no_report
    return lambda share: heard((stage + share) / stages, text)
