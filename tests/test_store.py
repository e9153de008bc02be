"""Where records lie."""

from pathlib import Path

import helpers_report as helpers
import pytest

from robust_nc.exceptions import RecordError
from robust_nc.io.files import remove_tree
from robust_nc.record.folder import checkpoint_folder, read_all, record_path


def test_records_are_read_sorted_by_path(tmp_path: Path) -> None:
    written = helpers.write_grid(tmp_path, objectives=("pgd", "standard"), heads=("etf",), seeds=2)
    found = read_all(tmp_path)
    assert [one.path for one in found] == sorted(one.path for one in written)
    assert {one.record.cell for one in found} == {one.record.cell for one in written}
    first = found[0].record
    assert found[0].path == record_path(tmp_path, first.model, first.cell)


def test_one_record_is_a_root_too(tmp_path: Path) -> None:
    stored = helpers.write_cell(tmp_path, helpers.config())
    assert read_all(stored.path) == [stored]


def test_files_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    stored = helpers.write_cell(tmp_path, helpers.config())
    folder = checkpoint_folder(tmp_path, stored.record.cell)
    for path in (folder / "log.json", tmp_path / "cache" / "x.json", tmp_path / ".hidden.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no record")
    assert read_all(tmp_path) == [stored]


def test_a_root_inside_a_folder_named_cache_is_read(tmp_path: Path) -> None:
    stored = helpers.write_cell(tmp_path / "cache", helpers.config())
    assert read_all(tmp_path / "cache") == [stored]


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
