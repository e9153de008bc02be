"""Audits: robust examples attacked again, leaps measured again, and what that says of all of them.

>>> audit = Audit("standard", 0, torch.arange(300), torch.arange(0), torch.zeros(0), 4_000, 10_000)
>>> audit.most, audit.bound, audit.refutes
(38, 0.0038, False)
>>> print(audit)
none of 300 broken by standard: at most 38 of 4,000 robust examples break (95 %)
>>> print(Remeasured(claimed=0.5, leaped=60, examples=100))
leap rate 0.500 claimed, 0.600 [0.502, 0.691] measured again on 100 images: consistent; \
0 of 0 measures of all layers as they were
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from robust_nc.data.base import Split, even_rows
from robust_nc.data.load import read_spread, to_unit
from robust_nc.evaluation.evaluate_model import evaluate
from robust_nc.evaluation.scoring import Scorer
from robust_nc.evidence.collecting import look, strengthen
from robust_nc.exceptions import InputError
from robust_nc.io.files import atomic
from robust_nc.pipeline.finished_model import AppraisalConfig
from robust_nc.plugins import find_protocol
from robust_nc.profiling.profile_model import profile
from robust_nc.record.schema import Stored
from robust_nc.runtime.progress import Progress
from robust_nc.runtime.torch_state import device_of, stream_key, untouched
from robust_nc.statistics.intervals import wilson
from robust_nc.statistics.sampling import enough, fewest_broken, most_broken
from robust_nc.threat import Ball
from robust_nc.verification.challenge import try_points
from robust_nc.verification.originals import RecordExamples, ball_of, protocol_draws

CLAIM = "leap_rate_test"  # in `Record.summary`
SURE = 0.999  # a claim outside of this interval is not put down to the draw of the images
PROTOCOL = "standard"
_BATCH = 256
ALLOWED = 0.01  # of the robust examples: an attack with other draws breaks a few that one missed
_ACCUSED = 1_000  # who is refuted is so with all but one chance in these
_MEASURES = ("nc1", "nc2_angle", "nc3", "leap_rate")
_SAME, _SAME_LEAST = 0.05, 0.02  # by which these may differ: a share of the value, and at least
POINT = 0.01  # of all examples: what a reproduced record may at most lose (95 %)


class Audit(NamedTuple):
    """An audit of `rows` (N,) of `survivors` robust examples, out of `examples` in all.

    `broke` (B,) are the rows that `protocol` broke as a challenge has to: by `points` (B, C, H, W)
    that are misclassified beyond the tolerance. `near` others broke within it, and do not count.
    """

    protocol: str
    seed: int
    rows: Tensor
    broke: Tensor
    points: Tensor
    survivors: int
    examples: int
    near: int = 0

    @property
    def most(self) -> int:
        """Upper 95 % bound on how many of the survivors the protocol would break."""
        return most_broken(len(self.broke), drawn=len(self.rows), population=self.survivors)

    @property
    def bound(self) -> float:
        """Share of all examples that would break beside those that did, at that bound."""
        return (self.most - len(self.broke)) / self.examples

    @property
    def lowest(self) -> float:
        """What is left of robust accuracy at that bound."""
        return (self.survivors - self.most) / self.examples

    @property
    def refutes(self) -> bool:
        """Whether (99.9 %) more than 1 % of the survivors break: more than chance in an attack.

        One example refutes nothing, however few survivors there are.
        """
        drawn, population = len(self.rows), self.survivors
        fewest = fewest_broken(len(self.broke), drawn=drawn, population=population, miss=_ACCUSED)
        return len(self.broke) > 1 and fewest > max(1.0, ALLOWED * self.survivors)

    def __str__(self) -> str:
        broke = "none" if not len(self.broke) else f"{len(self.broke):,}"
        near = f" ({self.near:,} more within the tolerance)" if self.near else ""
        return (
            f"{broke} of {len(self.rows):,} broken by {self.protocol}{near}: at most {self.most:,} "
            f"of {self.survivors:,} robust examples break (95 %)"
        )


def audit(
    stored: Stored,
    model: nn.Module,
    examples: RecordExamples,
    *,
    robust: npt.NDArray[np.bool_],
    count: int | None,
    seed: int,
    report: Callable[[Progress], None] | None = None,
) -> Audit:
    """Attack `count` of the examples whose flags `robust` (N,) are set (or all), drawn by `seed`.

    None: as many as bound the loss by 1 point (95 %) if none breaks, and all of them if some do.

    With `standard`, or where the record's protocol takes several draws of a random model, with
    that. Draws of the attack are others than the record's. Where none is set, that is all of them.
    Raises `InputError` for a count below 1, a negative seed, and a model that fails.
    """
    protocol, ball = audit_protocol(stored.record.protocol), ball_of(stored.record.config)
    survivors = np.flatnonzero(robust)
    if not len(survivors):
        none = torch.zeros(0, dtype=torch.int64)
        return Audit(protocol, seed, none, none, examples.images[:0], 0, len(robust))
    if count is None:
        most = int(POINT * len(robust))
        again = partial(audit, stored, model, examples, robust=robust, seed=seed, report=report)
        some = again(count=enough(most, population=len(survivors)))
        return some if some.bound <= POINT else again(count=len(robust))
    if count < 1 or seed < 0:
        raise InputError(
            f"an audit needs a count of at least 1 and a seed of at least 0, found "
            f"{count} and {seed}"
        )
    draws = np.random.Generator(np.random.PCG64(seed))
    chosen = draws.choice(survivors, min(count, len(survivors)), replace=False)
    rows = torch.from_numpy(np.sort(chosen).astype(np.int64))
    outcome = evaluate(
        model,
        examples.images[rows],
        examples.labels[rows],
        ball,
        protocol=protocol,
        seed=stream_key(seed, "audit") & (2**31 - 1),
        ids=examples.ids[rows],
        checks=False,
        report=report,
    )
    flipped = ~outcome.robust
    found = outcome.adversarials[flipped]
    points = _pushed(model, found, examples, rows[flipped], ball, protocol)
    tried = try_points(
        stored, model, examples, rows[flipped], points, robust=torch.from_numpy(robust)
    )
    counts = torch.isin(rows[flipped], tried.counted)
    return Audit(
        protocol,
        seed,
        rows,
        rows[flipped][counts],
        points[counts],
        len(survivors),
        len(examples.labels),
        near=int((~counts).sum()),
    )


def audit_protocol(own: str) -> str:
    """Return the protocol to audit with: `standard`, but the record's own for random models."""
    return own if (protocol_draws(own) or 1) > 1 else PROTOCOL


def _pushed(
    model: nn.Module,
    points: Tensor,
    examples: RecordExamples,
    rows: Tensor,
    ball: Ball,
    protocol: str,
) -> Tensor:
    """Push what broke further, so that it also holds on another machine."""
    device, scorer = device_of(model), Scorer(model, draws=find_protocol(protocol).draws)
    found = [points[:0]]
    with torch.inference_mode(False), untouched(model):
        for at in torch.split(torch.arange(len(rows)), _BATCH):
            given = (points[at], examples.images[rows[at]], examples.labels[rows[at]])
            weak, origins, labels = (part.to(device) for part in given)
            seen = look(scorer, weak, labels)
            found.append(strengthen(scorer, weak, seen, origins, labels, ball).points.cpu())
    return torch.cat(found)


def write_broken(path: Path, rows: Tensor, points: Tensor) -> None:
    """Write examples that `challenge` takes: `ids` (B,) rows, `images` (B, C, H, W) float32."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, ids=rows.numpy(), images=points.numpy())


class Remeasured(NamedTuple):
    """The claimed leap rate on test, and how many of `examples` leaped this time.

    `others` measures of the training images were compared as well; `differing` names those that
    are not what was found, with both values.
    """

    claimed: float
    leaped: int
    examples: int
    others: int = 0
    differing: tuple[str, ...] = ()

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
            f"{'consistent' if self.consistent else 'not consistent'}; "
            f"{self.others - len(self.differing):,} of {self.others:,} measures of all layers as "
            "they were"
        )


def remeasure(
    stored: Stored,
    settings: AppraisalConfig,
    model: nn.Module,
    examples: RecordExamples,
    *,
    count: int,
    seed: int,
    root: Path | None,
    report: Callable[[float, str], None] | None = None,
) -> Remeasured | None:
    """Measure collapse and leaps again: of all training images, and of `count` test images.

    The training images are those of the record, attacked with its draws, so that every layer's NC1,
    NC2, NC3 and leap rate come out as they were but for rounding. The test images are drawn by
    `seed` from those that the leap rate is claimed for. None where the record claims no leap rate.
    Raises `DataError` where there are no training images.
    """
    record, measure = stored.record, settings.measure
    claimed = record.summary.get(CLAIM)
    if measure is None or claimed is None:
        return None
    train = read_spread(settings.data.dataset, "train", measure.train_examples, root=root)
    known = min(measure.test_examples or len(examples.labels), len(examples.labels))
    if record.geometry is not None:  # which may have been measured on fewer
        train = train.at(even_rows(len(train.labels), record.geometry.train_examples))
        known = min(known, record.geometry.test_examples)
    draws = np.random.Generator(np.random.PCG64(seed))
    chosen = np.sort(draws.choice(known, min(count, known), replace=False))
    rows = torch.from_numpy(chosen.astype(np.int64))
    test = Split(examples.images[rows], examples.labels[rows], examples.ids[rows])
    splits = {"train": train, "test": test}
    found = profile(
        model,
        {name: [(to_unit(part.images), part.labels)] for name, part in splits.items()},
        settings.threat.ball(),
        measure=dataclasses.replace(
            measure,
            targets=(),
            radii=(),
            adaptive=None,
            trajectories=0,
            agop_examples=0,
            corruptions=(),
        ),
        seed=settings.seed,
        report=report,
    )
    penultimate = {"tap": "penultimate", "split": "test", "condition": "attacked"}
    row = found.values("leap_rate", grouping="none", **penultimate).iloc[0]
    both = _shared(stored.rows(), found.frame)
    told, now = both["value_x"].to_numpy(np.float64), both["value_y"].to_numpy(np.float64)
    other = ~np.isclose(told, now, rtol=_SAME, atol=_SAME_LEAST, equal_nan=True)
    return Remeasured(
        claimed,
        round(float(row["value"]) * int(row["n"])),
        int(row["n"]),
        len(both),
        tuple(
            f"{one.measure} of {one.condition} training images at {one.tap} is "
            f"{one.value_x:.4g}, measured again {one.value_y:.4g}"
            for one in both[other].itertuples()
        ),
    )


def _shared(claimed: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Put rows of the measures that can be made again side by side: `value_x`, `value_y`."""
    keys = ["tap", "feature", "condition", "grouping", "vertices", "measure", "i", "j"]
    parts = []
    for frame in (claimed, found):
        at = frame["measure"].isin(_MEASURES) & (frame["split"] == "train") & (frame["epoch"] < 0)
        parts.append(frame.loc[at, [*keys, "value"]])
    return parts[0].merge(parts[1], on=keys)
