"""All pieces of one cell: training, verdicts, evidence, geometry, the sweep over radii, the record.

>>> from robust_nc.config import RunConfig
>>> from robust_nc.planning.cell_sizes import Anatomist
>>> site = Anatomist(None).look(RunConfig())
>>> found = expected(site, [])
>>> found.source, sorted({piece.stage for piece in cell_pieces(site, found)})
('assumed for standard', ['attack', 'evidence', 'measure', 'train'])
"""

from collections.abc import Sequence

from robust_nc.planning.cell_sizes import Site
from robust_nc.planning.geometry_cost import geometry_pieces
from robust_nc.planning.pieces import Passes, Piece, Probe, total
from robust_nc.planning.survivors import Survival, assumed, measured
from robust_nc.planning.training_cost import training_pieces
from robust_nc.planning.verdict_cost import verdict_pieces
from robust_nc.record.schema import Record
from robust_nc.training.objectives import ClosedForm
from robust_nc.training.run import build_objective

_LEVELS = 3  # looks at a broken example until its point is rounded as coarsely as it bears


def expected(site: Site, records: Sequence[Record]) -> Survival:
    """Return who is expected to survive: by records of the same kind of model, or assumed."""
    config = site.config

    def counted(survival: Survival) -> float:
        count = 1_000
        protocol = config.evaluation.protocol
        pieces = verdict_pieces(site, "attack", protocol, count, survival, own=True)
        return total(pieces).total / count

    found = measured(config, records, counted)
    if found is not None:
        return found
    objective = build_objective(config)
    return assumed(config.train.objective.name, defended=objective.best_by == "validation_attacked")


def judged_images(site: Site) -> int:
    """How many test images the verdict is on."""
    return min(site.config.evaluation.examples or site.test, site.test)


def cell_pieces(site: Site, survival: Survival, *, trained: bool = False) -> list[Piece]:
    """Return all pieces of a cell; without the training where its weights are there (`trained`)."""
    config = site.config
    pieces = [Piece("measure", Probe("cell", f"cell | {site.key}", config, site), 1, 1)]
    if not trained:
        pieces += training_pieces(site, clean=survival.clean, robust=survival.robust)
    pieces += _verdicts(site, survival)
    broken = judged_images(site) * max(survival.clean - survival.robust, 0.0)
    key = f"evidence | {site.key}"
    looks = Passes(forwards=broken * (1 + _LEVELS))
    pieces.append(Piece("evidence", Probe("evidence", key, config, site), 1, broken, looks))
    return pieces + geometry_pieces(site, survival) + _sweep(site, survival)


def _verdicts(site: Site, survival: Survival) -> list[Piece]:
    """Of the best weights, of the last ones where they differ, and by the weaker protocol."""
    settings = site.config.evaluation
    count = judged_images(site)
    best = verdict_pieces(site, "attack", settings.protocol, count, survival, own=True)
    pieces = list(best)
    differs = survival.last_differs
    if isinstance(build_objective(site.config), ClosedForm) or site.config.train.epochs < 2:
        differs = 0.0
    pieces += [
        piece._replace(calls=differs * piece.calls, passes=piece.passes.times(differs))
        for piece in best
    ]
    if settings.beside is not None:
        plain = survival._replace(broke=(), spent=1.0)
        pieces += verdict_pieces(site, "attack", settings.beside, count, plain)
    return pieces


def _sweep(site: Site, survival: Survival) -> list[Piece]:
    """Accuracy against the radius, each with the protocol of the sweep."""
    settings, eps = site.config.evaluation, site.config.threat.eps
    count = min(settings.sweep_examples, site.test)
    pieces: list[Piece] = []
    for radius in settings.sweep:
        found = survival.at(radius / eps if eps else 0.0)
        pieces += verdict_pieces(site, "measure", settings.sweep_protocol, count, found)
    return pieces
