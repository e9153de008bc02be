"""Records: what is written is read again, and anything else is refused in one sentence."""

import dataclasses
import json
import math
from pathlib import Path

import helpers_report as helpers
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.exceptions import RecordError
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.make_record import summary
from robust_nc.record.schema import (
    COLUMNS,
    SCHEMA,
    Stored,
    pack_flags,
    read_record,
    same_record,
    tidy,
    unpack_flags,
    write_record,
    write_rows,
)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return helpers.write_cell(tmp_path, helpers.config())


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_record_survives_the_round_trip(tmp_path: Path) -> None:
    record = helpers.record_of(helpers.config(seed=3))
    write_record(tmp_path / "a.json", record)
    assert read_record(tmp_path / "a.json").record == record


def test_rows_survive_the_round_trip(stored: Stored) -> None:
    expected = tidy(helpers.rows_of("pgd", "etf", 0))
    found = stored.rows()
    assert list(found.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert {c: str(found[c].dtype) for c in found if COLUMNS[c] != "str"} == {
        c: kind for c, kind in COLUMNS.items() if kind != "str"
    }


def test_values_are_numbers(stored: Stored) -> None:
    values = json.loads(stored.path.read_text())
    assert isinstance(values["scores"]["robust"]["value"], float)
    assert all(v is None or isinstance(v, float) for v in values["summary"].values())
    assert isinstance(values["verdict"]["broken_by"][0], int)


def test_truncated_record_is_refused(stored: Stored) -> None:
    text = stored.path.read_text()
    stored.path.write_text(text[: len(text) // 2])
    with pytest.raises(RecordError, match="is not JSON"):
        read_record(stored.path)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"cell": 1}', "\udcff"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RecordError, match=r"x\.json"):
        read_record(path)


def test_other_schema_version_is_refused(stored: Stored) -> None:
    edit(stored.path, schema_version=SCHEMA + 1)
    with pytest.raises(RecordError, match=f"schema version {SCHEMA + 1}"):
        read_record(stored.path)


def test_unknown_key_is_refused(stored: Stored) -> None:
    edit(stored.path, sede=1)
    with pytest.raises(RecordError, match=r"'sede'.*did you mean 'seed'"):
        read_record(stored.path)


@pytest.mark.parametrize(
    ("key", "value"), [("seed", "0"), ("seed", True), ("summary", {"nc1": "1"}), ("scores", None)]
)
def test_wrong_type_is_refused(stored: Stored, key: str, value: object) -> None:
    edit(stored.path, **{key: value})
    with pytest.raises(RecordError, match=key):
        read_record(stored.path)


def test_rows_of_another_record_are_refused(stored: Stored) -> None:
    other = tidy(helpers.rows_of("trades", "etf", 5))
    write_rows(stored.path.parent / stored.record.rows.path, other)
    with pytest.raises(RecordError, match="is not the file"):
        stored.rows()


def test_a_table_of_too_many_equal_rows_is_not_read(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_nc.record.schema.MOST_ROWS", len(stored.rows()) - 1)
    with pytest.raises(RecordError, match="rows; at most"):
        stored.rows()


def test_a_table_that_is_none_is_refused(stored: Stored) -> None:
    path = stored.path.parent / stored.record.rows.path
    path.write_bytes(b"PAR1")
    edit(stored.path, rows={"path": path.name, "sha256": sha256_of(path)})
    with pytest.raises(RecordError, match="cannot be read as rows of measures"):
        read_record(stored.path).rows()


def test_missing_rows_are_reported(stored: Stored) -> None:
    (stored.path.parent / stored.record.rows.path).unlink()
    with pytest.raises(RecordError, match="missing; run its cell again"):
        stored.rows()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), max_size=70))
def test_flags_survive_packing(flags: list[bool]) -> None:
    packed = pack_flags(np.array(flags, dtype=bool))
    assert unpack_flags(packed).tolist() == flags
    assert len(packed.split(":")[1]) == 2 * -(-len(flags) // 8)


@pytest.mark.parametrize("text", ["", "3", "3:zz", "9:ff", "-1:ff", "1:2:3", "x:ff", "0:00ff"])
def test_damaged_flags_are_refused(text: str) -> None:
    with pytest.raises(RecordError, match="flags"):
        unpack_flags(text)


def test_same_record_forgives_when_and_where_only() -> None:
    record = helpers.record_of(helpers.config())
    later = dataclasses.replace(record, created="2027", seconds={}, hardware={}, versions={})
    assert same_record(record, later)
    assert not same_record(record, dataclasses.replace(record, protocol="fgsm"))


def test_tidy_fills_what_a_row_leaves_out() -> None:
    frame = tidy([{"tap": "stem", "measure": "nc1", "value": 2.0}, {"measure": "vci"}])
    assert frame.loc[0, ["epoch", "i", "note"]].tolist() == [-1, -1, ""]
    assert np.isnan(frame.loc[1, "value"])
    assert tidy([]).columns.tolist() == list(COLUMNS)


def test_headline_measures_are_those_of_pooled_features() -> None:
    """A cell that was measured in both ways has each of them twice."""
    at = {"tap": "penultimate", "split": "train", "condition": "clean", "epoch": -1}
    nc1 = at | {"grouping": "true", "vertices": "same", "measure": "nc1"}
    rows = [nc1 | {"feature": "flatten", "value": 9.0}, nc1 | {"feature": "gap", "value": 4.0}]
    assert summary(tidy(rows))["nc1_clean"] == 4
    assert summary(tidy(rows[:1]))["nc1_clean"] == 9
    assert summary(tidy(rows))["leap_rate"] is None


def test_values_keep_seven_digits_and_their_range(tmp_path: Path) -> None:
    values = [1 / 3, -math.pi * 1e-5, 12_345.0, 0.0, 1e300, 1e-300, math.nan, math.inf]
    file = write_rows(tmp_path / "rows.parquet", tidy([{"value": value} for value in values]))
    found = pd.read_parquet(tmp_path / file.path)["value"].tolist()
    assert found == pytest.approx(values, rel=1e-6, abs=0, nan_ok=True)
    assert found[0] != values[0]
    assert found[2:6] == values[2:6]
