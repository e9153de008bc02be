"""What is measured, one function each: plain values, all times in seconds per call.

>>> way = Way("small_cnn", 2, image_shape=(1, 8, 8))
>>> sorted(ceiling(way, torch.device("cpu"), seconds=0.0)["seconds"])
['forward', 'gradient', 'step']
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.pgd import PGD
from robust_nc.benchmarks.gpu.counting import count_work, time_copy, time_products
from robust_nc.benchmarks.gpu.passes import Passes, Way, clock, paces, spread, told, wait
from robust_nc.benchmarks.gpu.speed import random_batches, training_config
from robust_nc.benchmarks.races.geometry import contest as geometry_contest
from robust_nc.benchmarks.races.geometry import make_model
from robust_nc.benchmarks.races.timing import ratio
from robust_nc.config import Component
from robust_nc.data.base import numbered
from robust_nc.evaluation.acceleration import Precision
from robust_nc.models.build import build_model
from robust_nc.runtime import full_precision
from robust_nc.threat import Ball
from robust_nc.training.loop import Trainer
from robust_nc.training.run import build_objective

Row = dict[str, Any]
BALL = Ball("Linf", 8 / 255)


def products(size: int, precision: Precision, device: torch.device, *, seconds: float) -> Row:
    """Measure the peak: the faster of a product of matrices of this size and a convolution."""
    found = time_products(size, precision, device, seconds=seconds)
    return {
        "size": size,
        "precision": precision,
        "seconds": {one.timing.name: told(one.timing) for one in found},
        "flops_per_second": {one.timing.name: one.best for one in found},
    }


def copying(mebibytes: int, device: torch.device, *, seconds: float) -> Row:
    """Measure the bandwidth of the device's memory: a copy of so many MiB."""
    found = time_copy(mebibytes, device, seconds=seconds)
    return {
        "mebibytes": mebibytes,
        "seconds": {"copy": told(found.timing)},
        "bytes_per_second": found.best,
    }


def work(way: Way, device: torch.device) -> Row:
    """Count operations, bytes and operators of the model's passes."""
    counted = count_work(way, device)
    return {
        "way": way._asdict(),
        "work": {name: found._asdict() for name, found in counted.items()},
    }


def ceiling(way: Way, device: torch.device, *, seconds: float) -> Row:
    """Time the bare model's passes, in turn."""
    passes = Passes(way, device)
    timings = paces(
        {"forward": passes.forward, "gradient": passes.gradient, "step": passes.step},
        seconds=seconds,
    )
    return {"way": way._asdict(), "seconds": {found.name: told(found) for found in timings}}


def training(way: Way, device: torch.device, *, inner: int, steps: int, epochs: int) -> Row:
    """Time the trainer against its floor, epoch by epoch, after one epoch of each, untimed.

    `inner` steps of PGD (0: standard training), `steps` steps per epoch. The floor is that of
    `Passes`, so many times; between two epochs of the training it has its turn. Images lie on the
    device, and are shuffled and augmented by the training only.
    """
    name = "pgd" if inner else "standard"
    options = {"steps": inner, "step_size": "2/255"} if inner else {}
    config = training_config(Component(name=name, options=options), way, epochs=epochs + 1)
    batches = random_batches(config, steps, way.image_shape)
    model = build_model(config.model).to(device)
    passes, now = Passes(way, device, as_training=True), clock()
    floors: list[float] = []
    turns: list[float] = []  # when an epoch ended and the next began
    wall = now is time.perf_counter

    def floor(shown: nn.Module) -> dict[str, float | None]:
        wait()
        started = now()
        for _ in range(steps):
            passes.floor(inner)
        wait()
        ended = now()
        floors.append(ended - started)
        turns.extend((started, ended))
        return {}

    objective = build_objective(config)
    fitted = Trainer(model, objective, batches, config.train, seed=0, probe=floor).fit()
    loops = [float(row["seconds"]) for row in fitted.history][1:]
    if not wall:  # the log is by the wall; from floor to floor is the epoch with its checks
        loops = [end - begin for begin, end in zip(turns[1:-1:2], turns[2::2], strict=True)]
    shares = tuple(one / other for one, other in zip(floors[1:], loops, strict=True))
    return {
        "way": way._asdict(),
        "inner": inner,
        "seconds": {
            "floor": spread(tuple(value / steps for value in floors[1:])),
            "loop": spread(tuple(value / steps for value in loops)),
        },
        "share": statistics.median(floors[1:]) / statistics.median(loops),
        "shares": spread(shares),
    }


def feeding(way: Way, *, steps: int, seconds: float) -> Row:
    """Time the batches alone: shuffled, cropped and mirrored from images that lie on the device."""
    config = training_config(Component(name="standard"), way, epochs=1)
    batches = random_batches(config, steps, way.image_shape)

    def epoch() -> None:
        for _ in batches.epoch(0):
            pass

    (timing,) = paces({"batch": epoch}, seconds=seconds)
    values = tuple(value / steps for value in timing.seconds)
    return {"way": way._asdict(), "seconds": {"batch": spread(values)}}


def attacking(way: Way, device: torch.device, *, steps: int, seconds: float) -> Row:
    """Time PGD and APGD on the cross-entropy through the engine against their passes alone.

    All items take all steps. `share` is the time of their forward and gradient passes on the bare
    model, in turn with them, over theirs.
    """
    passes = Passes(way, device)
    attacks: dict[str, PGD | APGD] = {
        "pgd": PGD(steps=steps, keep_best=False),
        "apgd": APGD(steps=steps, loss="ce"),
    }
    ids = torch.arange(way.batch_size, device=device)

    def run(attack: PGD | APGD) -> tuple[float, float]:
        with passes.precise():
            found = attack.run(
                passes.frozen,
                passes.images,
                passes.labels,
                BALL,
                goal="maximise",
                seed=0,
                ids=ids,
            )
        return float(found.forwards.float().mean()), float(found.backwards.float().mean())

    calls: dict[str, Callable[[], object]] = {
        "forward": passes.forward,
        "gradient": passes.gradient,
    }
    calls |= {name: functools.partial(run, attack) for name, attack in attacks.items()}
    timings = {found.name: found for found in paces(calls, seconds=seconds)}
    made: Row = {
        "way": way._asdict(),
        "steps": steps,
        "seconds": {name: told(found) for name, found in timings.items()},
        "passes": {},
        "share": {},
    }
    for name, attack in attacks.items():
        forwards, backwards = run(attack)
        alone = backwards * timings["gradient"].spread.median
        alone += (forwards - backwards) * timings["forward"].spread.median
        made["passes"][name] = [forwards, backwards]
        made["share"][name] = alone / timings[name].spread.median
    return made


def measures(way: Way, device: torch.device, *, examples: int, rounds: int) -> Row:
    """Time all taps with their sums and one-pass measures against the forward passes alone."""
    source = torch.Generator().manual_seed(0)
    images = torch.randint(256, (examples, *way.image_shape), generator=source, dtype=torch.uint8)
    split = numbered(images, torch.arange(examples) % 10)
    model = make_model(way.backbone).to(device)
    with full_precision():
        timings = geometry_contest(
            model, split, batch_size=way.batch_size, repeats=rounds, clock=clock()
        )
    over = ratio(timings[1], timings[0])
    return {
        "way": way._asdict(),
        "examples": examples,
        "taps": len(model.taps),
        "seconds": {found.name: told(found) for found in timings},
        "over": {"median": over.median, "low": over.low, "high": over.high},
    }
