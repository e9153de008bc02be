"""`robust-nc run SUITE --plan`: what a suite or claims will cost, before anything runs."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from robust_nc.claims.reading import holds_claims, read_claims
from robust_nc.cli.progress_bars import bars
from robust_nc.engines.torchrun.process_group import started
from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.planning.cell_sizes import Anatomist
from robust_nc.planning.plan import Cost, Sketch, measure, price, probes_of, sketch_suite
from robust_nc.planning.speeds import (
    Speeds,
    here,
    lacking,
    read_speeds,
    refuse_lacking,
    write_speeds,
)
from robust_nc.planning.stopwatch import Stopwatch
from robust_nc.planning.survivors import read_records
from robust_nc.planning.table import Totals, plan_text, speeds_line, totals_lines
from robust_nc.planning.timing import Bench

_EARLIER = Path("results")  # records that come with a copy of the repository, where it is


def plan_command(
    name: str,
    out: Path | None,
    root: Path | None,
    price_per_hour: float | None,
    speeds: Path | None,
    devices: int,
    stderr: Console,
) -> int:
    """Print what `name`, a suite or claims, will cost; trains nothing, and returns the exit code.

    `price_per_hour` is that of a device; `speeds` a file of measured speeds, written where there is
    none; `devices` how many cells run at a time. Raises `ConfigError` for a price or a number of
    devices that cannot be, for speeds of other models, and under torchrun.
    """
    _check(price_per_hour, devices)
    plans = _sketched(name, out, Anatomist(root))
    sketches = [sketch for _, found in plans for sketch in found]
    table, source = _speeds(sketches, speeds, Anatomist(root), devices, stderr)
    costs: list[Cost] = []
    for suite, found in plans:
        priced = price(found, table)
        costs += priced
        print(plan_text(suite.name, priced, table, devices=devices, price=price_per_hour))
        print()
    if len(plans) > 1:
        for title, left in (("all suites", False), ("what is left of all", True)):
            sums = Totals(costs, devices, left=left)
            lines = totals_lines(title, sums, table, devices=devices, price=price_per_hour)
            print("\n".join(lines))
    print(speeds_line(table, source))
    return 0


def _check(price_per_hour: float | None, devices: int) -> None:
    if started():
        raise ConfigError("a plan is made by one process, found several; leave torchrun out")
    if price_per_hour is not None and not (0 <= price_per_hour < math.inf):
        raise ConfigError(
            f"--price is what an hour of one device costs, a number of at least 0, found "
            f"{price_per_hour}"
        )
    if devices < 1:
        raise ConfigError(f"--workers must be at least 1, found {devices}")


def _sketched(
    name: str, out: Path | None, anatomist: Anatomist
) -> list[tuple[Suite, list[Sketch]]]:
    """Count the cells of a suite, or of all suites of claims, each in its own folder."""
    if holds_claims(name):
        claims = read_claims(name)
        folder = out or Path("out") / claims.name
        suites = [(suite, folder / suite.name) for suite in claims.suites()]
    else:
        suite = read_suite(name)
        suites = [(suite, out or Path("out") / suite.name)]
    return [
        (suite, sketch_suite(suite, place, anatomist, read_records([_EARLIER / suite.name])))
        for suite, place in suites
    ]


def _speeds(
    sketches: Sequence[Sketch],
    file: Path | None,
    anatomist: Anatomist,
    devices: int,
    stderr: Console,
) -> tuple[Speeds, str]:
    """Read the speeds from a file that exists; else measure them, and write them to the file."""
    probes = probes_of(sketches)
    if file is not None and file.exists():
        table = read_speeds(file)
        refuse_lacking(file, table, lacking(table, probes))
        return table, f"from {file}"
    before = torch.get_num_threads()
    threads = before
    if not torch.cuda.is_available():
        threads = max(1, min(before, (os.cpu_count() or 1) // devices))
    torch.set_num_threads(threads)
    try:
        with bars(stderr) as screen:
            bench = Bench(anatomist, Stopwatch())
            report = _Shown(screen, stderr)
            table = measure(probes, here(threads), bench.time, report)
    finally:
        torch.set_num_threads(before)
    if file is not None:
        write_speeds(file, table)
    return table, "measured now" + (f", kept in {file}" if file is not None else "")


class _Shown:
    """Shows which speed is being measured."""

    def __init__(self, screen: Progress, console: Console) -> None:
        self._screen = screen
        self._console = console
        self._task = screen.add_task("speeds", total=1.0, status="")
        if not console.is_terminal:
            console.print("measuring speeds on random images; nothing is trained", markup=False)

    def __call__(self, share: float, text: str) -> None:
        self._screen.update(self._task, completed=share, status=text)
