"""What a quantity takes from a cell: its options, the taps it reads, and notes of its rows.

>>> from robust_nc.config import Component
>>> whole(Component(name="early_over_late", options={"early": "block1"})).options
{'early': 'block1', 'feature': 'gap'}
>>> taps(Component(name="early_over_late"))
('block2', 'penultimate')
"""

import inspect

import pandas as pd

from robust_nc.claims.quantities import QUANTITIES, vertex_row
from robust_nc.config import Component, check_options

_VERDICTS = ("ncc_adaptive", "vertex_over_network", "early_over_late")


def whole(part: Component) -> Component:
    """Return a quantity with the defaults of its options written out, or raise `ConfigError`."""
    given = check_options(QUANTITIES, part, {"rows"})
    parameters = inspect.signature(QUANTITIES.load(part.name)).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.name != "rows"}
    return Component(name=part.name, options=defaults | given)


def taps(part: Component) -> tuple[str, ...]:
    """Name the taps that a quantity reads and that a backbone may not have."""
    options = whole(part).options
    if "early" in options:
        return (options["early"], "penultimate")
    if "first" in options:
        return (options["first"], options["last"])
    return (options["tap"],) if "tap" in options else ()


def notes(part: Component, rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the distinct notes of the adaptive verdicts that a quantity reads in these rows.

    They name the warnings of each verdict. Other quantities read none. Raises as `measure` does.
    """
    if part.name not in _VERDICTS:
        return ()
    feature = whole(part).options["feature"]
    read = [vertex_row(rows, "ncc_adaptive", tap, feature) for tap in taps(part)]
    if part.name == "vertex_over_network":
        attack = read[0].attack
        read.append(vertex_row(rows, "robust_accuracy", "output", feature, attack=attack))
    return tuple(dict.fromkeys(row.note for row in read if row.note))
