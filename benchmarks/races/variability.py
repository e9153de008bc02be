"""Exact NC1 in two streaming passes against two D x D matrices, on made features.

Contestants: `ours` (moments, then projection), `hermitian` and `svd` (`dense`, float64, by the two
pseudo-inverses of torch) and `float32` (`hermitian` in the precision of the features, to show its
error). Beside the times stands how far each value is from `hermitian`, and, where D x D
matrices do not fit, what they would take.

    python -m robust_nc.benchmarks.races.geometry nc1 --dims 512 2048 65536 --classes 10 100
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.benchmarks.races import dense
from robust_nc.benchmarks.races.timing import Timing, markdown, race, ratio
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.projection import Projection

MAX_GIBIBYTES = 0.5  # of one D x D matrix that is still tried: D = 8,192
SVD_DIM = 2048  # above, the pinv by SVD takes minutes
HERMITIAN, OURS = "hermitian", "ours"


class Setting(NamedTuple):
    """How many classes, dimensions and examples, and by how many at a time they come."""

    classes: int
    dim: int
    examples: int
    batch_size: int = 100


class Outcome(NamedTuple):
    """Times of one setting, and the value that each contestant found."""

    setting: Setting
    timings: list[Timing]
    values: dict[str, float]


def made(setting: Setting) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features `(n, D)` float32 around random means, batch by batch; labels take turns.

    The means shrink from 1 to 1e-3, so that their singular values are spread as those of a network
    are. They are windows of one random row, and the noise is one batch in changing order: neither
    time goes into drawing nor memory into means.
    """
    source = torch.Generator().manual_seed(0)
    row = torch.randn(setting.dim + 7 * setting.classes, generator=source)
    means, sizes = row.unfold(0, setting.dim, 7), torch.logspace(0, -3, setting.classes)[:, None]
    noise = 0.1 * torch.randn(setting.batch_size, setting.dim, generator=source)
    for start in range(0, setting.examples, setting.batch_size):
        labels = torch.arange(start, min(start + setting.batch_size, setting.examples))
        labels = labels % setting.classes
        turned = noise.roll(start // setting.batch_size, 0)[: len(labels)]
        yield turned.addcmul_(means[labels], sizes[labels]), labels


def streamed(batches: Callable[[], dense.Batches], groups: int, dim: int) -> float:
    """Compute NC1 as this package does."""
    moments = Moments(groups, dim)
    for features, labels in batches():
        moments.update(features, labels)
    projection = Projection(moments)
    for features, labels in batches():
        projection.update(features, labels)
    value = projection.nc1()
    assert value is not None
    return value


def contestants(setting: Setting, *, svd: bool) -> dict[str, Callable[[], float]]:
    """Name what can race here, each a call that returns its value."""
    classes, dim = setting.classes, setting.dim
    if dense.gibibytes(dim) > MAX_GIBIBYTES:
        return {OURS: lambda: streamed(lambda: made(setting), classes, dim)}
    held = list(made(setting))

    def by(inverse: dense.Inverse, dtype: torch.dtype = torch.float64) -> Callable[[], float]:
        return lambda: dense.nc1(held, classes, dim, inverse=inverse, dtype=dtype)

    found = {OURS: lambda: streamed(lambda: held, classes, dim), HERMITIAN: by("eigh")}
    if svd and dim <= SVD_DIM:
        found["svd"] = by("svd")
    return found | {"float32": by("eigh", torch.float32)}


def contest(setting: Setting, *, repeats: int, svd: bool = True) -> Outcome:
    """Race one setting: one untimed round, whose values are kept, then the timed ones."""
    entered = contestants(setting, svd=svd)
    values = {name: call() for name, call in entered.items()}
    return Outcome(setting, race(entered, repeats=repeats, warmups=0), values)


def report(outcomes: list[Outcome]) -> str:
    """Write all outcomes as one Markdown table."""
    head = "K|D|contestant|ms, median (quartiles)|rounds|over ours (quartiles)|nc1|off by"
    rows = [head.split("|")]
    for setting, timings, values in outcomes:
        place = [f"{setting.classes:,}", f"{setting.dim:,}"]
        base, exact = timings[0], values.get(HERMITIAN)
        for timing in timings:
            low, middle, high = (1e3 * seconds for seconds in timing.spread)
            over = ratio(timing, base)
            value = values[timing.name]
            off = f"{abs(value / exact - 1):.1e}" if exact and timing.name != HERMITIAN else ""
            rows.append(
                [
                    *place,
                    timing.name,
                    f"{middle:,.1f} ({low:,.1f} to {high:,.1f})",
                    str(len(timing.seconds)),
                    f"{over.median:,.1f} ({over.low:,.1f} to {over.high:,.1f})",
                    f"{value:.6g}",
                    off,
                ]
            )
        size = dense.gibibytes(setting.dim)
        if HERMITIAN not in values:
            told = f"does not fit: {size:,.0f} GiB a matrix"
            rows.append([*place, HERMITIAN, told, "0", "", "", ""])
    return markdown(rows)
