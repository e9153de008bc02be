"""Average gradient outer product of a network with respect to its input.

AGOP = (1/N) sum_i J_i^T J_i, J_i (K x P) the Jacobian of the logits at image i, P = C H W
(Radhakrishnan et al., Science 2024, arXiv 2212.13881; Beaglehole et al., arXiv 2402.13728). Its
top eigenvectors are the directions of pixel space that the network listens to.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
>>> _ = model[1].weight.data.copy_(torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0]]))
>>> found = input_agop(model, torch.rand(5, 1, 2, 2), top=3)
>>> found.trace, found.eigenvalues.tolist()
(5.0, [4.0, 1.0, 0.0])
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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
from robust_nc.runtime.torch_state import device_of, generator

_TOLERANCE = 1e-4  # of an eigenvalue; its error is at most that, and far less where it has a gap
_EXTRA = 6  # vectors beyond those wanted: what is close to the last of them converges too
_PASSES = 30  # over the data, at most


@dataclass(frozen=True, kw_only=True)
class InputAgop:
    """The AGOP of the logits with respect to the images, in squared logits per squared pixel.

    `trace` is exact; `eigenvalues` (top,) float64, largest first, on the CPU (fewer where P is
    smaller); `num_examples` N; `dim` P. `notes` says where the eigenvalues come from, if not from
    the whole matrix.
    """

    trace: float
    eigenvalues: Tensor
    num_examples: int
    dim: int
    notes: Mapping[str, str]


def input_agop(
    model: nn.Module,
    images: Tensor,
    *,
    top: int = 10,
    batch_size: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
) -> InputAgop:
    """Return the trace and the `top` largest eigenvalues of the input AGOP over images.

    `images` `(N, C, H, W)` in [0, 1]. The trace bounds the vulnerability of the network in L2 to
    first order. A step of length eps along the gradient J^T (e_y - e_j) of a margin f_y - f_j
    changes it by eps |J^T (e_y - e_j)| <= eps sqrt(2) |J|_F, and no step of that length changes it
    more; in the mean over examples, by at most eps sqrt(2 trace). Both sides scale with the logits:
    compare networks after dividing the trace by the square of the scale of their logits.

    `memory` (bytes) bounds what is held beside the model: a quarter is for a chunk of images (at
    most `batch_size`), one forward and K backward passes each. Where the P x P matrix in float64
    and a copy for the eigensolver, 16 P^2 bytes, fit the other three quarters (P <= 5,016 for
    512 MiB), it is summed up and the eigenvalues are exact. Else they come from a block Krylov
    space (Musco and Musco, NeurIPS 2015) of as many passes over the images as they take: right to
    1e-4 of their size or with a note that says to what; random starts depend on `seed` alone.

    The model runs in eval mode and is left as it was found. Raises `InputError` for images or
    logits that cannot be used, and for Jacobians that are not finite.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, found {top}")
    pixels = checked_images(images)
    dim = pixels[0].numel()
    top = min(top, dim)
    rest = memory - memory // 4
    with differentiable(model):
        size = chunk_size(model, pixels, memory // 4, batch_size)
        sums = _Sums(model, pixels, size)
        if 16 * dim**2 <= rest:
            values, notes = _exact(sums)[:top], dict[str, str]()
        else:
            values, notes = _krylov(sums, top, rest, seed, device_of(model))
    return InputAgop(
        trace=sums.squares / len(pixels),
        eigenvalues=values.cpu() / len(pixels),
        num_examples=len(pixels),
        dim=dim,
        notes=notes,
    )


class _Sums:
    """Passes over the Jacobians of all images; `squares` is the last pass's sum of squares."""

    def __init__(self, model: nn.Module, images: Tensor, size: int) -> None:
        self.dim = images[0].numel()
        self._model = model
        self._images = images
        self._size = size
        self.squares = 0.0

    def rows(self) -> Iterator[Float64[Tensor, "n p"]]:
        """Yield the rows of all Jacobians, one class of one chunk at a time."""
        self.squares = 0.0
        for chunk in chunks(self._model, self._images, self._size):
            chunk.requires_grad_()
            for (gradient,) in logit_gradients(logits_of(self._model, chunk), [chunk]):
                rows = gradient.flatten(1).double()
                self.squares += float(rows.flatten() @ rows.flatten())
                yield rows


def _exact(sums: _Sums) -> Float64[Tensor, " p"]:
    matrix: Tensor | None = None
    for rows in sums.rows():
        if matrix is None:
            matrix = rows.new_zeros(sums.dim, sums.dim)
        matrix.addmm_(rows.T, rows)
    assert matrix is not None
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values.flip(0).clamp_min(0)


def _krylov(
    sums: _Sums, top: int, memory: int, seed: int, device: torch.device
) -> tuple[Float64[Tensor, " t"], dict[str, str]]:
    """Return the largest eigenvalues from products with the AGOP, one pass over the data each."""

    def product(block: Tensor) -> Tensor:
        result = torch.zeros_like(block)
        for rows in sums.rows():
            result.addmm_(rows.T, rows @ block)
        return result

    width = min(top + _EXTRA, sums.dim)
    block = 8 * sums.dim * width
    fitting = memory // block - 3  # beside the basis: a product, and what is left of it
    if fitting < 2:
        raise InputError(
            f"{top} eigenvalues for {sums.dim:,} pixels need a memory of at least "
            f"{-(-5 * block * 4 // 3):,} bytes; raise memory or lower top"
        )
    start = torch.randn(sums.dim, width, generator=generator(seed, "agop"), dtype=torch.float64).to(
        device
    )
    values, error, passes = block_krylov(product, start, top, steps=min(fitting, _PASSES))
    said = f"from {passes} passes in a Krylov space, residuals within {error:.1g} of the value"
    if error > _TOLERANCE:
        said = f"not converged: {said}; raise memory"
    return values, {"eigenvalues": said}


def block_krylov(
    product: Callable[[Tensor], Tensor],
    start: Float64[Tensor, "p b"],
    top: int,
    *,
    steps: int,
    tolerance: float = _TOLERANCE,
) -> tuple[Float64[Tensor, " t"], float, int]:
    """Largest eigenvalues of a positive semidefinite matrix M known by its products M V.

    Rayleigh-Ritz in the space of V, M V, M^2 V, ... (block Lanczos with full orthogonalisation).
    Stops as soon as every residual |M u - value u| is within `tolerance` of its value, which then
    differs from an eigenvalue of M by no more. Returns values `(top,)`, the largest residual over
    its value, and the number of products.
    """
    dim, width = start.shape
    steps = min(steps, -(-dim // width))
    basis = start.new_empty(dim, min(steps * width, dim))
    inside = start.new_zeros(basis.shape[1], basis.shape[1])  # basis^T M basis
    block, used = torch.linalg.qr(start)[0], 0
    values, error = start.new_zeros(top), math.inf
    for step in range(1, steps + 1):
        new = slice(used, used + block.shape[1])
        used = new.stop
        basis[:, new] = block
        rest = product(block)
        inside[:used, new] = basis[:, :used].T @ rest
        inside[new, :used] = inside[:used, new].T
        found, vectors = torch.linalg.eigh(inside[:used, :used])
        values = found[-top:].flip(0).clamp_min(0)
        rest = _without(basis[:, :used], rest)
        residual = torch.linalg.vector_norm(rest @ vectors[new, -top:].flip(1), dim=0)
        # A value that is rounding beside the largest has converged when its residual is, too.
        floor = float(values[0]) * 1e-9
        error = float((residual / values.clamp_min(floor or 1.0)).amax())
        if error <= tolerance or step == steps:
            return values, error, step
        block = _without(basis[:, :used], torch.linalg.qr(rest)[0])
        block = torch.linalg.qr(block[:, : basis.shape[1] - used])[0]
    return values, error, steps


def _without(basis: Float64[Tensor, "p u"], block: Float64[Tensor, "p b"]) -> Tensor:
    """Take the space of the basis out of a block; twice, as once leaves rounding behind."""
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
    return block
