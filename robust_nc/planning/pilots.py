"""Short runs of the real code on random images, which tell how long a piece of a cell takes.

>>> from robust_nc.config import RunConfig
>>> probe = Probe("forward", "forward | small_cnn", RunConfig())
>>> Pilots(CellSizer(None), seconds=0.0).time(probe).seconds(8) > 0
True
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nc.config import Component, RunConfig, build
from robust_nc.data.base import Split, numbered
from robust_nc.data.batches import Batches
from robust_nc.evaluation.evaluate_model import Outcome, evaluate
from robust_nc.models.classifier import Classifier
from robust_nc.pipeline.stages import check_cell
from robust_nc.planning.cell_sizes import CellSizer, CellSizes
from robust_nc.planning.pieces import LARGEST, STEPS, Probe, one_item
from robust_nc.planning.speeds import Rate
from robust_nc.profiling.profile_model import profile_cell
from robust_nc.record.schema import write_rows
from robust_nc.registry import ATTACKS
from robust_nc.runtime.progress import no_report
from robust_nc.runtime.torch_state import default_device, untouched
from robust_nc.threat import Ball
from robust_nc.training.loop import Trainer
from robust_nc.training.run import build_objective
from robust_nc.training.validation import CollapseProbe
from robust_nc.types import EvaluationProtocol

_TINY = 1e-5  # a radius at which next to nothing breaks: every example takes all steps
_SMALL = 4  # images of the small batch
_BATCHES = 6  # of an epoch of a pilot training
_FEW, _MORE = 2, 34  # steps of an attack in the two runs whose difference counts
_ROUNDS = 25


class Pilots:
    """Times probes: about `seconds` for each batch of each.

    By the wall; where one thread of a CPU works, by the processor, so that other programs count
    less.
    """

    def __init__(self, sizer: CellSizer, *, seconds: float = 0.25) -> None:
        self.sizer = sizer
        self.seconds = seconds
        self.device = default_device()
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        self.clock = time.process_time if alone else time.perf_counter
        self._models: dict[str, Classifier] = {}
        self._kinds: dict[str, Callable[[Probe], Rate]] = {
            "forward": self._forward,
            "gradient": self._gradient,
            "collapse": self._collapse,
            "step": self._step,
            "solve": self._solve,
            "verdict": self._verdict,
            "attack": self._attack,
            "measure": self._measure,
            "more steps": self._more_steps,
        }

    def time(self, probe: Probe) -> Rate:
        """Return the rate of a probe. Raises what the model or the attack raises."""
        return self._kinds[probe.kind](probe)

    def _forward(self, probe: Probe) -> Rate:
        model, images = self._model(probe.config), self._images(probe.config)

        def call(batch: int) -> None:
            with untouched(model), torch.no_grad():
                model(images[:batch])

        return self._rate(lambda batch: self._median(partial(call, batch)), len(images))

    def _gradient(self, probe: Probe) -> Rate:
        model, images = self._model(probe.config), self._images(probe.config)
        labels = torch.zeros(len(images), dtype=torch.long, device=self.device)

        def call(batch: int) -> None:
            leaf = images[:batch].clone().requires_grad_()
            with untouched(model):
                torch.autograd.grad(F.cross_entropy(model(leaf), labels[:batch]), leaf)

        return self._rate(lambda batch: self._median(partial(call, batch)), len(images))

    def _collapse(self, probe: Probe) -> Rate:
        """What is read of the features after an epoch."""
        model, split = self._model(probe.config), self._split(probe.config, 4 * _SMALL)

        def cost(count: int) -> float:
            rows = torch.arange(count) % len(split.labels)
            some = numbered(split.images[rows], split.labels[rows])
            return self._median(partial(CollapseProbe(some, device=self.device), model))

        return self._rate(cost, probe.config.train.collapse_examples, least=4 * _SMALL)

    def _step(self, probe: Probe) -> Rate:
        """A step of the real trainer, after an epoch of as many that is not timed."""
        config = probe.config

        def cost(batch: int) -> float:
            changed: dict[str, Any] = {"epochs": 3, "batch_size": batch, "averaging": None}
            settings = dataclasses.replace(config.train, collapse_every=1, **changed)
            model = self.sizer.build(config).to(self.device)
            data = self._split(config, _BATCHES * batch)
            augment = config.data.augment
            batches = Batches(data, batch_size=batch, device=self.device, augment=augment)
            ends: list[float] = []

            def note(_: Any) -> dict[str, float | None]:
                self._wait()
                ends.append(self.clock())
                return {}

            objective = build_objective(config)
            Trainer(model, objective, batches, settings, seed=0, probe=note).fit()
            return (ends[-1] - ends[0]) / (len(ends) - 1) / _BATCHES

        size = config.train.batch_size
        least = size if config.train.compile else _SMALL  # each size is compiled anew
        return self._rate(cost, size, least=least, limit=self.seconds / _BATCHES)

    def _solve(self, probe: Probe) -> Rate:
        """The fit of an objective in closed form."""
        objective: Any = build_objective(probe.config)
        model = self.sizer.build(probe.config).to(self.device)
        split = self._split(probe.config, int(probe.about))
        return Rate(fixed=self._once(lambda: objective.solve(model, split, seed=0)), each=0.0)

    def _verdict(self, probe: Probe) -> Rate:
        """What every verdict takes beside its passes: a copy of the model, checks, books."""
        attack = build(ATTACKS, Component(name="pgd", options={"steps": 1}))
        seconds = self._median(lambda: self._evaluated(probe.config, attack, 8, checks=True))
        return Rate(fixed=seconds, each=0.0)

    def _attack(self, probe: Probe) -> Rate:
        """One pass of an attack as `evaluate` runs it, on whatever copy of the model is fastest.

        That is what some steps more take, over the passes that they make. An attack whose steps
        cannot be set is timed whole.
        """
        few, more = (_with_steps(probe.about, steps) for steps in (_FEW, _MORE))
        size = probe.config.evaluation.batch_size or LARGEST.get(self.device.type, LARGEST["cpu"])

        def cost(batch: int) -> float:
            runs = [partial(self._evaluated, probe.config, a, batch) for a in (few, more)]
            if few is None:
                return self._once(partial(self._evaluated, probe.config, probe.about, batch))
            made = [run() for run in runs]
            passes = [float((o.forward_passes + o.backward_passes).sum()) / batch for o in made]
            seconds = [self._median(run) for run in runs]
            return max(seconds[1] - seconds[0], 1e-9) / max(passes[1] - passes[0], 1.0)

        return self._rate(cost, size, limit=self.seconds / _MORE)

    def _evaluated(
        self, config: RunConfig, attack: Any, count: int, *, checks: bool = False
    ) -> Outcome:
        model, images = self._model(config), self._images(config, count).cpu()
        with torch.no_grad():
            labels = model(images.to(self.device)).argmax(1).cpu()
        kind = config.evaluation.precision
        with tempfile.TemporaryDirectory() as folder:  # a cell keeps a log, which takes time
            return evaluate(
                model,
                images,
                labels,
                Ball(config.threat.norm, _TINY),
                protocol=EvaluationProtocol("timed", (("timed", attack),)),
                batch_size=count,
                precision=kind if kind == "float32" or kind.endswith("only") else f"{kind}-only",
                checks=checks,
                log=Path(folder) / "log.jsonl",
            )

    def _measure(self, probe: Probe) -> Rate:
        """All measures of few images of train and as many of test as belong to them."""
        frames: list[pd.DataFrame] = []

        def cost(count: int) -> float:
            run = partial(self._profiled, probe.about, count, steps=1)
            return self._least(lambda: frames.append(run()))

        train, _ = probe.about.measured
        found = self._rate(cost, train, least=_few(probe.about), limit=4 * self.seconds)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            write_rows(path, frames[-1])
            return dataclasses.replace(found, nbytes=float(path.stat().st_size))

    def _more_steps(self, probe: Probe) -> Rate:
        """One more step of the attack in all conditions, on a batch."""
        settings = probe.config.measure

        def cost(count: int) -> float:
            run = partial(self._profiled, probe.about, count)
            one = self._least(partial(run, steps=1))
            more = min(settings.steps - 1, max(int(16 * self.seconds / max(one, 1e-9)), 2))
            return max(self._least(partial(run, steps=1 + more)) - one, 0.0) / more

        size = min(settings.batch_size, probe.about.measured[0])
        return self._rate(cost, size, least=_few(probe.about), limit=self.seconds / settings.steps)

    def _profiled(self, sizes: CellSizes, count: int, *, steps: int) -> pd.DataFrame:
        """Measure so many training images; what is done on some images shrinks with them."""
        train, test = sizes.measured
        settings = sizes.config.measure

        def part(some: int) -> int:
            return max(1, round(some * count / train)) if some else 0

        few = dataclasses.replace(
            settings,
            steps=steps,
            adaptive=None,
            train_examples=count,
            test_examples=max(part(test), 2),
            trajectories=part(settings.trajectories),
            agop_examples=part(settings.agop_examples),
        )
        config = dataclasses.replace(sizes.config, measure=few)
        model, tree = self._model(config), check_cell(config, self.sizer.root)
        split = self._split(config, max(count, part(test), 2))
        return profile_cell(
            model,
            split,
            split,
            config,
            distances=None if tree is None else tree.distances(),
            initial=model if settings.agop_examples else None,
            report=no_report,
        )

    def _model(self, config: RunConfig) -> Classifier:
        """Return an untrained model of a configuration, on the device, in eval mode."""
        key = repr((config.model, config.data.dataset, config.data.hierarchy))
        if key not in self._models:
            self._models = {key: self.sizer.build(config).to(self.device).eval()}  # the last
        return self._models[key]

    def _images(self, config: RunConfig, count: int | None = None) -> Tensor:
        count = count or LARGEST.get(self.device.type, LARGEST["cpu"])
        shape = self._model(config).image_shape
        images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
        return images.to(self.device)

    def _split(self, config: RunConfig, count: int) -> Split:
        """Return random images, two or more of each class that is there at all."""
        images = (255 * self._images(config, count)).to(torch.uint8).cpu()
        classes = min(self._model(config).num_classes, max(count // 2, 1))
        return numbered(images, torch.arange(count) % classes)

    def _rate(
        self,
        cost: Callable[[int], float],
        size: int,
        *,
        least: int = _SMALL,
        limit: float | None = None,
    ) -> Rate:
        """Go through the costs of a small batch and of a large one, at most of `size` images.

        The large one is eightfold, and again, until it costs `limit` (default: `seconds`).
        """
        least = min(least, size)
        count, small = least, cost(least)
        large, most = small, self.seconds if limit is None else limit
        while count < size and large < most:
            count = min(8 * count, size)
            large = cost(count)
        if count == least:
            return Rate(fixed=0.0, each=small / least)
        return line(least, small, count, large)

    def _median(self, work: Callable[[], object]) -> float:
        """Median seconds of a call, after one that sets things up; a long one is timed once."""
        first = self._once(work)
        if first > 4 * self.seconds > 0:
            return first
        times = [self._once(work)]
        while sum(times) < self.seconds and len(times) < _ROUNDS:
            times.append(self._once(work))
        return statistics.median(times)

    def _least(self, work: Callable[[], object]) -> float:
        """Seconds of the faster of two calls; a long one is timed once."""
        first = self._once(work)
        return first if first > 16 * self.seconds > 0 else min(first, self._once(work))

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        began = self.clock()
        work()
        self._wait()
        return self.clock() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _few(sizes: CellSizes) -> int:
    """Images of the smaller run of the geometry: two of each class, where these are not many."""
    train, _ = sizes.measured
    return max(min(max(2 * sizes.classes, 16), 48, train // 3), min(4, train))


def _with_steps(attack: Any, steps: int) -> Any:
    """Return an attack of one item with so many steps, or None where they cannot be set."""
    one = one_item(attack)
    if not dataclasses.is_dataclass(one) or isinstance(one, type):
        return None
    for field in dataclasses.fields(one):
        if field.name in STEPS and field.init:
            changed: dict[str, Any] = {field.name: steps}
            return dataclasses.replace(one, **changed)
    return None


def line(small: int, first: float, large: int, second: float) -> Rate:
    """Return the rate through two timings; never one that falls with the batch.

    >>> line(2, 1.0, 4, 1.5)
    Rate(fixed=0.5, each=0.25, nbytes=0.0)
    """
    each = max(second - first, 0.0) / (large - small)
    if each * large > second:  # the small batch was no faster by chance only
        return Rate(fixed=0.0, each=second / large)
    return Rate(fixed=max(second - each * large, 0.0), each=each)
