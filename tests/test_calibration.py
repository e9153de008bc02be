"""The table that says what the protocol `fast` misses."""

import json
from pathlib import Path

import pytest
from helpers_report import write_grid

from robust_nc.benchmarks.races import calibration
from robust_nc.record import unpack_flags
from robust_nc.record.folder import read_all


def entry(standard: str, fast: str, *, model: str = "m", units: tuple[int, int] = (100, 8)):
    """Verdicts on examples as strings of 1 (robust) and 0."""
    verdicts = {
        protocol: {"robust": [flag == "1" for flag in flags], "units": spent}
        for protocol, flags, spent in zip(
            calibration.PROTOCOLS, (standard, fast), units, strict=True
        )
    }
    return {"model": model, "seed": 0, "data": "digits", "examples": len(standard), **verdicts}


def test_the_table_counts_both_ways_and_pools() -> None:
    text = calibration.summary(
        [entry("1110010000", "1111000000"), entry("1" * 90 + "0" * 10, "1" * 90 + "0" * 10)]
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert rows[2][5:10] == ["40.0%", "40.0%", "1", "1", "0.080"]
    assert rows[3][5:10] == ["90.0%", "90.0%", "0", "0", "0.080"]
    assert "Missed: 1 beside 94 survivors, 1.06%; at most 4.95%" in text
    assert "0.080 of those of `standard`" in text


def test_a_share_of_none_is_bounded_too() -> None:
    text = calibration.summary([entry("1" * 600, "1" * 600)])
    assert "Missed: 0 beside 600 survivors, 0.00%; at most 0.50%" in text


def test_models_that_are_not_robust_are_left_out() -> None:
    text = calibration.summary([entry("1110000000", "1111000000")])
    assert text == "no model of which `standard` leaves more than 30 % robust"


def test_verdicts_of_records_are_taken_and_the_rest_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_grid(tmp_path / "suite")
    stored = read_all(tmp_path / "suite")
    out, asked = tmp_path / "calibration.json", []
    monkeypatch.setattr(calibration, "PROTOCOLS", (stored[0].record.protocol, "fast"))
    honest = calibration.judged

    def judged(record, suite, protocol):
        asked.append((record.cell, protocol))
        return honest(record, suite, protocol) if protocol != "fast" else {"robust": [], "units": 1}

    monkeypatch.setattr(calibration, "judged", judged)
    entries = calibration.calibrate([tmp_path / "suite"], out)
    assert len(asked) == 2 * len(stored) == 2 * len(entries)
    record = stored[0].record
    flags = json.loads(out.read_text())["cells"][record.cell][record.protocol]["robust"]
    assert flags == unpack_flags(record.verdict.robust).tolist()
    assert calibration.calibrate([tmp_path / "suite"], out) == entries
    assert len(asked) == 2 * len(stored)
