"""What a cell is made of: pieces of work, each so many calls of what a pilot has timed.

Steps of the training are counted from the sizes of the data; the passes of a verdict from each
attack's own `cost` and from who is expected to survive it; the geometry is timed whole.

>>> from robust_nc.config import RunConfig
>>> from robust_nc.planning.cell_sizes import CellSizer
>>> sizes = CellSizer(None).sizes(RunConfig())
>>> found = expected(sizes.config, [])
>>> found.source, sorted({piece.stage for piece in cell_pieces(sizes, found)})
('assumed for standard', ['attack', 'measure', 'train'])
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from robust_nc.config import RunConfig, build, measured_epochs, plain
from robust_nc.evaluation.evaluate_model import BATCH
from robust_nc.io.files import digest
from robust_nc.planning.cell_sizes import CellSizes, with_options
from robust_nc.planning.survivors import DEFENDED, UNDEFENDED, Survival, measured
from robust_nc.plugins import find_attack, find_protocol
from robust_nc.profiling.profile_model import measured_at_epochs
from robust_nc.record.schema import Record
from robust_nc.registry import AVERAGINGS
from robust_nc.runtime.torch_state import default_device
from robust_nc.training.averaging import STATISTICS_BATCHES
from robust_nc.training.objectives import ClosedForm
from robust_nc.training.run import build_objective
from robust_nc.training.validation import VALIDATION_EXAMPLES
from robust_nc.types import RefereedAttack

STAGES = ("train", "attack", "measure")
STEPS, ITEMS = ("steps", "queries"), ("restarts", "num_targets")  # options of attacks
_TWICE = ("tf32", "bf16")  # precisions after which all attacks run once more
_EARLY = 8.0  # passes on an image that the first attack breaks, about
_LATER = 0.3  # share of its passes that another attack makes on an image that it breaks, about
_NEAR = 0.6  # share of the survivors that pass a gate at -1, about; in proportion at others
_TAP_KEEPS = 0.5  # of the network's robust accuracy that the classifier of a tap has, about


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
    """`calls` of what `probe` times, on `images` in all of them, in one stage of a cell.

    Of a verdict, `images` are passes, forward and backward, as records count them.
    """

    stage: str
    probe: Probe
    calls: float
    images: float

    def times(self, factor: float) -> "Piece":
        """Return so many of these."""
        return self._replace(calls=factor * self.calls, images=factor * self.images)


def expected(config: RunConfig, records: Sequence[Record]) -> Survival:
    """Return who is expected to survive: by records of the same kind of model, or assumed."""
    found = measured(config, records)
    if found is not None:
        return found
    defended = build_objective(config).best_by == "validation_attacked"
    source = f"assumed for {config.train.objective.name}"
    return (DEFENDED if defended else UNDEFENDED)._replace(source=source)


def cell_pieces(sizes: CellSizes, survival: Survival, *, trained: bool = False) -> list[Piece]:
    """Return all pieces of a cell; without the training where its weights are there (`trained`)."""
    pieces = [] if trained else training_pieces(sizes)
    return pieces + _verdicts(sizes, survival) + _geometry(sizes, survival)


def training_pieces(sizes: CellSizes) -> list[Piece]:
    """Return steps of the trainer, and the validation between epochs."""
    config, settings = sizes.config, sizes.config.train
    if isinstance(build_objective(config), ClosedForm):
        key = f"solve | {sizes.model} | {sizes.learnt} images"
        return [Piece("train", Probe("solve", key, config, sizes.learnt), 1, sizes.learnt)]
    if not settings.epochs:
        return []
    # A last batch of a single image is left out.
    single = sizes.learnt % settings.batch_size == 1
    steps = max(math.ceil((sizes.learnt - single) / settings.batch_size), 1)
    pieces = [Piece("train", _step(sizes), settings.epochs * steps, settings.epochs * sizes.learnt)]
    averaging = settings.averaging and build(AVERAGINGS, settings.averaging)
    if averaging and averaging.new_statistics:  # batches are shown once more, without a step
        shown = (1 - getattr(averaging, "start", 0.0)) * min(STATISTICS_BATCHES, steps) / steps
        pieces.append(pieces[0].times(shown))
    count = min(sizes.held_out, VALIDATION_EXAMPLES)
    if count:
        times = math.ceil(settings.epochs / settings.validate_every)
        probe = Probe("validate", f"validate | {sizes.model} | {config.threat.norm}", config, count)
        pieces.append(Piece("train", probe, times, times * count))
    return pieces


def _step(sizes: CellSizes) -> Probe:
    """One step of the real trainer with the real objective."""
    settings, model = sizes.config.train, sizes.config.model
    parts = [model.head.name, with_options(settings.objective), settings.loss.name]
    parts += [f"batch {settings.batch_size}", settings.precision, *sizes.config.data.augment]
    parts += ["channels_last"] * settings.channels_last + ["compiled"] * bool(settings.compile)
    return Probe("step", f"step | {sizes.model} | {', '.join(parts)}", sizes.config)


def _verdicts(sizes: CellSizes, survival: Survival) -> list[Piece]:
    """Of the best weights, of the last ones where they differ, and by the weaker protocol."""
    settings, count = sizes.config.evaluation, sizes.judged
    twice = survival.last_differs if sizes.config.train.epochs > 1 else 0.0
    pieces = verdict_pieces(sizes, "attack", settings.protocol, count, survival, own=True)
    pieces += [piece.times(twice) for piece in pieces]
    if settings.beside is not None:
        pieces += verdict_pieces(sizes, "attack", settings.beside, count, survival)
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
    config, settings = sizes.config, sizes.config.evaluation
    attacks = [a for _, a in find_protocol(protocol).under(config.threat.ball()).attacks]
    if own and settings.attack is not None:
        attacks.append(find_attack(settings.attack.name, settings.attack.options))
    # The look at the clean images, a copy of the model, checks, books.
    pieces = [Piece(stage, Probe("verdict", f"verdict | {sizes.model}", config), 1, count)]
    stand = survival.clean * count
    for place, attack in enumerate(attacks):
        broken = survival.broken_by(place, len(attacks)) * count
        stand = max(stand - broken, 0.0)
        pieces += _attacked(sizes, stage, attack, stand, broken, first=not place)
    if settings.precision in _TWICE:  # what stands is attacked again in float32
        exact = dataclasses.replace(settings, precision="float32")
        again = sizes._replace(config=dataclasses.replace(config, evaluation=exact))
        for attack in attacks:
            pieces += _attacked(again, stage, attack, stand, 0.0)
    return pieces


def _attacked(
    sizes: CellSizes, stage: str, attack: Any, stand: float, broken: float, *, first: bool = False
) -> list[Piece]:
    """One attack: on those that stand to its end, and on those that it breaks for less.

    Restarts and targets of an example, and examples that wait, fill places in the batch that
    become free; what begins last ends alone, in a batch that is half full in the mean.
    """
    gate, inner = 1.0, attack
    if hasattr(attack, "attack") and hasattr(attack, "above"):  # for those near the boundary
        gate, inner = min(-_NEAR * attack.above, 1.0), attack.attack
    probe = Probe("attack", _attack_key(sizes, inner), sizes.config, inner)
    if not isinstance(inner, RefereedAttack):  # all that is known is that it runs once
        return [Piece(stage, probe, 1, stand + broken)] if stand + broken > 0 else []
    cost, alone = inner.cost(sizes.info.num_classes), one_item(inner).cost(sizes.info.num_classes)
    tried = gate * stand + broken
    looks = 0.0 if getattr(inner, "gradient_free", False) else cost / alone  # at each last point
    passes = gate * stand * (cost + looks + 1)
    passes += broken * (min(_EARLY, cost) if first else _LATER * cost)
    batches = max(passes / (alone * batch_size(sizes.config)) + 0.5, 1.0)
    # An image that breaks is looked at, and the next begins, in calls of their own.
    calls = alone * min(batches, tried) + 2 * min(broken, alone)
    return [Piece(stage, probe, calls, passes)] if calls > 0 else []


def batch_size(config: RunConfig) -> int:
    """Return how many images a verdict attacks at a time."""
    return config.evaluation.batch_size or BATCH.get(default_device().type, BATCH["cpu"])


def planned_precision(config: RunConfig) -> str:
    """Return the precision that attacks are timed in; of "auto" the slower one, float32."""
    kind = config.evaluation.precision
    if kind in ("auto", "float32") or kind.endswith("-only"):
        return kind.replace("auto", "float32")
    return f"{kind}-only"


def options_of(attack: Any) -> dict[str, Any]:
    """Return the options of an attack by name, where it is a dataclass."""
    if not dataclasses.is_dataclass(attack) or isinstance(attack, type):
        return {}
    return {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack) if f.init}


def one_item(attack: Any) -> Any:
    """Return an attack of one restart at one target; itself where it has no such options."""
    options = options_of(attack)
    one: dict[str, Any] = {name: 1 for name in ITEMS if options.get(name) is not None}
    return dataclasses.replace(attack, **one) if one else attack


def _attack_key(sizes: CellSizes, attack: Any) -> str:
    """Name an attack by its class and its options but the number of steps."""
    name = getattr(attack, "func", type(attack)).__name__
    told = {k: str(v) for k, v in options_of(attack).items() if k not in STEPS + ITEMS}
    precision = planned_precision(sizes.config)
    norm = sizes.config.threat.norm
    return f"attack | {sizes.model} | {name} {digest(told)[:8]} {norm}, {precision}"


def _geometry(sizes: CellSizes, survival: Survival) -> list[Piece]:
    """All measures, also over epochs; verdicts on taps; the sweep of accuracy over eps."""
    config, settings = sizes.config, sizes.config.measure
    pieces = [_measures(sizes)]
    if epochs := measured_epochs(config):
        short = dataclasses.replace(config, measure=measured_at_epochs(settings))
        pieces.append(_measures(sizes._replace(config=short)).times(len(epochs)))
    if settings.adaptive is not None:
        pieces += _on_taps(sizes, settings.adaptive, survival)
    evaluation, eps = config.evaluation, config.threat.eps
    count = min(evaluation.sweep_examples, sizes.test)
    for radius in evaluation.sweep:
        found = survival.at(radius / eps if eps else 0.0)
        pieces += verdict_pieces(sizes, "measure", evaluation.sweep_protocol, count, found)
    return pieces


def _measures(sizes: CellSizes) -> Piece:
    """All measures of one set of weights but the verdicts on taps."""
    config, (train, test) = sizes.config, sizes.measured
    told = plain(config.measure) | {"adaptive": None, "every": None, "norm": config.threat.norm}
    key = f"measure | {sizes.model} | {train} + {test} images, measures {digest(told)[:8]}"
    return Piece("measure", Probe("measure", key, config, sizes), 1, train)


def _on_taps(sizes: CellSizes, protocol: str, survival: Survival) -> list[Piece]:
    """Verdicts on the network and on the nearest-vertex classifier of every tap of its own."""
    count = min(sizes.config.measure.adaptive_examples, sizes.measured[1])
    pieces = verdict_pieces(sizes, "measure", protocol, count, survival)
    weaker = Survival(survival.clean, _TAP_KEEPS * survival.robust)
    own = verdict_pieces(sizes, "measure", protocol, count, weaker)
    # A pass ends at the tap: after half of the network in the mean, about.
    return pieces + [piece.times((sizes.taps + 1) / 2) for piece in own]
