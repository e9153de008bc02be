"""What computations run in: torch's state, keyed draws, stopping, progress, executors."""

# ruff: noqa: F403, F405 (each name is listed once)
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_nc.runtime.torch_state import *

__all__ = [
    "check_float64",
    "chosen",
    "copied_images",
    "counted_gradients",
    "default_device",
    "device_of",
    "float32_products",
    "full_precision",
    "generator",
    "keyed_normal",
    "keyed_uniform",
    "private_draws",
    "ran_out",
    "sent",
    "stream_key",
    "untouched",
    "usable_gradient",
]


def __getattr__(name: str) -> object:
    if name not in __all__:  # a room, not a name: importing it needs no torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("robust_nc.runtime.torch_state"), name)
