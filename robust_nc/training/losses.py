"""Training losses, one value per example: `(logits (N, K), labels (N,)) -> (N,)`.

Values are float32, or float64 for float64 logits. Options are checked when a suite is read and by
`build_loss`. A loss whose first parameter is `seen` reads more than logits: features and head
(`FeatureLoss`); those stand in `feature_losses`.

>>> import torch
>>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == [torch.tensor(4.0).log()] * 2
True
>>> logits, labels = torch.tensor([[8.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1])
>>> [round(value, 3) for value in label_relaxation(logits, labels).tolist()]
[0.0, 0.704]
>>> build_loss(Component(name="margin", options={"kappa": 0.5}))(logits, labels).tolist()
[0.0, 0.5]
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robust_nc.config import Component, check_options
from robust_nc.data.hierarchy.tree import hierarchy_names, read_hierarchy
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.heads import Head, unit_rows
from robust_nc.registry import LOSSES
from robust_nc.types import Labels, Logits, PerExample

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
_GIVEN = ("logits", "seen", "labels", "progress")


class Seen(NamedTuple):
    """What a batch became: logits `(N, K)`, the features `(N, D)` that the head read, the head."""

    logits: Tensor
    features: Tensor
    head: Head


@dataclasses.dataclass(frozen=True)
class FeatureLoss:
    """A loss of `Seen` and labels; one with a parameter `progress` changes over the training."""

    function: Callable[..., Tensor]
    options: Mapping[str, Any]
    progress: float = 0.0

    @property
    def scheduled(self) -> bool:
        """Whether the loss depends on how much of the training is done."""
        return "progress" in inspect.signature(self.function).parameters

    def at(self, progress: float) -> "FeatureLoss":
        """Return the loss at a share of the training, in [0, 1]."""
        return dataclasses.replace(self, progress=progress)

    def __call__(self, seen: Seen, labels: Tensor) -> Tensor:
        """Return one value per example, `(N,)`."""
        moment = {"progress": self.progress} if self.scheduled else {}
        return self.function(seen, labels, **self.options, **moment)


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """-log softmax(logits)_y, in nats."""
    return F.cross_entropy(widened(logits), labels, reduction="none")


def label_smoothing(logits: Logits, labels: Labels, *, alpha: BelowOne = 0.1) -> PerExample:
    """Cross-entropy to (1 - alpha) one-hot + alpha / K, in nats (Szegedy et al., CVPR 2016).

    Not 0 at its best, where softmax(logits) is that target. `alpha` in [0, 1); 0: cross-entropy.
    """
    return F.cross_entropy(widened(logits), labels, reduction="none", label_smoothing=alpha)


def label_relaxation(logits: Logits, labels: Labels, *, alpha: BelowOne = 0.1) -> PerExample:
    """KL divergence, in nats, to the nearest distribution that gives y at least 1 - alpha.

    With p = softmax(logits): 0 where p_y > 1 - alpha, else KL(p^r || p) with p^r_y = 1 - alpha and
    alpha shared among the other classes in proportion to p (Lienen and Huellermeier, AAAI 2021).
    That p^r is the nearest one, so the gradient is p - p^r, whether or not p^r is held constant.
    What the proportions leave is (1 - alpha) log((1 - alpha) / p_y) + alpha log(alpha / (1 - p_y)).
    `alpha` in [0, 1); 0: cross-entropy.
    """
    log_p = F.log_softmax(widened(logits), 1)
    log_right = log_p.gather(1, labels[:, None]).squeeze(1)
    log_wrong = _others(log_p, labels).logsumexp(1)
    entropy = -sum(share * math.log(share) for share in (1 - alpha, alpha) if share > 0)
    divergence = -(1 - alpha) * log_right - alpha * log_wrong - entropy
    return divergence.where(log_right <= math.log1p(-alpha), 0.0)


def soft_labels(
    logits: Logits, labels: Labels, *, hierarchy: str | None = None, beta: NotNegative = 10.0
) -> PerExample:
    """Cross-entropy to a target that falls with the distance in a tree, in nats.

    Class k has a share exp(-beta d(y, k) / d_max) (Bertinetto et al., CVPR 2020). `hierarchy` is a
    tree of the package or a path, as `HaFrameHead` has it; a large `beta` gives one-hot labels.
    Raises `InputError` without a tree, and for one of another number of classes.
    """
    if hierarchy is None:
        raise InputError(f"soft labels need a tree of the classes: {', '.join(hierarchy_names())}")
    distances = _distances(hierarchy)
    if logits.shape[1] != len(distances):
        read_hierarchy(hierarchy).check_classes(logits.shape[1])
    targets = (-beta * distances / distances.max()).softmax(1)
    values = widened(logits)
    return F.cross_entropy(values, targets.to(values)[labels], reduction="none")


@functools.lru_cache(maxsize=8)
def _distances(hierarchy: str) -> Tensor:
    return read_hierarchy(hierarchy).distances().double()


def squared_error(
    logits: Logits, labels: Labels, *, target: Literal["one_hot", "signed"] = "one_hot"
) -> PerExample:
    """Mean over the K classes of (logit - target)^2.

    `target`: 1 for the label's class, and for the others 0 ("one_hot") or -1 ("signed").
    """
    values = widened(logits)
    wanted = F.one_hot(labels, logits.shape[1]).to(values.dtype)
    if target == "signed":
        wanted = 2 * wanted - 1
    return (values - wanted).square().mean(1)


def margin_loss(logits: Logits, labels: Labels, *, kappa: NotNegative = 1.0) -> PerExample:
    """max(0, kappa + largest other logit - the label's): the multi-class hinge.

    With `kappa` 1 that of Crammer and Singer (JMLR 2001); 0 asks for no more than a right answer,
    and any other is the confidence of Carlini and Wagner (S&P 2017), shifted to end at 0. An
    example whose label leads by `kappa` moves nothing.
    """
    values = widened(logits)
    right = values.gather(1, labels[:, None]).squeeze(1)
    return (kappa + _others(values, labels).amax(1) - right).relu()


def kl_divergence(logits: Logits, reference: Logits) -> PerExample:
    """KL(softmax(reference) || softmax(logits)) in nats; gradients flow into both."""
    p = F.log_softmax(widened(reference), 1)
    return (p.exp() * (p - F.log_softmax(widened(logits), 1))).sum(1)


def widened(values: Tensor) -> Tensor:
    """Bring to float32 what is less precise; float64 stays float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def build_loss(part: Component, *, feature_decay: float = 0.0) -> PerExampleLoss | FeatureLoss:
    """Return the registered loss with its options fixed; raises `ConfigError` for a wrong one.

    With `feature_decay`, half of it times |features|^2 is added.
    """
    options = check_options(LOSSES, part, _GIVEN)
    function = LOSSES.load(part.name)
    loss: PerExampleLoss | FeatureLoss = functools.partial(function, **options)
    if "seen" in inspect.signature(function).parameters:
        loss = FeatureLoss(function, options)
    return FeatureLoss(_decayed, {"loss": loss, "decay": feature_decay}) if feature_decay else loss


def _decayed(
    seen: Seen,
    labels: Labels,
    *,
    loss: PerExampleLoss | FeatureLoss,
    decay: float,
    progress: float = 0.0,
) -> PerExample:
    if isinstance(loss, FeatureLoss):
        values = loss.at(progress)(seen, labels)
    else:
        values = loss(seen.logits, labels)
    return values + decay / 2 * widened(seen.features).square().sum(1)


def _others(values: Logits, labels: Labels) -> Logits:
    """Put -inf in place of the label's value."""
    return values.scatter(1, labels[:, None], -torch.inf)


Schedule = Literal[
    "constant",
    "linear_increase",
    "linear_decrease",
    "cosine",
    "cosine_linear_increase",
    "cosine_linear_decrease",
]
Share = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(gt=0)]


def dot_regression(seen: Seen, labels: Labels) -> PerExample:
    """1/2 (cos(h, w_y) - 1)^2 for features h (Yang et al., NeurIPS 2022).

    w_y is the label's row of the head's fixed frame; where a head has none, its vertices at unit
    length stand in, and learn too. In [0, 2]. The lengths sqrt(E_H) and sqrt(E_W) of the original
    are 1 here. Only the label's class is asked for: nothing pushes the other classes away.
    """
    directions = seen.head.frame()
    if directions is None:
        directions = unit_rows(seen.head.vertices())
    features = widened(seen.features)
    cosines = (unit_rows(features) * directions.to(features.dtype)[labels]).sum(1)
    return (cosines - 1).square() / 2


def haframe_loss(
    seen: Seen,
    labels: Labels,
    *,
    alpha: Share = 0.4,
    schedule: Schedule = "constant",
    period: Above = 1.0,
    progress: float = 0.0,
) -> PerExample:
    """(1 - a) cross-entropy + a sum_c (cos(w_c, h) - <w_c, w_y>)^2 (Liang and Davis, 2023).

    Features h are asked to stand to every class as the label's own row of the frame does. a is
    `alpha` times the `schedule` at `progress` (`schedule_at`). Raises `ConfigError` for a head
    without a fixed frame.
    """
    weight = alpha * schedule_at(schedule, progress, period=period)
    frame = seen.head.frame()
    if frame is None:
        raise ConfigError(
            f"the loss 'haframe' reads the head's fixed frame, and {type(seen.head).__name__} has "
            "none; choose the head 'haframe', 'etf', 'nearest_etf' or 'orthogonal', or another loss"
        )
    with torch.autocast(seen.features.device.type, enabled=False):
        inputs = widened(seen.features)
        rows = frame.to(inputs.dtype)
        # <w_c, h / |h| - w_y> for every class c.
        angular = ((unit_rows(inputs) - rows[labels]) @ rows.T).square().sum(1)
    return (1 - weight) * cross_entropy(seen.logits, labels) + weight * angular


def schedule_at(schedule: Schedule, progress: float, *, period: float = 1.0) -> float:
    """Return the share of `alpha` that holds at `progress`, both in [0, 1]: those of the authors.

    "linear_increase" rises from 0 to 1 over the training, "linear_decrease" falls from 1 to 0.
    "cosine" is a wave from 0 up to 1 and back in every `period` (a share of the training).
    "cosine_linear_increase" is that wave times the progress, "cosine_linear_decrease" is 1 minus
    it. With `alpha` 1 these are the weights of the authors' code, which counts epochs, not steps.

    >>> schedule_at("linear_decrease", 0.25), round(schedule_at("cosine", 0.25, period=0.5), 6)
    (0.75, 1.0)
    """
    wave = (1 - math.cos(2 * math.pi * progress / period)) / 2
    shares: dict[Schedule, float] = {
        "constant": 1.0,
        "linear_increase": progress,
        "linear_decrease": 1 - progress,
        "cosine": wave,
        "cosine_linear_increase": wave * progress,
        "cosine_linear_decrease": 1 - wave * progress,
    }
    return shares[schedule]
