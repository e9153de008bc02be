"""What is measured on a few examples only: adaptive attacks per tap, trajectories, AGOP."""

from functools import partial

from torch import nn

from robust_nc.evaluation import Outcome, evaluate
from robust_nc.grid.adaptive import adaptive_rows
from robust_nc.grid.agop import agop_rows
from robust_nc.grid.made import Report, attack, stated
from robust_nc.grid.rows import ATTACKED, CLEAN, Row
from robust_nc.grid.subject import Examples, Reference, Subject
from robust_nc.grid.trajectory import trajectory_rows


def extra_rows(
    subject: Subject,
    examples: Examples,
    references: dict[str, Reference],
    initial: nn.Module | None,
    report: Report,
) -> list[Row]:
    """Return the rows of all that the settings ask for, from the first examples of a split."""
    rows: list[Row] = []
    network = _judged(subject, examples, report)
    for feature, reference in references.items():
        common: Row = {"feature": feature, "split": examples.split}
        if subject.settings.trajectories:
            found = _trajectories(subject, examples, feature, reference)
            rows += [stated(subject, ATTACKED) | common | row for row in found]
        if network is not None:
            told = partial(_prefixed, report, f"adaptive attack ({feature})")
            found = _adaptive(subject, examples, feature, reference, network, told)
            rows += [row | common for row in found]
    if subject.settings.agop_examples:
        report(0.0, "gradient products")
        rows += _agop(subject, examples, initial)
    depths = subject.depths
    return [row | {"depth": depths.get(row["tap"], -1)} for row in rows]


def _trajectories(
    subject: Subject, examples: Examples, feature: str, reference: Reference
) -> list[Row]:
    some = examples.first(subject.settings.trajectories)
    return trajectory_rows(
        subject.model,
        {tap: moments.means for tap, moments in reference.items()},
        some.images,
        some.labels,
        subject.ball,
        steps=subject.attacking.steps,
        scale=subject.attacking.scale,
        feature=feature,
        seed=examples.key(subject.seed),
        ids=some.ids,
        batch_size=subject.settings.batch_size,
    )


def _judged(subject: Subject, examples: Examples, report: Report) -> Outcome | None:
    """Judge the network itself, once for all features; None where no tap is to be attacked."""
    if subject.settings.adaptive is None:
        return None
    some = examples.first(subject.settings.adaptive_examples)
    return evaluate(
        subject.model,
        some.images,
        some.labels,
        subject.ball,
        protocol=subject.settings.adaptive,
        seed=subject.seed,
        ids=some.ids,
        report=lambda now: report(now.share, f"adaptive attack, network: {now}"),
    )


def _adaptive(
    subject: Subject,
    examples: Examples,
    feature: str,
    reference: Reference,
    network: Outcome,
    report: Report,
) -> list[Row]:
    assert subject.settings.adaptive is not None
    some = examples.first(subject.settings.adaptive_examples)
    return adaptive_rows(
        subject.model,
        {tap: moments.means for tap, moments in reference.items()},
        some.images,
        some.labels,
        subject.ball,
        taps=subject.taps,
        feature=feature,
        protocol=subject.settings.adaptive,
        seed=subject.seed,
        ids=some.ids,
        against_network=network,
        report=report,
    )


def _agop(subject: Subject, examples: Examples, initial: nn.Module | None) -> list[Row]:
    some = examples.first(subject.settings.agop_examples)
    attacked = attack(subject, some, None, lambda share: None)
    found = agop_rows(
        subject.model,
        {CLEAN: some.images, ATTACKED: attacked},
        some.labels,
        num_classes=subject.num_classes,
        initial=initial,
        split=examples.split,
    )
    return [stated(subject, str(row["condition"])) | row for row in found]


def _prefixed(report: Report, what: str, share: float, text: str) -> None:
    report(share, f"{what}: {text}")
