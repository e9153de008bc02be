"""What a pass must compute and move, and what a device can: the two sides of a roofline.

>>> work = count_work(Way("small_cnn", 2, image_shape=(1, 8, 8)), torch.device("cpu"))
>>> work["gradient"].flops > work["forward"].flops > 0
True
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from robust_nc.benchmarks.gpu.passes import Passes, Way, paces
from robust_nc.benchmarks.races.timing import Timing
from robust_nc.evaluation.acceleration import Precision, lowered
from robust_nc.runtime import full_precision


class Sheet(NamedTuple):
    """A vendor's peaks: TFLOP/s by precision, dense, and GB/s of the device's memory."""

    tflops: dict[str, float]
    gigabytes: float


# From NVIDIA's data sheets of each board; products without sparsity (the sheets of Hopper and Ada
# give twice that, with it). A name matches if it contains the key; the first that matches counts.
SHEETS: dict[str, Sheet] = {
    "H200": Sheet({"float32": 67.0, "tf32": 494.7, "bf16": 989.4}, 4_800.0),
    "H100 PCIe": Sheet({"float32": 51.0, "tf32": 378.0, "bf16": 756.0}, 2_000.0),
    "H100 80GB HBM3": Sheet({"float32": 67.0, "tf32": 494.7, "bf16": 989.4}, 3_350.0),
    "A100-SXM4-80GB": Sheet({"float32": 19.5, "tf32": 156.0, "bf16": 312.0}, 2_039.0),
    "A100-SXM4-40GB": Sheet({"float32": 19.5, "tf32": 156.0, "bf16": 312.0}, 1_555.0),
    "A100 80GB PCIe": Sheet({"float32": 19.5, "tf32": 156.0, "bf16": 312.0}, 1_935.0),
    "L40S": Sheet({"float32": 91.6, "tf32": 183.0, "bf16": 362.0}, 864.0),
}


class Work(NamedTuple):
    """Of one pass, per image: operations, bytes to and from memory, and operators per batch.

    `bytes` are those of all inputs and outputs of all operators, as if none were fused with its
    neighbour or found anything in a cache: an upper bound on what must move.
    """

    flops: float
    bytes: float
    operators: int

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that are no views, the bytes of their inputs and outputs, and their FLOPs.

    FLOPs are those of products and convolutions, by torch's formulas, as its `FlopCounterMode` does
    (which does not go with a gradient by a leaf).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.operators = self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run an operator and count it."""
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            formula = flop_registry[func.overloadpacket]
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        if not func.is_view:
            self.operators += 1
            leaves = tree_leaves((args, kwargs or {}, found))
            self.bytes += sum(part.nbytes for part in leaves if isinstance(part, Tensor))
        return found


def count_work(way: Way, device: torch.device) -> dict[str, Work]:
    """Count the passes of the model of a way, in float32 and not compiled."""
    passes = Passes(way._replace(compiled=False, precision="float32"), device)
    calls: dict[str, Callable[[], None]] = {
        "forward": passes.forward,
        "gradient": passes.gradient,
        "step": passes.step,
    }
    return {name: _count(call, way.batch_size) for name, call in calls.items()}


def _count(call: Callable[[], None], images: int) -> Work:
    call()  # the first step makes the momenta
    with Traffic() as traffic:
        call()
    return Work(traffic.flops / images, traffic.bytes / images, traffic.operators)


def sheet_of(device_name: str) -> Sheet | None:
    """Return the data sheet of a device, None where it is not in the table."""
    return next((sheet for key, sheet in SHEETS.items() if key in device_name), None)


class Paced(NamedTuple):
    """A timing, and what one call computes (FLOPs) or moves (bytes)."""

    timing: Timing
    amount: float

    @property
    def best(self) -> float:
        """Amount per second of the fastest round."""
        return self.amount / min(self.timing.seconds)


def time_products(
    size: int, precision: Precision, device: torch.device, *, seconds: float
) -> list[Paced]:
    """Time a product of two square matrices, and a 3 x 3 convolution of about as many operations.

    Both, since they may come from different libraries: on a CPU either can be twice as fast.
    """
    source = torch.Generator().manual_seed(0)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source).to(device, kind)

    one, other, out = draw(size, size), draw(size, size), draw(size, size)
    channels, side = min(size, 512), 8
    each = 2.0 * channels**2 * 9 * side**2
    images = max(1, round(2.0 * size**3 / each))
    layout = {"memory_format": torch.channels_last}
    features = draw(images, channels, side, side).contiguous(**layout)
    weights = draw(channels, channels, 3, 3).contiguous(**layout)
    calls = {
        "product": lambda: torch.mm(one, other, out=out),
        "convolution": lambda: F.conv2d(features, weights, padding=1),
    }
    with full_precision(), lowered("tf32" if precision == "tf32" else "float32", device):
        product, convolution = paces(calls, seconds=seconds)
    return [Paced(product, 2.0 * size**3), Paced(convolution, images * each)]


def time_copy(mebibytes: int, device: torch.device, *, seconds: float) -> Paced:
    """Time a copy in the device's memory: bytes that are read and bytes that are written."""
    one = torch.ones(mebibytes * 2**18, device=device)
    out = torch.empty_like(one)
    (timing,) = paces({"copy": lambda: out.copy_(one)}, seconds=seconds)
    return Paced(timing, 2.0 * one.nbytes)


def roof(work: Work, *, flops: float, bandwidth: float) -> float:
    """Return the operations per second that a pass can reach at most, by peak and bandwidth.

    >>> roof(Work(100.0, 10.0, 1), flops=1_000.0, bandwidth=50.0)
    500.0
    """
    return min(flops, work.intensity * bandwidth)


def as_work(values: Mapping[str, Any]) -> Work:
    """Return work from plain values."""
    return Work(values["flops"], values["bytes"], values["operators"])
