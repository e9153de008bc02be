"""How long many records take: their index from nothing, one more record, and questions to it.

Makes a tree of synthetic records, three seeds to a model, each with its rows, in a temporary
folder, and prints seconds. A question is timed in this process, and as the command line answers it.

    python -m robust_nc.benchmarks.races.board --records 10000
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from robust_nc.benchmarks.races.timing import conditions, markdown, spread_of
from robust_nc.config import RunConfig, plain, read
from robust_nc.io.files import digest, sha256_of
from robust_nc.record import (
    AttackUse,
    Facts,
    File,
    Passes,
    Record,
    Score,
    Verdict,
    Weights,
    pack_flags,
    tidy,
)
from robust_nc.record.folder import read_all, record_path, rows_path
from robust_nc.report.board.index import ask, board_frame
from robust_nc.statistics.intervals import wilson

DATASETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenette")
OBJECTIVES = ("standard", "pgd", "trades", "mart")
HEADS = ("linear", "etf", "nearest_etf", "haframe", "prototype")
SEEDS = 3
QUESTIONS = {
    "group by head": "select head, objective, count(*), avg(robust) from records group by all",
    "ten best": "select model, seed, robust from records order by robust desc limit 10",
    "a measure per layer": "select head, tap, avg(value), stddev(value) from rows "
    "where measure = 'leap_rate' and condition = 'attacked' group by all order by all",
    "all rows": "select measure, condition, count(*), avg(value) from rows group by all",
    "leaderboard": "select dataset, model, robust from board order by robust desc limit 10",
}


class Tree(NamedTuple):
    """The size of a synthetic results folder."""

    records: int
    rows: int
    examples: int


def make_tree(out: Path, tree: Tree) -> None:
    """Write the records and their rows; what they say is drawn from fixed seeds."""
    frame = _rows(tree.rows)
    for number in range(tree.records):
        draw = np.random.default_rng(number)
        record = _record(number, tree, draw)
        path = rows_path(out, record.model, record.cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = frame.assign(value=draw.random(len(frame)))
        pq.write_table(pa.Table.from_pandas(values, preserve_index=False), path)
        rows = File(path=path.name, sha256=sha256_of(path))
        text = json.dumps(plain(dataclasses.replace(record, rows=rows)), indent=1)
        record_path(out, record.model, record.cell).write_text(text)


def _record(number: int, tree: Tree, draw: np.random.Generator) -> Record:
    model, seed = divmod(number, SEEDS)
    dataset, rest = DATASETS[model % len(DATASETS)], model // len(DATASETS)
    head, objective = HEADS[rest % len(HEADS)], OBJECTIVES[rest // len(HEADS) % len(OBJECTIVES)]
    settings = {"model": {"head": "linear"}, "train": {"epochs": 1 + model}, "seed": seed}
    config = plain(read(RunConfig, settings))
    clean = draw.random(tree.examples) < 0.9
    robust = clean & (draw.random(tree.examples) < 0.2 + 0.6 * ((model * 37) % 101) / 101)
    return Record(
        cell=digest([number])[:16],
        suite="synthetic",
        model=f"net{model}-{head}-{objective}",
        objective=objective,
        head=head,
        config=config,
        seed=seed,
        data=Facts(
            dataset=dataset,
            split="test",
            examples=tree.examples,
            which=f"the first {tree.examples}",
            fingerprint=digest(dataset),
            num_classes=10,
        ),
        weights=Weights(parameters=10_000 + model),
        protocol=("standard", "fast")[rest % 2],
        attacks=(AttackUse(name="apgd-ce", parameters={"steps": 100}, broke=1),),
        passes=Passes(forward=500 * tree.examples, backward=400 * tree.examples),
        verdict=Verdict(
            clean_correct=pack_flags(clean),
            robust=pack_flags(robust),
            broken_by=tuple(np.where(robust, -1, np.where(clean, 0, -2)).tolist()),
        ),
        scores={"clean": _score(clean), "robust": _score(robust)},
        summary={"leap_rate": float(draw.random()), "nc1_clean": float(draw.random())},
        rows=File(path="none.parquet", sha256="0" * 64),
        created="2026-01-01T00:00:00+00:00",
    )


def _score(flags: np.ndarray[Any, np.dtype[np.bool_]]) -> Score:
    found = wilson(int(flags.sum()), len(flags))
    return Score(value=found.value, low=found.low, high=found.high, n=found.n)


def _rows(count: int) -> pd.DataFrame:
    measures = ("nc1", "nc2_angle", "nc3", "leap_rate", "landed")
    conditions = ("clean", "attacked", "gaussian", "sign")
    made = [
        {
            "tap": f"stage{index // 20 % 10}",
            "depth": index // 20 % 10,
            "feature": "gap",
            "condition": conditions[index // 5 % 4],
            "eps": 0.03,
            "attack": "ce+margin, 20 steps, 1 restart",
            "split": "test",
            "grouping": "true",
            "vertices": "clean-train",
            "measure": measures[index % 5],
            "i": index // 200,
            "n": 1000,
        }
        for index in range(count)
    ]
    return tidy(made)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _command(out: Path, sql: str) -> None:
    code = "import sys; from robust_nc.cli.main import main; sys.argv[0] = 'robust-nc'; main()"
    command = [sys.executable, "-c", code, "board", str(out), "--sql", sql]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(out: Path, tree: Tree, repeats: int) -> list[list[str]]:
    """Time everything on a tree that `make_tree` has written."""
    first = QUESTIONS["group by head"]
    lines = [["what", "seconds"]]

    def line(what: str, *seconds: float) -> None:
        found = spread_of(seconds)
        text = f"{found.median:.3f}"
        lines.append(
            [what, f"{text} ({found.low:.3f} to {found.high:.3f})" if seconds[1:] else text]
        )

    line("read all records, without an index", _seconds(lambda: read_all(out)))
    line("index of records and rows, from nothing", _seconds(lambda: ask(out, first)))
    line("leaderboard into the index", _seconds(lambda: board_frame(out)))
    for name, sql in QUESTIONS.items():
        line(f"question: {name}", *(_seconds(lambda: ask(out, sql)) for _ in range(repeats)))  # noqa: B023
        line(
            f"the same, as a command: {name}",
            *(_seconds(lambda: _command(out, sql)) for _ in range(repeats)),  # noqa: B023
        )
    line("the leaderboard again", *(_seconds(lambda: board_frame(out)) for _ in range(repeats)))
    changed = next(out.rglob("*.json"))
    changed.write_text(changed.read_text() + "\n")
    line("question after one record changed", _seconds(lambda: ask(out, first)))
    size = sum(path.stat().st_size for path in (out / ".index").glob("*.duckdb"))
    lines.append(["size of the index, MiB", f"{size / 2**20:.0f}"])
    return lines


def main(records: int = 10_000, rows: int = 200, examples: int = 1000, repeats: int = 5) -> None:
    """Time RECORDS synthetic records with ROWS rows each, judged on EXAMPLES examples."""
    tree = Tree(records, rows, examples)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder  # the key of the index stays out of the user's cache
        out = Path(folder) / "results"
        print(f"{tree}; {conditions()}; {os.cpu_count()} cores", flush=True)
        print(f"written in {_seconds(lambda: make_tree(out, tree)):.0f} s\n", flush=True)
        print(markdown(measure(out, tree, repeats)))


if __name__ == "__main__":
    tyro.cli(main)
