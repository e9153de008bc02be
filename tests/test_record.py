"""Records: written, sealed, found in folders, given badges and challenged; all else is refused."""

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
from robust_nc.io.files import remove_tree, sha256_of
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
    write_record,
    write_rows,
)
from robust_nc.record.standing import (
    PROVEN,
    SCHEMA_OK,
    best_badge,
    challenge_path,
    receipt_path,
    standing,
)

EVIDENCE = "ab" * 32
RECORD = sealed(helpers.record_of(helpers.config()))
FIELDS = sorted(set(plain(RECORD)) - {"seals"})


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


@pytest.mark.parametrize("text", ["", "[]", "3", '{"cell": 1}', '{"cell": "00', "\udcff"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RecordError, match=r"x\.json"):
        read_record(path)


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


def test_a_sealed_record_is_whole() -> None:
    assert broken_seals(plain(RECORD)) == ()
    assert sealed(RECORD) == RECORD


@pytest.mark.parametrize("field", FIELDS)
def test_a_changed_field_or_one_that_lost_its_seal_is_named(field: str) -> None:
    values = plain(RECORD)
    seals = {name: seal for name, seal in values["seals"].items() if name != field}
    assert broken_seals(values | {field: other(values[field])}) == (field,)
    assert broken_seals(values | {"seals": seals}) == (field,)


def test_a_seal_without_a_field_is_named() -> None:
    values = plain(RECORD)
    values["seals"]["hardware2"] = "0"
    assert broken_seals(values) == ("hardware2",)


def test_every_field_has_a_seal() -> None:
    assert sorted(RECORD.seals) == FIELDS
    assert {field.name for field in dataclasses.fields(Record)} == {*FIELDS, "seals"}


# Where records lie


def test_records_are_read_sorted_by_path(tmp_path: Path) -> None:
    written = helpers.write_grid(tmp_path, objectives=("pgd", "standard"), heads=("etf",), seeds=2)
    found = read_all(tmp_path)
    assert [one.path for one in found] == sorted(one.path for one in written)
    assert {one.record.cell for one in found} == {one.record.cell for one in written}
    first = found[0].record
    assert found[0].path == record_path(tmp_path, first.model, first.cell)
    assert read_all(found[0].path) == found[:1], "one record is a root too"


def test_what_is_no_record_is_passed_over_but_for_the_root(tmp_path: Path) -> None:
    root = tmp_path / "cache"  # a name that is passed over below a root
    stored = helpers.write_cell(root, helpers.config())
    folder = checkpoint_folder(root, stored.record.cell)
    for path in (folder / "log.json", root / "cache" / "x.json", root / ".hidden.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no record")
    assert read_all(root) == [stored]


def test_damage_and_absence_are_reported(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="run a suite first"):
        read_all(tmp_path / "absent")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.json").write_text("{")
    with pytest.raises(RecordError, match=r"broken\.json"):
        read_all(tmp_path)


def test_remove_tree_removes_what_is_there(tmp_path: Path) -> None:
    helpers.write_cell(tmp_path / "out", helpers.config())
    remove_tree(tmp_path / "out")
    remove_tree(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Receipts and challenges


def leave_receipt(stored: Stored, **changes: object) -> None:
    values = {"record": sha256_of(stored.path), "evidence": None, "created": "2026-01-01"}
    values |= {"badges": [SCHEMA_OK, PROVEN]} | changes
    receipt_path(stored.path).write_text(json.dumps(values))


def leave_challenge(stored: Stored, evidence: str = EVIDENCE, **changes: object) -> None:
    values = {"cell": stored.record.cell, "evidence": evidence, "created": "2026-01-01"}
    values |= {"broken": [0, 3]} | changes
    challenge_path(stored.path, evidence).write_text(json.dumps(values))


def test_a_record_alone_stands_as_it_claims(stored: Stored) -> None:
    found = standing(stored)
    assert found.robust.tolist() == unpack_flags(stored.record.verdict.robust).tolist()
    assert (found.challenged, found.badges) == (0, ())


def test_a_receipt_of_this_record_gives_its_badges_until_it_changes(stored: Stored) -> None:
    leave_receipt(stored)
    assert standing(stored).badges == (SCHEMA_OK, PROVEN)
    stored.path.write_text(stored.path.read_text() + " ")
    assert standing(read_record(stored.path)).badges == ()


@pytest.mark.parametrize("changes", [{"record": "0" * 64}, {"evidence": EVIDENCE}])
def test_a_receipt_of_another_state_gives_none(stored: Stored, changes: dict[str, str]) -> None:
    leave_receipt(stored, **changes)
    assert standing(stored).badges == ()


@pytest.mark.parametrize(
    "badge", ["verified", "audited", "audited 0", "audited -3", "audited 201", "<b>"]
)
def test_a_badge_that_there_is_not_is_refused(stored: Stored, badge: str) -> None:
    leave_receipt(stored, badges=[badge])
    with pytest.raises(RecordError, match=r"\.receipt holds a badge"):
        standing(stored)


def test_challenges_count_each_example_once(stored: Stored) -> None:
    claimed = unpack_flags(stored.record.verdict.robust)
    assert claimed[:4].all()
    leave_challenge(stored)
    leave_challenge(stored, "cd" * 32, broken=[3, 2])
    found = standing(stored)
    assert found.challenged == 3
    assert not found.robust[[0, 2, 3]].any()
    assert found.robust.sum() == claimed.sum() - 3


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
    leave_challenge(stored, **changes)
    with pytest.raises(RecordError, match=r"\.challenge"):
        standing(stored)


def test_challenges_of_a_record_whose_name_goes_on_are_none_of_ours(stored: Stored) -> None:
    longer = stored.path.with_name(f"{stored.path.stem}.more.json")
    leave_challenge(stored._replace(path=longer), cell="other")
    assert standing(stored).challenged == 0


def test_the_badge_that_says_most_is_shown() -> None:
    assert best_badge((PROVEN, SCHEMA_OK)) == PROVEN
    assert best_badge((PROVEN, "audited 300", SCHEMA_OK)) == "audited 300"
    assert best_badge(()) == ""
