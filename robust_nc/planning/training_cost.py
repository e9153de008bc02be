"""The pieces of a training: steps with their inner attacks, and what is measured between epochs.

>>> from robust_nc.config import RunConfig, read
>>> from robust_nc.planning.cell_sizes import Anatomist
>>> config = read(RunConfig, {"train": {"epochs": 2, "batch_size": 64}})
>>> pieces = training_pieces(Anatomist(None).look(config), robust=0.1, clean=0.9)
>>> total(pieces).steps, {piece.stage for piece in pieces}
(42.0, {'train'})
"""

import math

from robust_nc.config import TrainConfig, build
from robust_nc.planning.cell_sizes import Site
from robust_nc.planning.counting_hooks import inner_steps, objective_passes
from robust_nc.planning.pieces import Passes, Piece, Probe, named, total
from robust_nc.registry import AVERAGINGS
from robust_nc.training.averaging import STATISTICS_BATCHES
from robust_nc.training.memorization import TEST_EXAMPLES, TRAIN_EXAMPLES
from robust_nc.training.objectives import ClosedForm
from robust_nc.training.run import build_objective
from robust_nc.training.validation import VALIDATION_EXAMPLES, VALIDATION_STEPS

__all__ = ["step_count", "total", "training_pieces"]

_READ = 500  # images at a time, between epochs
_FEW = 1.5  # steps that a broken image lasts under PGD, about


def step_count(learnt: int, batch_size: int) -> int:
    """Batches of an epoch; a last one of a single image is left out.

    >>> step_count(129, 64), step_count(130, 64)
    (2, 3)
    """
    alone = batch_size > 1 and learnt % batch_size == 1 and learnt > 1
    return math.ceil((learnt - alone) / batch_size)


def training_pieces(site: Site, *, clean: float, robust: float) -> list[Piece]:
    """Return the pieces of a cell's training; the accuracies are those expected of its model."""
    config = site.config
    objective = build_objective(config)
    if isinstance(objective, ClosedForm):
        key = f"solve | {site.key} | {site.learnt} images"
        return [Piece("train", Probe("solve", key, config, site.learnt), 1, site.learnt)]
    if not config.train.epochs:
        return []
    return [
        *_steps(site, inner_steps(objective)),
        *_validation(site, clean, robust),
        *_probes(site),
    ]


def _steps(site: Site, extra: int) -> list[Piece]:
    config, settings = site.config, site.config.train
    passes = objective_passes(config)
    steps = step_count(site.learnt, settings.batch_size)
    seen = site.learnt - (steps * settings.batch_size - site.learnt == settings.batch_size - 1)
    batch = seen / steps
    first = passes._replace(gradients=passes.gradients - extra)
    whole = first.times(seen)._replace(steps=steps).times(settings.epochs)
    calls = settings.epochs * steps
    pieces = [Piece("train", _step_probe(site), calls, batch, whole)]
    if extra:
        more = Passes(gradients=extra * seen * settings.epochs)
        pieces.append(Piece("train", _inner_probe(site), calls * extra, batch, more))
    return pieces + _statistics(site, pieces, steps)


def _statistics(site: Site, pieces: list[Piece], steps: int) -> list[Piece]:
    """Batches that an average of weights is shown after each epoch, without a step."""
    settings = site.config.train
    averaging = settings.averaging and build(AVERAGINGS, settings.averaging)
    if not averaging or not averaging.new_statistics:
        return []
    epochs = settings.epochs * (1 - getattr(averaging, "start", 0.0))
    share = epochs * min(STATISTICS_BATCHES, steps) / (settings.epochs * steps)
    return [
        piece._replace(calls=piece.calls * share, passes=piece.passes.times(share))
        for piece in pieces
    ]


def _validation(site: Site, clean: float, robust: float) -> list[Piece]:
    """PGD-10 on images held out, which leave it once they are broken."""
    count = min(site.held_out, VALIDATION_EXAMPLES)
    if not count:
        return []
    times = _times(site.config.train, site.config.train.validate_every)
    steps = robust * VALIDATION_STEPS + (1 - robust) * _FEW
    gradients = times * count * steps
    calls = times * float(VALIDATION_STEPS)  # of ever fewer images
    looked = times * count * (2 + robust)
    return [
        Piece("train", _inner_probe(site), calls, gradients / calls, Passes(gradients=gradients)),
        Piece("train", forward_probe(site), 2 * times, count, Passes(forwards=looked)),
    ]


def _probes(site: Site) -> list[Piece]:
    """Collapse, memorization of wrong labels, the choice of the best epoch and the log."""
    settings = site.config.train
    times = _times(settings, settings.collapse_every)
    read = min(settings.collapse_examples, site.learnt)
    if site.config.data.noise is not None:
        read += min(TRAIN_EXAMPLES, site.learnt) + min(TEST_EXAMPLES, site.info.sizes["test"])
    size = min(read, _READ)
    key = f"epoch | {site.key}"
    return [
        Piece(
            "train", forward_probe(site), times * read / size, size, Passes(forwards=times * read)
        ),
        Piece("train", Probe("epoch", key, site.config), settings.epochs, 1),
    ]


def _times(settings: TrainConfig, every: int) -> int:
    return settings.epochs // every + (settings.epochs % every > 0)


def forward_probe(site: Site) -> Probe:
    """A forward pass without a gradient, in eval mode."""
    return Probe("forward", f"forward | {site.key}", site.config)


def _way(settings: TrainConfig) -> str:
    extra = ", channels_last" * settings.channels_last + ", compiled" * bool(settings.compile)
    return f"batch {settings.batch_size}, {settings.precision}{extra}"


def _step_probe(site: Site) -> Probe:
    """One step of the real trainer, with one step of the inner attack."""
    settings, model = site.config.train, site.config.model
    what = named(settings.objective, without=("steps", "step_size", "beta", "gamma"))
    loss = "" if settings.loss.name == "ce" else f" {settings.loss.name}"
    augment = "+".join(site.config.data.augment)
    way = _way(settings) + (f", {augment}" if augment else "")
    key = f"step | {site.key} | {model.head.name}, {what}{loss}, {way}"
    return Probe("step", key, site.config)


def _inner_probe(site: Site) -> Probe:
    """One more step of an inner attack by PGD, on the model as it is trained."""
    settings = site.config.train
    norm = site.config.threat.norm
    key = f"inner | {site.key} | PGD {norm}, {_way(settings)}"
    return Probe("inner", key, site.config)
