"""Digests of tensors: equal values, types and shapes give equal digests.

>>> import torch
>>> tensors_digest([torch.zeros(2)]) == tensors_digest([torch.zeros(2)])
True
>>> tensors_digest([torch.zeros(2)]) == tensors_digest([torch.zeros(1, 2)])
False
"""

import hashlib
from collections.abc import Iterable

from torch import Tensor


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over dtype, shape and bytes of each tensor, in order, in hexadecimal."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
