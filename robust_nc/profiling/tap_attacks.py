"""The nearest-vertex classifier of each tap, attacked itself, beside what merely transfers to it.

Points made against the network were never meant to fool an earlier tap, so what they leave standing
says nothing about how robust that tap is:

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8))).eval()
>>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
>>> vertices = model.tapped(images).features["block1"].detach().view(2, 10, -1).mean(0)
>>> rows = adaptive_rows(
...     model, {"block1": vertices}, images, labels, Ball("Linf", 0.1),
...     taps=["block1"], feature="gap", protocol="pgd", seed=0,
... )
>>> [row["measure"] for row in rows]
['robust_accuracy', 'ncc_clean', 'ncc_transferred', 'ncc_adaptive']
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.checks import check_images
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.models.nearest_vertex import nearest_vertex_classifier
from robust_nc.models.taps import module_taps, read_taps
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import Crew, Sent, at_work
from robust_nc.profiling.tap_verdict import TapVerdict, Trial, attack_tap, verdict_at
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Progress, Report, no_report
from robust_nc.runtime.torch_state import device_of
from robust_nc.threat import Ball
from robust_nc.types import EvaluationProtocol, Warned

__all__ = ["TapVerdict", "adaptive_rows", "attack_tap", "verdict_rows"]

_SAME = 1e-6  # of the size of vertices: of one set of features they differ by rounding only
_BATCH = 256  # images at a time, to compare taps


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
    trial = Trial(images, labels, ball, protocol, seed, ids, batch_size)
    crew, report = Crew(model), report or no_report
    if against_network is None:
        told = partial(_share_told, report, 0, 1 + len(taps))
        network = crew.map(judge_network, [(trial,)], report=told)[0]
    else:
        network = trial.checked(against_network)
    known = {tap: vertices[tap] for tap in taps}
    return verdict_rows(trial, network, known, module_taps(model), feature, crew, report)


def verdict_rows(
    trial: Trial,
    network: object,
    vertices: Mapping[str, Tensor],
    places: Sequence[str],
    feature: str,
    crew: Crew,
    report: Report,
) -> list[Row]:
    """Make the rows of `adaptive_rows`, tap by tap; `network` is the handle of its verdict.

    `places` are all taps of the model, in depth order. Raises `StoppedError` between two taps.
    """
    shared = crew.lend(trial)
    compared: _Compared = crew.ask(compare_taps, shared, network, vertices, feature)
    distinct = list(dict.fromkeys(compared.twins.values()))
    parts = [(shared, network, tap, vertices[tap], feature) for tap in distinct]
    told = partial(_share_told, report, 1, 1 + len(distinct))
    verdicts = {}
    for verdict in crew.each(judge_tap, parts, report=told):
        verdicts[verdict.tap] = verdict
        stopping.heed()
    common: Row = {"condition": "attacked", "split": "test", "grouping": "true"}
    common |= {"n": len(trial.images), "feature": feature, "attack": trial.plan.name}
    common["eps"] = float(trial.ball.eps)
    rows: list[Row] = [{"tap": "output", "vertices": "none", **compared.network}]
    for tap, twin in compared.twins.items():
        place = {"tap": tap, "depth": places.index(tap) if tap in places else -1}
        rows += [place | row for row in _tap_rows(tap, verdicts[twin])]
    return [common | row for row in rows]


def judge_network(sent: Sent, trial: Trial, *, report: Report) -> Outcome:
    """Make the verdict on the network itself."""
    with at_work(sent):
        return trial.judge(sent.model, partial(_progress_told, report, "output"))


class _Compared(NamedTuple):
    """Each tap's last twin, whose features are its own, and the network's value and note."""

    twins: dict[str, str]
    network: Row


def compare_taps(
    sent: Sent,
    trial: Trial,
    network: Outcome,
    vertices: Mapping[str, Tensor],
    feature: str,
    *,
    report: Report,
) -> _Compared:
    """Find the taps that can share a verdict, since their features are equal."""
    with at_work(sent):
        images = (trial.images, network.adversarials)
        twins = _same_features(sent.model, vertices, images, feature)
    value, note = network.robust_accuracy, _names(network.warnings)
    return _Compared(twins, {"measure": "robust_accuracy", "value": value, "note": note})


class _Shares(NamedTuple):
    """What is told of the verdict on a tap: shares as in `TapVerdict`, names of warnings."""

    tap: str
    clean: float
    transferred: float
    adaptive: float
    warnings: str


def judge_tap(
    sent: Sent,
    trial: Trial,
    network: Outcome,
    tap: str,
    vertices: Tensor,
    feature: str,
    *,
    report: Report,
) -> _Shares:
    """Attack the nearest-vertex classifier of one tap."""
    with at_work(sent):
        classifier = nearest_vertex_classifier(
            sent.model, tap, vertices, trial.images, feature=feature
        )
        found = verdict_at(classifier, trial, network, partial(_progress_told, report, tap))
    warnings = _names(found.outcome.warnings)
    return _Shares(tap, found.clean, found.transferred, found.adaptive, warnings)


def _share_told(report: Report, before: int, total: int, share: float, text: str) -> None:
    """Tell of one stage, or of all that are left, as a share of `total` stages."""
    left = 1 if not before else total - before
    report((before + share * left) / total, text)


def _progress_told(report: Report, tap: str, now: Progress) -> None:
    report(now.share, f"adaptive, {tap}: {now}")


def _tap_rows(tap: str, verdict: _Shares) -> Iterator[Row]:
    """Yield the three shares of one tap; where its features are another tap's, the note says so."""
    same = "" if tap == verdict.tap else f"same features as {verdict.tap}"
    for name, value, warnings in (
        ("ncc_clean", verdict.clean, ""),
        ("ncc_transferred", verdict.transferred, ""),
        ("ncc_adaptive", verdict.adaptive, verdict.warnings),
    ):
        note = "; ".join(part for part in (same, warnings) if part)
        yield {"measure": name, "vertices": "clean-train", "value": value, "note": note}


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
