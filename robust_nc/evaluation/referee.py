"""An evaluation under way: gives each attack its turn, trusts none, keeps the worst point.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
>>> images, labels, ids = torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2)
>>> state = EvaluationState.of(images, labels, ids, turns=0)
>>> evaluation = Evaluation(Scorer(model), Ball("Linf", 0.1), state, batch_size=8, seed=0)
>>> evaluation.open()
>>> state.forwards.tolist()
[1, 1]
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.evaluation.acceleration import Precision, cast_once, lowered
from robust_nc.evaluation.log import EvaluationLog
from robust_nc.evaluation.sanity.meanings import named_warning
from robust_nc.evaluation.scoring import Guarded, Scorer, Scores, halving
from robust_nc.evaluation.state import EvaluationState
from robust_nc.exceptions import InputError, NoGradientError, RobustNCError
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import PassCounter
from robust_nc.runtime.torch_state import (
    GradientCount,
    PassMeter,
    device_of,
    ran_out,
    sent,
    stream_key,
    untouched,
)
from robust_nc.threat import Ball
from robust_nc.types import Attack, Attacked, CountedAttack, RefereedAttack, Warned

PROBES = 8  # examples on which a faster copy and the output are checked
_CHUNK = 2**26  # pixels of the images that one call of an attack gets: 256 MiB


class Turn(NamedTuple):
    """One turn: its number, the place of its attack in the protocol and its name, the precision.

    `near` is a distance from the boundary (`scoring.scaled_margins`) that rounding may bridge: in
    lower precision, examples whose worst point is nearer are left for float32; in float32, of those
    that have had all turns `after` in lower precision, only what is nearer goes in, or was never
    moved.
    """

    number: int
    place: int
    name: str
    attack: Attack
    precision: Precision
    near: float | None = None
    after: tuple[int, ...] = ()

    def cost(self, classes: int) -> int | None:
        """Passes of an example that nothing breaks, None where the attack does not say."""
        return self.attack.cost(classes) if isinstance(self.attack, RefereedAttack) else None


@dataclass
class Evaluation:
    """Gives attacks their turns over the examples of `state`; collects warnings by name.

    `fast` is what attacks are run against (the user's model where that is None), made faster as
    `accelerated` says, on fewer threads where `threads` says so; every verdict
    is that of the scorer, which asks the user's own. A wish to stop (`stopping`) is heeded after
    every step of an attack that is refereed, and after every batch of another: the log then holds
    all that was finished.
    """

    scorer: Scorer
    ball: Ball
    state: EvaluationState
    batch_size: int
    seed: int
    log: EvaluationLog = field(default_factory=lambda: EvaluationLog(None, []))
    pace: PassCounter = field(default_factory=lambda: PassCounter(None))
    fast: nn.Module | None = None
    accelerated: tuple[str, ...] = ()
    threads: tuple[str, ...] = ()
    gradients: GradientCount = field(default_factory=GradientCount)
    warnings: dict[str, Warned] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = device_of(self.scorer.model)
        self.most_threads = torch.get_num_threads()
        self._cast: tuple[nn.Module, nn.Module] | None = None  # `fast`, and that with cast weights

    def attacked(self, precision: Precision) -> nn.Module:
        """Return the model to attack in a precision."""
        if self.fast is None:
            return self.scorer.model
        if precision != "bf16":
            return self.fast
        if self._cast is None or self._cast[0] is not self.fast:
            probes = self.state.images[:PROBES].to(self.device)
            self._cast = self.fast, cast_once(self.fast, probes)
        return self._cast[1]

    def open(self) -> None:
        """Make the clean verdict on every example."""
        state, scorer = self.state, self.scorer.naming("the clean images")

        def look(rows: Tensor) -> None:
            self.heed()
            images, labels = self.given(rows)
            state.open(rows, scorer.look(images, labels), scorer.draws)

        self.batch_size = halving(look, torch.arange(len(state.images)), self.batch_size)

    def given(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of some examples, on the model's device."""
        images, labels = self.state.images[rows], self.state.labels[rows]
        return sent(images, self.device), sent(labels, self.device)

    def turn(self, turn: Turn) -> None:
        """Let one attack try the examples that still stand."""
        self.heed()
        rows, robust = self.state.pending(turn.number), self.state.robust
        if turn.near is not None:
            moved, near = self.state.reach(rows, turn.near)
            if turn.precision != "float32":
                rows = rows[~(moved & near)]
            else:
                done = moved & ~near & self.state.finished[rows][:, turn.after].all(1)
                CallReferee(self, turn, rows[done]).spare(torch.arange(int(done.sum())))
                rows = rows[~done]
        self.pace.turn(turn.name, len(rows), int(robust.sum()), len(robust))

        # Where the output is random, a referee who is asked at every step would once say yes.
        steadily = self.scorer.draws == 1

        def work(part: Tensor) -> None:
            try:
                with lowered(turn.precision, self.device):
                    attack(part)
            except NoGradientError:
                seen = f"the logits have no gradient by the image for attack {turn.name!r}"
                self.warnings["no-gradient"] = named_warning("no-gradient", seen)
                left = part[torch.isin(part, self.state.pending(turn.number))]
                CallReferee(self, turn, left).spare(torch.arange(len(left)))

        def attack(part: Tensor) -> None:
            if steadily and isinstance(turn.attack, RefereedAttack):
                self._referee(turn.attack, turn, part)
                return
            referee = CallReferee(self, turn, part)
            found = self._run(turn, part)
            referee.settle(torch.arange(len(part)), found)
            referee.tick(int(found.forwards.sum()), int(found.backwards.sum()))

        if steadily and isinstance(turn.attack, RefereedAttack) and len(rows):
            size = max(_CHUNK // self.state.images[0].numel(), self.batch_size)
            for part in torch.split(rows, size):
                work(part)
        else:
            self.batch_size = halving(work, rows, self.batch_size)
        self.log.flush()
        self.pace.say()

    def heed(self) -> None:
        """Raise `StoppedError`, with the log on the disk, if the work was asked to stop."""
        if stopping.wished():
            self.log.flush()
            stopping.heed()

    def note_gradients(self) -> None:
        """Warn of gradients that were no numbers, if there were any."""
        if bad := self.gradients.unusable:
            seen = f"{bad} of {self.gradients.seen} gradients by the image had entries that are NaN"
            warned = named_warning("unusable-gradients", f"{seen} or infinite")
            self.warnings[warned.name] = warned

    def _referee(self, attack: RefereedAttack, turn: Turn, rows: Tensor) -> None:
        """Run an attack on rows; where memory runs out outside its steps, again on what is left."""
        while len(rows):
            referee = CallReferee(self, turn, rows)
            try:
                self._run_under(attack, turn, referee)
                return
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or referee.batch_size == 1:
                    raise
            self.batch_size = referee.batch_size // 2
            rows = rows[torch.isin(rows, self.state.pending(turn.number))]

    def _run_under(self, attack: RefereedAttack, turn: Turn, referee: "CallReferee") -> None:
        model = Guarded(self.attacked(turn.precision), f"attack {turn.name!r}")
        images, labels = self.given(referee.rows)
        attack.run_under(
            referee,
            model,
            images,
            labels,
            self.ball,
            seed=self._draws(turn),
            ids=sent(self.state.ids[referee.rows], self.device),
        )
        self.batch_size = referee.batch_size

    def _draws(self, turn: Turn) -> int:
        return stream_key(self.seed, "attack", turn.name, turn.precision) & (2**31 - 1)

    def _run(self, turn: Turn, rows: Tensor) -> Attacked:
        """Run an attack; passes of one that does not count are shared equally by its examples."""
        model, attack = self.scorer.model, turn.attack
        images, labels = self.given(rows)
        ids = self.state.ids[rows].to(self.device)
        given: tuple[Any, ...] = (model, images.clone(), labels.clone(), self.ball)
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        gradients = [parameter.grad for parameter in model.parameters()]
        try:
            with untouched(model):  # attacks of others leave a model in train mode
                if isinstance(attack, CountedAttack):
                    found = attack.run(*given, seed=self._draws(turn), ids=ids)
                else:
                    found = _metered(
                        model, len(rows), lambda: attack(*given, seed=self._draws(turn), ids=ids)
                    )
        except RobustNCError:
            raise
        except Exception as error:  # an attack of others may raise anything
            if ran_out(error):
                raise
            raise InputError(
                f"attack {turn.name!r} failed on examples {int(rows[0])} to {int(rows[-1])}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            changed = _restored(model, weights)
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
        if changed:
            raise InputError(
                f"attack {turn.name!r} changed the weights of the model; they were put back, and "
                "no verdict is left"
            )
        if not isinstance(found.points, Tensor) or found.points.shape != images.shape:
            shape = getattr(found.points, "shape", type(found.points).__name__)
            raise InputError(
                f"attack {turn.name!r} returned {shape}; "
                f"it must return images of shape {images.shape}"
            )
        return found

    def score(self, scorer: Scorer, turn: Turn, rows: Tensor, points: Tensor) -> Scores:
        """Put points into the ball, ask the user's own model, and note what it says."""
        origin, labels = self.given(rows)
        points = self._trusted(turn.name, points, origin)
        try:
            seen = scorer.look(points, labels).on_cpu()
        except InputError as error:
            raise InputError(f"attack {turn.name!r}: {error}") from error
        self.state.note(rows, turn.place, points, seen, self.scorer.draws)
        return seen

    def _trusted(self, name: str, points: Tensor, origin: Tensor) -> Tensor:
        """Bring what an attack returned into the ball; say so if it had left it."""
        points = points.detach().to(origin)
        finite = points.isfinite().flatten(1).all(1)
        points = torch.where(finite[:, None, None, None], points, origin)
        if not bool((self.ball.contains(points, origin) & finite).all()):
            message = f"attack {name!r} left the ball or the bounds; its points were projected back"
            self.warnings[f"left-ball:{name}"] = Warned(f"left-ball:{name}", message)
        return self.ball.project(points, origin)


class CallReferee:
    """The referee of one call of an attack; its rows number `rows` of the evaluation."""

    def __init__(self, evaluation: Evaluation, turn: Turn, rows: Tensor) -> None:
        self.evaluation = evaluation
        self.turn = turn
        self.rows = rows
        self.batch_size = evaluation.batch_size
        self.scorer = evaluation.scorer.naming("the points it found")

    @property
    def logits(self) -> Tensor:
        """Clean logits `(N, K)` of the user's own model."""
        return sent(self.evaluation.state.logits[self.rows], self.evaluation.device)

    @property
    def worst_logits(self) -> Tensor:
        """Its logits `(N, K)` at the worst point of each example so far."""
        return sent(self.evaluation.state.worst[self.rows], self.evaluation.device)

    def confirm(self, rows: Tensor, points: Tensor) -> Tensor:
        """Whether the user's own model misclassifies these points, put into the ball, `(R,)`."""
        rows = rows.cpu()
        mine, right = self.rows[rows], torch.zeros_like(rows, dtype=torch.bool)

        def look(chosen: Tensor) -> None:
            there = points[sent(chosen, points.device)]
            seen = self.evaluation.score(self.scorer, self.turn, mine[chosen], there)
            right[chosen] = seen.flipped

        halving(look, torch.arange(len(mine)), self.batch_size)
        return right

    def settle(self, rows: Tensor, attacked: Attacked) -> None:
        """Note examples that the attack has finished; the point of a survivor is scored too."""
        evaluation, state = self.evaluation, self.evaluation.state
        mine = self.rows[rows.cpu()]
        standing = state.robust[mine].nonzero().flatten()

        def look(chosen: Tensor) -> None:
            points = attacked.points[sent(chosen, attacked.points.device)]
            evaluation.score(self.scorer, self.turn, mine[chosen], points)

        halving(look, standing, self.batch_size)
        state.forwards[mine] += attacked.forwards.cpu()
        state.backwards[mine] += attacked.backwards.cpu()
        self._finish(mine)

    def spare(self, rows: Tensor) -> None:
        """Note examples that the attack leaves alone."""
        if len(rows):
            self._finish(self.rows[rows.cpu()])

    def _finish(self, mine: Tensor) -> None:
        evaluation, state = self.evaluation, self.evaluation.state
        state.finished[mine, self.turn.number] = True
        evaluation.note_gradients()
        told = {name: warned.message for name, warned in evaluation.warnings.items()}
        evaluation.log.put(self.turn.number, state.entry(mine), told)
        evaluation.pace.done(len(mine), int(state.robust.sum()), len(state.robust))

    def tick(self, forwards: int, backwards: int) -> None:
        """Take note of passes, for the progress; stop here if that is wished."""
        self.evaluation.pace.tick(forwards + backwards)
        self.evaluation.heed()


@torch.no_grad()
def _restored(model: nn.Module, weights: list[Tensor]) -> bool:
    """Whether parameters had to be put back: an optimiser steps on `.data`, past all counters."""
    pairs = list(zip(model.parameters(), weights, strict=True))
    changed = [pair for pair in pairs if not torch.equal(*pair)]
    for parameter, weight in changed:
        parameter.data.copy_(weight)
    return bool(changed)


def _metered(model: nn.Module, count: int, attack: Callable[[], Tensor]) -> Attacked:
    """Run an attack that does not count, and share the passes seen by hooks among its examples."""
    with PassMeter(model) as meter:
        points = attack()
    forwards, backwards = (
        torch.full((count,), round(passes / count)) for passes in (meter.forwards, meter.backwards)
    )
    return Attacked(points, forwards, backwards)
