"""The pieces of a verdict: what each attack of a protocol costs those that stand before it.

>>> from robust_nc.config import RunConfig
>>> from robust_nc.planning.cell_sizes import Anatomist
>>> site = Anatomist(None).look(RunConfig())
>>> pieces = verdict_pieces(site, "attack", "pgd", 100, Survival(1.0, 1.0))
>>> total(pieces)  # 20 steps of two attacks, a look at each of their last points, and so on
Passes(forwards=508.0, gradients=4000.0, trained=0.0, steps=0.0)
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from robust_nc.planning.cell_sizes import Site
from robust_nc.planning.pieces import Passes, Piece, Probe, total
from robust_nc.planning.survivors import Survival
from robust_nc.plugins import find_attack, find_protocol
from robust_nc.runtime.torch_state import default_device
from robust_nc.types import RefereedAttack

__all__ = ["attack_probe", "course_of", "total", "verdict_pieces"]

_BATCH = {"cpu": 128, "cuda": 512}  # where the configuration leaves it open: the evaluation's own
_TWICE = ("tf32", "bf16")  # precisions after which all attacks run once more
_EARLY = 0.05  # of an attack's steps that an example takes which the first attack breaks
_LATER = 0.3  # the same of the others
_GATE = 0.08  # of the survivors that pass the gate of an attack for those near the boundary
_CHECKS = 8  # images that the checks of a verdict look at


class Course(NamedTuple):
    """How an attack goes for one example that it does not break.

    `turns`: its restarts times targets, which may run side by side; `rounds`: steps of each;
    `passes` of all; `gate`: share of those that stand for which it runs at all.
    """

    turns: int
    rounds: int
    passes: Passes
    gate: float


def verdict_pieces(
    site: Site, stage: str, protocol: str, count: int, survival: Survival, *, own: bool = False
) -> list[Piece]:
    """Return the pieces of one verdict on `count` images; `own`: with the cell's own attack."""
    config = site.config
    size = config.evaluation.batch_size or _BATCH.get(default_device().type, _BATCH["cpu"])
    attacks = list(find_protocol(protocol).under(config.threat.ball()).attacks)
    part = config.evaluation.attack
    if own and part is not None:
        attacks.append((part.name, find_attack(part.name, part.options)))
    alive = survival.clean * count
    fixed = Probe("verdict", f"verdict | {site.key}", config)
    pieces = [Piece(stage, fixed, 1, 1, Passes(forwards=count + _CHECKS * bool(attacks)))]
    pieces.append(Piece(stage, _forward(site), count / min(size, count), min(size, count)))
    for place, (share, (_, attack)) in enumerate(
        zip(survival.first_to_break(len(attacks)), attacks, strict=True)
    ):
        broken = share * count
        pieces += _turn(site, stage, attack, alive, broken, size, place == 0, survival.spent)
        alive = max(alive - broken, 0.0)
    if config.evaluation.precision in _TWICE:  # what stands is attacked again in float32
        for _, attack in attacks:
            exact = _turn(site, stage, attack, alive, 0.0, size, False, survival.spent)
            pieces += [_in_float32(piece) for piece in exact]
    return pieces


def _in_float32(piece: Piece) -> Piece:
    config, probe = piece.probe.config, piece.probe
    for kind in _TWICE:
        probe = probe._replace(key=probe.key.replace(f", {kind}", ", float32"))
    settings = dataclasses.replace(config.evaluation, precision="float32")
    return piece._replace(
        probe=probe._replace(config=dataclasses.replace(config, evaluation=settings))
    )


def _turn(
    site: Site,
    stage: str,
    attack: Any,
    alive: float,
    broken: float,
    size: int,
    first: bool,
    spent: float,
) -> list[Piece]:
    """One attack on those that stand; those that it breaks leave it early."""
    if alive <= 0:
        return []
    course = course_of(attack, site.info.num_classes)
    stays = max(alive - broken, 0.0) * course.gate * spent
    leave = broken * (_EARLY if first else _LATER) * spent
    each = course.turns * course.rounds
    # Siblings run side by side only where there are no other examples to fill a batch with.
    wide = min(size, max(stays, 1.0) * course.turns)
    early = leave * each / min(size, max(alive * course.gate, 1.0))
    late = stays * each / wide
    late += course.rounds / 2 * (late > course.rounds)  # the last batch is not full
    calls, items = early + late, (leave + stays) * each
    # Items begin together; each that leaves early lets another one begin, and end, on its own.
    alone = broken * spent + stays * course.turns / wide * min(1 + broken * spent, wide)
    alone = min(alone, calls)
    looks = Passes(forwards=alive)
    passes = course.passes.times(leave + stays).plus(looks)
    turnover = Probe("turnover", f"turnover | {site.key}", site.config)
    return [
        Piece(stage, attack_probe(site, attack), calls, items / calls if calls else 1, passes),
        Piece(stage, turnover, alone, 1),
        Piece(stage, _forward(site), alive / min(size, max(alive, 1.0)), min(size, alive)),
    ]


def course_of(attack: Any, classes: int) -> Course:
    """Say how an attack goes; of one that does not tell, all that is known is that it runs once."""
    if type(attack).__name__ == "Gated" and hasattr(attack, "attack"):
        return course_of(attack.attack, classes)._replace(gate=_GATE)
    if not isinstance(attack, RefereedAttack) or not hasattr(attack, "rounds"):
        return Course(1, 1, Passes(), 1.0)
    cost, rounds = attack.cost(classes), int(attack.rounds)
    if getattr(attack, "gradient_free", False):
        turns = max(cost // rounds, 1)
        return Course(turns, rounds, Passes(forwards=cost), 1.0)
    per_step = 2 * getattr(attack, "eot", 1) * _planes(attack, classes)
    turns = max(cost // (rounds * per_step), 1)
    return Course(turns, rounds, Passes(forwards=turns, gradients=cost / 2), 1.0)


def _planes(attack: Any, classes: int) -> int:
    """Gradients that a step of an attack takes: FAB without targets asks for all classes."""
    whole = type(attack).__name__ == "FAB" and attack.num_targets is None
    return classes - 1 if whole else 1


def attack_probe(site: Site, attack: Any) -> Probe:
    """One step of an attack as an evaluation runs it, on whatever copy of the model is fastest."""
    inner = getattr(attack, "attack", attack) if type(attack).__name__ == "Gated" else attack
    name = inner.func.__name__ if isinstance(inner, functools.partial) else type(inner).__name__
    norm, kind = site.config.threat.norm, site.config.evaluation.precision
    draws = getattr(inner, "eot", 1)
    told = name + (f" eot={draws}" if draws > 1 else "")
    if getattr(inner, "num_targets", 1) is None and name == "FAB":
        told += " untargeted"
    key = f"attack | {site.key} | {told} {norm}, {kind}"
    return Probe("attack", key, site.config, inner)


def _forward(site: Site) -> Probe:
    return Probe("forward", f"forward | {site.key}", site.config)
