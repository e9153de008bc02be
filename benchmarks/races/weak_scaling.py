"""Weak scaling on Ray: N workers get N times the cells; how much longer does it take than one?

Every round runs, in turn, the same number of small cells per worker for each N on a Ray cluster of
this machine, and on one worker of the local engine. A cluster is started before and gets one cell
per worker, untimed: so the workers are there, with torch imported, as on a cluster that stands.
Efficiency is the time of one worker over that of N. A worker has one thread, so cores below N bound
it from above.

    OMP_NUM_THREADS=1 python -m robust_nc.benchmarks.races.weak_scaling --rounds 3
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from robust_nc.benchmarks.races.timing import Timing, conditions, markdown, ratio
from robust_nc.engines.ray.settings import ClusterSettings
from robust_nc.engines.ray.start import joined
from robust_nc.engines.run_suite import Hooks, run_suite
from robust_nc.exceptions import ConfigError
from robust_nc.io.files import write_text
from robust_nc.pipeline.suite import Suite, read_suite

LOCAL = "local engine, 1 worker"

TOML = """
name = "weak-scaling"
[base.data]
dataset = "digits"
[base.model]
backbone = {{ name = "small_cnn", width = 16 }}
[base.train]
objective = {{ name = "pgd", steps = 5 }}
epochs = {epochs}
batch_size = 64
lr = 0.05
[base.threat]
eps = 0.1
[base.evaluation]
protocol = "pgd"
examples = 200
[base.measure]
train_examples = 500
test_examples = 200
targets = ["cyclic"]
radii = [1.0]
trajectories = 0
[grid]
seed = {seeds}
"""


class Team(NamedTuple):
    """Workers of a Ray cluster; None stands for the local engine with one."""

    workers: int | None

    @property
    def name(self) -> str:
        """Name it in a table."""
        return LOCAL if self.workers is None else f"Ray, {self.workers}"

    @property
    def width(self) -> int:
        """Cells that are worked on at a time."""
        return self.workers or 1


def cells(folder: Path, count: int, *, epochs: int, first_seed: int = 0) -> Suite:
    """Return a suite of so many small cells: PGD training on digits, one seed each."""
    seeds = list(range(first_seed, first_seed + count))
    path = folder / f"weak-scaling-{first_seed}-{count}.toml"
    write_text(path, TOML.format(epochs=epochs, seeds=seeds))
    return read_suite(str(path))


def timed(team: Team, *, per_worker: int, epochs: int, threads: int = 1) -> float:
    """Return the seconds that a team takes for its cells, once it stands."""
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder, count = Path(place), team.width * per_worker
        stack.enter_context(_standing(team, threads, folder / "ray.log"))
        warm = cells(folder, team.width, epochs=1, first_seed=count)
        _run(team, warm, folder / "warm", threads)
        suite = cells(folder, count, epochs=epochs)
        started = time.perf_counter()
        _run(team, suite, folder / "out", threads)
        return time.perf_counter() - started


def _run(team: Team, suite: Suite, out: Path, threads: int) -> None:
    hooks = Hooks(lambda event: None, lambda result: None, lambda cell, message: None)
    report = run_suite(suite, out, hooks=hooks, workers=1, cluster=_cluster(team, threads))
    if report.failed:
        raise ConfigError(f"cells of the race failed: {next(iter(report.failed.values()))}")


def _cluster(team: Team, threads: int) -> ClusterSettings | None:
    """What a team asks of Ray; None for the local engine."""
    if team.workers is None:
        return None
    return ClusterSettings(slots=team.workers, cpus=float(threads))


def _standing(team: Team, threads: int, log: Path) -> contextlib.AbstractContextManager[object]:
    """Keep a cluster of this machine with a slot per worker; the local engine needs none."""
    settings = _cluster(team, threads)
    return contextlib.nullcontext() if settings is None else joined(settings, log)


def contest(
    teams: list[Team],
    rounds: int,
    *,
    measure: Callable[[Team], float],
    told: Callable[[Team, float], None] = lambda team, seconds: None,
) -> list[Timing]:
    """Time every team once a round, in an order that turns by one place."""
    found: dict[Team, list[float]] = {team: [] for team in teams}
    for number in range(rounds):
        first = number % len(teams)
        for team in teams[first:] + teams[:first]:
            seconds = measure(team)
            found[team].append(seconds)
            told(team, seconds)
    return [Timing(team.name, tuple(found[team])) for team in teams]


def table(teams: list[Team], timings: list[Timing], *, per_worker: int, cores: int) -> str:
    """Write seconds and efficiency against one Ray worker, with what the cores allow."""
    alone = timings[teams.index(Team(1))]
    head = "team|cells|rounds|seconds, median (quartiles)|efficiency (quartiles)|cores allow"
    rows = [head.split("|")]
    for team, timing in zip(teams, timings, strict=True):
        low, middle, high = timing.spread
        over = ratio(alone, timing)
        rows.append(
            [
                team.name,
                str(team.width * per_worker),
                str(len(timing.seconds)),
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
                f"{over.median:.2f} ({over.low:.2f} to {over.high:.2f})",
                f"{min(1.0, cores / team.width):.2f}",
            ]
        )
    return markdown(rows)


def main(
    workers: tuple[int, ...] = (1, 2, 4),
    per_worker: int = 4,
    epochs: int = 5,
    rounds: int = 3,
    local: bool = True,
    out: Path | None = None,
) -> None:
    """Race, and print the table.

    Args:
        workers: Numbers of Ray workers; one is always among them.
        per_worker: Cells per worker.
        epochs: Epochs per cell: what makes a cell long.
        rounds: Timed rounds.
        local: With one worker of the local engine, which Ray's overhead is to be seen against.
        out: Where the seconds are written, as JSON (default: nowhere).
    """
    if min(workers, default=1) < 1 or min(per_worker, epochs, rounds) < 1:
        raise SystemExit("--workers, --per-worker, --epochs and --rounds are all at least 1")
    counts = sorted({1, *workers})
    teams: list[Team] = [Team(count) for count in counts]
    teams += [Team(None)] if local else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    print(conditions(), flush=True)

    def measure(team: Team) -> float:
        return timed(team, per_worker=per_worker, epochs=epochs)

    def told(team: Team, seconds: float) -> None:
        print(f"{team.name}: {seconds:.1f} s", flush=True)

    timings = contest(teams, rounds, measure=measure, told=told)
    print("\n" + table(teams, timings, per_worker=per_worker, cores=cores))
    if cores < max(counts):
        print(f"\n{cores} cores cannot feed {max(counts)} workers of one thread each")
    if out is not None:
        values: dict[str, Any] = {"conditions": conditions(), "cores": cores}
        values |= {"per_worker": per_worker, "epochs": epochs}
        values["seconds"] = {timing.name: list(timing.seconds) for timing in timings}
        write_text(out, json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
