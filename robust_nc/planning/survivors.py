"""Who survives an attack: measured on records of the same kind of model, or else assumed.

>>> assumed("standard", defended=False).robust, assumed("pgd", defended=True).robust
(0.03, 0.6)
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.config import RunConfig, identifying
from robust_nc.exceptions import RecordError
from robust_nc.record.folder import read_all
from robust_nc.record.schema import Record

_CLEAN = 0.9  # correct before any attack
_ROBUST = {True: 0.6, False: 0.03}  # after all: trained against attacks, or not
_FIRST = 0.95  # share of what breaks at all that the first attack breaks


class Survival(NamedTuple):
    """Shares of the examples: `clean` correct, `robust`, and `broke`, by attack in order.

    `broke` is empty where only the totals are known. `spent`: passes of such records over those
    that this model of costs counts for them. `last_differs`: share of cells whose best and last
    weights differ, so that both are judged. `source` says where all this is from.
    """

    clean: float
    robust: float
    broke: tuple[float, ...] = ()
    spent: float = 1.0
    last_differs: float = 1.0
    source: str = "assumed"

    def first_to_break(self, attacks: int) -> tuple[float, ...]:
        """Share of the examples that each attack breaks, of `attacks` in order."""
        if len(self.broke) == attacks:
            return self.broke
        lost = max(self.clean - self.robust, 0.0)
        if attacks == 1:
            return (lost,)
        return (_FIRST * lost, (1 - _FIRST) * lost, *(0.0,) * (attacks - 2))

    def at(self, ratio: float) -> "Survival":
        """Return what to expect at a radius of `ratio` times that of the ball.

        Between the clean accuracy at 0 and the robust one at 1, and beyond, it falls by the same
        factor for the same step.
        """
        if not self.clean:
            return self
        kept = (max(self.robust, 1e-3) / self.clean) ** ratio
        return self._replace(robust=self.clean * kept, broke=(), spent=1.0)


def assumed(objective: str, *, defended: bool) -> Survival:
    """Return what is assumed of an objective's model; `defended`: it trains against attacks."""
    robust = _ROBUST[defended]
    return Survival(_CLEAN, robust, source=f"assumed for {objective}")


def read_records(folders: Iterable[Path]) -> list[Record]:
    """Read all records below some folders; one that is missing or damaged has nothing to say."""
    found = []
    for folder in folders:
        try:
            found += [stored.record for stored in read_all(folder)] if folder.is_dir() else []
        except RecordError:
            continue
    return found


def measured(
    config: RunConfig, records: Iterable[Record], counted: Callable[[Survival], float]
) -> Survival | None:
    """Return what records of the same kind of model say, or None where there are none.

    The same kind: data set, backbone, objective and ball. Where the protocol and the number of
    images are the same too, also which attack breaks how much, and how the passes compare with
    `counted`, which counts the passes of a verdict on one image.
    """
    like = [record for record in records if _kind(record.config) == _kind(identifying(config))]
    if not like:
        return None
    count = len(like)
    clean = sum(record.scores["clean"].value for record in like) / count
    robust = sum(record.scores["robust"].value for record in like) / count
    found = Survival(clean, robust, source=f"from {count} record{'s' * (count > 1)}")
    weights = [(r.weights.best, r.weights.last) for r in like]
    differ = [best.sha256 != last.sha256 for best, last in weights if best and last]
    if differ:
        found = found._replace(last_differs=sum(differ) / len(differ))
    alike = [record for record in like if record.protocol == config.evaluation.protocol]
    if not alike or len({len(record.attacks) for record in alike}) > 1:
        return found
    shares = [[use.broke / r.data.examples for use in r.attacks] for r in alike]
    found = found._replace(
        broke=tuple(sum(column) / len(alike) for column in zip(*shares, strict=True))
    )
    spent = [(r.passes.forward + r.passes.backward) / r.data.examples for r in alike]
    expected = counted(found)
    if expected <= 0:
        return found
    return found._replace(spent=sum(spent) / len(spent) / expected)


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
