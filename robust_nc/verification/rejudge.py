"""Verdicts made again by the model itself: proven, within tolerance, or refuted.

Another machine rounds in another way. A verdict that it does not repeat is within tolerance only
where that can be rounding: the margin was, and is, within 1e-3 of the range of the logits (of 10
typical margins, where a class that is never meant widens that range). Where the output is random,
it is where so few votes of so many come by chance from an even coin.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
>>> images, labels = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)
>>> seen = look_again(model, images, labels)
>>> bool(((seen.margins > 0) == seen.flipped).all())
True
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.evaluation.scoring import Scorer, halving, margins
from robust_nc.evidence.file import TOLERANCE
from robust_nc.runtime.torch_state import device_of, private_draws, stream_key, untouched

_TYPICAL = 10.0  # a range is taken for at most so many median margins of clean images
_CHANCE = 1e-4  # below which votes of a random model are no accident
_BATCH = 256


class Looked(NamedTuple):
    """Of points `(n,)`: misclassified, by how many of the draws, margin, and range of the logits.

    Margins and ranges are of the mean logits.
    """

    flipped: Tensor
    votes: Tensor
    margins: Tensor
    ranges: Tensor


class Repeated(NamedTuple):
    """Verdicts `(n,)` that were repeated, and that were not but may be; all others are refuted."""

    proven: Tensor
    tolerated: Tensor

    @property
    def refuted(self) -> Tensor:
        """Verdicts that are not what the model says."""
        return ~(self.proven | self.tolerated)


def look_again(
    model: nn.Module,
    points: Tensor,
    labels: Tensor,
    *,
    draws: int = 1,
    seed: int = 0,
    what: str = "images",
) -> Looked:
    """Score points `(n, C, H, W)` by `draws` passes each, in batches, on the model's device.

    The model is left as it was found. Raises `InputError` for a model that fails, naming `what`.
    """
    device = device_of(model)
    found: list[Looked] = []
    scorer = Scorer(model).naming(what)

    def look(rows: Tensor) -> None:
        batch, wanted = points[rows].to(device), labels[rows].to(device)
        summed = torch.zeros(1, device=device)
        votes = torch.zeros(len(rows), dtype=torch.int64, device=device)
        for draw in range(draws):
            key = stream_key(seed, "verdict", draw)
            with nullcontext() if draws == 1 else private_draws(key, device):
                seen = scorer.look(batch, wanted)
            summed, votes = summed + seen.logits, votes + seen.flipped
        logits = summed / draws
        ranges = logits.amax(1) - logits.amin(1)
        parts = (2 * votes > draws, votes, margins(logits, wanted), ranges)
        found.append(Looked(*(part.cpu() for part in parts)))

    # A caller's inference mode would forbid gradients to whoever uses the model next.
    with torch.inference_mode(False), untouched(model):
        halving(look, torch.arange(len(points)), _BATCH)
    if not found:
        empty = torch.zeros(0)
        return Looked(empty.bool(), empty.long(), empty, empty)
    return Looked(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def bounded(seen: Looked, clean: Looked) -> Looked:
    """Return `seen` with ranges that the margins of `clean` images of the same model bear out.

    A logit of -1e6 for a class that is never meant would else put every margin down to rounding:
    no clean verdict could be refuted then, and no challenge could count.
    """
    if not len(clean.margins):
        return seen
    most = _TYPICAL * clean.margins.abs().median()
    return seen._replace(ranges=seen.ranges.clamp_max(most))


def certain(seen: Looked, draws: int) -> Tensor:
    """Whether points `(n,)` are misclassified beyond the tolerance, so that a challenge counts.

    Of a random model, by more votes than an even coin gives: whoever may try a point in many
    batches would else have a lucky one.
    """
    sure = seen.flipped & (seen.margins > TOLERANCE * seen.ranges)
    return sure if draws == 1 else sure & ~_by_chance(draws - seen.votes, draws)


def repeated_flips(seen: Looked, stored: Tensor, draws: int) -> Repeated:
    """Judge points that are claimed to be misclassified; `stored` (n,) are their margins there.

    With one draw, one that is classified correctly here is within tolerance where its margin
    differs by at most 1e-3 of the range from one that was at least 0.
    """
    if draws > 1:
        return Repeated(seen.flipped, ~seen.flipped & _by_chance(seen.votes, draws))
    near = (seen.margins - stored).abs() <= TOLERANCE * seen.ranges
    return Repeated(seen.flipped, ~seen.flipped & (stored >= 0) & near)


def repeated_clean(seen: Looked, correct: Tensor, draws: int) -> Repeated:
    """Judge clean images that are claimed to be classified as `correct` (n,) says."""
    proven = seen.flipped != correct
    if draws > 1:
        votes = torch.where(correct, draws - seen.votes, seen.votes)
        return Repeated(proven, ~proven & _by_chance(votes, draws))
    return Repeated(proven, ~proven & (seen.margins.abs() <= TOLERANCE * seen.ranges))


def _by_chance(votes: Tensor, draws: int) -> Tensor:
    """Whether an even coin gives so few of `draws` votes, or fewer, more than once in 10,000."""
    total, table = 0, []
    for count in range(draws + 1):
        total += math.comb(draws, count)
        table.append(total > _CHANCE * 2**draws)
    return torch.tensor(table)[votes]
