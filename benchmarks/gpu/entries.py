"""The plan of `throughput`: its options, and one entry for every measurement.

>>> tiny = quick(Options(sections=("device", "ceiling"), precisions=("float32",)))
>>> for entry in plan(tiny, torch.device("cpu")):
...     print(entry.key)
device: product 64, float32
device: copy 1 MiB
ceiling: small_cnn 32x32, batch 4, float32, channels_last
ceiling: small_cnn 32x32, batch 4, float32
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from robust_nc.benchmarks.gpu import measuring
from robust_nc.benchmarks.gpu.passes import Way
from robust_nc.benchmarks.races import autoattack
from robust_nc.benchmarks.races.contestants import Job, Setup, in_a_child
from robust_nc.evaluation.acceleration import Precision
from robust_nc.training.precision import Compile

Section = Literal["device", "model", "training", "attacks", "ceiling", "geometry", "race"]
Record = dict[str, Any]

_COMPILING = 100.0  # seconds that an entry with torch.compile may take, before one was made


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, how large, for how long."""

    out: Path = Path("throughput.json")
    """Where results go; the page lies beside it, ending with .md."""
    minutes: float = 9.0
    """Begin nothing that would not end before so many minutes have passed."""
    sections: tuple[Section, ...] = get_args(Section)
    """Which sections, in this order."""
    backbones: tuple[str, ...] = ("preact_resnet18", "small_cnn")
    """Which models, on 32 x 32 RGB images."""
    batch_sizes: tuple[int, ...] = (128, 256, 512, 1024)
    """Images per batch of the ceiling."""
    train_batches: tuple[int, ...] = (128, 512)
    """Images per batch of the trainings."""
    attack_batch: int = 512
    """Images per batch of the attacks and the measures."""
    precisions: tuple[Precision, ...] = ("bf16", "tf32", "float32")
    """Precisions of the products."""
    compiled: tuple[Literal["default", "reduce-overhead"], ...] = ("default", "reduce-overhead")
    """Modes of torch.compile, beside none; for the first model only, in the first precision."""
    inner: int = 10
    """Steps of PGD training's inner attack, and of the attacks."""
    steps: int = 20
    """Training steps per timed epoch."""
    epochs: int = 4
    """Timed epochs."""
    seconds: float = 1.0
    """Timed calls of one measurement, about."""
    matrix: int = 8192
    """Rows of the matrices whose product is timed."""
    copy: int = 1024
    """MiB that are copied."""
    examples: int = 10_000
    """Images that the geometry measures."""
    checkpoint: Path | None = None
    """Folder of a training of ours, for the race (default: no race)."""
    race_examples: int = 1_000
    """Test images of the race."""
    race_rounds: int = 3
    """Timed rounds of the race."""
    again: bool = False
    """Measure again what failed."""
    quick: bool = False
    """Tiny sizes, to try it; every other size is ignored."""


class Entry(NamedTuple):
    """One measurement, its name in the record, and its kind: entries of one kind take alike."""

    section: Section
    name: str
    call: Callable[[], Record]
    kind: str
    guess: float = 5.0

    @property
    def key(self) -> str:
        """Name in the record."""
        return f"{self.section}: {self.name}"


def quick(options: Options) -> Options:
    """Return options of tiny sizes."""
    return replace(
        options,
        backbones=("small_cnn",),
        batch_sizes=(4,),
        train_batches=(4,),
        attack_batch=4,
        compiled=(),
        inner=2,
        steps=1,
        epochs=2,
        seconds=0.0,
        matrix=64,
        copy=1,
        examples=8,
        race_examples=8,
        race_rounds=1,
    )


def plan(options: Options, device: torch.device) -> list[Entry]:
    """List the measurements, in order: what is quick first, compiled models late, the race last."""
    found = [entry for section in options.sections for entry in _of(section, options, device)]
    return sorted(found, key=lambda entry: (entry.section == "race", "compiled" in entry.kind))


def _of(section: Section, options: Options, device: torch.device) -> Iterator[Entry]:
    if section == "device":
        yield from _device(options, device)
    elif section == "race":
        yield from _race(options)
    else:
        for way in _ways(section, options):
            yield from _entries(section, way, options, device)


def _device(options: Options, device: torch.device) -> Iterator[Entry]:
    seconds, size = options.seconds, options.matrix
    for precision in options.precisions:
        call = functools.partial(measuring.products, size, precision, device, seconds=seconds)
        yield Entry("device", f"product {size}, {precision}", call, "device")
    call = functools.partial(measuring.copying, options.copy, device, seconds=seconds)
    yield Entry("device", f"copy {options.copy} MiB", call, "device")


def _ways(section: Section, options: Options) -> Iterator[Way]:
    """Yield how models compute in a section."""
    sizes = {"training": options.train_batches, "ceiling": options.batch_sizes}.get(
        section, (options.attack_batch,)
    )
    for backbone in options.backbones:
        if section in ("model", "geometry"):
            yield Way(backbone, sizes[0])
            continue
        for precision in options.precisions:
            for size in sizes:
                yield Way(backbone, size, precision, channels_last=True)
                if section == "ceiling":
                    yield Way(backbone, size, precision)
                if (backbone, precision) == (options.backbones[0], options.precisions[0]):
                    for mode in options.compiled:
                        how: Compile = True if mode == "default" else mode
                        yield Way(backbone, size, precision, channels_last=True, compiled=how)


def _entries(section: Section, way: Way, options: Options, device: torch.device) -> Iterator[Entry]:
    seconds, steps = options.seconds, options.steps
    calls: dict[str, Callable[[], Record]] = {}
    if section == "model":
        calls[""] = functools.partial(measuring.work, way, device)
    elif section == "ceiling":
        calls[""] = functools.partial(measuring.ceiling, way, device, seconds=seconds)
    elif section == "attacks":
        calls[""] = functools.partial(
            measuring.attacking, way, device, steps=options.inner, seconds=seconds
        )
    elif section == "geometry":
        calls[""] = functools.partial(
            measuring.measures, way, device, examples=options.examples, rounds=5
        )
    else:
        for inner in (options.inner, 0):
            calls[f"PGD-{inner}, " if inner else "standard, "] = functools.partial(
                measuring.training, way, device, inner=inner, steps=steps, epochs=options.epochs
            )
        if not way.compiled and way.precision == options.precisions[0]:
            calls["batches, "] = functools.partial(
                measuring.feeding, way, steps=steps, seconds=seconds
            )
    for name, call in calls.items():
        kind = f"{section}, {name}{'compiled' if way.compiled else 'plain'}"
        yield Entry(section, f"{name}{way}", call, kind, _COMPILING if way.compiled else 5.0)


def _race(options: Options) -> Iterator[Entry]:
    if options.checkpoint is None:
        return
    setup = Setup("checkpoint", options.race_examples, path=str(options.checkpoint))
    names, left_out = autoattack.able(("ours", "pyautoattack"))
    for job in autoattack.plan(names, (0,), options.race_rounds):
        call = functools.partial(_run, setup, job, left_out)
        yield Entry("race", f"{job}", call, f"race {job.contestant}", 60.0)


def _run(setup: Setup, job: Job, left_out: dict[str, str]) -> Record:
    """Do one run of the race, in a process of its own."""
    return {"run": in_a_child(setup, job), "left_out": left_out}
