"""What a process holds and has held at most.

>>> import torch
>>> 0 < held_bytes() <= peak_bytes(torch.device("cpu"))
True
"""

import resource
import sys
from pathlib import Path

import torch


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes of this process so far, on the device that holds the features."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = _status("VmHWM:")  # unlike ru_maxrss it does not count the parent
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes() -> int:
    """Return the resident bytes of this process now; where the system does not say, the most."""
    found = _status("VmRSS:")
    return peak_bytes(torch.device("cpu")) if found is None else found


def _status(name: str) -> int | None:
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None
