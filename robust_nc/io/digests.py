"""Digests of tensors: equal values, types and shapes give equal digests.

What else a state may hold (extra state, packed weights of int8) is told apart by its contents.

>>> import torch
>>> tensors_digest([torch.zeros(2)]) == tensors_digest([torch.zeros(2)])
True
>>> tensors_digest([torch.zeros(2)]) == tensors_digest([torch.zeros(1, 2)])
False
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust_nc.io.files import digest


def tensors_digest(values: Iterable[object]) -> str:
    """SHA-256 over dtype, shape and bytes of each tensor, in order, in hexadecimal."""
    total = hashlib.sha256()
    for part in _parts(values):
        total.update(part)
    return total.hexdigest()


def _parts(values: Iterable[object]) -> Iterator[bytes | memoryview]:
    """Yield what tells values apart; of an object of a class of its own, its name and state."""
    for value in values:
        if isinstance(value, Tensor):
            yield f"{value.dtype}{tuple(value.shape)}".encode()
            plain = value.detach().cpu()
            if plain.is_quantized:
                plain = plain.dequantize()
            if plain.layout != torch.strided:
                plain = plain.to_dense()
            # As bytes: NumPy has no bfloat16.
            yield plain.contiguous().reshape(-1).view(torch.uint8).numpy().data
        elif isinstance(value, Mapping):
            yield b"mapping"
            yield from _parts(part for pair in value.items() for part in pair)
        elif isinstance(value, list | tuple):
            yield b"sequence"
            yield from _parts(value)
        else:
            yield re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode()


@runtime_checkable
class Described(Protocol):
    """A model whose tensors are elsewhere: what is told of them there."""

    told_digests: Mapping[str, str]
    told_parameters: int


def state_digests(model: nn.Module) -> dict[str, str]:
    """First 16 hexadecimal digits of the SHA-256 of each entry of its state, by its name."""
    if isinstance(model, Described):
        return dict(model.told_digests)
    state = model.state_dict()
    return {name: tensors_digest([state[name]])[:16] for name in sorted(state)}


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers the parameters of a model are."""
    if isinstance(model, Described):
        return model.told_parameters
    return sum(parameter.numel() for parameter in model.parameters())


def state_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 of all of a model's tensors, from `state_digests`: what names its weights."""
    return digest(dict(digests))
