"""What one sweep can measure, for conditions of which there are many: radii, corruptions."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.leaps import LeapMeter
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import nearest_vertex
from robust_nc.grid.meters import part_bytes
from robust_nc.grid.rounds import twins
from robust_nc.grid.rows import CLEAN, Row
from robust_nc.grid.subject import Examples, Subject
from robust_nc.grid.tapbank import TapBank


def clean_bank(subject: Subject, examples: Examples, feature: str) -> TapBank:
    """Return a bank of the clean images, to which such conditions are added one at a time."""
    size, taps = subject.settings.batch_size, subject.taps
    return TapBank(
        subject.model, {CLEAN: examples.images}, feature=feature, batch_size=size, taps=taps
    )


class Tap(NamedTuple):
    """One tap of the sweep."""

    name: str
    reference: Moments

    @property
    def nbytes(self) -> int:
        """Most bytes that its sums hold at a time."""
        return part_bytes(self.reference.num_groups, self.reference.dim)


def tap_rows(
    labels: Tensor, bank: TapBank, condition: str, taps: list[Tap], measures: tuple[str, ...]
) -> Iterator[Row]:
    """Collapse (trace form) and measures of leaps of some taps, from one sweep beside the clean.

    `labels` (N,); `bank` holds the clean images and those of `condition`; `measures` are names of
    `Leaps`. Collapse is by true label and by the vertex where examples landed.
    """
    meters = {tap.name: LeapMeter(tap.reference.means) for tap in taps}
    groupings = {
        (tap.name, name): Moments(
            tap.reference.num_groups, tap.reference.dim, device=tap.reference.device
        )
        for tap in taps
        for name in ("true", "landed")
    }
    for clean, here in twins(bank, condition):
        mine = labels[here.rows].to(here.predicted.device)
        for tap, meter in meters.items():
            features = here.features[tap]
            meter.update(clean.features[tap], features, mine)
            groupings[tap, "true"].update(features, mine)
            groupings[tap, "landed"].update(features, nearest_vertex(features, meter.vertices))
    for (tap, name), moments in groupings.items():
        found = collapse(moments)
        place = {"tap": tap, "grouping": name, "vertices": "same", "measure": "nc1_trace"}
        note = found.notes.get("nc1_trace", "")
        yield place | {"value": found.nc1_trace, "n": found.num_examples, "note": note}
    for tap, meter in meters.items():
        leaps = meter.compute()
        common: Row = {"tap": tap, "grouping": "none", "vertices": "clean-train"}
        for name in measures:
            value = {"measure": name, "value": getattr(leaps, name)}
            count = leaps.counts.get(name, leaps.num_examples)
            yield common | value | {"n": count, "note": leaps.notes.get(name, "")}
