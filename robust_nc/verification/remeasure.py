"""Geometry measured again by who verifies: the leap rate of some test images.

>>> print(Remeasured(claimed=0.5, leaped=60, examples=100))
leap rate 0.500 claimed, 0.600 [0.502, 0.691] measured again on 100 images: consistent
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split
from robust_nc.data.load import read_split, to_unit
from robust_nc.pipeline.finished_model import AppraisalConfig
from robust_nc.profiling.profile_model import profile
from robust_nc.record.schema import Record
from robust_nc.runtime.torch_state import stream_key
from robust_nc.statistics.intervals import wilson
from robust_nc.training.validation import spread
from robust_nc.verification.originals import Examples

CLAIM = "leap_rate_test"  # in `Record.summary`
SURE = 0.999  # a claim outside of this interval is not put down to the draw of the images


class Remeasured(NamedTuple):
    """The claimed leap rate on test, and how many of `examples` leaped this time."""

    claimed: float
    leaped: int
    examples: int

    @property
    def consistent(self) -> bool:
        """Whether the claim lies in the 99.9 % interval of what was measured."""
        found = wilson(self.leaped, self.examples, SURE)
        return found.low <= self.claimed <= found.high

    def __str__(self) -> str:
        found = wilson(self.leaped, self.examples)
        return (
            f"leap rate {self.claimed:.3f} claimed, {found.value:.3f} [{found.low:.3f}, "
            f"{found.high:.3f}] measured again on {self.examples:,} images: "
            f"{'consistent' if self.consistent else 'not consistent'}"
        )


def remeasure(
    record: Record,
    settings: AppraisalConfig,
    model: nn.Module,
    examples: Examples,
    *,
    count: int,
    seed: int,
    root: Path | None,
    report: Callable[[float, str], None] | None = None,
) -> Remeasured | None:
    """Measure the leap rate of the penultimate tap on `count` of the images it is claimed for.

    They are drawn by `seed`; the vertices come from the training images that the record's come
    from. None where the record claims none. Raises `DataError` where there are no training images.
    """
    measure, claimed = settings.measure, record.summary.get(CLAIM)
    if measure is None or claimed is None:
        return None
    train = read_split(settings.data.dataset, "train", root=root)
    train = spread(train, measure.train_examples or len(train.labels))
    known = min(measure.test_examples or len(examples.labels), len(examples.labels))
    draws = np.random.Generator(np.random.PCG64(seed))
    chosen = np.sort(draws.choice(known, min(count, known), replace=False))
    rows = torch.from_numpy(chosen.astype(np.int64))
    test = Split(examples.images[rows], examples.labels[rows], examples.ids[rows])
    found = profile(
        model,
        {
            name: [(to_unit(part.images), part.labels)]
            for name, part in (("train", train), ("test", test))
        },
        settings.threat.ball(),
        measure=_leaps_only(measure),
        seed=stream_key(seed, "remeasure") & (2**31 - 1),
        report=report,
    )
    row = found.values(
        "leap_rate", tap="penultimate", split="test", condition="attacked", grouping="none"
    ).iloc[0]
    return Remeasured(claimed, round(float(row["value"]) * int(row["n"])), int(row["n"]))


def _leaps_only(measure: MeasureConfig) -> MeasureConfig:
    return MeasureConfig(
        feature="gap" if measure.feature == "both" else measure.feature,
        taps=("penultimate",),
        steps=measure.steps,
        restarts=measure.restarts,
        batch_size=measure.batch_size,
        targets=(),
        radii=(),
        trajectories=0,
    )
