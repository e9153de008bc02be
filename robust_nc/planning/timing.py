"""Times what cells are made of, by short runs of the real code on random images.

>>> from robust_nc.config import RunConfig
>>> from robust_nc.planning.cell_sizes import Anatomist
>>> from robust_nc.planning.stopwatch import Stopwatch
>>> probe = Probe("forward", "forward | small_cnn", RunConfig())
>>> Bench(Anatomist(None), Stopwatch(seconds=0.0)).time(probe).seconds(8) > 0
True
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_nc.config import Component, RunConfig, build
from robust_nc.data.base import Split, numbered
from robust_nc.data.batches import Batches
from robust_nc.evaluation.evaluate_model import evaluate
from robust_nc.models.classifier import Classifier
from robust_nc.planning.cell_sizes import Anatomist
from robust_nc.planning.counting_hooks import with_steps
from robust_nc.planning.pieces import Probe
from robust_nc.planning.speeds import Rate
from robust_nc.planning.stopwatch import Stopwatch, Work, line, slope
from robust_nc.planning.timing_measures import REST
from robust_nc.registry import ATTACKS, OBJECTIVES
from robust_nc.runtime.torch_state import default_device, untouched
from robust_nc.threat import Ball
from robust_nc.training.loop import Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Objective
from robust_nc.training.run import build_objective
from robust_nc.types import EvaluationProtocol

_TINY = 1e-5  # a radius at which next to nothing breaks: every example takes all steps
_STEPS = {"Square": 60}
_FEW_STEPS = 8
_LARGEST = {"cpu": 128, "cuda": 512}


class Bench:
    """Times probes; `watch` says for how long each, and by which clock."""

    def __init__(self, anatomist: Anatomist, watch: Stopwatch) -> None:
        self.anatomist = anatomist
        self.watch = watch
        self.device = default_device()
        self._models: dict[str, Classifier] = {}

    def time(self, probe: Probe) -> Rate:
        """Return the rate of a probe. Raises what the model or the attack raises."""
        kinds: dict[str, Callable[[Probe], Rate]] = {
            "forward": self._forward,
            "step": self._step,
            "inner": self._inner,
            "attack": self._attack,
            "verdict": self._verdict,
            "turnover": self._turnover,
            "geometry": self._geometry,
        }
        if probe.kind in kinds:
            return kinds[probe.kind](probe)
        return REST[probe.kind](probe, self.model(probe.config), self.watch, self.anatomist)

    def model(self, config: RunConfig) -> Classifier:
        """Return an untrained model of a configuration, on the device, in eval mode."""
        key = repr((config.model, config.data.dataset, config.data.hierarchy))
        if key not in self._models:
            self._models = {key: self.anatomist.model(config).to(self.device).eval()}  # the last
        return self._models[key]

    def _images(self, config: RunConfig, count: int) -> Tensor:
        shape = self.model(config).image_shape
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))

    def _forward(self, probe: Probe) -> Rate:
        model = self.model(probe.config)
        images = self._images(probe.config, _LARGEST[self.device.type]).to(self.device)

        def work_on(count: int) -> Work:
            def work() -> None:
                with untouched(model), torch.no_grad():
                    model(images[:count])

            return work

        return self.watch.rate(work_on, len(images))

    def _step(self, probe: Probe) -> Rate:
        objective = build_objective(probe.config)
        first: Objective = with_steps(objective, 1) or objective
        return self._per_batch(probe.config, lambda batch: self._epoch(probe.config, first, batch))

    def _inner(self, probe: Probe) -> Rate:
        config = probe.config

        def cost(batch: int) -> float:
            def work_of(steps: int) -> Work:
                part = Component(name="pgd", options={"steps": steps})
                ball = config.threat.ball()
                objective = build(OBJECTIVES, part, ball=ball, loss=cross_entropy)
                return self._fit(config, objective, batch, 1)

            return slope(self.watch, work_of, more=4)

        return self._per_batch(config, cost)

    def _per_batch(self, config: RunConfig, cost: Callable[[int], float]) -> Rate:
        """Time at the training's own batch, or at a smaller one where that would take long."""
        forward = self._forward(Probe("forward", "", config))
        size = config.train.batch_size
        fitting = int(self.watch.seconds / max(4 * forward.each, 1e-9)) if forward.each else size
        most = max(min(size, fitting), min(8, size))
        least = max(most // 4, min(2, most))
        if least == most:
            return Rate(fixed=0.0, each=cost(most) / most)
        return line(least, cost(least), most, cost(most))

    def _epoch(self, config: RunConfig, objective: Objective, batch: int) -> float:
        """Seconds of one training step at a batch size."""
        first = self.watch.once(self._fit(config, objective, batch, 1))
        more = max(2, min(32, int(self.watch.seconds / max(first, 1e-3))))
        return slope(
            self.watch, lambda steps: self._fit(config, objective, batch, steps), more=more
        )

    def _fit(self, config: RunConfig, objective: Objective, batch: int, steps: int) -> Work:
        """An epoch of the real trainer over so many batches."""
        data = self._data(config, batch * steps)
        settings = dataclasses.replace(config.train, epochs=1, batch_size=batch, averaging=None)
        model = self.anatomist.model(config).to(self.device)
        batches = Batches(
            data, batch_size=batch, device=self.device, augment=config.data.augment, seed=0
        )

        def work() -> None:
            Trainer(model, objective, batches, settings, seed=0).fit()

        return work

    def _data(self, config: RunConfig, count: int) -> Split:
        images = (self._images(config, count) * 255).to(torch.uint8)
        return numbered(images, torch.arange(count) % self.model(config).num_classes)

    def _attack(self, probe: Probe) -> Rate:
        """One step of one item, as `evaluate` runs the attack on its fast copy of the model."""
        attack = probe.about
        short = _shortened(attack)
        more = _STEPS.get(type(attack).__name__, _FEW_STEPS)
        if short is None:
            return self.watch.rate(
                lambda count: self._judge(probe.config, attack, count), _FEW_STEPS
            )
        size = probe.config.evaluation.batch_size or _LARGEST[self.device.type]
        least = min(4, size)

        def cost(batch: int, steps: int) -> float:
            def work_of(count: int) -> Work:
                return self._judge(probe.config, with_steps(short, count), batch)

            return slope(self.watch, work_of, more=steps)

        small = cost(least, more)
        most = self.watch.largest(small * more, size)
        if most == least:
            return Rate(fixed=0.0, each=small / least)
        return line(least, small, most, cost(most, max(more // 2, 4)))

    def _verdict(self, probe: Probe) -> Rate:
        """What every verdict takes beside its passes: a copy of the model, checks, books."""
        attack = build(ATTACKS, Component(name="pgd", options={"steps": 1}))
        return Rate(
            fixed=self.watch.median(self._judge(probe.config, attack, 8, checks=True)), each=0.0
        )

    def _turnover(self, probe: Probe) -> Rate:
        """What the end of an item takes that ends alone: a last look, books, and the next one."""

        attack = _shortened(build(ATTACKS, Component(name="apgd", options={"steps": 2})))

        def work_of(count: int) -> Work:
            return self._judge(probe.config, attack, count, width=1)

        one = slope(self.watch, work_of, first=4, more=12)
        clean = self._forward(probe).seconds(1)
        return Rate(fixed=max(one - 2 * self._alone(probe, attack) - clean, 0.0), each=0.0)

    def _alone(self, probe: Probe, attack: Any) -> float:
        """Seconds of one step of one item, with none beside it."""

        def work_of(steps: int) -> Work:
            return self._judge(probe.config, with_steps(attack, steps), 1)

        return slope(self.watch, work_of, more=16)

    def _judge(
        self,
        config: RunConfig,
        attack: Any,
        count: int,
        *,
        checks: bool = False,
        width: int | None = None,
    ) -> Work:
        model, images = self.model(config), self._images(config, count)
        with torch.no_grad():
            labels = model(images.to(self.device)).argmax(1).cpu()
        ball = Ball(config.threat.norm, _TINY)
        protocol = EvaluationProtocol("timed", (("timed", attack),))
        kind = config.evaluation.precision
        precision = kind if kind in ("float32", "tf32-only", "bf16-only") else f"{kind}-only"

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:  # a cell keeps a log, which takes time
                evaluate(
                    model,
                    images,
                    labels,
                    ball,
                    protocol=protocol,
                    batch_size=width or count,
                    precision=precision,
                    checks=checks,
                    log=Path(folder) / "log.jsonl",
                )

        return work

    def _geometry(self, probe: Probe) -> Rate:
        """One gradient step of the attack of the geometry."""
        config, model = probe.config, self.model(probe.config)
        ball, size = config.threat.ball(), config.measure.batch_size
        images = self._images(config, size).to(self.device)
        labels = torch.arange(size, device=self.device) % model.num_classes

        def cost(batch: int) -> float:
            def work_of(steps: int) -> Work:
                part = Component(name="geometry", options={"steps": steps})
                attack = build(ATTACKS, part)
                given = (model, images[:batch], labels[:batch], ball)
                ids = torch.arange(batch, device=self.device)
                return lambda: attack(*given, goal="maximise", seed=0, ids=ids)

            return slope(self.watch, work_of, more=4) / 2

        small = cost(min(4, size))
        most = self.watch.largest(16 * small, size)
        if most <= 4:
            return Rate(fixed=0.0, each=small / min(4, size))
        return line(min(4, size), small, most, cost(most))


def _shortened(attack: Any) -> Any:
    """Return an attack of one item per example, or None where its steps cannot be set."""
    if with_steps(attack, 1) is None:
        return None
    fields = {field.name for field in dataclasses.fields(attack)}
    changed: dict[str, Any] = {"restarts": 1} if "restarts" in fields else {}
    if getattr(attack, "num_targets", None) is not None:
        changed["num_targets"] = 1
    return dataclasses.replace(attack, **changed)
