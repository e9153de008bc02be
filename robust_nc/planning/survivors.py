"""Who survives an attack: measured on records of the same kind of model, or else assumed.

>>> Survival(0.9, 0.3).at(2.0).robust
0.1
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.config import RunConfig, identifying
from robust_nc.exceptions import RecordError
from robust_nc.record.folder import read_all
from robust_nc.record.schema import Record

_FIRST = 0.95  # share of what breaks at all that the first attack breaks


class Survival(NamedTuple):
    """Shares of the examples: `clean` correct before any attack, `robust` after all.

    `last_differs`: share of cells whose best and last weights differ, so that both are judged.
    `source` says where all this is from.
    """

    clean: float
    robust: float
    last_differs: float = 1.0
    source: str = "assumed"

    def broken_by(self, place: int, attacks: int) -> float:
        """Share of the examples that the attack at a place in so many breaks: all by the first two.

        >>> [round(Survival(0.9, 0.4).broken_by(place, 3), 3) for place in range(3)]
        [0.475, 0.025, 0.0]
        """
        lost = max(self.clean - self.robust, 0.0)
        shares = (1.0,) if attacks == 1 else (_FIRST, 1 - _FIRST)
        return lost * shares[place] if place < len(shares) else 0.0

    def at(self, ratio: float) -> "Survival":
        """Return what to expect at a radius of `ratio` times that of the ball.

        Between the clean accuracy at 0 and the robust one at 1, and beyond, it falls by the same
        factor for the same step.
        """
        if not self.clean:
            return self
        kept = (max(self.robust, 1e-3) / self.clean) ** ratio
        return self._replace(robust=round(self.clean * kept, 6))


# Where there are no records: trained against attacks, and not.
DEFENDED, UNDEFENDED = Survival(0.9, 0.65, 0.8), Survival(0.9, 0.03, 0.4)


def read_records(folders: Iterable[Path]) -> list[Record]:
    """Read all records below some folders; one that is missing or damaged has nothing to say."""
    found = []
    for folder in folders:
        try:
            found += [stored.record for stored in read_all(folder)] if folder.is_dir() else []
        except RecordError:
            continue
    return found


def measured(config: RunConfig, records: Iterable[Record]) -> Survival | None:
    """Return what records of the same kind of model say, or None where there are none.

    The same kind: data set, backbone, objective and ball.
    """
    like = [record for record in records if _kind(record.config) == _kind(identifying(config))]
    if not like:
        return None
    clean, robust = (sum(r.scores[name].value for r in like) for name in ("clean", "robust"))
    weights = [(r.weights.best, r.weights.last) for r in like]
    differ = [best.sha256 != last.sha256 for best, last in weights if best and last] or [True]
    count = len(like)
    source = f"from {count} record{'s' * (count > 1)}"
    return Survival(clean / count, robust / count, sum(differ) / len(differ), source)


def _kind(plain: dict[str, Any]) -> tuple[object, ...]:
    """What a survival depends on most, of a configuration as plain values."""
    data, train = plain.get("data", {}), plain.get("train", {})
    backbone = plain.get("model", {}).get("backbone", {})
    return (
        data.get("dataset", {}).get("name"),
        backbone.get("name"),
        train.get("objective", {}).get("name"),
        tuple(sorted(plain.get("threat", {}).items())),
    )
