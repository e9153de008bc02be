"""The nearest-vertex classifier of each tap, attacked itself, beside what merely transfers to it.

Points made against the network were never meant to fool an earlier tap, so what they leave standing
says nothing about how robust that tap is:

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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.checks import check_images
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.grid.rows import Row
from robust_nc.models.nearest_vertex import NearestVertexClassifier, nearest_vertex_classifier
from robust_nc.models.taps import module_taps, read_taps
from robust_nc.pacing import Progress
from robust_nc.plugins import find_protocol
from robust_nc.runtime import device_of, full_precision, untouched
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol, Warned

Report = Callable[[float, str], None]

TRANSFER = "transfer"  # `broken_by` of an example that only the network's points break

_POINTS = 0.002  # share of the examples from which it counts that transfer does more
_SAME = 1e-6  # of the size of vertices: of one set of features they differ by rounding only
_BATCH = 256  # images at a time, to compare taps


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
    trial = _Trial(images, labels, ball, protocol, seed, ids, batch_size)
    network = trial.network(model, against_network, None)
    classifier = nearest_vertex_classifier(model, tap, vertices, images, feature=feature)
    return _verdict(classifier, trial, network, report)


def adaptive_rows(
    model: nn.Module,
    vertices: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    taps: Sequence[str],
    feature: str,
    protocol: str | EvaluationProtocol,
    seed: int,
    ids: Tensor | None = None,
    batch_size: int | None = None,
    against_network: Outcome | None = None,
    report: Report | None = None,
) -> list[Row]:
    """Return `ncc_clean`, `ncc_transferred` and `ncc_adaptive` of each tap, side by side.

    All are of the same examples and of one protocol; before them stands the network's own
    `robust_accuracy`. `vertices` maps each tap to its clean class means (K, D). The names of the
    warnings of a verdict are in the note of its row. Taps with equal features share one verdict,
    made at the last of them. `against_network` as for `attack_tap`. `report` gets the share that is
    done and what is going on.

    Raises `InputError` without examples, `UnknownNameError` for a tap without vertices, and what
    `attack_tap` raises.
    """
    for tap in taps:
        if tap not in vertices:
            raise unknown_name("tap with vertices", tap, vertices)
    images = check_images(images)
    if not len(images):
        raise InputError("a verdict on taps needs examples, found none")
    trial = _Trial(images, labels, ball, protocol, seed, ids, batch_size)
    stages = _Stages(report, 1 + len(taps))
    with untouched(model), full_precision():
        network = trial.network(model, against_network, stages.begin("output"))
        known = {tap: vertices[tap] for tap in taps}
        twins = _same_features(model, known, (images, network.adversarials), feature)
        verdicts = {}
        for tap in stages.left(dict.fromkeys(twins.values())):
            classifier = nearest_vertex_classifier(model, tap, known[tap], images, feature=feature)
            verdicts[tap] = _verdict(classifier, trial, network, stages.begin(tap))
    name = protocol if isinstance(protocol, str) else protocol.name
    common: Row = {"condition": "attacked", "split": "test", "grouping": "true", "n": len(images)}
    common |= {"feature": feature, "attack": name, "eps": float(ball.eps)}
    places = module_taps(model)
    rows = [_network_row(network)]
    for tap in taps:
        place = {"tap": tap, "depth": places.index(tap) if tap in places else -1}
        rows += [place | row for row in _tap_rows(tap, twins[tap], verdicts[twins[tap]])]
    return [common | row for row in rows]


class _Trial(NamedTuple):
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

    def network(
        self,
        model: nn.Module,
        given: Outcome | None,
        report: Callable[[Progress], None] | None,
    ) -> Outcome:
        """Return the verdict on the network itself: the one given, or made here."""
        if given is None:
            return self.judge(model, report)
        if given.adversarials.shape != self.images.shape:
            raise InputError(
                f"against_network holds points of shape {tuple(given.adversarials.shape)} for "
                f"images of shape {tuple(self.images.shape)}; it must be the verdict on the same "
                "examples"
            )
        return given

    def stands(self, model: nn.Module, points: Tensor) -> Tensor:
        """Whether a model is right at points made before, `(N,)`; judged as all others are."""
        plan = find_protocol(self.protocol) if isinstance(self.protocol, str) else self.protocol
        alone = self._replace(images=points, protocol=plan._replace(attacks=(), by_norm={}))
        return alone.judge(model, None).clean_correct


def _verdict(
    classifier: NearestVertexClassifier,
    trial: _Trial,
    network: Outcome,
    report: Callable[[Progress], None] | None,
) -> TapVerdict:
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


class _Stages:
    """Turns the progress of one evaluation after another into a share of the whole."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._report = report
        self._begun = 0
        self._total = total

    def left(self, taps: Iterable[str]) -> list[str]:
        """Take note of what is still to be done."""
        names = list(taps)
        self._total = self._begun + len(names)
        return names

    def begin(self, tap: str) -> Callable[[Progress], None] | None:
        """Return what `evaluate` may tell about its verdict at the next tap."""
        report, before = self._report, self._begun
        self._begun += 1
        if report is None:
            return None
        return lambda now: report((before + now.share) / self._total, f"adaptive, {tap}: {now}")


def _network_row(network: Outcome) -> Row:
    place = {"tap": "output", "vertices": "none", "measure": "robust_accuracy"}
    return place | {"value": network.robust_accuracy, "note": _names(network.warnings)}


def _tap_rows(tap: str, twin: str, verdict: TapVerdict) -> Iterator[Row]:
    """Yield the three shares of one tap; where its features are another tap's, the note says so."""
    same = "" if tap == twin else f"same features as {twin}"
    for name, value, warnings in (
        ("ncc_clean", verdict.clean, ""),
        ("ncc_transferred", verdict.transferred, ""),
        ("ncc_adaptive", verdict.adaptive, _names(verdict.outcome.warnings)),
    ):
        note = "; ".join(part for part in (same, warnings) if part)
        yield {"measure": name, "vertices": "clean-train", "value": value, "note": note}


def _names(warnings: tuple[Warned, ...]) -> str:
    return ", ".join(warned.name for warned in warnings)


def _worst(own: Outcome, points: Tensor, stands: Tensor) -> Outcome:
    """Add the transferred points to a verdict: an example must stand at both."""
    fallen = own.robust & ~stands
    broken_by = tuple(
        TRANSFER if fell else name
        for name, fell in zip(own.broken_by, fallen.tolist(), strict=True)
    )
    warnings = own.warnings
    if _share(fallen) > _POINTS:
        message = (
            f"points made against the network break {_share(fallen):.1%} of the examples that the "
            "attack on the nearest-vertex classifier itself missed: that attack was too weak"
        )
        warnings = (*warnings, Warned("transfer-stronger", message))
    return own._replace(
        robust=own.robust & stands,
        broken_by=broken_by,
        adversarials=torch.where(fallen[:, None, None, None], points, own.adversarials),
        forward_passes=own.forward_passes + 1,
        warnings=warnings,
    )


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


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
