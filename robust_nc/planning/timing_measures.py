"""Times what is no pass through the model: measures, rows, evidence, the ends of epochs.

The measures depend on the sizes of the features, not on where they come from. So they are timed on
a stand-in whose taps cost next to nothing:

>>> stand_in = StandIn({"gap": {"penultimate": 6}}, 3)
>>> stand_in.tapped(torch.rand(2, 1, 8, 8)).features["penultimate"].shape
torch.Size([2, 6])
"""

import dataclasses
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.config import Component, MeasureConfig, build
from robust_nc.data.base import numbered
from robust_nc.data.corruptions import corrupt_images
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.models.classifier import Classifier
from robust_nc.models.taps import Tapped
from robust_nc.pipeline.cell import check_cell
from robust_nc.pipeline.make_record import keep_evidence
from robust_nc.planning.cell_sizes import Anatomist, Site
from robust_nc.planning.pieces import Probe
from robust_nc.planning.speeds import Rate
from robust_nc.planning.stopwatch import Stopwatch, Work, line
from robust_nc.profiling.agop_rows import agop_rows
from robust_nc.profiling.conditions import BY_TREE
from robust_nc.profiling.profile_model import Profile, profile
from robust_nc.record.schema import write_rows
from robust_nc.registry import ATTACKS
from robust_nc.runtime.torch_state import default_device, device_of
from robust_nc.threat import Ball
from robust_nc.training.progress import append_log
from robust_nc.training.run import build_objective
from robust_nc.training.state import weights_of
from robust_nc.training.validation import CollapseProbe, evenly_chosen

_WIDE = 8  # pixels that the features of a stand-in are made of
_SIMPLE = {"radii": (), "corruptions": (), "adaptive": None, "trajectories": 0, "agop_examples": 0}


class StandIn(nn.Module):
    """A model with the taps of another one, of the same sizes, at almost no cost."""

    def __init__(self, dims: dict[str, dict[str, int]], classes: int) -> None:
        super().__init__()
        self._dims = dims
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(_WIDE, classes, generator=generator))
        for feature, taps in dims.items():
            for tap, dim in taps.items():
                name = f"{feature}/{tap}".replace(".", "_")
                self.register_buffer(name, torch.randn(_WIDE, dim, generator=generator))

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return tuple(next(iter(self._dims.values())))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)`."""
        return images.flatten(1)[:, :_WIDE] @ self.weight

    def tapped(
        self, images: Tensor, *, taps: Collection[str] | None = None, feature: str = "gap"
    ) -> Tapped:
        """Return logits, and features of the wanted sizes."""
        pixels = images.flatten(1)[:, :_WIDE]
        found = {}
        for tap in self.taps if taps is None else taps:
            matrix = self.get_buffer(f"{feature}/{tap}".replace(".", "_"))
            found[tap] = (pixels @ matrix).relu()
        return Tapped(self(images), found)


def _profiled(site: Site, count: int, batch: int, radii: tuple[float, ...]) -> Profile:
    settings = site.config.measure
    targets = tuple("cyclic" if kind in BY_TREE else kind for kind in settings.targets)
    changed: dict[str, Any] = {**_SIMPLE, "targets": targets, "radii": radii, "taps": None}
    changed |= {"steps": 1, "restarts": 1, "batch_size": batch}
    few: MeasureConfig = dataclasses.replace(settings, **changed)
    classes = site.info.num_classes
    model = StandIn(site.dims, classes).to(default_device()).eval()
    images = torch.rand(count, *site.info.image_shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % classes
    ball = Ball(site.config.threat.norm, site.config.threat.eps or 0.1)
    return profile(model, [(images, labels)], ball, measure=few)


def _profile_sizes(site: Site) -> tuple[int, int]:
    """Images of two runs, each of whole batches on an accelerator."""
    batch = site.config.measure.batch_size
    few = batch if default_device().type == "cuda" else min(batch, 96)
    few = max(few, 2 * site.info.num_classes)
    return few, 3 * few


def _rows(probe: Probe, _model: Classifier, watch: Stopwatch, _: Anatomist) -> Rate:
    """One split through all its conditions, without the passes of the model."""
    few, many = _profile_sizes(probe.about)
    times = [watch.median(partial(_profiled, probe.about, count, few, ())) for count in (few, many)]
    written = _written(_profiled(probe.about, few, few, ()), watch)
    found = line(few, times[0], many, times[1])
    return Rate(fixed=found.fixed + written.fixed, each=found.each, nbytes=written.nbytes)


def _written(found: Profile, watch: Stopwatch) -> Rate:
    """Seconds and bytes of the rows of a split on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        seconds = watch.median(lambda: write_rows(path, found.frame))
        return Rate(fixed=seconds, each=0.0, nbytes=float(path.stat().st_size))


def _radii(probe: Probe, _model: Classifier, watch: Stopwatch, _: Anatomist) -> Rate:
    """The sweep over radii, without the passes of the model: what it adds to a split."""
    site: Site = probe.about
    few, many = _profile_sizes(site)
    radii = site.config.measure.radii
    times = []
    for count in (few, many):
        without = watch.median(partial(_profiled, site, count, few, ()))
        swept = watch.median(partial(_profiled, site, count, few, radii))
        times.append(max(swept - without, 0.0))
    return line(few, times[0], many, times[1])


def _agop(probe: Probe, model: Classifier, watch: Stopwatch, anatomist: Anatomist) -> Rate:
    initial = anatomist.model(probe.config).to(device_of(model)).eval()

    def work_on(count: int) -> Work:
        images, labels = _random(model, count)
        conditions = {"clean": images, "attacked": images}
        classes = model.num_classes
        return lambda: agop_rows(model, conditions, labels, num_classes=classes, initial=initial)

    return watch.rate(work_on, 32)


def _evidence(probe: Probe, model: Classifier, watch: Stopwatch, _: Anatomist) -> Rate:
    """Examples that are broken: looked at, rounded and written."""
    ball, kept = probe.config.threat.ball(), []

    def work_on(count: int) -> Work:
        images, _ = _random(model, count)
        noise = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(2))
        points = ball.project(images + ball.eps * (2.0 * noise - 1), images)
        with torch.no_grad():
            device = device_of(model)
            labels = (model(points.to(device)).argmax(1).cpu() + 1) % model.num_classes
        whole, none = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64)
        by = (("pgd", build(ATTACKS, Component(name="pgd"))),)
        outcome = Outcome(whole, ~whole, none, points, none, none, (), by)
        split = numbered(images, labels)

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "some.evidence"
                found = keep_evidence(
                    path, model, split, outcome, ball, protocol="pgd", seed=0, batch_size=None
                )
                kept.append(found.file.bytes / count)

        return work

    rate = watch.rate(work_on, 64)
    return Rate(fixed=rate.fixed, each=rate.each, nbytes=min(kept))


def _epoch(probe: Probe, model: Classifier, watch: Stopwatch, _: Anatomist) -> Rate:
    """The end of an epoch without its passes: collapse of a few features, weights, the log."""
    images, labels = _random(model, 2 * model.num_classes)
    collapse = CollapseProbe(
        evenly_chosen(numbered(images, labels), len(images)), device=device_of(model)
    )
    row: dict[str, float | None] = dict.fromkeys(("epoch", "seconds", "loss"), 1.0)
    with tempfile.TemporaryDirectory() as folder:

        def work() -> None:
            collapse(model)
            weights_of(model)
            append_log(Path(folder) / "log.jsonl", row)

        return Rate(fixed=watch.median(work), each=0.0)


def _solve(probe: Probe, model: Classifier, watch: Stopwatch, anatomist: Anatomist) -> Rate:
    """The fit of an objective in closed form, on random images; linear in their number, about."""
    objective: Any = build_objective(probe.config)
    fresh = anatomist.model(probe.config).to(device_of(model))
    images, labels = _random(model, int(probe.about))
    split = numbered(images, labels)
    seconds = watch.once(lambda: objective.solve(fresh, split, seed=0))
    return Rate(fixed=seconds, each=0.0)


def _cell(probe: Probe, _model: Classifier, watch: Stopwatch, anatomist: Anatomist) -> Rate:
    """What every cell takes beside: its parts are built and checked, and its record is written."""
    return Rate(fixed=2 * watch.median(lambda: check_cell(probe.config, anatomist.root)), each=0.0)


def _corruptions(probe: Probe, model: Classifier, watch: Stopwatch, _: Anatomist) -> Rate:
    """One corruption of one severity, in the mean over some."""
    images, _labels = _random(model, 8)
    ids = torch.arange(8)
    names = ("gaussian_noise", "motion_blur", "fog", "elastic_transform", "jpeg_compression")
    seconds = [watch.median(partial(corrupt_images, images, n, 3, ids=ids)) for n in names]
    return Rate(fixed=0.0, each=sum(seconds) / len(seconds) / len(images))


def _random(model: Classifier, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, *model.image_shape, generator=generator)
    return images, torch.arange(count) % model.num_classes


REST: dict[str, Callable[[Probe, Classifier, Stopwatch, Anatomist], Rate]] = {
    "rows": _rows,
    "radii": _radii,
    "agop": _agop,
    "evidence": _evidence,
    "epoch": _epoch,
    "solve": _solve,
    "cell": _cell,
    "corruptions": _corruptions,
}
