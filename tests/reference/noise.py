"""Label noise and long tails straight from their definitions, one example at a time."""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

_WORD = 2**64


def _mix(bits: int) -> int:
    """Finaliser of splitmix64 in Python integers."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % _WORD
    return bits ^ (bits >> 31)


def draws(seed: int, stream: str, identity: int, count: int) -> list[Fraction]:
    """Uniform draws of one example, exact: 24 bits each."""
    text = f"{seed}\x1f{stream}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    row = _mix((identity * 0x9E3779B97F4A7C15 + key) % _WORD)
    columns = (_mix((row + j * 0x9E3779B97F4A7C15) % _WORD) for j in range(1, count + 1))
    return [Fraction(bits >> 40, 2**24) for bits in columns]


def given_label(
    label: int, classes: int, chance: Fraction, which: Fraction, *, rate: float, redraw: bool
) -> int:
    if chance >= rate:
        return label
    if redraw:
        return math.floor(which * classes)
    others = [*range(label + 1, classes), *range(label)]
    return others[math.floor(which * (classes - 1))]


def transition(kind: str, classes: int, **options: object) -> list[list[float]]:
    """P(given | original) in closed form."""
    rows = []
    for own in range(classes):
        rate = options["rates"][own] if kind == "per_class" else options["rate"]
        if kind == "pair":
            pairs = options.get("pairs") or [(k + 1) % classes for k in range(classes)]
            row = [rate * (pairs[own] == k) for k in range(classes)]
        elif kind == "symmetric" and options.get("redraw", True):
            row = [rate / classes] * classes
        else:
            row = [rate / (classes - 1) * (k != own) for k in range(classes)]
        row[own] += 1 - rate
        rows.append(row)
    return rows


def kept(labels: Sequence[int], ids: Sequence[int], sizes: Sequence[int], seed: int) -> list[int]:
    """Places of the examples that stay: of each class the first `size` by (draw, id)."""
    places = []
    for k, size in enumerate(sizes):
        mine = [i for i, label in enumerate(labels) if label == k]
        mine.sort(key=lambda i: (draws(seed, "imbalance", ids[i], 1)[0], ids[i]))
        places += mine[:size]
    return sorted(places)
