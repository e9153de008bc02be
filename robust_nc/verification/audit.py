"""Audits: robust examples attacked again, leaps measured again, and what that says of all of them.

>>> audit = Audit("standard", 0, torch.arange(300), torch.arange(0), torch.zeros(0), 4_000, 10_000)
>>> audit.most, audit.refutes
(38, False)
>>> print(audit)
none of 300 broken by standard: at most 0.95 % of 4,000 robust examples (38) break (95 %)
>>> print(Remeasured(claimed=0.5, leaped=60, examples=100))
leap rate 0.500 claimed, 0.600 [0.502, 0.691] measured again on 100 images: consistent
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.data.base import Split
from robust_nc.data.load import read_split, to_unit
from robust_nc.evaluation.evaluate_model import evaluate
from robust_nc.evaluation.scoring import Scorer
from robust_nc.evidence.collecting import look, strengthen
from robust_nc.exceptions import InputError
from robust_nc.io.files import atomic
from robust_nc.pipeline.finished_model import AppraisalConfig
from robust_nc.plugins import find_protocol
from robust_nc.profiling.profile_model import profile
from robust_nc.record.schema import Record, Stored
from robust_nc.record.standing import standing
from robust_nc.runtime.progress import Progress
from robust_nc.runtime.torch_state import device_of, stream_key, untouched
from robust_nc.statistics.intervals import wilson
from robust_nc.statistics.sampling import fewest_broken, most_broken
from robust_nc.threat import Ball
from robust_nc.training.validation import evenly_chosen
from robust_nc.verification.originals import RecordExamples, ball_of, protocol_draws

CLAIM = "leap_rate_test"  # in `Record.summary`
SURE = 0.999  # a claim outside of this interval is not put down to the draw of the images
PROTOCOL = "standard"
_BATCH = 256
ALLOWED = 0.01  # of the robust examples: an attack with other draws breaks a few that one missed


class Audit(NamedTuple):
    """An audit of `rows` (N,) of `survivors` robust examples, out of `examples` in all.

    `broke` (B,) are the rows that `protocol` broke, by `points` (B, C, H, W).
    """

    protocol: str
    seed: int
    rows: Tensor
    broke: Tensor
    points: Tensor
    survivors: int
    examples: int

    @property
    def most(self) -> int:
        """Upper 95 % bound on how many of the survivors the protocol would break."""
        return most_broken(len(self.broke), drawn=len(self.rows), population=self.survivors)

    @property
    def overclaim(self) -> float:
        """That bound as a share of the survivors."""
        return self.most / self.survivors

    @property
    def lowest(self) -> float:
        """What is left of robust accuracy at that bound."""
        return (self.survivors - self.most) / self.examples

    @property
    def refutes(self) -> bool:
        """Whether (95 %) more than 1 % of the survivors break: more than chance in an attack.

        One example refutes nothing, however few survivors there are.
        """
        fewest = fewest_broken(len(self.broke), drawn=len(self.rows), population=self.survivors)
        return fewest > max(1.0, ALLOWED * self.survivors)

    def __str__(self) -> str:
        broke = "none" if not len(self.broke) else f"{len(self.broke):,}"
        return (
            f"{broke} of {len(self.rows):,} broken by {self.protocol}: at most "
            f"{100 * self.overclaim:.2f} % of {self.survivors:,} robust examples "
            f"({self.most:,}) break (95 %)"
        )


def audit(
    stored: Stored,
    model: nn.Module,
    examples: RecordExamples,
    *,
    count: int,
    seed: int,
    report: Callable[[Progress], None] | None = None,
) -> Audit:
    """Attack `count` of the examples that are still claimed robust (or all), drawn by `seed`.

    With `standard`, or where the record's protocol takes several draws of a random model, with
    that. Draws of the attack are others than the record's. Raises `InputError` for a count below 1,
    a negative seed, and where no example is claimed robust.
    """
    if count < 1 or seed < 0:
        raise InputError(
            f"an audit needs a count of at least 1 and a seed of at least 0, found "
            f"{count} and {seed}"
        )
    survivors = np.flatnonzero(standing(stored).robust)
    if not len(survivors):
        raise InputError("there is nothing to audit: no example is claimed robust")
    draws = np.random.Generator(np.random.PCG64(seed))
    chosen = draws.choice(survivors, min(count, len(survivors)), replace=False)
    rows = torch.from_numpy(np.sort(chosen).astype(np.int64))
    protocol, ball = audit_protocol(stored.record.protocol), ball_of(stored.record.config)
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
    broke = ~outcome.robust
    points = _pushed(model, outcome.adversarials[broke], examples, rows[broke], ball, protocol)
    return Audit(protocol, seed, rows, rows[broke], points, len(survivors), len(examples.labels))


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
    examples: RecordExamples,
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
    train = evenly_chosen(train, measure.train_examples or len(train.labels))
    known = min(measure.test_examples or len(examples.labels), len(examples.labels))
    draws = np.random.Generator(np.random.PCG64(seed))
    chosen = np.sort(draws.choice(known, min(count, known), replace=False))
    rows = torch.from_numpy(chosen.astype(np.int64))
    test = Split(examples.images[rows], examples.labels[rows], examples.ids[rows])
    leaps_only = MeasureConfig(
        feature="gap" if measure.feature == "both" else measure.feature,
        taps=("penultimate",),
        steps=measure.steps,
        restarts=measure.restarts,
        batch_size=measure.batch_size,
        targets=(),
        radii=(),
        trajectories=0,
    )
    splits = {"train": train, "test": test}
    found = profile(
        model,
        {name: [(to_unit(part.images), part.labels)] for name, part in splits.items()},
        settings.threat.ball(),
        measure=leaps_only,
        seed=stream_key(seed, "remeasure") & (2**31 - 1),
        report=report,
    )
    row = found.values(
        "leap_rate", tap="penultimate", split="test", condition="attacked", grouping="none"
    ).iloc[0]
    return Remeasured(claimed, round(float(row["value"]) * int(row["n"])), int(row["n"]))
