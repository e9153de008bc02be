"""Short runs of the real code on random images, which tell how long a piece of a cell takes.

>>> from robust_nc.config import RunConfig
>>> probe = Probe("verdict", "verdict | small_cnn", RunConfig())
>>> Pilots(CellSizer(None), seconds=0.0).time(probe).seconds(1, 8) > 0
True
"""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_nc.config import Component, RunConfig, build
from robust_nc.data.base import Split, numbered
from robust_nc.data.batches import Batches
from robust_nc.evaluation.evaluate_model import evaluate
from robust_nc.exceptions import StoppedError
from robust_nc.models.classifier import Classifier
from robust_nc.pipeline.stages import check_cell
from robust_nc.planning.cell_sizes import CellSizer, CellSizes
from robust_nc.planning.pieces import (
    STEPS,
    Probe,
    batch_size,
    one_item,
    options_of,
    planned_precision,
)
from robust_nc.planning.speeds import Rate
from robust_nc.profiling.profile_model import profile_cell
from robust_nc.registry import ATTACKS
from robust_nc.runtime.progress import no_report
from robust_nc.runtime.torch_state import default_device
from robust_nc.threat import Ball
from robust_nc.training.loop import Trainer
from robust_nc.training.run import build_objective
from robust_nc.training.validation import Validator
from robust_nc.types import EvaluationProtocol, RefereedAttack

_TINY = 1e-5  # a radius at which next to nothing breaks: every example takes all steps
_SMALL = 4  # images of the small batch
_BATCHES, _EPOCHS = 6, 20  # of a pilot training: batches of an epoch, epochs at most
_FEW, _MORE = 2, 32  # steps of an attack, and how many more at most
_ROUNDS = 25
# How long a timing may take, in units of `Pilots.seconds`:
_AGAIN = 4  # a call that takes more is timed once
_STEPS = 32  # a run that takes so long gets one step more, a shorter one as many more as fit
_LARGE = 64  # the large batch, if its seconds grew with the images


class Pilots:
    """Times probes: about `seconds` for each batch of each, more where one call takes longer.

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
            "step": self._step,
            "solve": self._solve,
            "validate": self._validate,
            "verdict": self._verdict,
            "attack": self._attack,
            "measure": self._measure,
        }

    def time(self, probe: Probe) -> Rate:
        """Return the rate of a probe. Raises what the model or the attack raises."""
        return self._kinds[probe.kind](probe)

    def _step(self, probe: Probe) -> Rate:
        """A step of the real trainer, after an epoch of as many that is not timed."""
        config = probe.config
        settings = dataclasses.replace(
            config.train, epochs=_EPOCHS, collapse_every=1, averaging=None
        )

        def cost(batch: int) -> float:
            model = self.sizer.build(config).to(self.device)
            data, augment = self._split(config, _BATCHES * batch), config.data.augment
            batches = Batches(data, batch_size=batch, device=self.device, augment=augment)
            ends: list[float] = []

            def note(_: Any) -> dict[str, float | None]:
                self._wait()
                ends.append(self.clock())
                if len(ends) > 1 and ends[-1] - ends[0] > self.seconds:
                    raise StoppedError
                return {}

            objective = build_objective(config)
            with contextlib.suppress(StoppedError):
                Trainer(model, objective, batches, settings, seed=0, probe=note).fit()
            return (ends[-1] - ends[0]) / (len(ends) - 1) / _BATCHES

        size = config.train.batch_size
        least = size if config.train.compile else _SMALL  # each size is compiled anew
        return self._rate(cost, size, least=least, calls=2 * _BATCHES)

    def _solve(self, probe: Probe) -> Rate:
        """The fit of an objective in closed form."""
        objective: Any = build_objective(probe.config)
        model = self.sizer.build(probe.config).to(self.device)
        split = self._split(probe.config, int(probe.about))
        return Rate(fixed=self._once(lambda: objective.solve(model, split, seed=0)), each=0.0)

    def _validate(self, probe: Probe) -> Rate:
        """The accuracy under attack between two epochs."""
        model, ball = self._model(probe.config), Ball(probe.config.threat.norm, _TINY)

        def cost(count: int) -> float:
            some = self._split(probe.config, count)
            some = some._replace(labels=self._answers(probe.config, some.images / 255))
            return self._median(partial(Validator(some, ball, seed=0, device=self.device), model))

        return self._rate(cost, int(probe.about))

    def _verdict(self, probe: Probe) -> Rate:
        """What every verdict takes beside its attacks: a clean pass, a copy of the model, books."""
        attack = build(ATTACKS, Component(name="pgd", options={"steps": 1}))
        run = partial(self._evaluate, probe.config, attack, checks=True)
        return self._rate(lambda count: self._median(partial(run, count)), batch_size(probe.config))

    def _attack(self, probe: Probe) -> Rate:
        """One pass of an attack as `evaluate` runs it, on whatever copy of the model is fastest.

        That is what some steps more take, over the passes that they make. An attack whose steps
        cannot be set is timed whole.
        """
        attack, config = probe.about, probe.config

        def cost(batch: int) -> float:
            refereed = isinstance(attack, RefereedAttack)
            if not refereed or _with_steps(attack, _FEW) is None:
                passes = attack.cost(self._model(config).num_classes) if refereed else 1
                return self._once(partial(self._evaluate, config, attack, batch)) / float(passes)

            def run(steps: int) -> None:
                self._evaluate(config, _with_steps(attack, steps), batch)

            few, one_more = (_with_steps(attack, s).cost(2) for s in (_FEW, _FEW + 1))
            return self._steps(run, _FEW, _MORE)[1] / float(one_more - few)

        return self._rate(cost, batch_size(probe.config), calls=5)

    def _evaluate(
        self, config: RunConfig, attack: Any, count: int, *, checks: bool = False
    ) -> None:
        images = self._images(config, count)
        with tempfile.TemporaryDirectory() as folder:  # a cell keeps a log, which takes time
            evaluate(
                self._model(config),
                images,
                self._answers(config, images),
                Ball(config.threat.norm, _TINY),
                protocol=EvaluationProtocol("timed", (("timed", attack),)),
                batch_size=count,
                precision=planned_precision(config),
                checks=checks,
                log=Path(folder) / "log.jsonl",
            )

    def _measure(self, probe: Probe) -> Rate:
        """All measures of few images of train and as many of test as belong to them."""
        sizes: CellSizes = probe.about
        steps, train = sizes.config.measure.steps, sizes.measured[0]

        def cost(count: int) -> float:
            one, more = self._steps(partial(self._profile, sizes, count), 1, steps - 1)
            return one + (steps - 1) * more

        # Two of each class, where these are not many.
        few = max(min(max(2 * sizes.info.num_classes, 16), 48, train // 3), min(4, train))
        return self._rate(cost, train, least=few)

    def _profile(self, sizes: CellSizes, count: int, steps: int) -> None:
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
        profile_cell(
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
        data = config.data
        key = repr((config.model, data.dataset, data.classes, data.hierarchy))
        if key not in self._models:
            self._models = {key: self.sizer.build(config).to(self.device).eval()}  # the last
        return self._models[key]

    def _images(self, config: RunConfig, count: int) -> Tensor:
        shape = self._model(config).image_shape
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))

    def _split(self, config: RunConfig, count: int) -> Split:
        """Return random images, two or more of each class that is there at all."""
        images = (255 * self._images(config, count)).to(torch.uint8)
        classes = min(self._model(config).num_classes, max(count // 2, 1))
        return numbered(images, torch.arange(count) % classes)

    def _answers(self, config: RunConfig, images: Tensor) -> Tensor:
        """Return what the model says of images: as labels, it is right."""
        with torch.no_grad():
            answers: Tensor = self._model(config)(images.to(self.device)).argmax(1)
        return answers.cpu()

    def _rate(
        self, cost: Callable[[int], float], size: int, *, least: int = _SMALL, calls: int = 1
    ) -> Rate:
        """Return the rate of a cost; one timing of it takes `calls` calls at least."""
        return rate_of(cost, size, least=least, most=_LARGE * self.seconds / calls)

    def _steps(self, run: Callable[[int], object], few: int, most: int) -> tuple[float, float]:
        """Seconds of a run of `few` steps, and of each of some more steps, `most` at most."""
        first = self._median(partial(run, few))
        more = min(most, max(int(_STEPS * self.seconds / first), 1))
        if not more:
            return first, 0.0
        return first, max(self._median(partial(run, few + more)) - first, 1e-9) / more

    def _median(self, work: Callable[[], object]) -> float:
        """Median seconds of a call, after one that sets things up; a long one is timed once."""
        first = self._once(work)
        if first > _AGAIN * self.seconds > 0:
            return first
        times = [self._once(work)]
        while sum(times) < self.seconds and len(times) < _ROUNDS:
            times.append(self._once(work))
        return statistics.median(times)

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        began = self.clock()
        work()
        self._wait()
        return self.clock() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _with_steps(attack: Any, steps: int) -> Any:
    """Return an attack of one item with so many steps, or None where they cannot be set."""
    changed: dict[str, Any] = {name: steps for name in STEPS if name in options_of(attack)}
    return dataclasses.replace(one_item(attack), **changed) if changed else None


def rate_of(cost: Callable[[int], float], size: int, *, least: int, most: float) -> Rate:
    """Return the line through the costs of a small batch, `least`, and a large one, at most `size`.

    The large one is as large as would cost `most` if costs grew with the images. Where that is not
    twice the small one, each image costs as much as in that. A rate never falls with the batch.

    >>> rate_of(lambda images: 0.25 + 0.5 * images, 16, least=2, most=10.0)
    Rate(fixed=0.25, each=0.5)
    """
    least = min(least, size)
    small = cost(least)
    count = min(size, int(least * most / max(small, 1e-9)))
    if count < 2 * least:
        return Rate(fixed=0.0, each=small / least)
    large = cost(count)
    # By chance alone, the small batch may be the slower one, or cost next to nothing.
    each = min(max(large - small, 0.0) / (count - least), large / count)
    return Rate(fixed=max(large - each * count, 0.0), each=each)
