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
>>> objective = Mart(Ball("Linf", 0.1), cross_entropy, steps=2)
>>> sorted(objective(model, images, labels, seed=0, ids=torch.arange(3)).logs)
['attacked_correct', 'clean_correct', 'loss']
"""

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robust_nc.config import Component, build
from robust_nc.data.base import Split
from robust_nc.exceptions import ConfigError
from robust_nc.models.backbones import Backbone
from robust_nc.models.classifier import Classifier
from robust_nc.models.heads import Head
from robust_nc.registry import ATTACKS
from robust_nc.threat import Ball
from robust_nc.training.data_parallel import present
from robust_nc.training.losses import (
    FeatureLoss,
    PerExampleLoss,
    Seen,
    cross_entropy,
    kl_divergence,
)
from robust_nc.training.progress import TrainReport
from robust_nc.types import Attack, Images, Labels, Logits, Loss, PerExample


class Outputs(NamedTuple):
    """Logits `(N, K)` and losses `(N,)` of a batch."""

    logits: Tensor
    losses: Tensor


class Outer(nn.Module):
    """A model and a loss as one module, `(images, labels) -> Outputs`.

    So `torch.func.functional_call` can ask for the losses at other weights: parameter `p` of the
    model is `model.p` here. A head that learns from features (`Head.observe`) does so with each
    call, before the logits are made, unless `observe` is false.
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
            shown = features if classifier.head.gradient else features.detach()
            classifier.head.observe(shown, labels)
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


def outer(
    model: nn.Module, images: Images, labels: Labels, loss: PerExampleLoss | FeatureLoss
) -> Outputs:
    """Return logits and losses of a batch, once per step and with the gradient on."""
    found: Outputs = Outer(model, loss)(images, labels)
    return found


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
        found = outer(model, images, labels, self.loss)
        return logged(found.losses.mean(), {"clean_correct": correct(found.logits, labels)})


class Adversarial(ABC):
    """Base of defenses that attack each batch: `inner` makes the images, `outer_loss` the loss.

    A subclass is a frozen dataclass with the fields below.
    """

    ball: Ball
    loss: PerExampleLoss | FeatureLoss
    steps: int
    step_size: float | None
    bn_mode: BnMode
    best_by: ClassVar[BestBy] = "validation_attacked"
    in_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, found {self.steps}")
        if self.step_size is not None and not self.step_size > 0:
            raise ConfigError(f"step_size must be above 0, found {self.step_size}")

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
    CLIMBS: ClassVar[str] = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise ConfigError(f"beta must be at least 0, found {self.beta}")

    @cached_property
    def inner(self) -> Attack:
        """The inner attack."""
        return inner_attack(self.CLIMBS, "gaussian", self.steps, self.step_size, self.bn_mode)

    def outer_loss(self, outer: Outer, images: Images, attacked: Images, labels: Labels) -> Loss:
        """Return the loss with `clean_correct` and `attacked_correct`."""
        clean, logits = outer(images, labels), outer.model(attacked)
        accuracies = {
            "clean_correct": correct(clean.logits, labels),
            "attacked_correct": correct(logits, labels),
        }
        return logged(self.value(clean, logits, labels), accuracies)

    def value(self, clean: Outputs, attacked: Logits, labels: Labels) -> Tensor:
        """Return the scalar to descend, from what the model says of both."""
        return clean.losses.mean() + self.beta * kl_divergence(attacked, clean.logits).mean()


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


_FGSM_STEP = 1.25  # in units of eps, as in the paper


@dataclass(frozen=True)
class Fgsm(Pgd):
    """FGSM from a random start, the one-step case of `Pgd` (Wong, Rice, Kolter, ICLR 2020).

    `step_size` None stands for 1.25 eps; `bn_mode` as for `Pgd`.
    """

    steps: int = field(default=1, init=False)
    random_start: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.step_size is None and self.ball.eps > 0:
            object.__setattr__(self, "step_size", _FGSM_STEP * self.ball.eps)
        super().__post_init__()


@dataclass(frozen=True)
class Mart(Trades):
    """Misclassification-aware training (Wang et al., ICLR 2020).

    BCE(attacked) + beta (1 - p_y(clean)) KL(p(clean) || p(attacked)), with BCE as in
    `boosted_cross_entropy`; gradients flow into every part. The inner attack ascends the
    cross-entropy from 0.001 N(0, 1) around the image, as the authors' code does. There beta is 5
    for ResNet-18 and 6 for WideResNets. MART is a loss itself: any other `loss` than plain
    cross-entropy is refused. `step_size` and `bn_mode` as for `Pgd`.
    """

    beta: float = 5.0
    CLIMBS: ClassVar[str] = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        # What `build_loss` returns is a partial of the function.
        if getattr(self.loss, "func", self.loss) is not cross_entropy:
            raise ConfigError('mart brings its own loss; set train.loss = "ce", or leave it out')

    def value(self, clean: Outputs, attacked: Logits, labels: Labels) -> Tensor:
        """Return the scalar to descend, from what the model says of both."""
        doubt = -torch.expm1(-clean.losses)  # 1 - p_y, from the cross-entropy
        divergence = kl_divergence(attacked, clean.logits)
        values = boosted_cross_entropy(attacked, labels) + self.beta * doubt * divergence
        return values.mean()


def boosted_cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """-log p_y - log(1 - max p_k over k != y), in nats; finite for any finite logits."""
    log_p = logits.float().log_softmax(1)
    label = labels[:, None]
    runner_up = log_p.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    rest = log_p.scatter(1, runner_up, -torch.inf).logsumexp(1)  # log(1 - p of the runner-up)
    return -log_p.gather(1, label)[:, 0] - rest


_TINY = 1e-20


@dataclass(frozen=True)
class Awp:
    """`pgd` or `trades` with its weights perturbed (Wu, Xia, Wang, NeurIPS 2020).

    The images are attacked at the weights w. Then w moves once up the loss of the base, each tensor
    w_l of more than one dimension by gamma |w_l| g_l / |g_l| (g_l: its gradient), and the gradient
    there is the gradient of the step, which is taken from w itself; loss and accuracy are those at
    the moved weights. The authors' code has gamma 0.01 for PGD and 0.005 for TRADES, for which it
    begins after ten epochs; here it begins at once. `beta` (default 6) is an option of `trades`
    alone; the rest as for `Pgd`. Of a compiled model only the inner attack runs compiled.
    """

    ball: Ball
    loss: PerExampleLoss | FeatureLoss
    base: Literal["pgd", "trades"] = "pgd"
    gamma: float = 0.005
    beta: float | None = None
    steps: int = 10
    step_size: float | None = None
    bn_mode: BnMode = "eval"
    best_by: ClassVar[BestBy] = "validation_attacked"
    in_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ConfigError(f"gamma must be at least 0, found {self.gamma}")
        if self.base == "pgd" and self.beta is not None:
            raise ConfigError('beta is an option of base = "trades"; leave it out with "pgd"')
        _ = self.of_base  # which checks the rest

    @cached_property
    def of_base(self) -> Pgd | Trades:
        """The objective whose weights are perturbed."""
        if self.base == "pgd":
            return Pgd(self.ball, self.loss, self.steps, self.step_size, True, self.bn_mode)
        beta = 6.0 if self.beta is None else self.beta
        return Trades(self.ball, self.loss, beta, self.steps, self.step_size, self.bn_mode)

    def __call__(
        self, model: nn.Module, images: Images, labels: Labels, *, seed: int, ids: Tensor
    ) -> Loss:
        """Return the loss with `attacked_correct`, and with `clean_correct` for `trades`."""
        # Weights that are no parameters would be compiled again; the module itself takes them.
        plain: nn.Module = getattr(model, "_orig_mod", model)
        with batch_norm(model, self.bn_mode):
            attacked = self.of_base.inner(
                model, images, labels, self.ball, goal="maximise", seed=seed, ids=ids
            )
            moved = self._moved(plain, images, attacked, labels)
            loss: Loss = functional_call(
                _Step(plain, self.of_base), moved, (images, attacked, labels)
            )
        return loss

    def _moved(
        self, model: nn.Module, images: Images, attacked: Images, labels: Labels
    ) -> dict[str, Tensor]:
        """Return the perturbed weights by name, still functions of the model's own."""
        step = _Step(model, self.of_base, observe=False)
        weights = {
            name: parameter
            for name, parameter in step.named_parameters()
            if parameter.requires_grad and parameter.ndim > 1
        }
        here = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        # Batch norm learns from the step that counts, not from this one.
        buffers = {name: buffer.clone() for name, buffer in step.named_buffers()}
        loss: Loss = functional_call(step, here | buffers, (images, attacked, labels))
        slopes = present().slopes(loss.value, list(here.values()))
        return {
            name: weight + self.gamma * _of_its_length(slope, weight.detach())
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
            if slope is not None
        }


class _Step(nn.Module):
    """The outer step of `Pgd` or `Trades` as a module: what to descend, on images once attacked."""

    def __init__(self, model: nn.Module, base: Pgd | Trades, *, observe: bool = True) -> None:
        super().__init__()
        self.outer = Outer(model, base.loss, observe=observe)
        self.base = base

    def forward(self, images: Images, attacked: Images, labels: Labels) -> Loss:
        """Return the base's loss and accuracies."""
        return self.base.outer_loss(self.outer, images, attacked, labels)


def _of_its_length(slope: Tensor, weight: Tensor) -> Tensor:
    """Return the slope, scaled to the length of the weight; zero where the slope is."""
    length = torch.linalg.vector_norm(slope).clamp_min(_TINY)
    ratio: Tensor = torch.linalg.vector_norm(weight) / length
    return slope * ratio
