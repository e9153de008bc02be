"""The nearest-vertex classifier of each tap, attacked itself, beside what merely transfers to it.

Points made against the network were never meant to fool an earlier tap, so what they leave standing
says nothing about how robust that tap is:

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8))).eval()
>>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
>>> vertices = model.tapped(images).features["block1"].detach().view(2, 10, -1).mean(0)
>>> trial = Trial(images, labels, Ball("Linf", 0.1), "pgd")
>>> verdict = attack_tap(model, trial, "block1", vertices)
>>> verdict.adaptive <= verdict.transferred <= verdict.clean
True
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.checks import check_images
from robust_nc.evaluation.evaluate_model import Outcome, evaluate
from robust_nc.evaluation.state import TRANSFERRED
from robust_nc.exceptions import InputError
from robust_nc.models.nearest_vertex import nearest_vertex_classifier
from robust_nc.models.taps import module_taps, read_taps
from robust_nc.plugins import find_protocol
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import ModelExecutor
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Progress, Report
from robust_nc.runtime.torch_state import device_of
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol, Warned

_POINTS = 0.002  # share of the examples from which it counts that transfer does more
_SAME = 1e-6  # of the size of vertices: of one set of features they differ by rounding only
_BATCH = 256  # images at a time, to compare taps


class TapVerdict(NamedTuple):
    """What the nearest-vertex classifier of one tap withstands; shares of the same N examples.

    `clean`: correct as they are; `transferred`: correct also at the points that were made against
    the network; `adaptive`: that neither those points nor the attack on the classifier itself
    breaks, the one number that says how robust the tap is; `network`: what the network withstands
    of the same two. `outcome` is the worst case over both, with "transfer" in `broken_by` where
    only the network's points break; `scale` is what the logits were divided by.
    """

    clean: float
    transferred: float
    adaptive: float
    network: float
    outcome: Outcome
    scale: float


class Trial(NamedTuple):
    """What every verdict here has in common: examples as for `evaluate`, ball, protocol, draws."""

    images: Tensor
    labels: Tensor
    ball: Ball
    protocol: str | EvaluationProtocol = "standard"
    seed: int = 0
    ids: Tensor | None = None

    def evaluate(
        self, model: nn.Module, report: Callable[[Progress], None] | None = None
    ) -> Outcome:
        """Make the verdict of the protocol on a model."""
        return evaluate(
            model,
            self.images,
            self.labels,
            self.ball,
            protocol=self.protocol,
            seed=self.seed,
            ids=self.ids,
            report=report,
        )

    @property
    def plan(self) -> EvaluationProtocol:
        """The protocol itself."""
        return find_protocol(self.protocol) if isinstance(self.protocol, str) else self.protocol

    def stands(self, model: nn.Module, points: Tensor) -> Tensor:
        """Whether a model is right at points made before, `(N,)`; evaluated as all others are."""
        alone = self._replace(images=points, protocol=self.plan._replace(attacks=(), by_norm={}))
        return alone.evaluate(model).clean_correct


def attack_tap(
    model: nn.Module,
    trial: Trial,
    tap: str,
    vertices: Tensor,
    *,
    feature: str = "gap",
    network: Outcome | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TapVerdict:
    """Attack the nearest-vertex classifier of one tap by a protocol, and by transfer.

    `vertices` (K, D) are clean class means of the tap's features (`feature` "gap" or "flatten"; a
    class without one is a row of NaN). `network` is the verdict of the same trial on the network
    (None: made here); an example that the network gets wrong as it is counts with the point that
    stands there. Logits are divided so that the median margin of the images is 5.

    Where transfer breaks more than 0.2 points beyond the classifier's own attack, the outcome's
    warnings say `transfer-stronger`: that attack was too weak. Raises `InputError` without
    examples, for a `network` of other examples, and what `evaluate` and `NearestVertexClassifier`
    raise.
    """
    images = check_images(trial.images)
    if not len(images):
        raise InputError("a verdict on a tap needs examples, found none")
    network = trial.evaluate(model) if network is None else network
    if network.adversarials.shape != images.shape:
        raise InputError(
            f"network holds points of shape {tuple(network.adversarials.shape)} for images of "
            f"shape {tuple(images.shape)}; it must be the verdict on the same examples"
        )
    classifier = nearest_vertex_classifier(model, tap, vertices, images, feature=feature)
    points = trial.ball.project(network.adversarials, images.cpu())
    stands = trial.stands(classifier, points)
    own = trial.evaluate(classifier, report)
    outcome = _worst(own, points, stands)
    too = trial.stands(model, trial.ball.project(own.adversarials, images.cpu()))
    return TapVerdict(
        clean=own.clean_accuracy,
        transferred=_share(own.clean_correct & stands),
        adaptive=outcome.robust_accuracy,
        network=_share(network.robust & too),
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


def tap_attack_rows(
    executor: ModelExecutor,
    trial: Trial,
    network: object,
    vertices: Mapping[str, Tensor],
    feature: str,
    report: Report,
) -> list[Row]:
    """Return what `TapVerdict` holds of each tap, side by side.

    All are of the same examples and of one protocol; before them stands the network's own
    `robust_accuracy`, of `network`, the handle of what `attack_network` gave. `vertices` maps each
    tap, in depth order, to its clean class means (K, D). The names of the warnings of a verdict are
    in the note of its row. Taps with equal features share one verdict, made at the last of them.

    Raises `StoppedError` between two taps, and what `attack_tap` raises.
    """
    shared = executor.lend(trial)
    twins, alone = executor.ask(compare_taps, shared, network, vertices, feature)
    distinct = list(dict.fromkeys(twins.values()))
    parts = [(shared, network, tap, vertices[tap], feature) for tap in distinct]
    verdicts: dict[str, list[Row]] = {}
    found = executor.each(attack_one_tap, parts, report=report)
    for tap, its in zip(distinct, found, strict=True):
        verdicts[tap] = its
        stopping.heed()
    places = module_taps(executor.model)
    common: Row = {"condition": "attacked", "split": "test", "grouping": "true"}
    common |= {"n": len(trial.images), "feature": feature, "attack": trial.plan.name}
    common["eps"] = float(trial.ball.eps)
    rows: list[Row] = [{"tap": "output", "vertices": "none", **alone}]
    for tap, twin in twins.items():
        place: Row = {"tap": tap, "depth": places.index(tap) if tap in places else -1}
        same = "" if tap == twin else f"same features as {twin}"
        for row in verdicts[twin]:
            note = "; ".join(part for part in (same, row["note"]) if part)
            rows.append(place | row | {"vertices": "clean-train", "note": note})
    return [common | row for row in rows]


def attack_network(model: nn.Module, trial: Trial, *, report: Report) -> Outcome:
    """Make the verdict on the network itself."""
    return trial.evaluate(model, _progress(report, "output"))


def compare_taps(
    model: nn.Module,
    trial: Trial,
    network: Outcome,
    vertices: Mapping[str, Tensor],
    feature: str,
    *,
    report: Report,
) -> tuple[dict[str, str], Row]:
    """Return each tap's last twin, whose features are its own, and the network's value and note."""
    twins = _same_features(model, vertices, (trial.images, network.adversarials), feature)
    value, note = network.robust_accuracy, _names(network.warnings)
    return twins, {"measure": "robust_accuracy", "value": value, "note": note}


def attack_one_tap(
    model: nn.Module,
    trial: Trial,
    network: Outcome,
    tap: str,
    vertices: Tensor,
    feature: str,
    *,
    report: Report,
) -> list[Row]:
    """Rows of one tap's verdict; the points stay where they were made."""
    told = _progress(report, tap)
    found = attack_tap(model, trial, tap, vertices, feature=feature, network=network, report=told)
    warned = _names(found.outcome.warnings)
    values = {
        "ncc_clean": found.clean,
        "ncc_transferred": found.transferred,
        "robust_accuracy_at_both": found.network,
    }
    rows = [{"measure": name, "value": value, "note": ""} for name, value in values.items()]
    return [*rows, {"measure": "ncc_adaptive", "value": found.adaptive, "note": warned}]


def _progress(report: Report, tap: str) -> Callable[[Progress], None]:
    return lambda now: report(now.share, f"adaptive, {tap}: {now}")


def _names(warnings: tuple[Warned, ...]) -> str:
    return ", ".join(warned.name for warned in warnings)


def _same_features(
    model: nn.Module, vertices: Mapping[str, Tensor], images: Sequence[Tensor], feature: str
) -> dict[str, str]:
    """Map each tap to the last one that has its vertices and, on all images, its features."""
    taps = list(vertices)
    pairs = [
        (tap, later)
        for index, tap in enumerate(taps)
        for later in taps[index + 1 :]
        if _close(vertices[tap], vertices[later])
    ]
    device = device_of(model)
    for batch in (part for whole in images for part in torch.split(whole, _BATCH)):
        if not pairs:
            break
        names = sorted({tap for pair in pairs for tap in pair})
        with torch.no_grad():
            found = read_taps(model, batch.to(device), names, feature).features
        pairs = [(tap, later) for tap, later in pairs if torch.equal(found[tap], found[later])]
    same = {tap: tap for tap in taps}
    for tap, later in pairs:  # in the order of taps, so that the last one stays
        same[tap] = later
    return same


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double().to(one.device)
    size = float(one.nan_to_num().abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=_SAME * size, equal_nan=True)
