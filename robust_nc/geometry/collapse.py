"""Neural collapse of one tap: NC1 to NC4 in every named convention.

Symbols as in the documentation: N examples in K' groups of at least two, mu_k and n_k their means
and counts, mu_G the mean of all examples, mu_U the unweighted mean of the means, C the means
centred at mu_U and C_w at mu_G. Every value has its own name, and no value is ever NaN: what is
undefined is None, with the reason in `notes`.

>>> import torch
>>> features = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
>>> measured = measure_collapse(features, torch.tensor([0, 0, 1, 1]))
>>> measured.nc1, measured.nc2_angle, measured.num_groups
(0.0, 0.0, 2)
>>> measured.notes["nc3"]
"needs the head's weight"
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.exceptions import InputError
from robust_nc.geometry import simplex
from robust_nc.geometry.inputs import as_features, as_tensor
from robust_nc.geometry.moments import Groups, Moments
from robust_nc.geometry.nearest import NearestMeter
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import TotalScatter, vci

_SECOND_PASS = "needs a second pass over the features"
_HEAD = "needs the head's weight"
_FRAME = "needs the fixed frame of the head"
_MEANS = "undefined: the group means coincide"
_ZERO_ROW = "undefined: a group mean lies at the centre of the means"
_HEAD_ROWS = "undefined: the rows of the head coincide or one lies at their centre"


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """Collapse measures of one tap; `None` with a reason in `notes` where there is no value.

    `num_examples` (N) and `num_groups` (K') count what entered; `empty_groups` have no example and
    `single_groups` one: both are left out.
    """

    nc1: float | None = None
    nc1_unscaled: float | None = None
    nc1_trace: float | None = None
    nc1_trace_debiased: float | None = None
    cdnv: float | None = None
    vci: float | None = None
    vci_unweighted: float | None = None
    nc2_norm: float | None = None
    nc2_norm_w: float | None = None
    nc2_norm_head: float | None = None
    nc2_norm_head_raw: float | None = None
    nc2_angle: float | None = None
    nc2_angle_w: float | None = None
    nc2_angle_head: float | None = None
    nc2_angle_head_raw: float | None = None
    nc2_target: float | None = None
    nc2_target_raw: float | None = None
    nc2_gram: float | None = None
    nc2_gram_w: float | None = None
    nc2_gram_head: float | None = None
    nc2_gram_head_raw: float | None = None
    nc3: float | None = None
    nc3_w: float | None = None
    nc3_raw: float | None = None
    nc3_w_head_raw: float | None = None
    nc3_product: float | None = None
    nc4: float | None = None
    ncc: float | None = None
    num_examples: int
    num_groups: int
    empty_groups: int
    single_groups: int
    notes: Mapping[str, str]

    def measures(self) -> dict[str, float | None]:
        """All measures by name, without the counts and the notes."""
        return {name: getattr(self, name) for name in MEASURES}


_INDICES = ("vci", "vci_unweighted")
MEASURES = tuple(f.name for f in dataclasses.fields(Collapse) if f.default is None)

_WITHOUT = {
    **dict.fromkeys(("nc1", "nc1_unscaled"), _SECOND_PASS),
    **dict.fromkeys(("nc2_target", "nc2_target_raw"), _FRAME),
    **{name: _HEAD for name in MEASURES if name.startswith("nc3") or "_head" in name},
    **dict.fromkeys(_INDICES, "needs the total scatter"),
    "nc4": "needs the predictions of the network",
    "ncc": _SECOND_PASS,
}
_UNDEFINED = {
    "nc1_trace_debiased": "needs group means further apart than sampling puts them",
    "cdnv": "undefined: two group means coincide",
    **{name: _ZERO_ROW for name in MEASURES if name.startswith(("nc2_angle", "nc2_target"))},
    **{name: _HEAD_ROWS for name in MEASURES if "_head" in name},
    **dict.fromkeys(
        ("nc3", "nc3_w", "nc3_raw", "nc3_w_head_raw", "nc3_product"),
        "undefined: the means or the head's rows coincide",
    ),
}


def variability(groups: Groups, gram: Tensor) -> dict[str, float]:
    """NC1 from the sums alone: trace ratios and class-distance normalised variance."""
    counts, within, total = groups.counts, groups.within, groups.counts.sum()
    between = groups.weighted_norms.square().mean()
    spread = within / counts
    unbiased = within / (counts - 1)
    # What the scatter of the means about mu_G gains from sampling; ((K'-1)/K') v / n if balanced.
    gain = (unbiased / counts - 2 * unbiased / total).mean() + counts @ unbiased / total**2
    signal = between - gain
    apart = ~torch.eye(len(counts), dtype=torch.bool, device=counts.device)
    pairs = (spread[:, None] + spread)[apart] / (2 * simplex.squared_distances(gram)[apart])
    return {
        "nc1_trace": float(within.sum() / total / between),
        "nc1_trace_debiased": float(unbiased.mean() / signal) if signal > 0 else math.nan,
        "cdnv": float(pairs.mean()),
    }


def frame_measures(gram: Tensor, suffix: str) -> dict[str, float]:
    """NC2 of the rows behind a Gram matrix."""
    return {
        f"nc2_norm{suffix}": simplex.norm_spread(gram),
        f"nc2_angle{suffix}": simplex.angle_spread(gram),
        f"nc2_gram{suffix}": simplex.gram_distance(gram),
    }


def head_measures(groups: Groups, weight: Tensor) -> dict[str, float]:
    """NC2 of the rows of the head, centred and as they are, and NC3 of head and means."""
    head, rows = weight[groups.kept], groups.rows
    centred = simplex.centred(head)
    return {
        **frame_measures(centred @ centred.T, "_head"),
        **frame_measures(head @ head.T, "_head_raw"),
        "nc3": simplex.duality_distance(rows, centred),
        "nc3_w": simplex.duality_distance(groups.weighted_rows(), centred),
        "nc3_raw": simplex.duality_distance(rows + groups.centre, head),
        "nc3_w_head_raw": simplex.duality_distance(groups.weighted_rows(), head),
        "nc3_product": simplex.gram_distance(head @ rows.T),
    }


def target_measures(groups: Groups, gram: Tensor, target: Tensor) -> dict[str, float]:
    """Angles of the means against those of the frame: both centred, and both as they are."""
    frame = target[groups.kept]
    centred = simplex.centred(frame)
    means = groups.rows + groups.centre
    return {
        "nc2_target": simplex.angle_distance(gram, centred @ centred.T),
        "nc2_target_raw": simplex.angle_distance(means @ means.T, frame @ frame.T),
    }


def collapse(
    moments: Moments,
    *,
    projection: Projection | None = None,
    scatter: TotalScatter | None = None,
    weight: Tensor | None = None,
    target: Tensor | None = None,
    ncc: float | None = None,
    nc4: float | None = None,
) -> Collapse:
    """Compute all measures that the given parts allow.

    `projection` and `scatter` have seen the same features as `moments`; `weight` (K, D) are the
    rows of the head, `target` (K, any) its fixed frame; `ncc` and `nc4` come from a
    `NearestMeter`.
    """
    groups = moments.groups()
    values: dict[str, float | None] = {"ncc": ncc, "nc4": nc4}
    notes: dict[str, str] = {}
    if len(groups.kept) < 2:
        too_few = "undefined: fewer than two groups have two examples"
        return _sheet(moments, {}, dict.fromkeys(MEASURES, too_few))
    gram = groups.gram()
    values |= variability(groups, gram)
    values |= frame_measures(gram, "") | frame_measures(groups.gram(weighted=True), "_w")
    if projection is not None:
        values |= {"nc1": projection.nc1(), "nc1_unscaled": projection.nc1_unscaled()}
        notes |= dict.fromkeys(("nc1", "nc1_unscaled"), _MEANS)
    if scatter is not None:
        values |= vci(moments, scatter) if scatter.reason is None else dict.fromkeys(_INDICES)
        notes |= dict.fromkeys(_INDICES, scatter.reason or _MEANS)
    if weight is not None:
        values |= head_measures(groups, weight.detach().to(gram))
    if target is not None:
        values |= target_measures(groups, gram, target.detach().to(gram))
    return _sheet(moments, values, notes)


def _sheet(moments: Moments, values: dict[str, float | None], notes: dict[str, str]) -> Collapse:
    """Turn what is not finite into None, and give every None its reason."""
    finite: dict[str, Any] = {
        name: value for name, value in values.items() if value is not None and math.isfinite(value)
    }
    reasons = {}
    for name in MEASURES:
        if name not in finite:
            absent = _WITHOUT if values.get(name) is None else _UNDEFINED
            reasons[name] = notes.get(name) or absent.get(name, _MEANS)
    counts = moments.counts
    empty, single = int((counts == 0).sum()), int((counts == 1).sum())
    if empty or single:
        reasons["num_groups"] = (
            f"of {len(counts)} groups {empty} have no example and {single} only one: left out"
        )
    return Collapse(
        **finite,
        num_examples=moments.total,
        num_groups=int(moments.keep.sum()),
        empty_groups=empty,
        single_groups=single,
        notes=reasons,
    )


def measure_collapse(
    features: Any,
    labels: Any,
    *,
    num_classes: int | None = None,
    weight: Any = None,
    bias: Any = None,
    target: Any = None,
) -> Collapse:
    """Measure the collapse of features `(N, D)` with integer labels `(N,)`, NumPy or torch.

    `weight` (K, D) and `bias` (K,) are those of the head, for NC3 and NC4; `target` (K, any) is the
    fixed frame of the head. `ncc` leaves each example out of its own vertex. Warns where a measure
    is undefined for these features; raises `InputError` for input that has no collapse at all.
    """
    features = as_features(features, "features")
    labels = check_labels(labels, len(features), num_classes)
    labels = labels.to(features.device)
    num_classes = _num_classes(labels, num_classes)
    if bias is not None and weight is None:
        raise InputError("bias without weight; give the head's weight too")
    shape = (num_classes, features.shape[1])
    weight = _rows(weight, "weight", shape, features)
    target = _rows(target, "target", (num_classes, None), features)
    moments = Moments(num_classes, features.shape[1])
    moments.update(features, labels)
    projection, scatter = Projection(moments), TotalScatter(features.shape[1])
    projection.update(features, labels)
    scatter.update(features)
    meter = NearestMeter(moments, leave_one_out=True)
    predictions = None if weight is None else _predict(features, weight, bias)
    meter.update(features, labels, predictions=predictions)
    measured = collapse(
        moments,
        projection=projection,
        scatter=scatter,
        weight=weight,
        target=target,
        ncc=meter.ncc(),
        nc4=meter.nc4(),
    )
    undefined = {n: why for n, why in measured.notes.items() if why.startswith("undefined")}
    if undefined:
        told = "; ".join(f"{name} ({why[11:]})" for name, why in undefined.items())
        warnings.warn(f"some collapse measures are undefined: {told}", UserWarning, stacklevel=2)
    return measured


def _num_classes(labels: Tensor, given: int | None) -> int:
    """Return the number of classes, or say why these labels cannot be measured."""
    if not len(labels):
        raise InputError("features are empty; collapse needs at least two examples in two classes")
    classes = int(labels.max()) + 1 if given is None else given
    if len(labels) < classes:
        raise InputError(f"found {len(labels)} examples for {classes} classes; give more examples")
    counts = torch.bincount(labels, minlength=classes)
    if int((counts > 0).sum()) < 2:
        raise InputError("all examples are of one class; collapse compares at least two classes")
    if int((counts >= 2).sum()) < 2:
        raise InputError("fewer than two classes have two examples; give more examples per class")
    return classes


def _rows(values: Any, name: str, shape: tuple[int, int | None], features: Tensor) -> Tensor | None:
    if values is None:
        return None
    rows = as_tensor(values, name)
    wanted = (shape[0], shape[1] if shape[1] is not None else rows.shape[-1] if rows.ndim else 0)
    if tuple(rows.shape) != wanted:
        columns = "any" if shape[1] is None else shape[1]
        raise InputError(
            f"{name} must have shape ({shape[0]}, {columns}), found {tuple(rows.shape)}"
        )
    return as_features(rows, name).to(features.device)


def _predict(features: Tensor, weight: Tensor, bias: Any) -> Tensor:
    """Return the network's choice, from its last map in the precision of the features."""
    logits = features @ weight.to(features.dtype).T
    if bias is not None:
        given = as_features(as_tensor(bias, "bias").reshape(1, -1), "bias")
        if given.shape[1] != len(weight):
            raise InputError(f"bias must have shape ({len(weight)},), found ({given.shape[1]},)")
        logits = logits + given.to(logits)
    return logits.argmax(1)
