"""Claims of the literature as the page shows them: text that whoever answers claims prepares.

>>> Shown("C1", verdict="undecided", says="a", source="b", reason="c", scale="", tests=()).verdict
'undecided'
"""

from typing import NamedTuple


class ShownTest(NamedTuple):
    """One test of a claim: its quantity, and what came of it, as text."""

    quantity: str
    mean: str
    expected: str
    p: str
    p_holm: str
    seeds: str
    verdict: str


class Shown(NamedTuple):
    """One claim, as it was asked and answered; `scale` says what it was measured on."""

    id: str
    verdict: str
    says: str
    source: str
    reason: str
    scale: str
    tests: tuple[ShownTest, ...]
