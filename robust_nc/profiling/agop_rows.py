"""Rows of the gradient outer products of one model: its input, its layers, the SVD argument.

>>> import torch
>>> from torch import nn
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
from robust_nc.profiling.measurement import CLEAN
from robust_nc.profiling.rows import Row, measured_rows


def agop_rows(
    model: nn.Module,
    conditions: Mapping[str, Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    initial: nn.Module | None = None,
    split: str = "test",
    batch_size: int = 64,
) -> list[Row]:
    """Measure input AGOP and NFM against AGOP under every condition, the SVD argument on "clean".

    `conditions` maps a name to images `(N, C, H, W)` of the same N examples; `initial` is the
    network before training. Tap is "input", or the layer's dotted name with its place among the
    layers of its kind as depth; `n` counts examples (tokens, where a linear layer reads those).
    """
    rows: list[Row] = []
    for condition, images in conditions.items():
        found = _input_rows(model, images, batch_size)
        found += _layer_rows(model, images, initial, batch_size)
        rows += [{"condition": condition} | row for row in found]
    if CLEAN in conditions:
        found = _svd_rows(model, conditions[CLEAN], labels, num_classes, batch_size)
        rows += [{"condition": CLEAN} | row for row in found]
    return [{"split": split} | row for row in rows]


def _input_rows(model: nn.Module, images: Tensor, batch_size: int) -> list[Row]:
    found = input_agop(model, images, batch_size=batch_size)
    common = {"tap": "input", "grouping": "none", "vertices": "none", "n": found.num_examples}
    note = found.notes.get("eigenvalues", "")
    return [common | {"measure": "agop_trace", "value": found.trace, "note": ""}] + [
        common | {"measure": "agop_eigenvalue", "i": i, "value": value, "note": note}
        for i, value in enumerate(found.eigenvalues.tolist())
    ]


def _layer_rows(
    model: nn.Module, images: Tensor, initial: nn.Module | None, batch_size: int
) -> list[Row]:
    found = layer_features(model, images, initial=initial, batch_size=batch_size)
    common = {"grouping": "none", "vertices": "none", "n": len(images)}
    return [
        row
        for depth, (tap, layer) in enumerate(found.items())
        for row in measured_rows(
            common | {"tap": tap, "depth": depth}, layer.measures(), layer.notes
        )
    ]


def _svd_rows(
    model: nn.Module, images: Tensor, labels: Tensor, num_classes: int, batch_size: int
) -> list[Row]:
    found = svd_argument(model, images, labels, num_classes=num_classes, batch_size=batch_size)
    common = {"grouping": "true", "vertices": "same"}
    return [
        common
        | {"tap": name, "depth": depth, "n": layer.num_examples}
        | {"measure": f"svd_nc1_{point}", "value": getattr(layer, point)}
        | {"note": layer.notes.get(point, "")}
        for depth, (name, layer) in enumerate(found.items())
        for point in POINTS
    ]
