"""Attack a model and say what it withstands: trust no attack, re-project, re-score, keep the worst.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
>>> images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
>>> outcome = evaluate(model, images, labels, Ball("Linf", 0.1), protocol="pgd")
>>> bool((outcome.robust <= outcome.clean_correct).all())
True
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.checks import check_images, check_labels, check_model
from robust_nc.evaluation.acceleration import LOWER, slow_bf16
from robust_nc.evaluation.identity import evaluation_identity
from robust_nc.evaluation.log import open_log
from robust_nc.evaluation.referee import Evaluation
from robust_nc.evaluation.sanity.attacks import sanity_warnings
from robust_nc.evaluation.sanity.meanings import named_warning
from robust_nc.evaluation.scoring import Scorer
from robust_nc.evaluation.state import TRANSFERRED, UNBROKEN, WRONG, EvaluationState
from robust_nc.evaluation.turns import AUTO, lower_turns, plan_turns, run_more, run_turns
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.plugins import find_attack, find_protocol
from robust_nc.runtime.model_outputs import logits_model
from robust_nc.runtime.progress import Progress
from robust_nc.runtime.threads import brief_waits, kept_threads
from robust_nc.runtime.torch_state import (
    check_float64,
    counted_gradients,
    device_of,
    full_precision,
    private_draws,
    stream_key,
    untouched,
)
from robust_nc.threat import Ball, check_ball
from robust_nc.types import GRADIENT_WARNINGS, Attack, EvaluationProtocol, RefereedAttack, Warned

CLEAN = "clean"  # `broken_by` of an example that is misclassified as it is
TRANSFER = "transfer"  # and of one that only points made against another model break
BATCH = {"cpu": 128, "cuda": 512}  # where none is given; then the fastest is measured


class Outcome(NamedTuple):
    """The verdict on N examples, on the CPU.

    `clean_correct`, `robust` (N,) bool; `codes` (N,) int64: the place in `attacks` of what broke
    each, -1 where nothing did, -2 where nothing was needed (`broken_by` in words); `adversarials`
    (N, C, H, W): in the ball, the point of largest margin loss found; `forward_passes`,
    `backward_passes` (N,) int64, all that were spent on each example. `attacks` are those that made
    the verdict, by name; `accelerated` is how the model was made faster for them ("folded",
    "channels_last", "1 thread", ...).
    """

    clean_correct: Tensor
    robust: Tensor
    codes: Tensor
    adversarials: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    warnings: tuple[Warned, ...]
    attacks: tuple[tuple[str, Attack], ...] = ()
    accelerated: tuple[str, ...] = ()

    @property
    def broken_by(self) -> tuple[str, ...]:
        """N names of attacks; "" where none succeeded, "clean" where none was needed."""
        names = dict(enumerate(name for name, _ in self.attacks))
        names |= {UNBROKEN: "", WRONG: CLEAN, TRANSFERRED: TRANSFER}
        return tuple(names[code] for code in self.codes.tolist())

    @property
    def clean_accuracy(self) -> float:
        """Share of examples that are classified correctly."""
        return float(self.clean_correct.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that no attack broke."""
        return float(self.robust.double().mean())

    def __repr__(self) -> str:
        count, broken = len(self.robust), Counter(self.broken_by)
        broke = ", ".join(f"{name} {broken[name]:,}" for name, _ in self.attacks) or "no attack"
        forward, backward = int(self.forward_passes.sum()), int(self.backward_passes.sum())
        lines = [
            f"Outcome of {count:,} examples",
            f"clean      {self.clean_accuracy:.1%}",
            f"robust     {self.robust_accuracy:.1%}",
            f"broken by  {broke}",
            f"passes     {forward:,} forward, {backward:,} backward",
            f"warnings   {', '.join(one.name for one in self.warnings) or 'none'}",
        ]
        return "\n".join(lines)


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    protocol: str | EvaluationProtocol = "standard",
    attack: str | Attack | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    batch_size: int | None = None,
    precision: str = AUTO,
    accelerate: bool = True,
    tune: bool = True,
    checks: bool = True,
    second_opinion: bool = True,
    log: str | Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Attack `model` on N images and return the worst case per example.

    `images` (N, C, H, W) float32 in [0, 1]; `labels` (N,) int64; `model` maps images to logits
    (N, K) and is left as it was found. `protocol` names a list of attacks (or is one): `standard`
    is AutoAttack's four. `attack` adds one of your own (`"module:factory"`, a registered name, or
    the attack itself) to the worst case. Draws depend on `seed` and on the id of an example
    (`ids` (N,) int64; its place among the N where there are none).

    Attacks run on a faster copy of the model, where one agrees with it (`accelerate`), in batches
    of `batch_size` (None: measured; halved where memory runs out), on as many threads of a CPU as
    torch is set to, or fewer where that is measured to be faster. `precision` "tf32" or "bf16"
    runs the attacks in lower precision first, and all of them again in float32 on what survived;
    "tf32-only" and "bf16-only" leave that out. "auto" begins in lower precision where that is
    measured to be at least 1.3 times faster, and attacks again in float32 what came near the
    boundary. Every verdict is the model's own, in float32 proper.
    Without `tune` nothing is measured, so that the clock has no part in the last bits. Without
    either, "auto" is float32.

    `checks` looks for signs that the verdict cannot be trusted, and names them in `warnings`; where
    one is about gradients, the attacks of protocol `second` join the verdict (`second_opinion`).
    `log` is a file of finished examples: a second call with the same arguments goes on from there
    (where it was damaged, from its last good line; what followed is then in `<log>.damaged`).
    `report` is called with the `Progress`, about twice a second.

    Raises `InputError` for data that cannot be used, logits that are not finite or a model that
    fails (naming the batch), `RecordError` for a log of another evaluation, and `StoppedError`
    where the process was asked to stop (`stopping.wish`): then the log holds what was finished.
    """
    model = logits_model(check_model(model))
    check_ball(ball)
    images, labels = check_images(images), check_labels(labels, len(images))
    plan = _plan(protocol, attack, ball)
    turns = plan_turns(plan, precision)
    second = find_protocol("second")
    # Where the output is random, single answers decide nothing.
    asked = second_opinion and plan.attacks and plan.draws == 1 and plan.name != second.name
    more = [  # also where they are not asked: a log may hold what they found
        turn._replace(number=len(turns) + turn.number, place=len(plan.attacks) + turn.place)
        for turn in plan_turns(second, "float32")
    ]
    device = device_of(model)
    check_float64(device)
    size = _batch_size(batch_size, device)
    ids = _checked_ids(ids, len(images))
    told = {}
    if any(module.training for module in model.modules()):
        message = "the model was in train mode; it was judged in eval mode and left as it was"
        told["train-mode"] = Warned("train-mode", message)
    if precision.startswith("bf16") and slow_bf16(device):
        warned = named_warning("slow-precision", f"{precision} on {device}")
        told[warned.name] = warned
    with _set_up(model, seed), kept_threads(), brief_waits(), ExitStack() as stack:
        lower = len(turns) + len(more)  # what has a number stays under it, whatever runs first
        extra = len(LOWER) * len(turns) if precision == AUTO else 0
        state = EvaluationState.of(images, labels, ids, turns=lower + extra)
        name = partial(evaluation_identity, model, state, ball, plan, seed, precision)
        journal = stack.enter_context(open_log(log, name))
        told |= {name: Warned(name, message) for name, message in journal.warnings.items()}
        scorer = Scorer(model, draws=plan.draws, seed=seed)
        evaluation = Evaluation(scorer, ball, state, size, seed, journal, warnings=told)
        evaluation.gradients = stack.enter_context(counted_gradients())
        run_turns(
            evaluation,
            turns,
            accelerated=accelerate,
            tune=tune,
            resize=batch_size is None,
            lower=lower if precision == AUTO else None,
            report=report,
        )
        for kind in LOWER if precision == AUTO else ():
            numbers = [turn.number for turn in lower_turns(turns, kind, start=lower)]
            if bool(state.finished[:, numbers].any()):
                evaluation.accelerated = (*evaluation.accelerated, kind)
        evaluation.note_gradients()
        if checks and len(images):
            for warned in sanity_warnings(evaluation, plan):
                evaluation.warnings[warned.name] = warned
            if asked and evaluation.warnings.keys() & GRADIENT_WARNINGS:
                run_more(evaluation, more)
        evaluation.note_gradients()
        if bool(state.finished[:, len(turns) : lower].any()):
            plan = plan._replace(attacks=(*plan.attacks, *second.attacks))
    return Outcome(
        clean_correct=state.clean_correct,
        robust=state.robust,
        codes=state.broken_by,
        adversarials=state.points,
        forward_passes=state.forwards,
        backward_passes=state.backwards,
        warnings=tuple(evaluation.warnings.values()),
        attacks=plan.attacks,
        accelerated=(*evaluation.accelerated, *evaluation.threads),
    )


def evaluation_name(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    protocol: str | EvaluationProtocol = "standard",
    attack: str | Attack | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    precision: str = AUTO,
) -> str:
    """Return what names the log of an evaluation with these arguments: see `evaluate`."""
    images, labels = check_images(images), check_labels(labels, len(images))
    plan = _plan(protocol, attack, ball)
    with _set_up(model, seed):
        state = EvaluationState.of(images, labels, _checked_ids(ids, len(images)), turns=0)
        return evaluation_identity(model, state, ball, plan, seed, precision)


def divisible(protocol: str, attack: Attack | None, ball: Ball) -> bool:
    """Whether examples may be judged in parts of any size without another verdict.

    An attack that is not refereed gets batches, which its result may depend on, and shares its
    passes among a batch; where the output is random, draws depend on the place in a batch.
    """
    plan = _plan(protocol, attack, ball)
    refereed = all(isinstance(attack, RefereedAttack) for _, attack in plan.attacks)
    return refereed and plan.draws == 1


@contextmanager
def _set_up(model: nn.Module, seed: int) -> Iterator[None]:
    """Attack a model without a trace, in float32 proper, with draws of our own."""
    draws = private_draws(stream_key(seed, "model"), device_of(model))
    # A caller's inference mode would forbid gradients.
    with torch.inference_mode(False), untouched(model), full_precision(), draws:
        yield


def _plan(
    protocol: str | EvaluationProtocol, attack: str | Attack | None, ball: Ball
) -> EvaluationProtocol:
    """Return the protocol under the ball's norm, with the author's own attack at its end."""
    plan = protocol if isinstance(protocol, EvaluationProtocol) else find_protocol(protocol)
    plan = plan.under(ball)
    names = [name for name, _ in plan.attacks]
    if len({*names, "", CLEAN}) != len(names) + 2:
        raise ConfigError(
            f"the attacks of protocol {plan.name!r} need names of their own, other than '' and "
            f"{CLEAN!r}, found {', '.join(map(repr, names))}"
        )
    if attack is None:
        return plan
    own = find_attack(attack) if isinstance(attack, str) else attack
    called = str(getattr(attack, "__name__", type(attack).__name__)).lower()
    name = attack if isinstance(attack, str) else called
    while name in (*names, "", CLEAN):
        name = f"own-{name}"
    return plan._replace(attacks=(*plan.attacks, (name, own)))


def _checked_ids(ids: Tensor | None, count: int) -> Tensor:
    if ids is None:
        return torch.arange(count)
    if ids.dtype != torch.int64 or ids.shape != (count,):
        raise InputError(
            f"ids must be int64 of shape ({count},), one per image, "
            f"found {ids.dtype} {tuple(ids.shape)}"
        )
    return ids


def _batch_size(batch_size: int | None, device: torch.device) -> int:
    if batch_size is None:
        return BATCH.get(device.type, BATCH["cpu"])
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")
    return batch_size
