"""Collapse of all taps in one pass against the forward passes alone, and the memory that it takes.

`forward` passes images through PreActResNet-18 in eval mode; `measured` does the same through all
taps, adds each batch to the moments of every tap by true label, and ends with the measures that
need one pass. The peak memory is that of fresh processes on random images, made batch by batch.

    python -m robust_nc.benchmarks.races.geometry --examples 2000 --repeats 3
"""

import multiprocessing
import resource
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from robust_nc.benchmarks.races.timing import Timing, conditions, markdown, race, table
from robust_nc.config import Component, ModelConfig
from robust_nc.data.base import Split
from robust_nc.data.batches import Batches
from robust_nc.data.load import read_split
from robust_nc.exceptions import DataError
from robust_nc.geometry.collapse import Collapse, collapse
from robust_nc.geometry.moments import Moments
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.runtime import default_device

Mode = Literal["forward", "gap", "flatten"]
Pairs = Iterable[tuple[Tensor, Tensor]]

SHAPE, CLASSES = (3, 32, 32), 10


class Peak(NamedTuple):
    """Peak memory of a fresh process in MiB, on the device that holds the features."""

    mode: Mode
    examples: int
    mebibytes: float


@torch.no_grad()
def forward_all(model: Classifier, batches: Pairs) -> None:
    """Pass every batch through the model."""
    for images, _ in batches:
        model(images)


@torch.no_grad()
def measure_all(
    model: Classifier, batches: Pairs, *, feature: Literal["gap", "flatten"]
) -> dict[str, Collapse]:
    """Measure every tap in one pass, grouped by true label."""
    moments: dict[str, Moments] = {}
    for images, labels in batches:
        for tap, features in model.tapped(images, feature=feature).features.items():
            if tap not in moments:
                moments[tap] = Moments(model.num_classes, features.shape[1])
            moments[tap].update(features, labels)
    return {tap: collapse(found) for tap, found in moments.items()}


def contest(model: Classifier, split: Split, *, batch_size: int, repeats: int) -> list[Timing]:
    """Race `forward` and `measured` over a split; one batch of each is done before, untimed."""
    device = next(model.parameters()).device
    batches = Batches(split, batch_size=batch_size, device=device)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, _ in batches.ordered():
            yield images, labels

    first = [next(pairs())]
    forward_all(model, first), measure_all(model, first, feature="gap")
    contestants: dict[str, Callable[[], object]] = {
        "forward": lambda: forward_all(model, pairs()),
        "measured": lambda: measure_all(model, pairs(), feature="gap"),
    }
    return race(contestants, repeats=repeats, warmups=0)


def random_batches(
    examples: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make random images and labels, batch by batch."""
    source = torch.Generator().manual_seed(0)
    for start in range(0, examples, batch_size):
        count = min(batch_size, examples - start)
        labels = torch.randint(CLASSES, (count,), generator=source)
        yield torch.rand(count, *SHAPE, generator=source).to(device), labels.to(device)


def peak(mode: Mode, examples: int, *, batch_size: int, backbone: str) -> Peak:
    """Measure in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    arguments = (answers, mode, examples, batch_size, backbone, torch.get_num_threads())
    process = context.Process(target=_child, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0, f"the measuring process ended with {process.exitcode}"
    return Peak(mode, examples, answers.get() / 2**20)


def _child(
    answers: "multiprocessing.Queue[int]",
    mode: Mode,
    examples: int,
    batch_size: int,
    backbone: str,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    device = default_device()
    model = make_model(backbone).to(device)
    batches = random_batches(examples, batch_size, device)
    if mode == "forward":
        forward_all(model, batches)
    else:
        measure_all(model, batches, feature=mode)
    answers.put(_peak_bytes(device))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):  # unlike ru_maxrss it does not count the parent
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def make_model(backbone: str) -> Classifier:
    """Build the model of the race, in eval mode."""
    part = Component(name=backbone)
    return build_model(ModelConfig(backbone=part, image_shape=SHAPE, num_classes=CLASSES)).eval()


def read_images(examples: int) -> tuple[Split, str]:
    """Return CIFAR-10 images, or random ones where the data set is not there, and say which."""
    try:
        return read_split("cifar10", "train", limit=examples), "CIFAR-10 train images"
    except DataError:
        source = torch.Generator().manual_seed(0)
        images = torch.randint(256, (examples, *SHAPE), generator=source, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (examples,), generator=source)
        return Split(images, labels, torch.arange(examples)), "random images (no CIFAR-10 here)"


def main(
    examples: int = 2_000,
    repeats: int = 3,
    batch_size: int = 100,
    backbone: str = "preact_resnet18",
    memory: tuple[int, ...] = (500, 1_000, 2_000),
    processes: int = 3,
    threads: int | None = None,
) -> None:
    """Race, then measure memory, and print both as tables.

    Args:
        examples: Images per pass.
        repeats: Timed rounds.
        batch_size: Images per batch.
        backbone: The model's backbone.
        memory: Numbers of images whose peak memory is compared (none: leave it out).
        processes: Fresh processes per number.
        threads: Threads of torch (default: as it decides).
    """
    if threads:
        torch.set_num_threads(threads)
    print(conditions())
    split, what = read_images(examples)
    timings = contest(
        make_model(backbone).to(default_device()), split, batch_size=batch_size, repeats=repeats
    )
    print(f"\n{backbone}, all taps, gap: {examples} {what} in batches of {batch_size}")
    print(table(timings, base=timings[0], items=examples), flush=True)
    if memory:
        print("\npeak memory of fresh processes, MiB: median (least to most)")
        print(memory_table(memory, processes, batch_size=batch_size, backbone=backbone))


def memory_table(counts: tuple[int, ...], processes: int, *, batch_size: int, backbone: str) -> str:
    """Compare the peaks of some numbers of images, without and with measures."""
    rows = [["mode", *(f"{count:,} images" for count in counts)]]
    modes: tuple[Mode, ...] = ("forward", "gap", "flatten")
    for mode in modes:
        rows.append([mode])
        for count in counts:
            peaks = sorted(
                peak(mode, count, batch_size=batch_size, backbone=backbone).mebibytes
                for _ in range(processes)
            )
            middle = statistics.median(peaks)
            rows[-1].append(f"{middle:,.0f} ({peaks[0]:,.0f} to {peaks[-1]:,.0f})")
    return markdown(rows)


if __name__ == "__main__":
    tyro.cli(main)
