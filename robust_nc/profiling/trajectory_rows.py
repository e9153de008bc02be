"""Rows of leaps on their way: where attacked examples are after every step of the attack.

>>> import torch
>>> from robust_nc.config import MeasureConfig
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
>>> with torch.no_grad():
...     _ = model[1].weight.copy_(torch.tensor([[-1.0, -1, -1, -1], [0, 0, 0, 0]]))
>>> vertices = {"penultimate": torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]])}
>>> settings = MeasureConfig(steps=5)
>>> how = Measurement.of(model, settings, Ball("L2", 1.0), num_classes=2, scale=1.0)
>>> one = Examples("train", torch.zeros(1, 1, 2, 2), torch.tensor([1]), torch.arange(1))
>>> rows = trajectory_rows(model, how, vertices, one, "gap")
>>> [(row["measure"], row["value"]) for row in rows]
[('trajectory_t', None)]
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robust_nc.exceptions import InputError
from robust_nc.geometry.barycentric import Hull, polygon
from robust_nc.models.taps import read_taps
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.profiling.rows import Row
from robust_nc.registry import CONTROLS
from robust_nc.runtime.progress import Report, no_report
from robust_nc.runtime.torch_state import device_of, untouched

Values = NDArray[np.float64]

_QUARTILES = {"trajectory_t_low": 0.25, "trajectory_t_high": 0.75}
_NO_LEAP = "undefined: no example was moved to a prediction that is not its clean vertex"
_NO_VERTEX = "undefined: no example of this class"


def trajectory_rows(
    model: nn.Module,
    measurement: Measurement,
    vertices: Mapping[str, Tensor],
    examples: Examples,
    feature: str,
    *,
    paths: int = 12,
    report: Report = no_report,
) -> list[Row]:
    """Follow leaps along their edges, at every tap of `vertices` (clean train means `(K, D)`).

    An example is followed at a tap where the attack changed the
    network's prediction, and that prediction b is not a, the vertex nearest to its clean feature
    there. Rows by step `i`: `trajectory_t`, the mean position on the edge from mu_a to mu_b (0 at
    mu_a), its quartiles `_low` and `_high`; `trajectory_off`, the mean distance from the affine
    hull of the vertices in mean edge lengths; and of the first `paths` examples `trajectory_x`,
    `trajectory_y`, their place in the plane of `polygon`, with `j` the example's row in `images`.
    `vertex_x`, `vertex_y`: where class `i` is in that plane. A tap without a leap has one row, of
    value None.

    The attack is `attacks.trajectory` on CE of logits over `scale`; passes per example: `steps` of
    it, two forward, and one forward per point for an example whose prediction changed.
    """
    if paths < 0:
        raise InputError(f"paths must be at least 0, found {paths}")
    _, images, labels, ids, _ = examples
    steps, scale = measurement.attacking.steps, measurement.attacking.scale
    batch_size, seed = measurement.settings.batch_size, examples.key(measurement.seed)
    attack = CONTROLS.load("trajectory")
    device = device_of(model)
    followers = {tap: _Follower(means.to(device)) for tap, means in vertices.items()}
    with untouched(model), torch.no_grad():
        for rows in torch.split(torch.arange(len(images)), batch_size) if len(images) else ():
            path = attack(
                model,
                images[rows].to(device),
                labels[rows].to(device),
                measurement.ball,
                steps=steps,
                scale=scale,
                seed=seed,
                ids=ids[rows].to(device),
                batch_size=batch_size,
            )
            _follow(model, path, rows.to(device), followers, feature)
    stated: Row = {"attack": f"pgd ce/{scale:.3g} from the image, {steps} steps"}
    stated["eps"] = measurement.ball.eps
    return [
        {"tap": tap} | stated | row
        for tap, follower in followers.items()
        for row in follower.rows(paths)
    ]


def _follow(
    model: nn.Module,
    path: Tensor,
    places: Tensor,
    followers: Mapping[str, "_Follower"],
    feature: str,
) -> None:
    """Read every tap at every point of the examples whose prediction has changed."""
    before, after = model(path[0]).argmax(1), model(path[-1]).argmax(1)
    changed = (before != after).nonzero().flatten()
    if not len(changed):
        return
    for step, points in enumerate(path):
        features = read_taps(model, points[changed], tuple(followers), feature=feature).features
        for tap, follower in followers.items():
            if step == 0:
                follower.begin(features[tap], after[changed], places[changed])
            follower.add(features[tap])


class _Follower:
    """Keeps four numbers of each example and step at one tap: t, residual, x, y."""

    def __init__(self, vertices: Tensor) -> None:
        self._hull = Hull(vertices)
        self._places: list[Tensor] = []
        self._points: list[list[Tensor]] = []

    def begin(self, clean: Tensor, ends: Tensor, places: Tensor) -> None:
        """Begin a batch: keep those examples that have an edge to travel along."""
        inner = self._hull.locate(clean).inner
        origins = self._hull.nearest(inner)
        there = torch.isfinite(self._hull.along(inner, origins, ends))
        self._on, self._origins, self._ends = there, origins[there], ends[there]
        self._places.append(places[there].cpu())
        self._points.append([])

    def add(self, features: Tensor) -> None:
        """Add the features of the batch at the next point of the path."""
        position = self._hull.locate(features[self._on])
        t = self._hull.along(position.inner, self._origins, self._ends)
        columns = [t, position.residual, *polygon(position.weights).T]
        self._points[-1].append(torch.stack(columns).cpu())

    def rows(self, paths: int) -> list[Row]:
        """All values as rows."""
        places = torch.cat([torch.zeros(0, dtype=torch.int64), *self._places])
        common: Row = {"condition": "attacked", "grouping": "none", "vertices": "clean-train"}
        common["n"] = len(places)
        if not len(places):
            return [common | {"measure": "trajectory_t", "value": None, "note": _NO_LEAP}]
        batches = [torch.stack(points, 1) for points in self._points]
        t, off, x, y = torch.cat(batches, 2).numpy()
        shown = {"trajectory_x": x[:, :paths], "trajectory_y": y[:, :paths]}
        return [
            common | row
            for row in (
                *_step_rows({"trajectory_t": t.mean(1), "trajectory_off": off.mean(1)}),
                *_step_rows({name: np.quantile(t, q, axis=1) for name, q in _QUARTILES.items()}),
                *_path_rows(shown, places[:paths].tolist()),
                *_vertex_rows(polygon(self._hull.own_weights())),
            )
        ]


def _step_rows(series: Mapping[str, Values]) -> list[Row]:
    return [
        {"measure": name, "i": step, "value": value}
        for name, values in series.items()
        for step, value in enumerate(values.tolist())
    ]


def _path_rows(series: Mapping[str, Values], places: list[int]) -> list[Row]:
    return [
        {"measure": name, "i": step, "j": place, "value": value, "n": 1}
        for name, values in series.items()
        for step, line in enumerate(values.tolist())
        for place, value in zip(places, line, strict=True)
    ]


def _vertex_rows(corners: Tensor) -> list[Row]:
    """Where the vertices are in the plane: at its corners, if they are independent."""
    return [
        {"measure": name, "i": k, "value": None, "note": _NO_VERTEX}
        if value != value
        else {"measure": name, "i": k, "value": value}
        for name, values in zip(("vertex_x", "vertex_y"), corners.T.tolist(), strict=True)
        for k, value in enumerate(values)
    ]
