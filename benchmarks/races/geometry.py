"""The speed and memory of reading every tap.

`taps`: `forward` passes images through a model in eval mode; `measured` does the same through all
taps, adds each batch to the moments of every tap by true label, and ends with the measures that
need one pass. `memory`: the peaks of fresh processes that do this, on random images made batch by
batch.

    python -m robust_nc.benchmarks.races.geometry taps --examples 2000 --repeats 3
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
import tyro
from torch import Tensor

from robust_nc.benchmarks.races.memory import peak_bytes
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


def contest(
    model: Classifier,
    split: Split,
    *,
    batch_size: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
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
    return race(contestants, repeats=repeats, warmups=0, clock=clock)


def random_batches(
    examples: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make random images and labels, batch by batch."""
    source = torch.Generator().manual_seed(0)
    for start in range(0, examples, batch_size):
        count = min(batch_size, examples - start)
        labels = torch.randint(CLASSES, (count,), generator=source)
        yield torch.rand(count, *SHAPE, generator=source).to(device), labels.to(device)


def peak(mode: Mode, examples: int, *, batch_size: int, backbone: str) -> float:
    """Measure the peak memory of a fresh process, in MiB, on the device that holds the features."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    arguments = (answers, mode, examples, batch_size, backbone, torch.get_num_threads())
    process = context.Process(target=_child, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0, f"the measuring process ended with {process.exitcode}"
    return float(answers.get() / 2**20)


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
    answers.put(peak_bytes(device))


def make_model(backbone: str, classes: int = CLASSES) -> Classifier:
    """Build the model of the race, in eval mode."""
    part = Component(name=backbone)
    return build_model(ModelConfig(backbone=part, image_shape=SHAPE, num_classes=classes)).eval()


def read_images(examples: int, classes: int = CLASSES) -> tuple[Split, str]:
    """Return CIFAR-10 images, or random ones where it is not there or has not the classes."""
    told = f"random images of {classes} classes"
    if classes == CLASSES:
        try:
            return read_split("cifar10", "train", limit=examples), "CIFAR-10 train images"
        except DataError:
            told = "random images (no CIFAR-10 here)"
    source = torch.Generator().manual_seed(0)
    images = torch.randint(256, (examples, *SHAPE), generator=source, dtype=torch.uint8)
    labels = torch.randint(classes, (examples,), generator=source)
    return Split(images, labels, torch.arange(examples)), told


def taps(
    examples: int = 2_000,
    repeats: int = 3,
    batch_size: int = 100,
    backbones: tuple[str, ...] = ("preact_resnet18", "small_cnn"),
    classes: tuple[int, ...] = (10, 100),
    threads: int | None = None,
) -> None:
    """Race all taps in one pass against the forward passes alone.

    Args:
        examples: Images per pass.
        repeats: Timed rounds.
        batch_size: Images per batch.
        backbones: The backbones of the models.
        classes: Numbers of classes.
        threads: Threads of torch (default: as it decides).
    """
    _begin(threads)
    for backbone in backbones:
        for count in classes:
            split, what = read_images(examples, count)
            model = make_model(backbone, count).to(default_device())
            timings = contest(model, split, batch_size=batch_size, repeats=repeats)
            print(f"\n{backbone}, K = {count}, all {len(model.taps)} taps, gap: ", end="")
            print(f"{examples} {what} in batches of {batch_size}")
            print(table(timings, base=timings[0], items=examples), flush=True)


def memory(
    examples: tuple[int, ...] = (500, 1_000, 2_000),
    processes: int = 3,
    batch_size: int = 100,
    backbone: str = "preact_resnet18",
    threads: int | None = None,
) -> None:
    """Measure peak memory of fresh processes, without and with the measures of all taps.

    Args:
        examples: Numbers of images that are compared.
        processes: Fresh processes per number.
        batch_size: Images per batch.
        backbone: The model's backbone.
        threads: Threads of torch (default: as it decides).
    """
    _begin(threads)
    modes: tuple[Mode, ...] = ("forward", "gap", "flatten")
    rows = [["mode", *(f"{count:,} images" for count in examples)]]
    for mode in modes:
        rows.append([mode])
        for count in examples:
            peaks = sorted(
                peak(mode, count, batch_size=batch_size, backbone=backbone)
                for _ in range(processes)
            )
            middle = statistics.median(peaks)
            rows[-1].append(f"{middle:,.0f} ({peaks[0]:,.0f} to {peaks[-1]:,.0f})")
    print(f"\n{backbone}: peaks of fresh processes, MiB: median (least to most)")
    print(markdown(rows))


def _begin(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    print(conditions(), flush=True)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"taps": taps, "memory": memory})
