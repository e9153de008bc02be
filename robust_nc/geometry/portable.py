"""Sums that go from one machine to another: pickled on the CPU, moved to a device on arrival.

>>> import pickle
>>> from dataclasses import dataclass
>>> @dataclass
... class Sums(Portable):
...     parts: tuple[Tensor, ...]
>>> sums = Sums((torch.ones(2), torch.zeros(1)))
>>> sums.__getstate__()["parts"][0].device.type, sums.on(torch.device("cpu")) is sums
('cpu', True)
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", bound="Portable")

_CPU = torch.device("cpu")


class Portable:
    """Holds tensors, bare or in lists, tuples and dicts, that lie on one device."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: whoever reads it may have no other device than a CPU."""
        state: dict[str, Any] = moved(vars(self), _CPU)
        return state

    def on(self: P, device: torch.device) -> P:
        """Return itself if it lies on the device, else a copy that does."""
        state = moved(vars(self), device)
        if all(state[name] is value for name, value in vars(self).items()):
            return self
        twin = copy.copy(self)
        vars(twin).update(state)
        return twin

    def __copy__(self: P) -> P:
        """Share all values, where they are."""
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self))
        return twin


def moved(value: Any, device: torch.device) -> Any:
    """Return the value with all tensors on a device; the value itself where they are there."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Portable):
        return value.on(device)
    if isinstance(value, dict):
        found = {key: moved(each, device) for key, each in value.items()}
        return value if all(found[key] is value[key] for key in found) else found
    if isinstance(value, list | tuple):
        parts = [moved(each, device) for each in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
