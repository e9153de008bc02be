"""Jacobians of logits, class by class and chunk by chunk: never those of a whole data set.

A chunk of n images costs one forward and K backward passes, one per logit: on a CPU that is as fast
as one batched pass over all K (or faster), and holds the rows of one class at a time. What a chunk
may be follows from a budget in bytes and from what one image leaves in the graph:

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
>>> images = torch.ones(2, 1, 2, 2, requires_grad=True)
>>> rows = list(logit_gradients(model(images), [images]))
>>> len(rows), rows[0][0].shape
(3, torch.Size([2, 1, 2, 2]))
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from robust_nc.checks import check_images
from robust_nc.exceptions import InputError
from robust_nc.runtime.torch_state import device_of, full_precision, untouched

MEMORY = 2**29  # bytes, the default of `memory` everywhere
_LARGEST_CHUNK = 64  # images; more per pass is not faster
_GRAPHS = 3  # the graph, the gradients on the way back, and what is made of them in float64


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Let gradients flow through a model in eval mode, also under a caller's `no_grad`.

    Parameters take none, and the model is left as it was found.
    """
    with torch.inference_mode(False), torch.enable_grad(), untouched(model), full_precision():
        yield


def checked_images(images: Tensor) -> Tensor:
    """Return images as `check_images` does, and refuse none at all."""
    pixels = check_images(images)
    if not len(pixels):
        raise InputError("images are empty; a mean over examples needs at least one")
    return pixels


def chunks(model: nn.Module, images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield images `size` at a time, on the device and in the precision of the model."""
    kinds = [tensor.dtype for tensor in (*model.parameters(), *model.buffers())]
    dtype = next((kind for kind in kinds if kind.is_floating_point), torch.float32)
    for start in range(0, len(images), size):
        # A copy: images made under inference mode cannot enter a graph.
        yield images[start : start + size].to(device_of(model), dtype, copy=True)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits `(n, K)` with their graph, or say why there is none."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the model must return logits (N, K), found {found}")
    if not logits.requires_grad:
        raise InputError(
            "the logits carry no gradient, so they have no Jacobian; the model must not detach "
            "its images or run under no_grad"
        )
    return logits


def logit_gradients(logits: Tensor, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield, for each of the K logits, its gradient with respect to every input, `(n, ...)`.

    Examples must not act on each other, as in eval mode they do not. Zero where a logit does not
    depend on an input. Raises `InputError` for values that are not finite.
    """
    count = logits.shape[1]
    for k in range(count):
        rows = torch.autograd.grad(
            logits[:, k].sum(),
            inputs,
            retain_graph=k + 1 < count,
            allow_unused=True,
            materialize_grads=True,
        )
        for row in rows:
            # One pass without a temporary, and NaN comes through.
            if row.numel() and not bool(torch.linalg.vector_norm(row, float("inf")).isfinite()):
                raise InputError(f"the gradient of logit {k} is not finite (NaN or infinity)")
        yield rows


def chunk_size(model: nn.Module, images: Tensor, memory: int, limit: int | None) -> int:
    """Return how many images to take at a time, at least 1, at most `limit` (None: 64).

    One image is run with gradients on: three times what its graph holds has to fit `memory`, an
    estimate of a pass there and back.
    """
    if limit is not None and limit < 1:
        raise InputError(f"batch_size must be at least 1, found {limit}")
    if memory < 1:
        raise InputError(f"memory must be at least 1 byte, found {memory}")
    each = _GRAPHS * max(_graph_bytes(model, images[:1]), images[0].numel() * 8)
    return max(1, min(limit or _LARGEST_CHUNK, memory // each, len(images)))


def _graph_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass keeps for the way back, without the weights."""
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        held = [model(chunk.requires_grad_()) for chunk in chunks(model, images, 1)]
    del held  # until here: a freed address would be counted once for two tensors
    return sum(kept.values())
