"""What is measured on a few examples only: adaptive attacks per tap, trajectories, AGOP."""

from torch import nn

from robust_nc.profiling.agop_rows import agop_rows
from robust_nc.profiling.conditions import attack_examples, stated
from robust_nc.profiling.measurement import (
    ATTACKED,
    CLEAN,
    Examples,
    Measurement,
    VertexMoments,
)
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import ModelExecutor, PortableModel
from robust_nc.profiling.tap_attacks import Trial, attack_network, tap_attack_rows
from robust_nc.profiling.trajectory_rows import trajectory_rows
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report


def extra_rows(
    executor: ModelExecutor,
    measurement: Measurement,
    examples: Examples,
    references: dict[str, VertexMoments],
    initial: nn.Module | None,
    report: Report,
) -> list[Row]:
    """Return the rows of all that the settings ask for, from the first examples of a split."""
    settings = measurement.settings
    known = executor.keep(measurement)
    rows: list[Row] = []
    trial = network = None
    if settings.adaptive is not None:
        some = examples.first(settings.adaptive_examples)
        shared = (measurement.ball, settings.adaptive, measurement.seed)
        trial = Trial(some.images, some.labels, *shared, some.ids)
        told = prefixed(report, "adaptive attack")
        network = executor.map(attack_network, [(trial,)], report=told)[0]
    for feature, vertices in references.items():
        stopping.heed()
        common: Row = {"feature": feature, "split": examples.split}
        means = {tap: vertices[tap].means for tap in measurement.taps}
        if settings.trajectories:
            some = examples.first(settings.trajectories)
            found = executor.ask(trajectory_rows, known, means, some, feature)
            rows += [common | row for row in found]
        if trial is not None:
            told = prefixed(report, f"adaptive attack ({feature})")
            found = tap_attack_rows(executor, trial, network, means, feature, told)
            rows += [row | common for row in found]
    if settings.agop_examples:
        stopping.heed()
        report(0.0, "gradient products")
        some = examples.first(settings.agop_examples)
        before = None if initial is None else executor.keep(PortableModel(initial))
        rows += executor.ask(gradients, known, some, before)
    depths = measurement.depths
    return [row | {"depth": depths.get(row["tap"], -1)} for row in rows]


def gradients(
    model: nn.Module,
    measurement: Measurement,
    some: Examples,
    initial: PortableModel | None,
    *,
    report: Report,
) -> list[Row]:
    """Measure gradient products, clean and attacked."""
    attacked = attack_examples(model, measurement, some, report=lambda share: None)
    found = agop_rows(
        model,
        {CLEAN: some.images, ATTACKED: attacked},
        some.labels,
        num_classes=measurement.num_classes,
        initial=None if initial is None else initial.model,
        split=some.split,
    )
    return [stated(measurement, str(row["condition"])) | row for row in found]


def prefixed(report: Report, what: str) -> Report:
    """Say before each line what it is about."""
    return lambda share, text: report(share, f"{what}: {text}")
