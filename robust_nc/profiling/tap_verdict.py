"""The verdict on the nearest-vertex classifier of one tap: its own attack, and what transfers.

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8))).eval()
>>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
>>> vertices = model.tapped(images).features["block1"].detach().view(2, 10, -1).mean(0)
>>> ball = Ball("Linf", 0.1)
>>> verdict = attack_tap(model, "block1", vertices, images, labels, ball, protocol="pgd")
>>> verdict.adaptive <= verdict.transferred <= verdict.clean
True
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.checks import check_images
from robust_nc.evaluation.evaluate_model import Outcome, evaluate
from robust_nc.evaluation.state import TRANSFERRED
from robust_nc.exceptions import InputError
from robust_nc.models.nearest_vertex import NearestVertexClassifier, nearest_vertex_classifier
from robust_nc.plugins import find_protocol
from robust_nc.runtime.progress import Progress
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol, Warned

_POINTS = 0.002  # share of the examples from which it counts that transfer does more


class TapVerdict(NamedTuple):
    """What the nearest-vertex classifier of one tap withstands; shares of the same N examples.

    `clean`: correct as they are; `transferred`: correct also at the points that were made against
    the network; `adaptive`: that neither those points nor the attack on the classifier itself
    breaks, the one number that says how robust the tap is. `outcome` is the worst case over both,
    with "transfer" in `broken_by` where only the network's points break; `scale` is what the
    logits were divided by.
    """

    clean: float
    transferred: float
    adaptive: float
    outcome: Outcome
    scale: float


def attack_tap(
    model: nn.Module,
    tap: str,
    vertices: Tensor,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    protocol: str | EvaluationProtocol = "standard",
    feature: str = "gap",
    seed: int = 0,
    ids: Tensor | None = None,
    batch_size: int | None = None,
    against_network: Outcome | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TapVerdict:
    """Attack the nearest-vertex classifier of one tap by a protocol, and by transfer.

    `vertices` (K, D) are clean class means of the tap's features (`feature` "gap" or "flatten"; a
    class without one is a row of NaN), `images` (N, C, H, W) and `labels` (N,) as for `evaluate`.
    `against_network` is the verdict of the same protocol on the network, of the same examples in
    the same order (None: made here); an example that the network gets wrong as it is counts with
    the point that stands there. Logits are divided so that the median margin of `images` is 5.

    Where transfer breaks more than 0.2 points beyond the classifier's own attack, the outcome's
    warnings say `transfer-stronger`: that attack was too weak. Raises `InputError` without
    examples, for an `against_network` of other examples, and what `evaluate` and
    `NearestVertexClassifier` raise.
    """
    images = check_images(images)
    if not len(images):
        raise InputError("a verdict on a tap needs examples, found none")
    trial = Trial(images, labels, ball, protocol, seed, ids, batch_size)
    network = trial.judge(model, None) if against_network is None else against_network
    trial.checked(network)
    classifier = nearest_vertex_classifier(model, tap, vertices, images, feature=feature)
    return verdict_at(classifier, trial, network, report)


class Trial(NamedTuple):
    """What every verdict here has in common: examples, ball, protocol and draws."""

    images: Tensor
    labels: Tensor
    ball: Ball
    protocol: str | EvaluationProtocol
    seed: int
    ids: Tensor | None
    batch_size: int | None

    def judge(self, model: nn.Module, report: Callable[[Progress], None] | None) -> Outcome:
        """Make the verdict of the protocol on a model."""
        return evaluate(
            model,
            self.images,
            self.labels,
            self.ball,
            protocol=self.protocol,
            seed=self.seed,
            ids=self.ids,
            batch_size=self.batch_size,
            report=report,
        )

    def checked(self, network: Outcome) -> Outcome:
        """Refuse a verdict on the network of other examples than these."""
        if network.adversarials.shape != self.images.shape:
            raise InputError(
                f"against_network holds points of shape {tuple(network.adversarials.shape)} for "
                f"images of shape {tuple(self.images.shape)}; it must be the verdict on the same "
                "examples"
            )
        return network

    @property
    def plan(self) -> EvaluationProtocol:
        """The protocol itself."""
        return find_protocol(self.protocol) if isinstance(self.protocol, str) else self.protocol

    def stands(self, model: nn.Module, points: Tensor) -> Tensor:
        """Whether a model is right at points made before, `(N,)`; judged as all others are."""
        alone = self._replace(images=points, protocol=self.plan._replace(attacks=(), by_norm={}))
        return alone.judge(model, None).clean_correct


def verdict_at(
    classifier: NearestVertexClassifier,
    trial: Trial,
    network: Outcome,
    report: Callable[[Progress], None] | None,
) -> TapVerdict:
    """Attack a classifier, beside the points that were made against the network."""
    points = trial.ball.project(network.adversarials, trial.images.cpu())
    stands = trial.stands(classifier, points)
    own = trial.judge(classifier, report)
    outcome = _worst(own, points, stands)
    return TapVerdict(
        clean=own.clean_accuracy,
        transferred=_share(own.clean_correct & stands),
        adaptive=outcome.robust_accuracy,
        outcome=outcome,
        scale=float(classifier.scale),
    )


def _worst(own: Outcome, points: Tensor, stands: Tensor) -> Outcome:
    """Add the transferred points to a verdict: an example must stand at both."""
    fallen = own.robust & ~stands
    warnings = own.warnings
    if _share(fallen) > _POINTS:
        message = (
            f"points made against the network break {_share(fallen):.1%} of the examples that the "
            "attack on the nearest-vertex classifier itself missed: that attack was too weak"
        )
        warnings = (*warnings, Warned("transfer-stronger", message))
    return own._replace(
        robust=own.robust & stands,
        codes=own.codes.masked_fill(fallen, TRANSFERRED),
        adversarials=torch.where(fallen[:, None, None, None], points, own.adversarials),
        forward_passes=own.forward_passes + 1,
        warnings=warnings,
    )


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
