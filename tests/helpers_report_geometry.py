"""Synthetic rows of the geometry in full, as one tidy frame, and what a plot made of them."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from helpers_report import (
    CLASSES,
    EXAMPLES,
    OBJECTIVES,
    TAPS,
    count_rows,
    row,
    scalar_rows,
)
from helpers_report import (
    rows_of as first_rows,
)
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from robust_nc.record import tidy


def geometry_rows(objective: str, head: str, seed: int) -> list[dict[str, Any]]:
    """Make the rows of the geometry in full, and flattened features beside the averaged ones."""
    strength = {"standard": 1.0, "pgd": 0.35, "trades": 0.3}[objective]
    strength *= 0.8 if head == "etf" else 1.0
    flat = [
        {**found, "feature": "flatten", "value": 0.5 * found["value"]}
        for found in [*scalar_rows(objective, head, seed), *count_rows(objective, seed)]
    ]
    return [
        *flat,
        *layer_matrix_rows(strength, seed),
        *target_rows(strength, seed),
        *classifier_rows(strength, seed),
        *alignment_rows(strength, seed),
        *sweep_rows(strength, seed),
        *trajectory_rows(strength, seed),
    ]


def at_taps(condition: str, split: str = "train", eps: float = 0.15) -> list[dict[str, Any]]:
    """Make what the rows of one condition share, tap by tap."""
    shared = {"feature": "gap", "condition": condition, "eps": eps, "split": split, "n": EXAMPLES}
    return [{**shared, "tap": tap, "depth": depth} for depth, tap in enumerate(TAPS)]


def layer_matrix_rows(strength: float, seed: int) -> list[dict[str, Any]]:
    """Make the leap matrices of all taps but the deepest, which `count_rows` has."""
    rows = []
    for place in at_taps("attacked")[:-1]:
        stay = 30 - int(8 * strength * place["depth"])
        for i, j in itertools.product(range(CLASSES), repeat=2):
            count = float(stay if i == j else 1 + (i + 2 * j + seed) % 5)
            rows.append({**row(place, "leap_matrix", count), "i": i, "j": j})
    return rows


def target_rows(strength: float, seed: int) -> list[dict[str, Any]]:
    """Make leaps under targeted attacks, on both splits."""
    pushes = {"cyclic": 0.7, "random": 0.75, "nearest": 0.95, "farthest": 0.4}
    rows = []
    for (condition, push), split in itertools.product(pushes.items(), ("train", "test")):
        for place in at_taps(condition, split):
            rate = push * strength * (0.5 + 0.15 * place["depth"]) + 0.01 * seed
            rows.append(row(place, "leap_rate", rate))
            rows.append(row(place, "landed", 0.6 * push))
            grouped = {**place, "grouping": "true", "vertices": "same"}
            rows.append(row(grouped, "nc1", 100.0))
    return rows


def classifier_rows(strength: float, seed: int) -> list[dict[str, Any]]:
    """Make accuracies of the nearest-vertex classifier and of the network, on test."""
    rows = []
    for protocol, less in (("standard", 0.05), ("pgd", 0.0)):
        for place in at_taps("attacked", "test"):
            shared = {**place, "attack": protocol, "grouping": "true"}
            clean = 0.4 + 0.15 * place["depth"] - 0.01 * seed
            values = {
                "ncc_clean": clean,
                "ncc_transferred": clean * (1 - 0.5 * strength) - less,
                "ncc_adaptive": clean * (1 - 0.9 * strength),
            }
            rows += [row(shared, measure, value) for measure, value in values.items()]
        output = {"tap": "output", "depth": len(TAPS), "condition": "attacked", "eps": 0.15}
        place = {**output, "split": "test", "attack": protocol, "n": EXAMPLES}
        rows.append(row(place, "robust_accuracy", 0.7 * (1 - strength) + 0.05 - less))
    return rows


def alignment_rows(strength: float, seed: int) -> list[dict[str, Any]]:
    """Make angles per class, and their mean, under attack and noise."""
    rows = []
    for condition, push in (("attacked", 60.0), ("gaussian", 6.0)):
        for place in at_taps(condition):
            shared = {**place, "grouping": "true"}
            angles = [
                push * strength * (0.2 + 0.25 * place["depth"]) * (0.7 + 0.2 * i) + seed
                for i in range(CLASSES)
            ]
            rows.append(row(shared, "alignment_angle", sum(angles) / CLASSES))
            rows += [
                {**row(shared, "alignment_angle_class", angle), "i": i}
                for i, angle in enumerate(angles)
            ]
    return rows


def sweep_rows(strength: float, seed: int) -> list[dict[str, Any]]:
    """Make leaps and collapse on test against eps, and where the leap rate crosses 0.1."""
    rows = []
    for eps in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3):
        for place in at_taps("sweep", "test", eps):
            rate = min(1.0, strength * 4 * eps * (0.7 + 0.1 * place["depth"]) + 0.005 * seed)
            rows.append(row(place, "leap_rate", rate))
            true = {**place, "grouping": "true", "vertices": "same"}
            rows.append(row(true, "nc1_trace", 0.2 + 8 * rate))
            rows.append(row({**true, "grouping": "landed"}, "nc1_trace", 0.18 + 0.5 * rate))
        output = {**place, "tap": "output", "depth": len(TAPS), "feature": "gap"}
        rows.append(row(output, "accuracy", 0.9 - rate))
    for place in at_taps("sweep", "test", 0.3):
        crossed = (0.1 - 0.005 * seed) / (strength * 4 * (0.7 + 0.1 * place["depth"]))
        rows.append(row(place, "collapse_radius", crossed))
        rows.append(row(place, "collapse_radius_low", 0.8 * crossed))
        rows.append(row(place, "collapse_radius_high", 1.25 * crossed))
    return rows


def trajectory_rows(strength: float, seed: int) -> list[dict[str, Any]]:
    """Make the paths of leaps: on the edge at all taps, in the plane of the deepest."""
    draw = np.random.default_rng(seed)
    steps = np.arange(21)
    rows = []
    for place in at_taps("attacked"):
        far = 1.4 * strength * (0.4 + 0.2 * place["depth"])
        for step, t in zip(steps.tolist(), far * (1 - np.exp(-steps / 5)), strict=True):
            for end, factor in (("", 1.0), ("_low", 0.6), ("_high", 1.3)):
                rows.append({**row(place, f"trajectory_t{end}", factor * t), "i": step})
    turns = np.pi / 2 - 2 * np.pi * np.arange(CLASSES) / CLASSES
    vertices = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    for axis, values in zip("xy", vertices.T, strict=True):
        rows += [
            {**row(place, f"vertex_{axis}", float(value)), "i": i} for i, value in enumerate(values)
        ]
    for j in range(3, 36, 3):  # examples that do not move are not followed
        here, there = vertices[j % CLASSES], vertices[(j + 1 + j % 2) % CLASSES]
        start, bend = here + 0.1 * draw.standard_normal(2), 0.15 * draw.standard_normal(2)
        for step in steps.tolist():
            way = far * (1 - np.exp(-step / 5))
            point = start + way * (there - here) + np.sin(np.pi * step / 20) * bend
            for axis, value in zip("xy", point, strict=True):
                found = row({**place, "n": 1}, f"trajectory_{axis}", float(value))
                rows.append({**found, "i": step, "j": j})
    return rows


def frame_of(
    objectives: tuple[str, ...] = OBJECTIVES,
    *,
    heads: tuple[str, ...] = ("linear", "etf"),
    seeds: int = 2,
    geometry: bool = False,
) -> pd.DataFrame:
    """Make the frame that `gather_rows` makes, without files; `geometry` adds `geometry_rows`."""
    parts = []
    for objective, head, seed in itertools.product(objectives, heads, range(seeds)):
        facts = {"model": f"{head}-{objective}", "head": head, "objective": objective}
        rows = first_rows(objective, head, seed)
        if geometry:
            rows += geometry_rows(objective, head, seed)
        parts.append(tidy(rows).assign(**facts, seed=seed, ball="Linf 0.15"))
    return pd.concat(parts, ignore_index=True)


def rows_of(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows of averaged features with these values."""
    rows = frame[frame["feature"] != "flatten"]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows)
    return rows


def means(rows: pd.DataFrame, by: str) -> list[float]:
    return rows.groupby(by)["value"].mean().tolist()


def line(ax: Axes, colour: str) -> list[float]:
    """Heights of the one line of a colour that has more than two points."""
    (found,) = [
        drawn
        for drawn in ax.lines
        if len(drawn.get_xdata()) > 2 and drawn.get_linestyle() != "None"
        if to_hex(drawn.get_color()) == colour
    ]
    return [float(y) for y in found.get_ydata()]


def note(ax: Axes) -> str:
    return " ".join(ax.texts[-1].get_text().split())


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]
