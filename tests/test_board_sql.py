"""SQL over a results folder: what the tables hold, and that a query can only ask."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import helpers_report as helpers
import pandas as pd
import pytest

from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.record import Stored, read_record, tidy, write_record, write_rows
from robust_nc.report.board.sql import TABLES, query
from robust_nc.report.board.table import leaderboard

EVIL = "x'); drop table records; --\"\n<script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    helpers.write_grid(folder, objectives=("pgd", "trades"), heads=("etf",), seeds=2)
    return folder


@pytest.fixture
def results(written: Path, tmp_path: Path) -> Path:
    """A copy of the written records, in a folder whose name SQL and its globs could mistake."""
    return Path(shutil.copytree(written, tmp_path / 'it\'s "here" [a]*=1?'))


def one(results: Path, sql: str) -> Any:
    ((value,),) = query(results, sql).rows
    return value


def rewrite(stored: Stored, **changes: Any) -> Stored:
    write_record(stored.path, dataclasses.replace(stored.record, **changes))
    return read_record(stored.path)


def first(results: Path) -> Stored:
    return read_record(sorted(results.rglob("*.json"))[0])


class TestContents:
    def test_a_record_is_a_row_with_its_numbers(self, results: Path, signing_key: Path) -> None:
        stored = first(results)
        columns = "model, head, objective, seed, n, robust, robust_low, nc1_clean, parameters, eps"
        ((found),) = query(results, f"select {columns} from records order by path limit 1").rows
        record = stored.record
        robust = record.scores["robust"]
        assert found == (
            *(record.model, record.head, record.objective, record.seed, 200),
            *(robust.value, robust.low, record.summary["nc1_clean"], 12_345, 0.15),
        )
        assert one(results, "select distinct config->>'$.threat.norm' from records") == "Linf"
        assert one(results, "select sum(challenged) from records") == 0
        helpers.challenged(stored.path, rows=(0, 1, 2))
        helpers.signed(stored, signing_key)
        assert one(results, "select sum(challenged) from records") == 3

    def test_rows_are_those_of_the_records(self, results: Path) -> None:
        stored = first(results)
        rows = stored.rows()
        answer = query(results, f"from rows where cell = '{stored.record.cell}'")
        found = pd.DataFrame(answer.rows, columns=list(answer.columns))
        told = ("path", "cell", "suite", "dataset", "model", "head", "objective", "seed")
        assert answer.columns == (*told, *rows.columns)
        for column in ("tap", "depth", "measure", "value", "condition", "n"):
            assert found[column].tolist() == rows[column].tolist()
        assert one(stored.path, "select count(distinct cell) from rows") == 1, "of one record too"

    def test_the_board_is_the_leaderboard(self, results: Path) -> None:
        expected = leaderboard(results).astype(object)
        answer = query(results, "from board")
        found = pd.DataFrame(answer.rows, columns=list(answer.columns), dtype=object)
        pd.testing.assert_frame_equal(found, expected.where(expected.notna(), None))

    def test_missing_numbers_are_null(self, results: Path) -> None:
        sql = "select seed, landed from records where objective = 'pgd' order by 1"
        assert query(results, sql).rows == [(0, 0.75), (1, None)]
        stored = first(results)
        frame = tidy([{"tap": "a", "measure": "nc1", "value": v} for v in (1.0, float("nan"))])
        rewrite(stored, rows=write_rows(stored.path.with_suffix(".parquet"), frame))
        sql = f"select avg(value), count(*) from rows where cell = '{stored.record.cell}'"
        assert query(results, sql).rows == [(1.0, 2)]

    def test_a_record_cannot_make_columns(self, results: Path) -> None:
        before = query(results, "from records").columns
        rewrite(first(results), summary={f"invented_{i}": 1.0 for i in range(2000)})
        assert query(results, "from records").columns == before
        sql = "select (summary->>'$.invented_7')::double from records order by path limit 1"
        assert one(results, sql) == 1.0

    def test_nothing_is_left_in_the_folder_and_what_is_removed_vanishes(
        self, results: Path
    ) -> None:
        before = sorted(results.rglob("*"))
        old = results / ".index"
        old.mkdir()
        (old / "0123.duckdb").write_bytes(b"an index of an earlier version")
        assert one(results, "select count(distinct cell) from rows") == 4
        assert sorted(set(results.rglob("*")) - set(before)) == [old, old / "0123.duckdb"]
        first(results).path.unlink()
        assert one(results, "select count(distinct cell) from rows") == 3


class TestQuestions:
    @pytest.mark.parametrize(
        "sql",
        ["with a as (select 1 as b) select b from a", "summarize records", "/* a */ from rows;"],
    )
    def test_questions_are_answered(self, results: Path, sql: str) -> None:
        assert query(results, sql).rows
        assert {name for (name,) in query(results, "show tables").rows} == set(TABLES)

    @pytest.mark.parametrize(
        ("sql", "words"),
        [
            ("drop table records", "only reads"),
            ("create temp table t as select 1", "only reads"),
            ("copy records to 'stolen.csv'", "only reads"),
            ("attach 'other.duckdb'", "only reads"),
            ("install httpfs", "only reads"),
            ("set enable_external_access = true", "only reads"),
            ("explain analyze select 1", "only reads"),
            ("select 1; select 2", "one statement, found 2"),
            ("", "one statement, found 0"),
            ("selct 1", "syntax error"),
            ("select 1 + ?", "cannot be answered"),
            ("from read_text('/etc/hostname')", "file system operations are disabled"),
            ("from '/etc/passwd'", "does not exist"),
            ("from glob('*')", "file system operations are disabled"),
            ("from results", "does not exist"),  # a variable of this process is no table
            ("select 'x'::integer from records", "Conversion Error"),
        ],
    )
    def test_anything_else_is_refused_in_one_sentence(
        self, results: Path, sql: str, words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words) as raised:
            query(results, sql)
        assert "\n" not in str(raised.value)

    def test_an_unknown_column_is_answered_with_those_that_exist(self, results: Path) -> None:
        with pytest.raises(
            ConfigError, match=r'"robst" not found.*records has path, cell.*robust,'
        ):
            query(results, "select robst from records")
        with pytest.raises(ConfigError, match=r"the tables are records, rows, board"):
            query(results, "select nothing")

    @pytest.mark.parametrize("seconds", [0.1, 0.5])
    def test_a_long_query_can_be_interrupted(self, results: Path, seconds: float) -> None:
        """Also while its tables are made."""
        query(results, "select 1")
        # Tests that a shell runs in its background inherit that SIGINT is ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        endless = "select sum(a.range * b.range % 7) from range(99999999) a, range(99999) b"
        try:
            with pytest.raises(KeyboardInterrupt):
                query(results, endless)
        finally:
            signal.signal(signal.SIGINT, before)
        assert query(results, "select 1").rows == [(1,)]

    def test_without_duckdb_it_says_what_to_do(
        self, results: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "duckdb", None)
        with pytest.raises(ConfigError, match=r"pip install 'robust-nc\[sql\]'"):
            query(results, "select 1")


class TestStrangers:
    def test_names_are_values_also_where_they_are_no_text(self, results: Path) -> None:
        stored = rewrite(first(results), model=EVIL, suite=EVIL, head=EVIL, created=EVIL)
        stored.path.parent.rename(os.fsdecode(os.fsencode(results) + b"/\xff\xfe"))
        assert one(results, "select count(*) from records") == 4
        sql = "select model || suite from records where starts_with(model, 'x''')"
        assert one(results, sql) == EVIL + EVIL
        assert one(results, r"select count(*) from records where path like '\xff\xfe/%'") == 2

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("seed", "which no int64 can"),
            ("other", "is not the file that"),
            ("text", "cannot be read as rows"),
            ("columns", "holds no rows of a record"),
            ("types", "holds no rows of a record"),
            ("record", "NAME"),
        ],
    )
    def test_what_is_damaged_is_refused_in_one_sentence(
        self, results: Path, kind: str, words: str
    ) -> None:
        stored = first(results)
        path = stored.path.with_suffix(".parquet")
        frame = stored.rows()
        query(results, "select 1")
        if kind == "seed":  # beyond 64 bits
            values = json.loads(stored.path.read_text())
            stored.path.write_text(json.dumps({**values, "seed": 2**64}))
        elif kind == "record":
            stored.path.write_text("{")
        elif kind == "other":
            path.write_bytes(path.read_bytes() + b"x")
        elif kind == "text":
            path.write_bytes(b"PAR1" * 100)
        elif kind == "columns":
            frame.drop(columns="value").to_parquet(path)
        else:
            frame.assign(depth="deep").to_parquet(path)
        if kind in {"text", "columns", "types"}:
            changed = dataclasses.replace(stored.record.rows, sha256=sha256_of(path))
            rewrite(stored, rows=changed)
        with pytest.raises(RecordError, match=words.replace("NAME", stored.path.name)) as raised:
            query(results, "select 1")
        assert "\n" not in str(raised.value)


def test_an_empty_folder_has_no_records(tmp_path: Path) -> None:
    assert one(tmp_path, "select count(*) from rows") == 0
    with pytest.raises(RecordError, match="run a suite first"):
        query(tmp_path, "select * from board")
    with pytest.raises(RecordError, match="run a suite first"):
        query(tmp_path / "absent", "select 1")
