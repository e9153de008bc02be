"""Sums that go from one machine to another: pickled on the CPU, moved to a device on arrival.

>>> import pickle
>>> from dataclasses import dataclass
>>> @dataclass
... class Sums(Portable):
...     parts: tuple[Tensor, ...]
...     vertices: Tensor | None
...     against = ("vertices",)
>>> sums = Sums((torch.ones(2), torch.zeros(1)), torch.zeros(3))
>>> sums.__getstate__()["parts"][0].device.type, sums.on(torch.device("cpu")) is sums
('cpu', True)
>>> bare(sums).vertices is None, bare(sums).parts is not None
(True, True)
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", bound="Portable")
T = TypeVar("T")

_CPU = torch.device("cpu")


class Portable:
    """Holds tensors, bare or in lists, tuples and dicts, that lie on one device.

    `against` names what examples are measured against: `bare` leaves it behind.
    """

    against: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: whoever reads it may have no other device than a CPU."""
        state: dict[str, Any] = moved(vars(self), _CPU)
        return state

    def on(self: P, device: torch.device) -> P:
        """Return itself if it lies on the device, else a copy that does."""
        return self._with(moved(vars(self), device))

    def _with(self: P, state: dict[str, Any]) -> P:
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


def moved(value: T, device: torch.device) -> T:
    """Return the value with all tensors on a device; the value itself where they are there."""

    def move(each: Any) -> Any:
        if isinstance(each, Tensor):
            return each.to(device)
        return each.on(device) if isinstance(each, Portable) else each

    found: T = _mapped(value, move)
    return found


def bare(value: T) -> T:
    """Return sums without what they were made against: they can be merged and read only."""

    def strip(each: Any) -> Any:
        if not isinstance(each, Portable):
            return each
        state = {name: None if name in each.against else v for name, v in vars(each).items()}
        return each._with(_mapped(state, strip))

    found: T = _mapped(value, strip)
    return found


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change what is in lists, tuples and dicts; the value itself where nothing changes."""
    if isinstance(value, dict):
        found = {key: _mapped(each, change) for key, each in value.items()}
        return value if all(found[key] is value[key] for key in found) else found
    if isinstance(value, list | tuple):
        parts = [_mapped(each, change) for each in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value)
