"""The table of measures: where each is computed, which way is better, its unit and what it says.

`measures.csv` has one row a measure; `python -m robust_nc.geometry.measures` prints it as the table
of `docs/measures.md`.

>>> MEASURES["nc1"].formula, MEASURES["nc1"].higher_is_better, MEASURES["alignment_angle"].unit
('robust_nc.geometry.projection:Projection.nc1', False, 'degrees')
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # so that the names of measures are known without torch
    from robust_nc.geometry.moments import Moments

_BETTER = {"higher": True, "lower": False, "": None}


class Measure(NamedTuple):
    """A registered measure: its column name, which way is better, a heading, one sentence.

    `higher_is_better` is None where neither way is: a null model, or how far a leap went. For
    collapse measures lower means more collapsed, which is the sense the field sorts by.

    One with `compute` becomes a row of every tap, condition and grouping by being registered: a
    function of the moments of the features, None where it is undefined. `formula` is the
    "module:function" that gives the values of ours, `unit` is empty for a pure number.
    """

    name: str
    higher_is_better: bool | None
    label: str
    description: str
    compute: Callable[[Moments], float | None] | None = None
    formula: str = ""
    unit: str = ""


def _read() -> dict[str, Measure]:
    text = resources.files("robust_nc.geometry").joinpath("measures.csv").read_text("utf-8")
    return {
        row["name"]: Measure(
            name=row["name"],
            higher_is_better=_BETTER[row["better"]],
            label=row["name"].replace("_", " "),
            description=row["description"],
            formula=f"robust_nc.{row['formula']}",
            unit=row["unit"],
        )
        for row in csv.DictReader(text.splitlines())
    }


MEASURES = _read()


def measures_table() -> str:
    """Return the table of the documentation, by name."""
    lines = ["| name | what it is | unit | better | computed by |", "|---|---|---|---|---|"]
    better = {value: word for word, value in _BETTER.items()}
    for name, measure in sorted(MEASURES.items()):
        formula = measure.formula.removeprefix("robust_nc.")
        cells = [f"`{name}`", measure.description, measure.unit]
        cells += [better[measure.higher_is_better], f"`{formula}`"]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(measures_table())
