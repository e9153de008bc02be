"""`robust-nc run SUITE --plan`: what a suite or claims will cost, before anything runs."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from robust_nc.claims.reading import holds_claims, read_claims
from robust_nc.engines.options import RunOptions, under_torchrun
from robust_nc.engines.run_suite import default_workers
from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.changes import read_changes
from robust_nc.pipeline.selection import cell_numbers, select_cells
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.planning.cell_sizes import CellSizer
from robust_nc.planning.pilots import Pilots
from robust_nc.planning.plan import PlannedCell, Totals, plan_suite, probes_of
from robust_nc.planning.speeds import (
    Speeds,
    measure_speeds,
    read_speeds,
    refuse_lacking,
    write_speeds,
)
from robust_nc.planning.survivors import read_records
from robust_nc.planning.table import plan_text, speeds_line, totals_lines
from robust_nc.report.board.render import folded, terminal_width
from robust_nc.runtime.screen import Screen

_EARLIER = Path("results")  # records that come with a copy of the repository, where it is


def plan_command(options: RunOptions, stderr: Console) -> int:
    """Print what a suite or claims will cost; trains nothing, and returns the exit code.

    Raises `ConfigError` for options that cannot be, for speeds of other models, and under torchrun.
    """
    if under_torchrun():
        raise ConfigError("a plan is made by one process, found several; leave torchrun out")
    devices, price_per_hour = options.workers or default_workers(), options.price
    width = terminal_width()
    if price_per_hour is not None and not (0 <= price_per_hour < math.inf):
        raise ConfigError(
            f"--price is what an hour of one device costs, a number of at least 0, found "
            f"{price_per_hour}"
        )
    plans = _counted(options, CellSizer(options.root))
    cells = [cell for _, found in plans for cell in found]
    table, source = _speeds(cells, options.speeds, CellSizer(options.root), devices, stderr)
    for suite, found in plans:
        print(
            plan_text(suite.name, found, table, devices=devices, price=price_per_hour, width=width)
        )
        print("numbers of the cells, for --cells:")
        for model, numbers in cell_numbers(suite, [each.cell for each in found]).items():
            print("\n".join(folded(f"  {model}: {' '.join(map(str, numbers))}", width, indent=4)))
        print()
    if len(plans) > 1:
        for title, left in (("all suites", False), ("what is left of all", True)):
            sums = Totals(cells, table, devices, left=left)
            lines = totals_lines(title, sums, table, devices=devices, price=price_per_hour)
            print("\n".join(part for line in lines for part in folded(line, width, indent=15)))
    print("\n".join(folded(speeds_line(table, source), width, indent=2)))
    return 0


def _counted(options: RunOptions, sizer: CellSizer) -> list[tuple[Suite, list[PlannedCell]]]:
    """Count the chosen cells of a suite, or of all suites of claims, each in its own folder."""
    if holds_claims(options.suite):
        options.refuse_selection()
        claims = read_claims(options.suite)
        folder = options.out or Path("out") / claims.name
        suites = [(suite, folder / suite.name) for suite in claims.suites()]
    else:
        suite = read_suite(options.suite, read_changes(options.changes))
        suites = [(suite, options.out or Path("out") / suite.name)]
    plans = []
    for suite, place in suites:
        chosen = select_cells(suite, options.cells, options.where)
        known = read_records([_EARLIER / suite.name])
        plans.append((suite, plan_suite(chosen, place, sizer, known)))
    return plans


def _speeds(
    cells: Sequence[PlannedCell], file: Path | None, sizer: CellSizer, devices: int, stderr: Console
) -> tuple[Speeds, str]:
    """Read the speeds from a file that exists; else measure them, and write them to the file."""
    probes = probes_of(cells)
    if file is not None and file.exists():
        table = read_speeds(file)
        refuse_lacking(file, table, probes)
        return table, f"from {file}"
    before = threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        threads = max(1, min(before, (os.cpu_count() or 1) // devices))
    torch.set_num_threads(threads)
    try:
        if not stderr.is_terminal:
            stderr.print("measuring speeds on random images; nothing is trained", markup=False)
        with Screen(stderr, side_by_side=True) as screen:
            pilots, report = Pilots(sizer), screen.report("speeds")
            table = measure_speeds(probes, pilots.time, threads=threads, report=report)
    finally:
        torch.set_num_threads(before)
    if file is not None:
        write_speeds(file, table)
    return table, "measured now" + (f", kept in {file}" if file is not None else "")
