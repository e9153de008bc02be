"""Synthetic records with given flags, for tests of ranks and comparisons."""

import dataclasses
from pathlib import Path
from typing import Any

import helpers_report as helpers
import numpy as np
import numpy.typing as npt

from robust_nc.io.files import digest
from robust_nc.record import Record, Score, Stored, Verdict, pack_flags, read_record, write_record
from robust_nc.statistics.intervals import wilson

Flags = npt.NDArray[np.bool_]


def flags(robust: int, n: int = 1000, start: int = 0) -> Flags:
    """`robust` of `n` examples, from `start` on."""
    return (np.arange(n) >= start) & (np.arange(n) < start + robust)


def score(given: Flags) -> Score:
    found = wilson(int(given.sum()), len(given))
    return Score(value=found.value, low=found.low, high=found.high, n=found.n)


def record(
    robust: Flags,
    *,
    clean: Flags | None = None,
    objective: str = "pgd",
    head: str = "etf",
    seed: int = 0,
    state: str | None = None,
    fingerprint: str = "f" * 64,
    **changes: Any,
) -> Record:
    """Make a record with these robust flags; by default all examples are right when clean."""
    clean = np.ones(len(robust), dtype=bool) if clean is None else clean
    made = helpers.record_of(helpers.config(objective=objective, head=head, seed=seed), correct=100)
    n = len(robust)
    data = dataclasses.replace(
        made.data,
        examples=n,
        fingerprint=fingerprint,
        which=f"the first {n} of test in the official order",
    )
    verdict = Verdict(
        clean_correct=pack_flags(clean),
        robust=pack_flags(robust),
        broken_by=tuple(np.where(robust, -1, np.where(clean, 0, -2)).tolist()),
    )
    weights = dataclasses.replace(made.weights, state=state)
    scores = {"clean": score(clean), "robust": score(robust)}
    base = {"data": data, "verdict": verdict, "weights": weights, "scores": scores}
    return dataclasses.replace(made, **(base | changes))


def stored(robust: Flags, **options: Any) -> Stored:
    """Make a record that lies nowhere."""
    made = record(robust, **options)
    return Stored(made, Path(f"{digest([made.model, made.cell, repr(options)])[:16]}.json"))


def written(folder: Path, robust: Flags, **options: Any) -> Stored:
    """Write a record as `<folder>/<cell>.json` and read it back."""
    made = record(robust, **options)
    path = folder / f"{made.cell}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_record(path, made)
    return read_record(path)
