"""Digests of tensors: equal values, types and shapes give equal digests.

>>> import torch
>>> tensors_digest([torch.zeros(2)]) == tensors_digest([torch.zeros(2)])
True
>>> tensors_digest([torch.zeros(2)]) == tensors_digest([torch.zeros(1, 2)])
False
"""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robust_nc.io.files import digest


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over dtype, shape and bytes of each tensor, in order, in hexadecimal."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        # As bytes: NumPy has no bfloat16.
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(content.numpy().data)
    return total.hexdigest()


def state_digests(model: nn.Module) -> dict[str, str]:
    """First 16 hexadecimal digits of the SHA-256 of each parameter and buffer, by its name."""
    state = model.state_dict()
    return {name: tensors_digest([state[name]])[:16] for name in sorted(state)}


def state_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 of all of a model's tensors, from `state_digests`: what names its weights."""
    return digest(dict(digests))
