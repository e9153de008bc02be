"""Records: written, sealed, found, given receipts and challenged; all else is refused."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import helpers_report as helpers
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.config import plain
from robust_nc.exceptions import RecordError
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.make_record import summary
from robust_nc.record.folder import checkpoint_folder, read_all, record_path
from robust_nc.record.schema import (
    COLUMNS,
    SCHEMA,
    Record,
    Stored,
    broken_seals,
    pack_flags,
    read_record,
    same_record,
    sealed,
    tidy,
    unpack_flags,
    write_rows,
)
from robust_nc.record.signing import sign
from robust_nc.record.standing import receipt_path, signers_path, standing

EVIDENCE = "ab" * 32
RECORD = sealed(helpers.record_of(helpers.config()))
FIELDS = sorted(set(plain(RECORD)) - {"seals"})


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return helpers.write_cell(tmp_path, helpers.config())


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_record_and_rows_survive_the_round_trip(stored: Stored) -> None:
    assert dataclasses.replace(stored.record, rows=RECORD.rows, seals=RECORD.seals) == RECORD
    expected = tidy(helpers.rows_of("pgd", "etf", 0))
    found = stored.rows()
    assert list(found.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert {c: str(found[c].dtype) for c in found if COLUMNS[c] != "str"} == {
        c: kind for c, kind in COLUMNS.items() if kind != "str"
    }


@pytest.mark.parametrize("text", ["", "[]", '{"cell": 1}', '{"cell": "00', "\udcff"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for read in (read_record, read_all):
        with pytest.raises(RecordError, match=r"x\.json"):
            read(path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("schema_version", SCHEMA + 1, f"schema version {SCHEMA + 1}"),
        ("sede", 1, r"'sede'.*did you mean 'seed'"),
        ("seed", "0", "seed"),
        ("seed", True, "seed"),
        ("summary", {"nc1": "1"}, "summary"),
        ("scores", None, "scores"),
    ],
)
def test_a_field_that_is_none_of_ours_is_refused(
    stored: Stored, key: str, value: object, told: str
) -> None:
    edit(stored.path, **{key: value})
    with pytest.raises(RecordError, match=told):
        read_record(stored.path)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("another", "is not the file"),
        ("missing", "missing; run its cell again"),
        ("no table", "cannot be read as rows of measures"),
        ("too many", "rows; at most 2,000,000 are read"),
    ],
)
def test_rows_that_are_not_those_of_the_record_are_refused(
    stored: Stored, kind: str, told: str
) -> None:
    path = stored.path.parent / stored.record.rows.path
    if kind == "another":
        write_rows(path, tidy(helpers.rows_of("trades", "etf", 5)))
    elif kind == "missing":
        path.unlink()
    elif kind == "no table":
        path.write_bytes(b"PAR1")
    else:
        pd.DataFrame({"value": np.zeros(2_000_001, dtype=bool)}).to_parquet(path)
    if kind in {"no table", "too many"}:
        edit(stored.path, rows={"path": path.name, "sha256": sha256_of(path)})
    with pytest.raises(RecordError, match=told):
        read_record(stored.path).rows()


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
    later = dataclasses.replace(RECORD, created="2027", seconds={}, hardware={}, versions={})
    assert same_record(RECORD, later)
    assert not same_record(RECORD, dataclasses.replace(RECORD, protocol="fgsm"))


def test_tidy_fills_what_a_row_leaves_out() -> None:
    frame = tidy([{"tap": "stem", "measure": "nc1", "value": 2.0}, {"measure": "vci"}])
    assert frame.loc[0, ["epoch", "i", "note"]].tolist() == [-1, -1, ""]
    assert np.isnan(frame.loc[1, "value"])
    assert tidy([]).columns.tolist() == list(COLUMNS)


TAP = {"tap": "penultimate", "split": "train", "condition": "attacked", "grouping": "none"}
NC1 = TAP | {"condition": "clean", "grouping": "true", "vertices": "same", "measure": "nc1"}
FLAT, POOLED = (
    NC1 | {"epoch": -1, "feature": feature, "value": value}
    for feature, value in (("flatten", 9.0), ("gap", 4.0))
)
RADIUS = TAP | {"split": "test", "condition": "sweep", "measure": "collapse_radius", "eps": 0.25}


def leaping(*counts: float, **changed: object) -> list[dict[str, object]]:
    """How many leaps begin at each depth."""
    layer = TAP | {"measure": "leap_layer"}
    none = layer | {"tap": "none", "depth": -1, "value": 90.0}
    at = [layer | {"depth": depth, "value": value} for depth, value in enumerate(counts)]
    return [row | changed for row in (*at, none)]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        # A cell that was measured in both ways has each measure twice; the pooled one is told.
        ([FLAT, POOLED], {"nc1_clean": 4, "leap_rate": None}),
        ([FLAT], {"nc1_clean": 9}),
        (leaping(2.0, 5.0, 3.0), {"leap_layer": 1}),
        (leaping(3.0, 0.0, 3.0), {"leap_layer": 0}),
        (leaping(0.0, 0.0), {"leap_layer": None}),
        (leaping(4.0, condition="gaussian"), {"leap_layer": None}),
        (leaping(4.0, split="test"), {"leap_layer": None}),
        # A radius that was not reached says how far was looked.
        ([RADIUS | {"value": None}], {"collapse_radius": None, "collapse_radius_beyond": 0.25}),
        ([RADIUS | {"value": 0.125}], {"collapse_radius": 0.125, "collapse_radius_beyond": None}),
    ],
)
def test_headline_measures_are_read_off_the_rows(
    rows: list[dict[str, object]], told: dict[str, float | None]
) -> None:
    found = summary(tidy(rows))
    assert {name: found[name] for name in told} == told


def test_values_keep_seven_digits_and_their_range(tmp_path: Path) -> None:
    values = [1 / 3, -math.pi * 1e-5, 12_345.0, 0.0, 1e300, 1e-300, math.nan, math.inf]
    file = write_rows(tmp_path / "rows.parquet", tidy([{"value": value} for value in values]))
    found = pd.read_parquet(tmp_path / file.path)["value"].tolist()
    assert found == pytest.approx(values, rel=1e-6, abs=0, nan_ok=True)
    assert found[0] != values[0]
    assert found[2:6] == values[2:6]


# Seals


def other(value: Any) -> Any:
    """A value of the same kind that is another one."""
    if isinstance(value, dict):
        return {**value, "more": 1}
    if isinstance(value, list | tuple):
        return [*value, 1]
    return f"{value}0" if isinstance(value, str) else (0 if value is None else value + 1)


def test_a_changed_field_or_one_that_lost_its_seal_is_named() -> None:
    assert sealed(RECORD) == RECORD
    assert sorted(RECORD.seals) == FIELDS
    assert {field.name for field in dataclasses.fields(Record)} == {*FIELDS, "seals"}
    values = plain(RECORD)
    assert broken_seals(values) == ()
    for field in FIELDS:
        seals = {name: seal for name, seal in values["seals"].items() if name != field}
        assert broken_seals(values | {field: other(values[field])}) == (field,)
        assert broken_seals(values | {"seals": seals}) == (field,)
    values["seals"]["hardware2"] = "0"
    assert broken_seals(values) == ("hardware2",), "a seal without a field"


# Where records lie


def test_records_are_read_sorted_by_path(tmp_path: Path) -> None:
    written = helpers.write_grid(tmp_path, objectives=("pgd", "standard"), heads=("etf",), seeds=2)
    found = read_all(tmp_path)
    assert [one.path for one in found] == sorted(one.path for one in written)
    assert {one.record.cell for one in found} == {one.record.cell for one in written}
    first = found[0].record
    assert found[0].path == record_path(tmp_path, first.model, first.cell)
    assert read_all(found[0].path) == found[:1], "one record is a root too"
    with pytest.raises(RecordError, match="run a suite first"):
        read_all(tmp_path / "absent")


def test_what_is_no_record_is_passed_over_but_for_the_root(tmp_path: Path) -> None:
    root = tmp_path / "cache"  # a name that is passed over below a root
    stored = helpers.write_cell(root, helpers.config())
    folder = checkpoint_folder(root, stored.record.cell)
    for path in (folder / "log.json", root / "cache" / "x.json", root / ".hidden.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no record")
    assert read_all(root) == [stored]


# Receipts and challenges


def test_a_signed_receipt_of_this_record_counts_until_it_changes(
    stored: Stored, signing_key: Path
) -> None:
    assert (standing(stored).state, standing(stored).receipt) == ("claimed", None)
    helpers.signed(stored, signing_key, broke=(0,))
    found = standing(stored)
    assert (found.state, found.challenged, found.robust[0]) == ("reproduced", 1, False)
    for of_another in ({"record": "0" * 64}, {"evidence": EVIDENCE}):
        assert standing(helpers.signed(stored, signing_key, **of_another)).state == "claimed"
    helpers.signed(stored, signing_key)
    stored.path.write_text(stored.path.read_text() + " ")
    assert standing(read_record(stored.path)).state == "claimed"


def test_a_receipt_that_anyone_could_write_counts_for_nothing(
    stored: Stored, signing_key: Path
) -> None:
    helpers.signed(stored, signing_key)
    path = receipt_path(stored.path)
    content = path.read_text()
    for forged in (
        content.partition("-----")[0],  # not signed
        content.replace("0.004", "0.001"),  # changed since
        content.replace('"tester"', '"other"'),
        content.replace("U1NI", "U1NJ"),
        "{",
        "",
    ):
        assert forged != content
        path.write_text(forged)
        assert standing(stored).state == "claimed"
    helpers.signed(stored, signing_key, trusted=False)
    assert standing(stored).state == "claimed"
    signers_path(stored.path).unlink()
    assert standing(stored).state == "claimed"


@pytest.mark.parametrize("changes", [{"state": "verified"}, {"more": 1}, {"broke": [10_000]}])
def test_a_signed_receipt_that_is_none_is_refused(
    stored: Stored, signing_key: Path, changes: dict[str, object]
) -> None:
    helpers.signed(stored, signing_key)
    path = receipt_path(stored.path)
    values = json.loads(path.read_text().partition("-----")[0]) | changes
    path.write_text(sign(json.dumps(values), signing_key))
    with pytest.raises(RecordError, match=r"receipt|rows outside"):
        standing(stored)


def test_challenges_that_a_receipt_holds_for_true_count_each_example_once(
    stored: Stored, signing_key: Path
) -> None:
    claimed = unpack_flags(stored.record.verdict.robust)
    assert claimed[:4].all()
    assert standing(stored).robust.tolist() == claimed.tolist()
    helpers.challenged(stored.path, rows=[0, 3])
    last = helpers.challenged(stored.path, rows=[3, 2], content=b"b")
    of_another = stored.path.with_suffix(".more.json")
    of_another.write_text(json.dumps({"cell": "other"}))
    helpers.challenged(of_another, rows=[1])
    assert (standing(stored).challenged, standing(stored).pending) == (0, 2)
    found = standing(helpers.signed(stored, signing_key))
    assert (found.challenged, found.pending) == (3, 0)
    assert not found.robust[[0, 2, 3]].any()
    assert found.robust.sum() == claimed.sum() - 3
    last.write_text(last.read_text().replace("[3, 2]", "[3, 1]"))
    assert (standing(stored).challenged, standing(stored).pending) == (2, 1)


def test_a_challenge_without_its_evidence_is_refused(stored: Stored) -> None:
    path = helpers.challenged(stored.path, rows=[0])
    path.with_suffix(".npz").write_bytes(b"junk")
    with pytest.raises(RecordError, match="no evidence beside it, or another"):
        standing(stored)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "other"},
        {"broken": [-1]},
        {"broken": [10_000]},
        {"broken": [10**30]},
        {"broken": ["0"]},
        {"more": 1},
    ],
)
def test_a_challenge_that_is_none_is_refused(stored: Stored, changes: dict[str, object]) -> None:
    edit(helpers.challenged(stored.path, rows=[0, 3]), **changes)
    with pytest.raises(RecordError, match=r"\.challenge"):
        standing(stored)
