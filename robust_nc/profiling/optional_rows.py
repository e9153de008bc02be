"""What is measured on a few examples only: attacks on each tap, trajectories, gradient products.

>>> import torch
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
>>> rows = agop_rows(
...     model, {"clean": torch.rand(6, 1, 2, 2)}, torch.arange(6) % 2, num_classes=2
... )
>>> [row["measure"] for row in rows if row["tap"] == "1"][:2]
['nfm_agop', 'nfm_agop_root']
"""

from collections.abc import Mapping

from torch import Tensor, nn

from robust_nc.geometry.agop import input_agop
from robust_nc.geometry.feature_matrices import layer_features
from robust_nc.geometry.svd_argument import POINTS, svd_argument
from robust_nc.profiling.conditions import attack_examples, stated
from robust_nc.profiling.measurement import ATTACKED, CLEAN, Examples, Measurement, VertexMoments
from robust_nc.profiling.rows import Row, measured_rows
from robust_nc.profiling.shards import ModelExecutor, PortableModel
from robust_nc.profiling.tap_attacks import Trial, attack_network, tap_attack_rows
from robust_nc.profiling.trajectory_rows import trajectory_rows
from robust_nc.runtime import stopping
from robust_nc.runtime.progress import Report

_BATCH = 64  # images whose gradients are taken at a time


def agop_rows(
    model: nn.Module,
    conditions: Mapping[str, Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    initial: nn.Module | None = None,
    split: str = "test",
) -> list[Row]:
    """Measure input AGOP and NFM against AGOP under every condition, the SVD argument on "clean".

    `conditions` maps a name to images `(N, C, H, W)` of the same N examples; `initial` is the
    network before training. Tap is "input", or the layer's dotted name with its place among the
    layers of its kind as depth; `n` counts examples (tokens, where a linear layer reads those).
    """
    rows: list[Row] = []
    for condition, images in conditions.items():
        found = [*_input_rows(model, images), *_layer_rows(model, images, initial)]
        rows += [{"condition": condition} | row for row in found]
    if CLEAN in conditions:
        found = _svd_rows(model, conditions[CLEAN], labels, num_classes)
        rows += [{"condition": CLEAN} | row for row in found]
    return [{"split": split} | row for row in rows]


def _input_rows(model: nn.Module, images: Tensor) -> list[Row]:
    found = input_agop(model, images, batch_size=_BATCH)
    common = {"tap": "input", "grouping": "none", "vertices": "none", "n": found.num_examples}
    note = found.notes.get("eigenvalues", "")
    return [common | {"measure": "agop_trace", "value": found.trace, "note": ""}] + [
        common | {"measure": "agop_eigenvalue", "i": i, "value": value, "note": note}
        for i, value in enumerate(found.eigenvalues.tolist())
    ]


def _layer_rows(model: nn.Module, images: Tensor, initial: nn.Module | None) -> list[Row]:
    found = layer_features(model, images, initial=initial, batch_size=_BATCH)
    common = {"grouping": "none", "vertices": "none", "n": len(images)}
    return [
        row
        for depth, (tap, layer) in enumerate(found.items())
        for row in measured_rows(
            common | {"tap": tap, "depth": depth}, layer.measures(), layer.notes
        )
    ]


def _svd_rows(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int) -> list[Row]:
    found = svd_argument(model, images, labels, num_classes=num_classes, batch_size=_BATCH)
    common = {"grouping": "true", "vertices": "same"}
    return [
        common
        | {"tap": name, "depth": depth, "n": layer.num_examples}
        | {"measure": f"svd_nc1_{point}", "value": getattr(layer, point)}
        | {"note": layer.notes.get(point, "")}
        for depth, (name, layer) in enumerate(found.items())
        for point in POINTS
    ]


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
