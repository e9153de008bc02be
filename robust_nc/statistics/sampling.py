"""Exact bounds from a sample that was drawn without replacement (hypergeometric).

>>> most_broken(0, drawn=300, population=4_000)
38
"""

import math

from robust_nc.exceptions import InputError

MISS = 20  # bounds hold with probability 1 - 1/20


def most_broken(found: int, *, drawn: int, population: int, miss: int = MISS) -> int:
    """Return the upper bound on how many of a population break, from `found` of `drawn`.

    It is the largest B with P(X <= found) > 1/`miss`, X hypergeometric: `drawn` of `population`, of
    which B break; 1 in 20, a 95 % bound, if nothing else is said. Integers throughout, so exact.
    Raises `InputError` for counts that cannot be.
    """
    if not 0 <= found <= drawn <= population:
        raise InputError(
            "a bound needs 0 <= found <= drawn <= population, "
            f"found {found}, {drawn} and {population}"
        )
    low, high = found, population - (drawn - found)  # P falls with B, and is 1 at `found`
    while low < high:
        middle = (low + high + 1) // 2
        if _likely(found, middle, drawn, population, miss):
            low = middle
        else:
            high = middle - 1
    return low


def fewest_broken(found: int, *, drawn: int, population: int, miss: int = MISS) -> int:
    """Return the lower bound: the smallest B with P(X >= found) > 1/`miss`, as `most_broken`."""
    return population - most_broken(drawn - found, drawn=drawn, population=population, miss=miss)


def enough(most: int, *, population: int) -> int:
    """Return the smallest sample which, if none of it breaks, bounds what breaks by `most`.

    >>> enough(10, population=739)
    175
    """
    low, high = min(1, population), population
    while low < high:
        middle = (low + high) // 2
        if most_broken(0, drawn=middle, population=population) <= most:
            high = middle
        else:
            low = middle + 1
    return low


def _likely(found: int, broken: int, drawn: int, population: int, miss: int) -> bool:
    """Whether at most `found` of the drawn break with a probability of more than 1 in `miss`."""
    whole = population - broken
    first = max(0, drawn - whole)
    ways = term = math.comb(broken, first) * math.comb(whole, drawn - first)
    for x in range(first, min(found, broken, drawn)):
        term = term * (broken - x) * (drawn - x) // ((x + 1) * (whole - drawn + x + 1))
        ways += term
    return found >= first and miss * ways > math.comb(population, drawn)
