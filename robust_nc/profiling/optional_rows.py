"""What is measured on a few examples only: adaptive attacks per tap, trajectories, AGOP."""

from functools import partial

from torch import nn

from robust_nc.models.taps import module_taps
from robust_nc.profiling.agop_rows import agop_rows
from robust_nc.profiling.make_conditions import attack, stated
from robust_nc.profiling.measurement import Examples, Reference, Subject
from robust_nc.profiling.rows import ATTACKED, CLEAN, Row
from robust_nc.profiling.shards import Crew, Sent, at_work
from robust_nc.profiling.tap_attacks import judge_network, verdict_rows
from robust_nc.profiling.tap_verdict import Trial
from robust_nc.profiling.trajectory_rows import trajectory_rows
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report


def extra_rows(
    subject: Subject,
    examples: Examples,
    references: dict[str, Reference],
    initial: nn.Module | None,
    crew: Crew,
    report: Report,
) -> list[Row]:
    """Return the rows of all that the settings ask for, from the first examples of a split."""
    rows: list[Row] = []
    trial = _trial(subject, examples)
    if trial is not None:
        told = partial(_prefixed, report, "adaptive attack")
        network = crew.map(judge_network, [(trial,)], report=told)[0]
    for feature, reference in references.items():
        stopping.heed()
        common: Row = {"feature": feature, "split": examples.split}
        if subject.settings.trajectories:
            some = examples.first(subject.settings.trajectories)
            given = (crew.keep(subject), crew.keep(reference), some, feature)
            rows += [common | row for row in crew.ask(follow, *given)]
        if trial is not None:
            told = partial(_prefixed, report, f"adaptive attack ({feature})")
            means = {tap: reference[tap].means for tap in subject.taps}
            places = module_taps(subject.model)
            found = verdict_rows(trial, network, means, places, feature, crew, told)
            rows += [row | common for row in found]
    if subject.settings.agop_examples:
        stopping.heed()
        report(0.0, "gradient products")
        some = examples.first(subject.settings.agop_examples)
        sent = None if initial is None else crew.keep(Sent(initial))
        rows += crew.ask(gradients, crew.keep(subject), some, sent)
    depths = subject.depths
    return [row | {"depth": depths.get(row["tap"], -1)} for row in rows]


def follow(
    sent: Sent,
    subject: Subject,
    reference: Reference,
    some: Examples,
    feature: str,
    *,
    report: Report,
) -> list[Row]:
    """Follow leaps over the steps of the attack."""
    with at_work(sent):
        found = trajectory_rows(
            sent.model,
            {tap: moments.means for tap, moments in reference.items()},
            some.images,
            some.labels,
            subject.ball,
            steps=subject.attacking.steps,
            scale=subject.attacking.scale,
            feature=feature,
            seed=some.key(subject.seed),
            ids=some.ids,
            batch_size=subject.settings.batch_size,
        )
    return [stated(subject, ATTACKED) | row for row in found]


def gradients(
    sent: Sent, subject: Subject, some: Examples, initial: Sent | None, *, report: Report
) -> list[Row]:
    """Measure gradient products, clean and attacked."""
    subject = subject.of(sent.model)
    with at_work(sent):
        attacked = attack(subject, some, None, lambda share: None)
        found = agop_rows(
            subject.model,
            {CLEAN: some.images, ATTACKED: attacked},
            some.labels,
            num_classes=subject.num_classes,
            initial=None if initial is None else initial.model,
            split=some.split,
        )
    return [stated(subject, str(row["condition"])) | row for row in found]


def _trial(subject: Subject, examples: Examples) -> Trial | None:
    """What every adaptive attack has in common; None where no tap is to be attacked."""
    if subject.settings.adaptive is None:
        return None
    some = examples.first(subject.settings.adaptive_examples)
    return Trial(
        some.images,
        some.labels,
        subject.ball,
        subject.settings.adaptive,
        subject.seed,
        some.ids,
        None,
    )


def _prefixed(report: Report, what: str, share: float, text: str) -> None:
    report(share, f"{what}: {text}")
