"""Synthetic records for tests of reports: schema-valid, written by the code of `record.py`.

The numbers follow simple formulas, so that a test can say by hand what a table must show.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from robust_nc.config import RunConfig, cell_id, plain, read
from robust_nc.record import (
    AttackUse,
    Caution,
    Facts,
    File,
    Passes,
    Record,
    Score,
    Stored,
    Verdict,
    Weights,
    pack_flags,
    read_record,
    tidy,
    write_record,
    write_rows,
)
from robust_nc.record.folder import record_path, rows_path
from robust_nc.statistics.intervals import wilson

TAPS = ("stem", "stage1", "stage2", "penultimate")
EXAMPLES = 200
CLASSES = 4
OBJECTIVES = ("standard", "pgd", "trades")


def config(
    *, objective: str = "pgd", head: str = "etf", seed: int = 0, dataset: str = "digits"
) -> RunConfig:
    return read(
        RunConfig,
        {
            "data": {"dataset": dataset},
            "model": {"head": head},
            "train": {"objective": objective},
            "threat": {"norm": "Linf", "eps": 0.15},
            "seed": seed,
        },
    )


def summary(objective: str, seed: int) -> dict[str, float | None]:
    robust = objective != "standard"
    return {
        "nc1_clean": 0.1 + 0.01 * seed,
        "nc1_attacked": (0.5 if robust else 8.0) + 0.1 * seed,
        "nc1_landed": 0.2,
        "nc1_landed_null": 0.9,
        "nc1_leap_null": 5.0,
        "nc2_angle_clean": 0.05,
        "leap_rate": (0.2 if robust else 0.9) + 0.01 * seed,
        "landed": None if robust and seed == 1 else 0.75,
        "landing_fraction": 0.4,
    }


def record_of(
    setting: RunConfig,
    *,
    suite: str = "synthetic",
    model: str | None = None,
    correct: int | None = None,
    rows: File | None = None,
    warnings: tuple[Caution, ...] = (),
) -> Record:
    """Make a record; `correct` of the `EXAMPLES` examples are robust, 180 are right when clean."""
    objective, head = setting.train.objective.name, setting.model.head.name
    if correct is None:
        correct = {"standard": 4, "pgd": 120, "trades": 130}[objective] + 2 * setting.seed
        correct += 4 * (head == "etf")
    clean = np.arange(EXAMPLES) < 180
    robust = np.arange(EXAMPLES) < correct
    return Record(
        cell=cell_id(setting),
        suite=suite,
        model=model or f"small_cnn-{head}-{objective}",
        objective=objective,
        head=head,
        config=plain(setting),
        seed=setting.seed,
        data=Facts(
            dataset=setting.data.dataset.name,
            split="test",
            examples=EXAMPLES,
            which=f"the first {EXAMPLES} of test in the official order",
            fingerprint="f" * 64,
            num_classes=CLASSES,
        ),
        weights=Weights(
            parameters=12_345,
            best=File(path="checkpoints/x/best.safetensors", sha256="0" * 64),
            last=File(path="checkpoints/x/last.safetensors", sha256="1" * 64),
        ),
        protocol="pgd",
        attacks=(
            AttackUse(
                name="pgd-ce",
                parameters={"steps": 20, "loss": "ce"},
                broke=int(180 - correct),
            ),
        ),
        passes=Passes(forward=20 * EXAMPLES, backward=10 * EXAMPLES),
        verdict=Verdict(
            clean_correct=pack_flags(clean),
            robust=pack_flags(robust),
            broken_by=tuple(-1 if safe else 0 for safe in robust.tolist()),
        ),
        scores={"clean": score(180), "robust": score(correct), "clean_train": score(199)},
        summary=summary(objective, setting.seed),
        rows=rows or File(path="none.parquet", sha256="0" * 64),
        warnings=warnings,
        seconds={"train": 1.5},
        versions={"robust_nc": "0.1.0", "torch": "2.13.0"},
        hardware={"device": "cpu", "threads": 1},
        created="2026-01-01T00:00:00+00:00",
    )


def score(correct: int) -> Score:
    found = wilson(correct, EXAMPLES)
    return Score(value=found.value, low=found.low, high=found.high, n=found.n)


def scalar_rows(objective: str, head: str, seed: int) -> list[dict[str, Any]]:
    """Make collapse and leap measures per tap; they grow or shrink geometrically with depth."""
    strength = {"standard": 1.0, "pgd": 0.35, "trades": 0.3}[objective]
    strength *= 0.8 if head == "etf" else 1.0
    rows = []
    for (depth, tap), condition in itertools.product(
        enumerate(TAPS), ("clean", "attacked", "gaussian", "sign")
    ):
        push = {"clean": 0.0, "attacked": 1.0, "gaussian": 0.1, "sign": 0.15}[condition]
        shared = {
            "tap": tap,
            "depth": depth,
            "feature": "gap",
            "condition": condition,
            "eps": 0.0 if condition == "clean" else 0.15,
            "attack": "ce+margin, 20 steps, 1 restart" if condition == "attacked" else "",
            "split": "train",
            "n": EXAMPLES,
        }
        nc1 = 3.0 * 0.25**depth * (1 + 0.05 * seed) + push * strength * 0.6 * (depth + 1)
        values = {"nc1": nc1, "nc2_angle": 0.3 * 0.5**depth + 0.2 * push * strength}
        if condition != "clean":
            leaps = {
                "leap_rate": min(1.0, push * strength * (0.1 + 0.3 * depth) + 0.01 * seed),
                "landing_fraction": push * strength * 0.8,
                "landed": 0.5 * push,
            }
            rows += [row(shared, measure, value) for measure, value in leaps.items()]
            null = {**shared, "grouping": "true", "vertices": "clean-train"}
            rows.append(row(null, "nc1_leap_null", nc1 * 0.7))
            landed = {**shared, "grouping": "landed", "vertices": "same"}
            rows.append(row(landed, "nc1", nc1 * 0.3))
            rows.append(row({**landed, "vertices": "clean-train"}, "nc1_landed_null", nc1 * 1.5))
        grouped = {**shared, "grouping": "true", "vertices": "same"}
        rows += [row(grouped, measure, value) for measure, value in values.items()]
    return rows


def row(shared: dict[str, Any], measure: str, value: float) -> dict[str, Any]:
    known = {"grouping": "none", "vertices": "clean-train", **shared}
    return {**known, "measure": measure, "value": value}


def count_rows(objective: str, seed: int) -> list[dict[str, Any]]:
    """Make the leap matrix, the landing histogram and the leap layers."""
    draw = np.random.default_rng(seed)
    strength = {"standard": 1.0, "pgd": 0.35, "trades": 0.3}[objective]
    rows = []
    for condition, push in (("attacked", 1.0), ("gaussian", 0.1)):
        shared = {
            "feature": "gap",
            "condition": condition,
            "eps": 0.15,
            "split": "train",
            "n": EXAMPLES,
        }
        deep = {**shared, "tap": "penultimate", "depth": len(TAPS) - 1}
        counts = draw.integers(0, 10, (CLASSES, CLASSES)) + np.diag([30] * CLASSES)
        for i, j in itertools.product(range(CLASSES), repeat=2):
            rows.append({**row(deep, "leap_matrix", float(counts[i, j])), "i": i, "j": j})
        middle = 0.9 * push * strength
        centres = np.linspace(-0.5, 1.5, 41)[:-1] + 0.025
        for i, centre in enumerate(centres):
            count = float(round(40 * np.exp(-((centre - middle) ** 2) / 0.03)))
            rows.append({**row(deep, "landing_histogram", count), "i": i})
        left = EXAMPLES
        for depth, tap in enumerate(TAPS):
            here = int(20 * push * strength * (depth + 1))
            left -= here
            place = {**shared, "tap": tap, "depth": depth}
            rows.append(row(place, "leap_layer", float(here)))
        rows.append(row({**shared, "tap": "none", "depth": -1}, "leap_layer", float(left)))
    return rows


def curve_rows(objective: str, head: str, seed: int) -> list[dict[str, Any]]:
    """Make the curves of training and the accuracy against eps."""
    strength = {"standard": 1.0, "pgd": 0.35, "trades": 0.3}[objective]
    strength *= 0.8 if head == "etf" else 1.0
    output = {"tap": "output", "depth": len(TAPS)}
    rows = []
    for eps in (0.0, 0.05, 0.1, 0.15, 0.2):
        place = {**output, "condition": "attacked", "eps": eps, "split": "test", "n": EXAMPLES}
        rows.append(row(place, "accuracy", max(0.0, 0.95 - 5 * strength * eps - 0.01 * seed)))
    # The accuracy on the images of the geometry, at a radius that the sweep has too.
    place = {**output, "condition": "attacked", "eps": 0.15, "split": "test", "n": EXAMPLES}
    rows.append(row({**place, "feature": "gap"}, "accuracy", 0.01))
    for epoch in range(8):
        train = {
            "tap": "penultimate",
            "depth": len(TAPS) - 1,
            "feature": "gap",
            "condition": "clean",
            "split": "train",
            "epoch": epoch,
            "n": EXAMPLES,
            "grouping": "true",
            "vertices": "same",
        }
        value = 2.0 * 0.6 ** (epoch * (0.5 + strength)) * (1 + 0.1 * seed)
        rows.append(row(train, "nc1_trace", value))
        rows.append(row(train, "nc2_angle", 0.4 * 0.8**epoch))
        for split, condition in itertools.product(("train", "validation"), ("clean", "attacked")):
            place = {**output, "condition": condition, "split": split, "epoch": epoch}
            rows.append(row({**place, "n": EXAMPLES}, "accuracy", 0.5 + 0.05 * epoch))
    return rows


def rows_of(objective: str, head: str, seed: int) -> list[dict[str, Any]]:
    return [
        *scalar_rows(objective, head, seed),
        *count_rows(objective, seed),
        *curve_rows(objective, head, seed),
    ]


def write_cell(out: Path, setting: RunConfig, **options: Any) -> Stored:
    """Write one synthetic cell, rows and record, and read it back."""
    record = record_of(setting, **options)
    frame = tidy(rows_of(record.objective, record.head, setting.seed))
    reference = write_rows(rows_path(out, record.model, record.cell), frame)
    path = record_path(out, record.model, record.cell)
    write_record(path, record_of(setting, rows=reference, **options))
    return read_record(path)


def write_grid(
    out: Path,
    *,
    objectives: tuple[str, ...] = OBJECTIVES,
    heads: tuple[str, ...] = ("linear", "etf"),
    seeds: int = 3,
) -> list[Stored]:
    """Write objectives x heads x seeds."""
    return [
        write_cell(out, config(objective=objective, head=head, seed=seed))
        for objective, head, seed in itertools.product(objectives, heads, range(seeds))
    ]
