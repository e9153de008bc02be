"""The pieces of the geometry: attacks, sweeps over the taps, and what stands beside them.

>>> from robust_nc.config import RunConfig
>>> from robust_nc.planning.cell_sizes import Anatomist
>>> site = Anatomist(None).look(RunConfig())
>>> pieces = geometry_pieces(site, Survival(1.0, 0.5))
>>> {piece.probe.kind for piece in pieces} >= {"geometry", "rows", "radii", "forward"}
True
"""

import math

from robust_nc.config import plain
from robust_nc.data.corruption_names import chosen_corruptions
from robust_nc.data.hierarchy.tree import tree_of
from robust_nc.io.files import digest
from robust_nc.planning.cell_sizes import Site
from robust_nc.planning.pieces import Passes, Piece, Probe
from robust_nc.planning.survivors import Survival
from robust_nc.planning.verdict_cost import verdict_pieces
from robust_nc.profiling.accumulators import BUDGET as ROUND_BYTES
from robust_nc.profiling.accumulators import part_bytes
from robust_nc.profiling.conditions import NOISES, SEVEREST
from robust_nc.profiling.feature_cache import BUDGET as BANK_BYTES
from robust_nc.profiling.profile_model import CALIBRATION

_PARTS = 5  # of a tap under one condition, about: groupings, and what is against the clean vertices
_SEVEREST = 3  # targets that the severest attack tries at each distance
_TAP_KEEPS = 0.5  # of the network's robust accuracy that the classifier of a tap has, about
_TAP_LEAST = 0.1  # and at least: at early taps of a network that breaks, some examples stand
_LARGEST_CHUNK = 64  # images of gradient products at a time


def measured_images(site: Site) -> tuple[int, int]:
    """How many images of train and of test the geometry takes."""
    settings = site.config.measure
    train = min(settings.train_examples or site.learnt, site.learnt)
    return train, min(settings.test_examples or site.test, site.test)


def geometry_pieces(site: Site, survival: Survival) -> list[Piece]:
    """Return the pieces of one cell's geometry; `survival` is that of its network."""
    train, test = measured_images(site)
    settings = site.config.measure
    pieces = [_forwards(site, min(CALIBRATION, train), 1)]
    pieces += _split(site, train, survival) + _split(site, test, survival)
    if settings.radii and site.config.threat.eps:
        radii = len({0.0, *settings.radii}) - 1
        pieces.append(_attacked(site, test, radii))
        pieces.append(_forwards(site, test, radii * _swept(site, test)))
        pieces.append(Piece("measure", _rows_probe(site, "radii"), 1, test))
    corrupted = len(chosen_corruptions(settings.corruptions)) * len(set(settings.severities))
    if corrupted:
        pieces.append(_forwards(site, test, corrupted * _swept(site, test)))
        key = f"corruptions | {'x'.join(map(str, site.info.image_shape))}"
        probe = Probe("corruptions", key, site.config)
        pieces.append(Piece("measure", probe, corrupted, test))
    return pieces + _extras(site, test, survival)


def _split(site: Site, count: int, survival: Survival) -> list[Piece]:
    """One split: clean, attacked, noises, and one attack for each choice of targets."""
    targets = site.config.measure.targets
    plain_ones = 1 + sum(kind != SEVEREST for kind in targets)
    pieces = [_attacked(site, count, plain_ones)]
    if SEVEREST in targets:
        tries = _tries(site, survival)
        pieces.append(_attacked(site, count, tries))
        pieces.append(_forwards(site, count, 1 + tries))
    for feature in site.features:
        pieces.append(_forwards(site, count, sweeps(site, feature, count)))
    return [*pieces, Piece("measure", _rows_probe(site, "rows"), 1, count)]


def sweeps(site: Site, feature: str, count: int) -> float:
    """Forward passes of each image of a split through the taps, by what fits into memory.

    Features are kept where they fit; else each sweep over them passes the images again.
    """
    room = _room(site, feature, count)
    classes = site.info.num_classes
    held = sum(_PARTS * part_bytes(classes, dim) for dim in site.dims[feature].values())
    rounds = max(1, math.ceil(held / ROUND_BYTES))
    clean_kept, here_kept, noisy_kept = room >= 1, room >= 2, room >= 3
    again = 0 if clean_kept else rounds  # beside each condition, in the first sweep
    own = 1 if clean_kept else 1 + 2 * rounds
    here = 1 if here_kept else 2 * rounds
    noisy = 1 if noisy_kept else rounds
    targeted = len(site.config.measure.targets)
    return own + (1 + targeted) * (here + noisy + again) + len(NOISES) * (here + again)


def _room(site: Site, feature: str, count: int) -> int:
    """How many conditions' features of a split can be kept."""
    return int(BANK_BYTES // max(4 * count * sum(site.dims[feature].values()), 1))


def _swept(site: Site, count: int) -> int:
    """Passes of an image in a sweep of one condition beside the clean one, over all features."""
    return sum(1 if _room(site, feature, count) >= 1 else 2 for feature in site.features)


def _attacked(site: Site, count: int, times: float) -> Piece:
    """So many geometry attacks on so many images: two members, every restart to the end."""
    settings = site.config.measure
    gradients = 2 * settings.steps * settings.restarts
    forwards = 2 * settings.restarts + 2
    size = min(settings.batch_size, count)
    key = f"geometry | {site.key} | {site.config.threat.norm}"
    passes = Passes(forwards=forwards, gradients=gradients).times(times * count)
    calls = times * gradients * count / size
    return Piece("measure", Probe("geometry", key, site.config), calls, size, passes)


def _forwards(site: Site, count: int, times: float) -> Piece:
    size = min(site.config.measure.batch_size, count)
    probe = Probe("forward", f"forward | {site.key}", site.config)
    passes = Passes(forwards=times * count)
    return Piece("measure", probe, times * count / size, size, passes)


def _tries(site: Site, survival: Survival) -> float:
    """Targets that the severest attack tries: the fewer, the sooner it gets what it seeks."""
    tree = tree_of(site.config.data.hierarchy, site.info.name)
    others = site.info.num_classes - 1
    if tree is None:
        return float(others)
    levels = len({float(value) for value in tree.distances().flatten()} - {0.0})
    most = min(_SEVEREST * levels, others)
    return 1.5 + survival.robust * (most - 1.5)


def _rows_probe(site: Site, kind: str) -> Probe:
    """What the measures themselves take beside the passes: sums, decompositions, rows."""
    settings = plain(site.config.measure)
    told = {name: settings[name] for name in ("feature", "targets", "radii", "batch_size")}
    told |= {"dims": site.dims, "classes": site.info.num_classes}
    key = f"{kind} | {site.key} | measures {digest(told)[:8]}"
    return Probe(kind, key, site.config, site)


def _extras(site: Site, test: int, survival: Survival) -> list[Piece]:
    """What is measured on a few images: trajectories, attacks on every tap, gradient products."""
    settings = site.config.measure
    pieces: list[Piece] = []
    followed = min(settings.trajectories, test)
    if followed:
        features = len(site.features)
        changed = survival.clean - survival.robust + 0.05
        steps = Passes(gradients=followed * settings.steps).times(features)
        key = f"geometry | {site.key} | {site.config.threat.norm}"
        probe = Probe("geometry", key, site.config)
        pieces.append(Piece("measure", probe, features * settings.steps, followed, steps))
        looks = features * (2 + min(changed, 1.0) * (settings.steps + 1))
        pieces.append(_forwards(site, followed, looks))
    if settings.adaptive is not None:
        pieces += _adaptive(site, settings.adaptive, test, survival)
    if settings.agop_examples:
        few = min(settings.agop_examples, test)
        pieces.append(_attacked(site, few, 1))
        classes = site.info.num_classes
        passes = Passes(forwards=few * 6, gradients=few * 4 * classes)
        key = f"agop | {site.key}"
        pieces.append(Piece("measure", Probe("agop", key, site.config), 1, few, passes))
    return pieces


def _adaptive(site: Site, protocol: str, test: int, survival: Survival) -> list[Piece]:
    """Verdicts on the network and on the nearest-vertex classifier of every tap of its own."""
    count = min(site.config.measure.adaptive_examples, test)
    pieces = verdict_pieces(site, "measure", protocol, count, survival._replace(spent=1.0))
    robust = min(max(_TAP_KEEPS * survival.robust, _TAP_LEAST), survival.clean)
    weaker = Survival(survival.clean, robust)
    for feature in site.features:
        taps = site.distinct[feature]
        for depth in range(taps):
            own = verdict_pieces(site, "measure", protocol, count, weaker)
            own += verdict_pieces(site, "measure", "clean", count, weaker)
            share = (depth + 1) / taps  # a pass ends at the tap
            pieces += [piece._replace(calls=share * piece.calls) for piece in own]
    return pieces
