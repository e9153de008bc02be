"""What a number was made with: versions and hardware.

>>> sorted(versions())[:2]
['code', 'numpy']
"""

import hashlib
import os
import platform
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch

_PARTS = ("robust_nc", "torch", "numpy", "pandas")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; `code` is our own source."""
    packages = {name: metadata.version(name) for name in _PARTS}
    return {"python": platform.python_version(), "code": code_digest()} | packages


@cache
def code_digest() -> str:
    """First 16 digits of the SHA-256 over the engine's and the attacks' sources, by file name."""
    total = hashlib.sha256()
    for package in ("robust_nc", "robust_nc.attacks"):
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def hardware(device: torch.device) -> dict[str, Any]:
    """Name the device, its size and the threads in use."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
    return facts
