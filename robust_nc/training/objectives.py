"""Objectives, that is defenses: how a model is trained against attacks on it.

Each is a frozen dataclass: `(model, images, labels, *, seed, ids) -> Loss(value, logs)`. The logs
are batch means that stay on the device, so that a step never waits for it.

>>> import torch
>>> from robust_nc.training.losses import cross_entropy
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
>>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])
>>> objective = Pgd(Ball("Linf", 0.1), cross_entropy, steps=2)
>>> sorted(objective(model, images, labels, seed=0, ids=torch.arange(3)).logs)
['attacked_correct', 'loss']
"""

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust_nc.config import Component, build
from robust_nc.data.base import Split
from robust_nc.exceptions import ConfigError
from robust_nc.models.backbones import Backbone
from robust_nc.models.classifier import Classifier
from robust_nc.models.heads import Head
from robust_nc.registry import ATTACKS
from robust_nc.threat import Ball
from robust_nc.training.losses import FeatureLoss, PerExampleLoss, Seen, kl_divergence
from robust_nc.training.progress import TrainReport
from robust_nc.types import Attack, Images, Labels, Logits, Loss


class Outputs(NamedTuple):
    """Logits `(N, K)` and losses `(N,)` of a batch."""

    logits: Tensor
    losses: Tensor


class Outer(nn.Module):
    """A model and a loss as one module, `(images, labels) -> Outputs`.

    So `torch.func.functional_call` can ask for the losses at other weights: parameter `p` of the
    model is `model.p` here. A head that learns from features without a gradient (`Head.observe`)
    does so with each call, before the logits are made, unless `observe` is false.
    """

    def __init__(
        self, model: nn.Module, loss: PerExampleLoss | FeatureLoss, *, observe: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.observe = observe

    def forward(self, images: Images, labels: Labels) -> Outputs:
        """Return logits and losses; raises `ConfigError` where the loss needs a head of ours."""
        head = getattr(self.model, "head", None)
        observing = self.observe and isinstance(head, Head) and head.observes
        if not isinstance(self.loss, FeatureLoss) and not observing:
            logits = self.model(images)
            return Outputs(logits, self.loss(logits, labels))
        classifier = self._classifier()
        features = classifier.features(images)
        if observing:
            classifier.head.observe(features.detach(), labels)
        logits = classifier.head(features)
        if isinstance(self.loss, FeatureLoss):
            return Outputs(logits, self.loss(Seen(logits, features, classifier.head), labels))
        return Outputs(logits, self.loss(logits, labels))

    def _classifier(self) -> Classifier:
        if isinstance(self.model, Classifier):
            return self.model
        if isinstance(getattr(self.model, "_orig_mod", None), Classifier):
            raise ConfigError(
                "this loss or head reads the features before the head, which a compiled model "
                "does not give; set train.compile = false"
            )
        raise ConfigError(
            "this loss or head reads the features before the head, and the model is no "
            "robust_nc.Classifier; choose a loss of logits, such as 'ce'"
        )


def at_progress(objective: Any, progress: float) -> Any:
    """Return the objective at a share of the training, below 1; itself unless its loss changes."""
    loss = getattr(objective, "loss", None)
    if not isinstance(loss, FeatureLoss) or not loss.scheduled:
        return objective
    return dataclasses.replace(objective, loss=loss.at(progress))


BnMode = Literal["eval", "train", "frozen"]
BestBy = Literal["validation_attacked", "validation_clean"]


@runtime_checkable
class Objective(Protocol):
    """What the loop asks of an objective at every step.

    `best_by`: the accuracy on held-out images that chooses the best epoch. `in_parts` (optional,
    False where it is missing): the value is a mean over the examples whose gradient the loop alone
    takes, so that several processes may each take some of the rows (`training.parallel`).
    """

    best_by: ClassVar[BestBy]

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int, ids: Tensor
    ) -> Loss:
        """Return the scalar to descend, and what to show of it."""
        ...


@runtime_checkable
class ClosedForm(Protocol):
    """An objective without steps: it solves for the weights at once, with `train.epochs = 0`."""

    def check(self, model: Classifier) -> Backbone:
        """Return the backbone to solve for; raise `ConfigError` for a model that does not fit."""
        ...

    def solve(
        self, model: Classifier, train: Split, *, seed: int, report: TrainReport | None = None
    ) -> None:
        """Put the solution for these training examples into the model."""
        ...


@dataclass(frozen=True)
class Standard:
    """The mean loss on clean images. Its best epoch is chosen on clean images too.

    Chosen under attack it would be one of the first, hardly trained ones.
    """

    loss: PerExampleLoss | FeatureLoss
    best_by: ClassVar[BestBy] = "validation_clean"
    in_parts: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, images: Images, labels: Labels, *, seed: int, ids: Tensor
    ) -> Loss:
        """Return the loss with `clean_correct`."""
        found: Outputs = Outer(model, self.loss)(images, labels)
        return logged(found.losses.mean(), {"clean_correct": correct(found.logits, labels)})


class Adversarial(ABC):
    """Base of defenses that attack each batch: `inner` makes the images, `outer_loss` the loss.

    A subclass is a frozen dataclass with the fields below.
    """

    ball: Ball
    loss: PerExampleLoss | FeatureLoss
    bn_mode: BnMode
    best_by: ClassVar[BestBy] = "validation_attacked"
    in_parts: ClassVar[bool] = True

    @property
    @abstractmethod
    def inner(self) -> Attack:
        """The inner attack."""

    @abstractmethod
    def outer_loss(self, outer: Outer, images: Images, attacked: Images, labels: Labels) -> Loss:
        """Return the loss on images once attacked, with accuracies."""

    def __call__(
        self, model: nn.Module, images: Images, labels: Labels, *, seed: int, ids: Tensor
    ) -> Loss:
        """Attack, and return the loss with accuracies."""
        with batch_norm(model, self.bn_mode):
            attacked = self.inner(
                model, images, labels, self.ball, goal="maximise", seed=seed, ids=ids
            )
            return self.outer_loss(Outer(model, self.loss), images, attacked, labels)


@dataclass(frozen=True)
class Pgd(Adversarial):
    """Adversarial training: the mean loss on attacked images only (Madry et al., ICLR 2018).

    The inner attack ascends the cross-entropy for `steps` of `step_size` (default
    2.5 eps / steps). `bn_mode`: with "eval" it sees the model in eval mode and the outer step is in
    train mode; with "train" both are in train mode, and the attack moves the running statistics
    too; with "frozen" the model stays in eval mode throughout, so that they never move.
    """

    ball: Ball
    loss: PerExampleLoss | FeatureLoss
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    bn_mode: BnMode = "eval"

    def __post_init__(self) -> None:
        check_steps(self.steps, self.step_size)

    @cached_property
    def inner(self) -> Attack:
        """The inner attack."""
        initial = "uniform" if self.random_start else "none"
        return inner_attack("ce", initial, self.steps, self.step_size, self.bn_mode)

    def outer_loss(self, outer: Outer, images: Images, attacked: Images, labels: Labels) -> Loss:
        """Return the loss with `attacked_correct`."""
        found = outer(attacked, labels)
        return logged(found.losses.mean(), {"attacked_correct": correct(found.logits, labels)})


@dataclass(frozen=True)
class Trades(Adversarial):
    """The clean loss plus beta KL(p(clean) || p(attacked)) (Zhang et al., ICML 2019, equation 5).

    The inner attack ascends that divergence from 0.001 N(0, 1) around the image. Clean and attacked
    images pass in separate batches. `step_size` and `bn_mode` as for `Pgd`.
    """

    ball: Ball
    loss: PerExampleLoss | FeatureLoss
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    bn_mode: BnMode = "eval"

    def __post_init__(self) -> None:
        check_steps(self.steps, self.step_size)
        if self.beta < 0:
            raise ConfigError(f"beta must be at least 0, found {self.beta}")

    @cached_property
    def inner(self) -> Attack:
        """The inner attack."""
        return inner_attack("kl", "gaussian", self.steps, self.step_size, self.bn_mode)

    def outer_loss(self, outer: Outer, images: Images, attacked: Images, labels: Labels) -> Loss:
        """Return the loss with `clean_correct` and `attacked_correct`."""
        clean = outer(images, labels)
        attacked_logits = outer.model(attacked)
        divergence = kl_divergence(attacked_logits, clean.logits).mean()
        value = clean.losses.mean() + self.beta * divergence
        accuracies = {
            "clean_correct": correct(clean.logits, labels),
            "attacked_correct": correct(attacked_logits, labels),
        }
        return logged(value, accuracies)


def inner_attack(
    loss: str, initial: str, steps: int, step_size: float | None, bn_mode: BnMode
) -> Attack:
    """Return the attack inside a training: PGD on the model in the mode of `bn_mode`."""
    options: dict[str, Any] = {
        "loss": loss,
        "initial": initial,
        "steps": steps,
        "step_size": step_size,
        "keep_best": False,
        "mode": "as_is" if bn_mode == "train" else "eval",
    }
    attack: Attack = build(ATTACKS, Component(name="pgd", options=options))
    return attack


@contextlib.contextmanager
def batch_norm(model: nn.Module, bn_mode: BnMode) -> Iterator[None]:
    """Hold the model in eval mode where batch norm is frozen, then put every flag back."""
    if bn_mode != "frozen":
        yield
        return
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def correct(logits: Logits, labels: Labels) -> Tensor:
    """Accuracy on the batch, a scalar on its device."""
    return (logits.detach().argmax(1) == labels).mean(dtype=torch.float32)


def logged(value: Tensor, accuracies: dict[str, Tensor]) -> Loss:
    """Return the loss with its own value among the logs."""
    return Loss(value, {"loss": value.detach(), **accuracies})


def check_steps(steps: int, step_size: float | None) -> None:
    """Refuse an inner attack that cannot be."""
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, found {steps}")
    if step_size is not None and not step_size > 0:
        raise ConfigError(f"step_size must be above 0, found {step_size}")
