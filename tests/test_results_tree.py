"""The committed results are whole: a review of numbers can then be a review of their values."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from robust_nc.config import RunConfig, read
from robust_nc.files import digest
from robust_nc.record import COLUMNS, unpack_flags
from robust_nc.report.statistics import wilson
from robust_nc.report.table import leaderboard
from robust_nc.store import read_all

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
STORED = read_all(RESULTS)


def test_there_are_results_and_they_make_a_board() -> None:
    assert STORED
    frame = leaderboard(STORED)
    assert frame["robust"].between(0, 1).all()
    assert (frame["seeds"] >= 3).all(), "no single seed in a published row"


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored.record.cell)
def test_a_record_is_what_it_says(stored) -> None:
    record = stored.record
    assert stored.path == RESULTS / record.suite / record.model / f"{record.cell}.json"
    read(RunConfig, record.config)  # still a configuration of today
    assert digest(record.config)[:16] == record.cell, "named by the configuration as it was then"
    assert list(stored.rows().columns) == list(COLUMNS)
    for name, flags in (
        ("clean", record.verdict.clean_correct),
        ("robust", record.verdict.robust),
    ):
        bits = unpack_flags(flags)
        score = record.scores[name]
        found = wilson(int(bits.sum()), len(bits))
        assert len(bits) == record.data.examples == score.n
        assert np.allclose([score.value, score.low, score.high], found[:3])
    codes = np.array(record.verdict.broken_by)
    assert np.array_equal(codes == -1, unpack_flags(record.verdict.robust))
    assert np.array_equal(codes != -2, unpack_flags(record.verdict.clean_correct))
    for index, attack in enumerate(record.attacks):
        assert attack.broke == (codes == index).sum()


def test_no_cell_lies_there_twice() -> None:
    cells = [stored.record.cell for stored in STORED]
    assert len(cells) == len(set(cells))


def test_every_file_belongs_to_a_record() -> None:
    named = {stored.path for stored in STORED}
    named |= {stored.path.parent / stored.record.rows.path for stored in STORED}
    found = {path for path in RESULTS.rglob("*") if path.suffix in {".json", ".parquet"}}
    assert found - set((RESULTS / "claims/answers").iterdir()) == named


def test_the_tracked_tree_stays_small_enough_to_travel() -> None:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    sizes = [(ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file()]
    assert sum(sizes) <= 15 * 2**20
    assert not any(json_too_large(path) for path in RESULTS.rglob("*.json"))


def json_too_large(path: Path) -> bool:
    json.loads(path.read_text())
    return path.stat().st_size > 2 * 2**20
