"""What a cell is made of: pieces of work, each so many calls of what a pilot has timed.

Steps of the training are counted from the sizes of the data; the passes of a verdict from each
attack's own `cost` and from who is expected to survive it; the geometry is timed whole.

>>> from robust_nc.config import RunConfig
>>> from robust_nc.planning.cell_sizes import CellSizer
>>> sizes = CellSizer(None).sizes(RunConfig())
>>> found = expected(sizes, [])
>>> found.source, sorted({piece.stage for piece in cell_pieces(sizes, found)})
('assumed for standard', ['attack', 'measure', 'train'])
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from robust_nc.config import RunConfig, build, plain
from robust_nc.io.files import digest
from robust_nc.planning.cell_sizes import CellSizes, with_options
from robust_nc.planning.survivors import Survival, assumed, measured
from robust_nc.plugins import find_attack, find_protocol
from robust_nc.record.schema import Record
from robust_nc.registry import AVERAGINGS
from robust_nc.runtime.torch_state import default_device
from robust_nc.training.averaging import STATISTICS_BATCHES
from robust_nc.training.objectives import ClosedForm
from robust_nc.training.run import build_objective
from robust_nc.training.validation import (
    TEST_EXAMPLES,
    TRAIN_EXAMPLES,
    VALIDATION_EXAMPLES,
    VALIDATION_STEPS,
)
from robust_nc.types import RefereedAttack

STAGES = ("train", "attack", "measure")
LARGEST = {"cpu": 128, "cuda": 512}  # images of a batch where the configuration leaves it open

STEPS, ITEMS = ("steps", "queries"), ("restarts", "num_targets")  # options of attacks
_TWICE = ("tf32", "bf16")  # precisions after which all attacks run once more
_EARLY = 0.05  # of an attack's steps that an example takes which the first attack breaks
_LATER = 0.3  # the same of the others
_GATE = 0.08  # of the survivors that pass the gate of an attack for those near the boundary
_FEW = 1.5  # steps that a broken image lasts under the attack of the validation, about
_TAP_KEEPS = 0.5  # of the network's robust accuracy that the classifier of a tap has, about
_TAP_LEAST = 0.1  # and at least: at early taps of a network that breaks, some examples stand


class Probe(NamedTuple):
    """What a pilot has to time: its kind, the key it is stored by, and what it takes to time it.

    Two probes of one key are one. `config` is of a cell that needs it; `about` is the attack or
    what else is timed.
    """

    kind: str
    key: str
    config: RunConfig
    about: Any = None


class Piece(NamedTuple):
    """`calls` of what `probe` times, each on `batch` images, in one stage of a cell.

    `passes` of images, forward and backward, are counted for verdicts, as records count them.
    """

    stage: str
    probe: Probe
    calls: float
    batch: float
    passes: float = 0.0

    def times(self, factor: float) -> "Piece":
        """Return so many of these."""
        return self._replace(calls=factor * self.calls, passes=factor * self.passes)


def expected(sizes: CellSizes, records: Sequence[Record]) -> Survival:
    """Return who is expected to survive: by records of the same kind of model, or assumed."""
    config = sizes.config

    def counted(survival: Survival) -> float:
        protocol = config.evaluation.protocol
        pieces = verdict_pieces(sizes, "attack", protocol, 1_000, survival, own=True)
        return sum(piece.passes for piece in pieces) / 1_000

    found = measured(config, records, counted)
    if found is not None:
        return found
    objective = build_objective(config)
    return assumed(config.train.objective.name, defended=objective.best_by == "validation_attacked")


def cell_pieces(sizes: CellSizes, survival: Survival, *, trained: bool = False) -> list[Piece]:
    """Return all pieces of a cell; without the training where its weights are there (`trained`)."""
    pieces = [] if trained else training_pieces(sizes, survival)
    return pieces + _verdicts(sizes, survival) + _geometry(sizes, survival)


def step_count(learnt: int, batch_size: int) -> int:
    """Batches of an epoch; a last one of a single image is left out.

    >>> step_count(129, 64), step_count(130, 64)
    (2, 3)
    """
    alone = batch_size > 1 and learnt % batch_size == 1 and learnt > 1
    return math.ceil((learnt - alone) / batch_size)


def training_pieces(sizes: CellSizes, survival: Survival) -> list[Piece]:
    """Return steps of the trainer, and what is measured between epochs."""
    config, settings = sizes.config, sizes.config.train
    if isinstance(build_objective(config), ClosedForm):
        key = f"solve | {sizes.model} | {sizes.learnt} images"
        return [Piece("train", Probe("solve", key, config, sizes.learnt), 1, sizes.learnt)]
    if not settings.epochs:
        return []
    steps = step_count(sizes.learnt, settings.batch_size)
    pieces = [Piece("train", _step(sizes), settings.epochs * steps, sizes.learnt / steps)]
    averaging = settings.averaging and build(AVERAGINGS, settings.averaging)
    if averaging and averaging.new_statistics:  # batches are shown once more, without a step
        shown = (1 - getattr(averaging, "start", 0.0)) * min(STATISTICS_BATCHES, steps) / steps
        pieces.append(pieces[0].times(shown))
    validated = min(sizes.held_out, VALIDATION_EXAMPLES)
    if validated:
        times = _times(settings.epochs, settings.validate_every)
        stand = survival.robust + (1 - survival.robust) * _FEW / VALIDATION_STEPS
        calls = times * float(VALIDATION_STEPS)  # of ever fewer images
        pieces.append(Piece("train", _pass(sizes, "gradient"), calls, stand * validated))
        pieces.append(Piece("train", _pass(sizes, "forward"), 2 * times, validated))
    read = min(settings.collapse_examples, sizes.learnt)
    if config.data.noise is not None:
        read += min(TRAIN_EXAMPLES, sizes.learnt) + min(TEST_EXAMPLES, sizes.test_whole)
    times = _times(settings.epochs, settings.collapse_every)
    return [*pieces, Piece("train", _pass(sizes, "collapse"), times, read)]


def _times(epochs: int, every: int) -> int:
    return epochs // every + (epochs % every > 0)


def _step(sizes: CellSizes) -> Probe:
    """One step of the real trainer with the real objective."""
    settings, model = sizes.config.train, sizes.config.model
    parts = [model.head.name, with_options(settings.objective), settings.loss.name]
    parts += [f"batch {settings.batch_size}", settings.precision, *sizes.config.data.augment]
    parts += ["channels_last"] * settings.channels_last + ["compiled"] * bool(settings.compile)
    return Probe("step", f"step | {sizes.model} | {', '.join(parts)}", sizes.config)


def _pass(sizes: CellSizes, kind: str) -> Probe:
    """A pass in eval mode: "forward", with a "gradient" by the images, or to see "collapse"."""
    return Probe(kind, f"{kind} | {sizes.model}", sizes.config)


def _verdicts(sizes: CellSizes, survival: Survival) -> list[Piece]:
    """Of the best weights, of the last ones where they differ, and by the weaker protocol."""
    settings, train = sizes.config.evaluation, sizes.config.train
    pieces = verdict_pieces(sizes, "attack", settings.protocol, sizes.judged, survival, own=True)
    if train.epochs > 1:
        pieces += [piece.times(survival.last_differs) for piece in pieces]
    if settings.beside is not None:
        plainly = survival._replace(broke=(), spent=1.0)
        pieces += verdict_pieces(sizes, "attack", settings.beside, sizes.judged, plainly)
    return pieces


def verdict_pieces(
    sizes: CellSizes,
    stage: str,
    protocol: str,
    count: int,
    survival: Survival,
    *,
    own: bool = False,
) -> list[Piece]:
    """Return the pieces of one verdict on `count` images; `own`: with the cell's own attack."""
    config = sizes.config
    settings = config.evaluation
    attacks = [a for _, a in find_protocol(protocol).under(config.threat.ball()).attacks]
    if own and settings.attack is not None:
        attacks.append(find_attack(settings.attack.name, settings.attack.options))
    size = settings.batch_size or LARGEST.get(default_device().type, LARGEST["cpu"])
    fixed = Probe("verdict", f"verdict | {sizes.model}", config)
    clean = Piece(stage, _pass(sizes, "forward"), count / size, size, passes=count)
    pieces, alive = [Piece(stage, fixed, 1, 1), clean], survival.clean * count
    for place, (share, attack) in enumerate(
        zip(survival.first_to_break(len(attacks)), attacks, strict=True)
    ):
        broken = share * count
        leave = broken * (_LATER if place else _EARLY) * survival.spent
        alive -= broken
        pieces += _attacked(sizes, stage, attack, max(alive, 0.0), leave, size, survival.spent)
    if settings.precision in _TWICE:  # what stands is attacked again in float32
        exact = dataclasses.replace(settings, precision="float32")
        again = sizes._replace(config=dataclasses.replace(config, evaluation=exact))
        for attack in attacks:
            pieces += _attacked(again, stage, attack, alive, 0.0, size, survival.spent)
    return pieces


def _attacked(
    sizes: CellSizes,
    stage: str,
    attack: Any,
    stand: float,
    leave: float,
    size: int,
    spent: float,
) -> list[Piece]:
    """One attack: on those that stand to its end, and on those that it breaks (`leave`) for less.

    Its passes on an example are what it says; restarts and targets of an example may fill a batch
    where other examples do not.
    """
    gate, inner = (_GATE, attack.attack) if hasattr(attack, "attack") else (1.0, attack)
    probe = Probe("attack", _attack_key(sizes, inner), sizes.config, inner)
    if not isinstance(inner, RefereedAttack):  # all that is known is that it runs once
        return [Piece(stage, probe, 1, stand + leave)] if stand + leave > 0 else []
    cost = float(inner.cost(sizes.classes))
    alone = one_item(inner).cost(sizes.classes)
    stays, items = stand * gate * spent, cost / alone
    cost += 0 if getattr(inner, "gradient_free", False) else items  # a look at each last point
    late = stays * cost / min(size, max(stays, 1.0) * items)
    early = leave * cost / min(size, max(stays + leave, 1.0))
    calls, passes = late + early, (stays + leave) * cost
    looks = Piece(stage, _pass(sizes, "forward"), stand / size, size, passes=stand)
    return [Piece(stage, probe, calls, passes / calls, passes), looks] if calls > 0 else []


def one_item(attack: Any) -> Any:
    """Return an attack of one restart at one target; itself where it has no such options."""
    if not dataclasses.is_dataclass(attack) or isinstance(attack, type):
        return attack
    one: dict[str, Any] = {"restarts": 1}
    one |= {"num_targets": 1} if getattr(attack, "num_targets", None) is not None else {}
    fields = {field.name for field in dataclasses.fields(attack)}
    return dataclasses.replace(attack, **{k: v for k, v in one.items() if k in fields})


def _attack_key(sizes: CellSizes, attack: Any) -> str:
    """Name an attack by its class and its options but the number of steps."""
    name = getattr(attack, "func", type(attack)).__name__
    told = ""
    if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
        named = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
        told = digest({k: str(v) for k, v in named.items() if k not in STEPS + ITEMS})[:8]
    precision = sizes.config.evaluation.precision
    return f"attack | {sizes.model} | {name} {told} {sizes.config.threat.norm}, {precision}"


def _geometry(sizes: CellSizes, survival: Survival) -> list[Piece]:
    """All measures with one step of the attack; each further step; verdicts on taps; the sweep."""
    config, settings = sizes.config, sizes.config.measure
    train, test = sizes.measured
    told = plain(settings) | {"steps": 0, "adaptive": None, "norm": config.threat.norm}
    name = f"{sizes.model} | {train} + {test} images, measures {digest(told)[:8]}"
    pieces = [Piece("measure", Probe("measure", f"measure | {name}", config, sizes), 1, train)]
    if settings.steps > 1:
        more = Probe("more steps", f"more steps | {name}", config, sizes)
        batch = min(settings.batch_size, train)
        pieces.append(Piece("measure", more, (settings.steps - 1) * train / batch, batch))
    if settings.adaptive is not None:
        pieces += _on_taps(sizes, settings.adaptive, survival)
    evaluation, eps = config.evaluation, config.threat.eps
    count = min(evaluation.sweep_examples, sizes.test)
    for radius in evaluation.sweep:
        found = survival.at(radius / eps if eps else 0.0)
        pieces += verdict_pieces(sizes, "measure", evaluation.sweep_protocol, count, found)
    return pieces


def _on_taps(sizes: CellSizes, protocol: str, survival: Survival) -> list[Piece]:
    """Verdicts on the network and on the nearest-vertex classifier of every tap of its own."""
    count = min(sizes.config.measure.adaptive_examples, sizes.measured[1])
    pieces = verdict_pieces(sizes, "measure", protocol, count, survival._replace(spent=1.0))
    robust = min(max(_TAP_KEEPS * survival.robust, _TAP_LEAST), survival.clean)
    weaker = Survival(survival.clean, robust)
    for feature in sizes.features:
        own = verdict_pieces(sizes, "measure", protocol, count, weaker)
        # A pass ends at the tap: after half of the network in the mean, about.
        pieces += [piece.times((sizes.taps[feature] + 1) / 2) for piece in own]
    return pieces
