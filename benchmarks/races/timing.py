"""Time contestants side by side: interleaved rounds, medians with quartiles, ratios.

Each round runs every contestant once, in an order that turns by one place from round to round, so
that a machine that slows down or is shared slows all of them alike. Ratios are of medians; beside
them stand the quartiles of the ratio within each round.

>>> timings = race({"one": lambda: sum(range(10)), "two": lambda: sum(range(20))}, repeats=3)
>>> [(timing.name, len(timing.seconds)) for timing in timings]
[('one', 3), ('two', 3)]
"""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robust_nc.exceptions import RecordError
from robust_nc.runtime import default_device
from robust_nc.runtime.environment import hardware, versions


class Spread(NamedTuple):
    """A median with its quartiles."""

    low: float
    median: float
    high: float


class Timing(NamedTuple):
    """Seconds of one contestant, one value per round."""

    name: str
    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Median and quartiles of the seconds."""
        return spread_of(self.seconds)


def race(
    contestants: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Call every contestant `warmups` times untimed, then `repeats` rounds of all in turn."""
    names = list(contestants)
    for _ in range(warmups):
        for name in names:
            seconds_of(contestants[name], clock)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(seconds_of(contestants[name], clock))
    return [Timing(name, tuple(seconds)) for name, seconds in found.items()]


def ratio(one: Timing, base: Timing) -> Spread:
    """Ratio of the medians, between the quartiles of the ratio within each round."""
    rounds = [mine / its for mine, its in zip(one.seconds, base.seconds, strict=True)]
    return spread_of(rounds)._replace(median=one.spread.median / base.spread.median)


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles; of a single value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, middle, high)


def table(timings: Sequence[Timing], *, base: Timing, items: int | None = None) -> str:
    """Write timings as a Markdown table; `items` are processed per call (for items per second)."""
    head = ["contestant", "ms, median (quartiles)", "rounds", f"over {base.name} (quartiles)"]
    rows = [head + ["per second"] * bool(items)]
    for timing in timings:
        low, middle, high = (1e3 * seconds for seconds in timing.spread)
        over = ratio(timing, base)
        row = [timing.name, f"{middle:,.2f} ({low:,.2f} to {high:,.2f})", str(len(timing.seconds))]
        row.append(f"{over.median:.3f} ({over.low:.3f} to {over.high:.3f})")
        rows.append(row + ([f"{items / timing.spread.median:,.0f}"] if items else []))
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the first of them the head, as a Markdown table with aligned columns."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def conditions() -> str:
    """Say on what the numbers were made: device, cores, threads, load, versions."""
    facts, made = hardware(default_device()), versions()
    device = facts.get("gpu", cpu_name())
    load = load_average()
    return (
        f"{device}, {facts['cores']} cores, {facts['threads']} threads, {facts['cpu']}, "
        f"load {math.nan if load is None else load:.1f} at the start; "
        f"python {made['python']}, torch {made['torch']}, "
        f"code {made['code']}"
    )


def begun(
    out: Path | None, made: dict[str, Any], *, of: str, by: str, holds: str
) -> dict[str, Any]:
    """Go on with the record of a "race" or "device" in `out`, or begin it as it is `made`.

    `by` is the key of what tells two records apart, `holds` that of what was measured. Raises
    `RecordError` for the record of something else.
    """
    if out is None or not out.is_file():
        return made
    try:
        held = json.loads(out.read_text())
        told, found = held[by], held[holds]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{out} is not the record of a {of} ({error}); move it away") from error
    if told != made[by] or not isinstance(found, type(made[holds])):
        raise RecordError(
            f"{out} is the record of another {of}, {told}, and this is {made[by]}; "
            "give another --out, or delete it"
        )
    return made | {holds: found}


def load_average() -> float | None:
    """How busy the machine was in the last minute, where it says so."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def cpu_name() -> str:
    """Name the processor as the system does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seconds_of(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time one call, and what it has set off on a device."""
    wait()
    started = clock()
    call()
    wait()
    return clock() - started


def wait() -> None:
    """Wait for a device that works on its own."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
