"""The one loop of all attacks: it fills slots, steps them, retires them, and counts passes.

An attack says how one item of work begins, steps and finishes; an item is an (example, target,
restart), and the state of all items in flight is a NamedTuple of tensors whose first axis is the
slot. With `goal="maximise"` all items run to the end, in lockstep. With `goal="flip"` an example
leaves at its first misclassification, its other items are cancelled, and the free slots are
filled with the next items, so that batches stay full.

>>> import torch
>>> from robust_nc.attacks.pgd import PGD
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> attack = PGD(steps=4)
>>> result = attack.run(
...     model, images, labels, Ball("L2", 0.5), goal="maximise", seed=0, ids=torch.arange(5)
... )
>>> result.forwards.tolist(), result.backwards.tolist()
([5, 5, 5, 5, 5], [4, 4, 4, 4, 4])
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from robust_nc.attacks.base import AttackInputs, BaseRefereedAttack
from robust_nc.attacks.batching import lockstep, refilling
from robust_nc.attacks.items import lay_out, likely_targets
from robust_nc.attacks.model_calls import Oracle
from robust_nc.attacks.slots import Slots, State
from robust_nc.exceptions import InputError
from robust_nc.runtime import copied_images, untouched
from robust_nc.types import Attacked, Referee

Mode = Literal["eval", "as_is"]
TargetsAt = Literal["clean", "worst"]

S = TypeVar("S", bound=State)


@dataclass(frozen=True, kw_only=True)
class PooledAttack(BaseRefereedAttack, Generic[S]):
    """Base of the attacks that the pool drives.

    `restarts` per example (and target). `num_targets` makes an attack targeted where the caller
    names no targets: at the so many most likely other classes, by the logits of the clean image, or
    with `targets_at="worst"`, under a referee, of the worst point that attacks before it found.
    `slots` is the batch size of the model passes (None: as many as examples are handed in).
    `mode="eval"` attacks the model in eval mode without a trace; `mode="as_is"` leaves its training
    flags as they are, and lets its buffers change (batch norm in train mode): for the inner attack
    of training, with `bn_mode = "train"`.
    """

    restarts: int = 1
    num_targets: int | None = None
    targets_at: TargetsAt = "clean"
    slots: int | None = None
    mode: Mode = "eval"

    gradient_free: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in (
            ("restarts", self.restarts),
            ("num_targets", self.num_targets),
            ("slots", self.slots),
        ):
            if value is not None and value < 1:
                or_none = "" if name == "restarts" else ", or None"
                raise InputError(f"{name} must be at least 1{or_none}, found {value}")
        if self.mode not in ("eval", "as_is"):
            raise InputError(f"mode must be 'eval' or 'as_is', found {self.mode!r}")
        if self.targets_at not in ("clean", "worst"):
            raise InputError(f"targets_at must be 'clean' or 'worst', found {self.targets_at!r}")

    @property
    @abstractmethod
    def rounds(self) -> int:
        """How many steps an item takes."""

    @abstractmethod
    def start(self, slots: Slots) -> S:
        """Return the state of new items."""

    @abstractmethod
    def step(self, slots: Slots, state: S) -> S:
        """Advance every slot by one step."""

    @abstractmethod
    def finish(self, slots: Slots, state: S) -> S:
        """Score the last points of items that have done all their steps."""

    def cost(self, num_classes: int) -> int:
        """Passes of an example that nothing breaks, about: for the time left."""
        targets = min(self.num_targets or 1, num_classes - 1)
        return self.restarts * targets * self.rounds * (1 if self.gradient_free else 2)

    def compute_under(self, referee: Referee | None, inputs: AttackInputs) -> Attacked:
        """Attack the images; under a referee, try to flip each."""
        count, goal = len(inputs.images), inputs.goal
        width = referee.batch_size if referee else self.slots or max(count, 1)
        columns, model = inputs.target_columns, inputs.model
        oracle, frozen = Oracle(model, inputs.classes), not _keeps_casts(inputs)
        with untouched(model, frozen=frozen) if self.mode == "eval" else copied_images(model):
            if columns is None and self.num_targets is not None and count:
                if referee is None:
                    logits = _clean_logits(oracle, inputs.images, width)
                else:
                    worst = self.targets_at == "worst"
                    logits = referee.worst_logits if worst else referee.logits
                columns = likely_targets(logits, inputs.labels, self.num_targets)
            work = lay_out(
                oracle,
                inputs,
                targets=columns,
                restarts=self.restarts,
                window=None if goal == "maximise" else width,
                referee=referee,
            )
            work.charge(None)
            if count:
                (lockstep if goal == "maximise" else refilling)(self, work, width)
            oracle.check()
        return work.attacked


def _keeps_casts(inputs: AttackInputs) -> bool:
    """Whether autocast casts each weight once, not in every pass, where it may take a gradient.

    Nobody asks for that gradient, so it is not computed; under `torch.compile` it would be.
    """
    casts = torch.is_autocast_enabled(inputs.images.device.type)
    return casts and not hasattr(inputs.model, "_orig_mod")


def _clean_logits(oracle: Oracle, images: Tensor, width: int) -> Tensor:
    """Logits of the images themselves, booked as one pass of each."""
    logits = torch.cat([oracle.logits(part) for part in torch.split(images, width)])
    oracle.count_once()
    return logits
