"""How close passes, attacks and trainings come to what a device allows, in calls of minutes.

Every measurement is written to --out (JSON) as it is made, beside a Markdown page; the next call
skips what is there. A call ends before --minutes have passed. Exit codes: 0 all is measured, 2 bad
input, 3 time is up, call again. The sections, in this order:

`device` peak of products and convolutions, bandwidth; `passes` of the bare model; `training` by PGD
and on clean images, and `attacks`, PGD and APGD, whose floor are their passes. What `torch.compile`
must compile comes after everything else.

    python -m robust_nc.benchmarks.gpu.throughput --out speed.json --minutes 9
"""

import contextlib
import copy
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.pgd import PGD
from robust_nc.benchmarks.races.timing import begun, conditions, cpu_name, markdown, spread_of
from robust_nc.config import Compile, Component, ModelConfig, RunConfig, TrainConfig, read
from robust_nc.data.base import numbered
from robust_nc.data.batches import Batches
from robust_nc.evaluation.acceleration import Precision, lowered
from robust_nc.exceptions import ConfigError, RobustNCError
from robust_nc.io.files import write_text
from robust_nc.models.build import build_model
from robust_nc.runtime import default_device, full_precision
from robust_nc.runtime.environment import code_digest, hardware, versions
from robust_nc.threat import Ball
from robust_nc.training.loop import Trainer, compiled
from robust_nc.training.run import build_objective
from robust_nc.training.state import make_optimizer

Section = Literal["device", "passes", "training", "attacks"]
Row = dict[str, Any]

DONE, BAD_INPUT, TIME_UP = 0, 2, 3
BALL, CLASSES = Ball("Linf", 8 / 255), 10
_MARGIN = 1.5  # an entry is begun if so many times what the longest of its kind took is left
_FIRST, _COMPILING = 5.0, 100.0  # seconds that an entry may take, before one of its kind was made


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
    batch_sizes: tuple[int, ...] = (128, 512)
    """Images per batch."""
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
    again: bool = False
    """Measure again what failed."""
    quick: bool = False
    """Tiny sizes, to try it; every other size is ignored."""


class Way(NamedTuple):
    """A model, a batch, and how it computes.

    >>> str(Way("small_cnn", 2, channels_last=True))
    'small_cnn 32x32, batch 2, float32, channels_last'
    """

    backbone: str
    batch_size: int
    precision: Precision = "float32"
    channels_last: bool = False
    compiled: Compile = False
    image_shape: tuple[int, int, int] = (3, 32, 32)

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
    `step` is one forward, backward and SGD step in train mode.
    """

    def __init__(self, way: Way, device: torch.device) -> None:
        self.way, self.device = way, device
        source = torch.Generator().manual_seed(0)
        self.images = torch.rand(way.batch_size, *way.image_shape, generator=source).to(device)
        self.labels = torch.randint(CLASSES, (way.batch_size,), generator=source).to(device)
        shape = ModelConfig(backbone=Component(name=way.backbone), image_shape=way.image_shape)
        model = build_model(shape).to(device).train()
        if way.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.model = compiled(model, way.compiled)
        self.frozen = compiled(copy.deepcopy(model).eval().requires_grad_(False), way.compiled)
        self.optimizer = make_optimizer(model, TrainConfig(lr=1e-3))

    @contextlib.contextmanager
    def precise(self) -> Iterator[None]:
        """Compute as the way says."""
        with full_precision(), lowered(self.way.precision, self.device):
            yield

    def forward(self) -> None:
        """Pass the batch forward."""
        with self.precise(), torch.no_grad():
            self.frozen(self.images)

    def gradient(self) -> None:
        """Pass the batch forward, and take the gradient by the images."""
        leaf = self.images.detach().requires_grad_()
        with self.precise():
            loss = F.cross_entropy(self.frozen(leaf).float(), self.labels)
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Take one step of plain training."""
        with self.precise():
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def calls(self) -> dict[str, Callable[[], None]]:
        """Return all three by name."""
        return {"forward": self.forward, "gradient": self.gradient, "step": self.step}


class Work(NamedTuple):
    """Of one call: operations, bytes to and from memory, and operators.

    `flops` are those of products and convolutions. `bytes` are those of all inputs and outputs of
    all operators, as if none were fused with its neighbour or found anything in a cache.
    """

    flops: float
    bytes: float
    operators: int


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that are no views, and the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators += 1
            leaves = tree_leaves((args, kwargs or {}, found))
            self.bytes += sum(part.nbytes for part in leaves if isinstance(part, Tensor))
        return found


def count_work(call: Callable[[], object]) -> Work:
    """Count what a call computes and moves."""
    with _Traffic() as traffic, FlopCounterMode(display=False) as flops:
        call()
    return Work(float(flops.get_total_flops()), float(traffic.bytes), traffic.operators)


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Time a call for about `seconds`, after one that is not timed (it may compile)."""
    call()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return list(timer.blocked_autorange(min_run_time=seconds).times)


def _row(what: str, times: list[float], **more: object) -> Row:
    """Write one thing that was timed, in seconds of a call."""
    low, median, high = spread_of(times)
    spread = {"median": median, "low": low, "high": high, "least": min(times), "rounds": len(times)}
    return {"what": what, "seconds": spread, **more}


def device_rows(options: Options, device: torch.device) -> list[Row]:
    """Time the product of two matrices, a 3 x 3 convolution of about as many operations, a copy.

    Product and convolution, since they may come from different libraries: on a CPU either can be
    twice as fast.
    """
    source, size, rows = torch.Generator().manual_seed(0), options.matrix, []
    for precision in options.precisions:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32

        def draw(*shape: int, kind: torch.dtype = kind) -> Tensor:
            return torch.rand(*shape, generator=source).to(device, kind)

        channels, side = min(size, 512), 8
        images = max(1, round(size**3 / (channels**2 * 9 * side**2)))
        layout = {"memory_format": torch.channels_last}
        features = draw(images, channels, side, side).contiguous(**layout)
        weights = draw(channels, channels, 3, 3).contiguous(**layout)
        calls = {
            f"product {size}": functools.partial(torch.mm, draw(size, size), draw(size, size)),
            "convolution": functools.partial(F.conv2d, features, weights, padding=1),
        }
        with full_precision(), lowered("tf32" if precision == "tf32" else "float32", device):
            for name, call in calls.items():
                work = count_work(call)._asdict()
                rows.append(_row(name, _timed(call, options.seconds), work=work, peak=precision))
    one = torch.ones(options.copy * 2**18, device=device)
    copied = functools.partial(torch.empty_like(one).copy_, one)
    moved = Work(0.0, 2.0 * one.nbytes, 1)._asdict()  # read and written
    times = _timed(copied, options.seconds)
    return [*rows, _row(f"copy {options.copy} MiB", times, work=moved, bandwidth=True)]


def pass_rows(way: Way, options: Options, device: torch.device) -> list[Row]:
    """Time the bare model's passes; count them in float32 and not compiled, bf16 moves half."""
    counted = Passes(way._replace(compiled=False, precision="float32"), device).calls()
    counted["step"]()  # the first one makes the momenta
    rows = []
    for name, call in Passes(way, device).calls().items():
        work = count_work(counted[name])
        if way.precision == "bf16":
            work = work._replace(bytes=work.bytes / 2)
        times = _timed(call, options.seconds)
        rows.append(_row(name, times, way=way._asdict(), work=work._asdict()))
    return rows


def attack_rows(way: Way, options: Options, device: torch.device) -> list[Row]:
    """Time PGD and APGD on the cross-entropy through the engine; all items take all steps."""
    passes, rows = Passes(way, device), []
    attacks: dict[str, PGD | APGD] = {
        f"PGD-{options.inner}": PGD(steps=options.inner, keep_best=False),
        f"APGD-{options.inner}": APGD(steps=options.inner, loss="ce"),
    }
    given = (passes.frozen, passes.images, passes.labels, BALL)
    ids = torch.arange(way.batch_size, device=device)
    for name, attack in attacks.items():
        with passes.precise():
            run = functools.partial(attack.run, *given, goal="maximise", seed=0, ids=ids)
            times, found = _timed(run, options.seconds), run()
        gradients = float(found.backwards.float().mean())
        floor = {"gradient": gradients, "forward": float(found.forwards.float().mean()) - gradients}
        rows.append(_row(name, times, way=way._asdict(), floor=floor))
    return rows


def training_rows(way: Way, options: Options, device: torch.device) -> list[Row]:
    """Time steps of the trainer, epoch by epoch, after one epoch that is not timed.

    Images lie on the device, are random, and are shuffled and augmented.
    """
    source, rows = torch.Generator().manual_seed(0), []
    count = options.steps * way.batch_size
    images = torch.randint(256, (count, *way.image_shape), generator=source, dtype=torch.uint8)
    split = numbered(images, torch.randint(CLASSES, (count,), generator=source))
    for inner in (options.inner, 0):
        config = _training(way, inner, options.epochs + 1)
        batches = Batches(
            split, batch_size=way.batch_size, device=device, augment=config.data.augment
        )
        model = build_model(config.model).to(device)
        fitted = Trainer(model, build_objective(config), batches, config.train, seed=0).fit()
        times = [float(row["seconds"]) / options.steps for row in fitted.history][1:]
        name = f"PGD-{inner} training" if inner else "standard training"
        floor = {"gradient": inner, "step": 1}
        rows.append(_row(name, times, way=way._asdict(), floor=floor))
    return rows


def _training(way: Way, inner: int, epochs: int) -> RunConfig:
    pgd = {"name": "pgd", "steps": inner, "step_size": "2/255"}
    shape = {"num_classes": CLASSES, "image_shape": list(way.image_shape)}
    settings = {"batch_size": way.batch_size, "lr": 0.01, "schedule": "constant", "epochs": epochs}
    settings |= {"precision": way.precision, "channels_last": way.channels_last}
    settings |= {"compile": way.compiled, "objective": pgd if inner else "standard"}
    values = {"data": {"augment": ["crop", "flip"]}, "train": settings}
    return read(RunConfig, values | {"model": {"backbone": way.backbone, **shape}})


class Entry(NamedTuple):
    """One measurement, its name in the record, and whether it has to compile."""

    section: Section
    name: str
    call: Callable[[], list[Row]]
    compiling: bool = False

    @property
    def kind(self) -> str:
        """Entries of one kind take alike."""
        return f"{self.section}{', compiled' * self.compiling}"


def plan(options: Options, device: torch.device) -> list[Entry]:
    """List the measurements, section by section, compiled models last.

    >>> tiny = quick(Options(sections=("device", "passes"), precisions=("float32",)))
    >>> for entry in plan(tiny, torch.device("cpu")):
    ...     print(entry.name)
    device: matrix 64, copy 1 MiB, float32
    passes: small_cnn 32x32, batch 4, float32, channels_last
    passes: small_cnn 32x32, batch 4, float32
    """
    calls = {"training": training_rows, "attacks": attack_rows, "passes": pass_rows}
    found = []
    for section in options.sections:
        if section == "device":
            what = f"matrix {options.matrix}, copy {options.copy} MiB"
            name = f"device: {what}, {', '.join(options.precisions)}"
            found.append(Entry(section, name, functools.partial(device_rows, options, device)))
            continue
        for way in _ways(options, both_layouts=section == "passes"):
            call = functools.partial(calls[section], way, options, device)
            found.append(Entry(section, f"{section}: {way}", call, bool(way.compiled)))
    return sorted(found, key=lambda entry: entry.compiling)


def _ways(options: Options, *, both_layouts: bool) -> Iterator[Way]:
    for backbone, precision, size in itertools.product(
        options.backbones, options.precisions, options.batch_sizes
    ):
        yield (way := Way(backbone, size, precision, channels_last=True))
        if both_layouts:
            yield way._replace(channels_last=False)
        if (backbone, precision) == (options.backbones[0], options.precisions[0]):
            for mode in options.compiled:
                yield way._replace(compiled=True if mode == "default" else mode)


def quick(options: Options) -> Options:
    """Return options of tiny sizes."""
    tiny = replace(options, backbones=("small_cnn",), batch_sizes=(4,), compiled=(), seconds=0.0)
    return replace(tiny, inner=2, steps=1, epochs=2, matrix=64, copy=1)


def opened(out: Path, device: torch.device) -> Row:
    """Read the record of this device, or begin it; `RecordError` if it is of something else."""
    facts = hardware(device)
    place = {"device": facts.get("gpu", cpu_name()), "torch": torch.__version__}
    place["threads"] = facts["threads"]
    made: Row = {"place": place, "conditions": conditions(), "versions": versions()}
    made |= {"hardware": facts | {"processor": cpu_name()}, "entries": {}}
    return begun(out, made, of="device", by="place", holds="entries")


def measure(entries: list[Entry], record: Row, out: Path, *, end: float, again: bool) -> bool:
    """Make what is missing until `end` (of `time.monotonic`); return whether all is there."""
    made: dict[str, Row] = record["entries"]
    taken: dict[str, float] = {}
    for held in made.values():
        taken[held["kind"]] = max(taken.get(held["kind"], 0.0), held["took"])
    missing = [e for e in entries if e.name not in made or (again and "error" in made[e.name])]
    for number, entry in enumerate(missing):
        needed = taken.get(entry.kind, _COMPILING if entry.compiling else _FIRST)
        if time.monotonic() + _MARGIN * needed > end:
            return False
        _say(f"{number + 1} of {len(missing)}: {entry.name}")
        started = time.monotonic()
        found = _made(entry) | {"kind": entry.kind, "code": code_digest()}
        found["took"] = time.monotonic() - started
        taken[entry.kind] = max(taken.get(entry.kind, 0.0), found["took"])
        made[entry.name] = found
        write_text(out, json.dumps(record, indent=1) + "\n")
    return True


def _made(entry: Entry) -> Row:
    """Make one measurement; what fails (memory, a compiler) says why."""
    torch.compiler.reset()
    try:
        return {"rows": entry.call()}
    except (RuntimeError, RobustNCError, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise ConfigError(
                f"the GPU does not answer after {entry.name} ({why}); call again, and leave that "
                "out"
            ) from error
    return {"error": why[:300]}


_NOTES = """\
ms: median of a call, with quartiles. FLOP: products and convolutions. Bytes: as if every operator
read and wrote memory, nothing fused. Of the peak: FLOP/s over the best round of product and
convolution in that precision. Roof: the most that peak and bandwidth allow, over the peak. Of the
floor: the passes on the bare model that an attack makes, or a step of training (so many gradients,
one full step), over its time. float32 is without TF32, but for trainings, in whose convolutions
torch lets CUDA use it: tf32 is their floor.
"""


def page(record: Row) -> str:
    """Write the table of a record, with what failed."""
    entries: dict[str, Row] = record["entries"]
    rows = [row for entry in entries.values() for row in entry.get("rows", [])]
    head = "what|how|ms|images/s|GFLOP/s|GB/s|operators|of the peak|roof|of the floor"
    table = [head.split("|"), *(_cells(row, rows) for row in rows)]
    parts = ["# Throughput", record["conditions"], markdown(table), _NOTES]
    failed = [f"- {name}: {entry['error']}" for name, entry in entries.items() if "error" in entry]
    parts += ["## Failed", "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def _cells(row: Row, rows: list[Row]) -> list[str]:
    """Write one row; the others hold the peaks, and the passes that are its floor."""
    way = Way(**row["way"]) if "way" in row else None
    precision = way.precision if way else row.get("peak")
    flops = [_best(one, "flops") for one in rows if "peak" in one and one["peak"] == precision]
    moved = [_best(one, "bytes") for one in rows if "bandwidth" in one]
    peak, bandwidth = max(flops, default=None), max(moved, default=None)
    median, floor, work = row["seconds"]["median"], None, row.get("work")
    if "floor" in row:
        alone = {one["what"]: one for one in rows if one.get("way") == row["way"] and "work" in one}
        parts = [(times, alone[name]) for name, times in row["floor"].items() if name in alone]
        if len(parts) == len(row["floor"]):
            floor = sum(times * one["seconds"]["median"] for times, one in parts)
            work = {
                key: sum(times * one["work"][key] for times, one in parts) for key in Work._fields
            }
    reached = work["flops"] / median if work else None
    roof = work["flops"] / work["bytes"] * bandwidth if work and way and bandwidth else None
    spread = (1e3 * row["seconds"][name] for name in ("median", "low", "high"))
    return [
        row["what"],
        str(way) if way else str(precision or ""),
        "{:,.3g} ({:,.3g} to {:,.3g})".format(*spread),
        f"{way.batch_size / median:,.0f}" if way else "",
        f"{reached / 1e9:,.1f}" if reached else "",
        f"{work['bytes'] / median / 1e9:,.1f}" if work else "",
        f"{work['operators']:.0f}" if work else "",
        _share(reached / peak if reached and peak else None),
        _share(min(peak, roof) / peak if peak and roof else None),
        _share(floor / median if floor else None),
    ]


def _best(row: Row, unit: str) -> float:
    return float(row["work"][unit] / row["seconds"]["least"])


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(options: Options) -> int:
    """Measure what is missing, write record and page, and return the exit code."""
    end = time.monotonic() + 60 * options.minutes
    device = default_device()
    record = opened(options.out, device)
    _say(record["conditions"])
    entries = plan(quick(options) if options.quick else options, device)
    done = measure(entries, record, options.out, end=end, again=options.again)
    text = page(record)
    write_text(options.out.with_suffix(".md"), text)
    print(text)
    if not done:
        _say("time is up; the same call goes on")
    return DONE if done else TIME_UP


def main() -> int:
    """Entry point."""
    try:
        return run(tyro.cli(Options))
    except RobustNCError as error:
        _say(f"throughput: {error}")
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
