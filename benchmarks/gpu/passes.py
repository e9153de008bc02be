"""The passes of a bare model on one batch, and how long they take: what nothing can be faster than.

>>> way = Way("small_cnn", 2, image_shape=(1, 8, 8))
>>> str(way)
'small_cnn 8x8, batch 2, float32'
>>> passes = Passes(way, torch.device("cpu"))
>>> [timing.name for timing in paces({"forward": passes.forward}, seconds=0.0)]
['forward']
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from robust_nc.benchmarks.races.timing import Timing, race, spread_of
from robust_nc.config import Component, ModelConfig, TrainConfig
from robust_nc.evaluation.acceleration import Precision, lowered
from robust_nc.models.build import build_model
from robust_nc.runtime import full_precision
from robust_nc.training.precision import Compile, compiled, products
from robust_nc.training.state import make_optimizer

CLASSES = 10
SHAPE = (3, 32, 32)
_BLOCK = 0.02  # seconds that a timed block should last, so that waiting for the device is nothing
_ROUNDS = 3, 30


class Way(NamedTuple):
    """A model, a batch, and how it computes."""

    backbone: str
    batch_size: int
    precision: Precision = "float32"
    channels_last: bool = False
    compiled: Compile = False
    image_shape: tuple[int, int, int] = SHAPE

    def __str__(self) -> str:
        """Name it in one line."""
        side = "x".join(map(str, self.image_shape[1:]))
        words = [f"{self.backbone} {side}", f"batch {self.batch_size}", self.precision]
        words += ["channels_last"] * self.channels_last
        if self.compiled:
            words.append("compiled" if self.compiled is True else self.compiled)
        return ", ".join(words)


class Passes:
    """Passes of one model on one batch of random images that lie on the device.

    `forward` and `gradient` (forward and gradient by the images) are of a frozen copy in eval mode,
    `step` is one forward, backward and SGD step in train mode. With `as_training`, float32 is what
    a training in float32 has, where CUDA may use TF32 in convolutions; else it is float32 proper.
    """

    def __init__(self, way: Way, device: torch.device, *, as_training: bool = False) -> None:
        self.way, self.device, self.as_training = way, device, as_training
        source = torch.Generator().manual_seed(0)
        self.images = torch.rand(way.batch_size, *way.image_shape, generator=source).to(device)
        self.labels = torch.randint(CLASSES, (way.batch_size,), generator=source).to(device)
        shape = ModelConfig(backbone=Component(name=way.backbone), image_shape=way.image_shape)
        model = build_model(shape).to(device).train()
        if way.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.bare = model
        self.model = compiled(model, way.compiled)
        self.frozen = compiled(copy.deepcopy(model).eval().requires_grad_(False), way.compiled)
        self.optimizer = make_optimizer(model, TrainConfig(lr=1e-3))

    @contextlib.contextmanager
    def precise(self) -> Iterator[None]:
        """Compute as the way says."""
        with contextlib.ExitStack() as stack:
            if self.as_training:
                stack.enter_context(products(self.way.precision, self.device))
                half = self.way.precision == "bf16"
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=half))
            else:
                stack.enter_context(full_precision())
                stack.enter_context(lowered(self.way.precision, self.device))
            yield

    def forward(self) -> None:
        """Pass the batch forward."""
        with self.precise(), torch.no_grad():
            self.frozen(self.images)

    def gradient(self) -> None:
        """Pass the batch forward, and take the gradient by the images."""
        leaf = self.images.detach().requires_grad_()
        with self.precise():
            torch.autograd.grad(F.cross_entropy(self.frozen(leaf).float(), self.labels), leaf)

    def step(self) -> None:
        """Take one step of plain training."""
        with self.precise():
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def floor(self, steps: int) -> None:
        """Do what a step of PGD training cannot do without: so many gradients, then one step."""
        for _ in range(steps):
            self.gradient()
        self.step()


def paces(contestants: Mapping[str, Callable[[], object]], *, seconds: float) -> list[Timing]:
    """Time calls side by side for about `seconds` in all: seconds per call, one value per round.

    Two calls of each come before, untimed (the first may compile). Short calls are repeated within
    a round; there are 3 to 30 rounds.
    """
    now, blocks, expected = clock(), {}, 0.0
    for name, call in contestants.items():
        call()
        wait()
        started = now()
        call()
        wait()
        once = max(now() - started, 1e-7)
        calls = max(1, math.ceil(_BLOCK / once)) if seconds else 1
        blocks[name] = calls
        expected += calls * once
    least, most = _ROUNDS
    rounds = min(max(round(seconds / expected), least), most)
    timed = {name: _repeated(call, blocks[name]) for name, call in contestants.items()}
    return [
        Timing(found.name, tuple(value / blocks[found.name] for value in found.seconds))
        for found in race(timed, repeats=rounds, warmups=0, clock=clock())
    ]


def _repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    def block() -> None:
        for _ in range(times):
            call()

    return block


def clock() -> Callable[[], float]:
    """Return what times are read from: the wall, or the processor for one thread on a CPU.

    A CPU may be shared with other work, whose time then does not count.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


def wait() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def told(timing: Timing) -> dict[str, Any]:
    """Return a timing as plain values, in seconds."""
    return spread(timing.seconds)


def spread(values: tuple[float, ...]) -> dict[str, Any]:
    """Return quartiles, median and least of some values, and how many they are."""
    low, median, high = spread_of(values)
    return {"median": median, "low": low, "high": high, "least": min(values), "n": len(values)}
