"""Radial kernels, ridge regression with them, and the AGOP of what they fit, by blocks of rows.

A kernel machine is f(x) = sum_j k(x, z_j) alpha_j: centers z_j `(m, D)`, coefficients `(m, K)`.

>>> import torch
>>> centers = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
>>> kernel = Laplace(2.0)
>>> coefficients = solve_ridge(centers, torch.eye(2, dtype=torch.float64), kernel, ridge=1e-9)
>>> (kernel(centers, centers) @ coefficients).round(decimals=6).tolist()
[[1.0, 0.0], [0.0, 1.0]]
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from robust_nc.exceptions import InputError, unknown_name
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
    """k = exp(-|x - z| / L).

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
    """k = exp(-|x - z|^2 / (2 L^2))."""

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
    """|x_i - z_j|^2, `(n, m)` float64."""
    points, centers = points.double(), centers.double()
    lengths = points.square().sum(1)[:, None] + centers.square().sum(1)
    squares: Tensor = torch.addmm(lengths, points, centers.T, alpha=-2)
    return squares.clamp_min(0)
