"""The index: what it holds, that it is renewed, and that a query can only ask."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import helpers_report as helpers
import pandas as pd
import pytest

from robust_nc.config import plain
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import sha256_of, write_text
from robust_nc.pipeline.make_record import _SUMMARY
from robust_nc.record import Stored, read_record, tidy, write_record, write_rows
from robust_nc.record.standing import Challenge, challenge_path
from robust_nc.report.board import index
from robust_nc.report.board.index import MEASURES, RECORDS, ask, board_frame, scan
from robust_nc.report.board.table import leaderboard

EVIL = "x'); drop table records; --\"\n<script>"


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    helpers.write_grid(folder, objectives=("pgd", "trades"), heads=("etf",), seeds=2)
    return folder


@pytest.fixture
def results(written: Path, tmp_path: Path) -> Path:
    """A copy of the written records, in a folder whose name has a quote."""
    return Path(shutil.copytree(written, tmp_path / 'it\'s "here"'))


def one(results: Path, sql: str) -> Any:
    ((value,),) = ask(results, sql).rows
    return value


def rewrite(stored: Stored, **changes: Any) -> Stored:
    write_record(stored.path, dataclasses.replace(stored.record, **changes))
    return read_record(stored.path)


def first(results: Path) -> Stored:
    return read_record(sorted(results.rglob("*.json"))[0])


class Told:
    """What the index said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        self.lines.append(text)

    def read(self) -> int:
        return sum(int(line.split()[1]) for line in self.lines if "records into" in line)


class TestContents:
    def test_a_record_is_a_row_with_its_numbers(self, results: Path) -> None:
        stored = first(results)
        columns = "model, head, objective, seed, n, robust, robust_low, nc1_clean, parameters, eps"
        ((found),) = ask(results, f"select {columns} from records order by path limit 1").rows
        record = stored.record
        robust = record.scores["robust"]
        assert found == (
            *(record.model, record.head, record.objective, record.seed, 200),
            *(robust.value, robust.low, record.summary["nc1_clean"], 12_345, 0.15),
        )
        assert one(results, "select count(*) from records") == 4

    def test_the_configuration_can_be_asked(self, results: Path) -> None:
        sql = "select distinct config->>'$.threat.norm' from records"
        assert one(results, sql) == "Linf"

    def test_rows_are_those_of_the_records(self, results: Path) -> None:
        stored = first(results)
        rows = stored.rows()
        answer = ask(results, f"from rows where cell = '{stored.record.cell}'")
        found = pd.DataFrame(answer.rows, columns=list(answer.columns))
        assert answer.columns == (*indexing.JOINED, *rows.columns)
        for column in ("tap", "depth", "measure", "value", "condition", "n"):
            assert found[column].tolist() == rows[column].tolist()
        assert set(found["model"]) == {stored.record.model}

    def test_the_board_is_the_leaderboard(self, results: Path) -> None:
        expected = leaderboard(results)
        pd.testing.assert_frame_equal(board_frame(results), expected)
        pd.testing.assert_frame_equal(board_frame(results), expected)  # as it was kept
        sql = "select model from board order by robust desc limit 1"
        best = expected.sort_values("robust", ascending=False).iloc[0]
        assert one(results, sql) == best["model"]

    def test_missing_numbers_are_null(self, results: Path) -> None:
        found = ask(results, "select seed, landed from records where objective = 'pgd' order by 1")
        assert found.rows == [(0, 0.75), (1, None)]
        stored = first(results)
        frame = tidy([{"tap": "a", "measure": "nc1", "value": v} for v in (1.0, float("nan"))])
        rewrite(stored, rows=write_rows(stored.path.with_suffix(".parquet"), frame))
        sql = f"select avg(value), count(*) from rows where cell = '{stored.record.cell}'"
        assert ask(results, sql).rows == [(1.0, 2)]

    def test_every_headline_measure_has_a_column(self) -> None:
        assert set(_SUMMARY) <= set(MEASURES) <= set(RECORDS)

    def test_a_record_cannot_make_columns(self, results: Path) -> None:
        before = ask(results, "select * from records").columns
        stored = first(results)
        rewrite(stored, summary={f"invented_{i}": 1.0 for i in range(2000)})
        answer = ask(results, "select * from records order by path limit 1")
        assert answer.columns == before
        sql = "select (summary->>'$.invented_7')::double from records order by path limit 1"
        assert one(results, sql) == 1.0

    def test_a_challenge_counts(self, results: Path) -> None:
        stored = first(results)
        made = Challenge(cell=stored.record.cell, evidence="e" * 64, broken=(0, 1, 2), created="")
        assert one(results, "select sum(challenged) from records") == 0
        path = challenge_path(stored.path, made.evidence)
        write_text(path, json.dumps(plain(made)))
        assert one(results, "select sum(challenged) from records") == 3
        path.unlink()
        assert one(results, "select sum(challenged) from records") == 0

    def test_the_tables_are_listed(self, results: Path) -> None:
        found = {row[0] for row in ask(results, "show tables").rows}
        assert found == set(index.TABLES)

    def test_a_single_record_is_asked_in_memory(self, results: Path) -> None:
        path = first(results).path
        assert one(path, "select count(*) from records") == 1
        assert len(board_frame(path)) == 1
        assert not (path.parent / index.FOLDER).exists()


class TestRenewal:
    def test_only_what_changed_is_read_again(self, results: Path) -> None:
        told = Told()
        sql = "select count(*), sum(n) from records where seed < 40"
        assert ask(results, sql, tell=told).rows == [(4, 800)]
        assert told.read() == 4
        ask(results, sql, tell=told)
        assert told.read() == 4
        rewrite(first(results), seed=40)
        assert ask(results, sql, tell=told).rows == [(3, 600)]
        assert told.read() == 5

    def test_what_is_removed_vanishes(self, results: Path) -> None:
        assert one(results, "select count(distinct cell) from rows") == 4
        first(results).path.unlink()
        assert one(results, "select count(distinct cell) from rows") == 3
        assert one(results, "select count(*) from records") == 3

    def test_a_change_that_hides_its_time_is_seen(self, results: Path) -> None:
        stored = first(results)
        ask(results, "select 1")
        before = stored.path.stat()
        text = stored.path.read_text().replace('"created": "2026', '"created": "2027')
        stored.path.write_text(text)
        os.utime(stored.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert stored.path.stat().st_size == before.st_size
        assert one(results, "select max(created[:4]) from records") == "2027"

    def test_the_board_follows(self, results: Path) -> None:
        assert len(board_frame(results)) == 2
        helpers.write_cell(results, helpers.config(objective="standard"))
        assert one(results, "select count(*) from board") == 3
        pd.testing.assert_frame_equal(board_frame(results), leaderboard(results))

    @pytest.mark.parametrize("damage", ["empty", "text", "middle", "end", "foreign", "other code"])
    def test_a_damaged_or_foreign_index_is_made_again(self, results: Path, damage: str) -> None:
        sql = "select sum(value) from rows"
        expected = one(results, sql)
        (path,) = (results / index.FOLDER).glob("*.duckdb")
        content = path.read_bytes()
        middle = len(content) // 2
        if damage == "foreign":
            path.unlink()
            with duckdb.connect(str(path)) as connection:
                connection.execute("create table records as select 'lies' as model")
        elif damage == "other code":
            with duckdb.connect(str(path)) as connection:
                connection.execute("update held.parts set state = 'old' where part = 'version'")
                connection.execute("delete from held.measured")
        else:
            path.write_bytes(
                {
                    "empty": b"",
                    "text": b"no database" * 1000,
                    "middle": content[: middle // 2] + b"\7" * middle + content[-middle // 2 :],
                    "end": content[:middle],
                }[damage]
            )
        assert one(results, sql) == pytest.approx(expected, rel=1e-12)
        assert one(results, "select count(*) from records") == 4

    def test_an_index_that_came_with_the_records_is_not_opened(
        self, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask(results, "select 1")
        (theirs,) = (results / index.FOLDER).glob("*.duckdb")
        monkeypatch.setenv("HOME", str(tmp_path / "another user"))
        assert one(results, "select count(*) from records") == 4
        assert len(list((results / index.FOLDER).glob("*.duckdb"))) == 2
        assert theirs.exists()

    def test_git_does_not_see_it(self, results: Path) -> None:
        ask(results, "select 1")
        assert (results / index.FOLDER / ".gitignore").read_text() == "*\n"
        assert {path.name[0] for path in results.iterdir()} == {".", "s"}
        assert len(scan(results).found) == 4

    def test_two_processes_at_once_both_answer(self, results: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from robust_nc.report.board.index import ask;"
            "print(ask(Path(sys.argv[1]), 'select count(*), sum(value) from rows').rows)"
        )
        command = [sys.executable, "-c", code, str(results)]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        answers = [process.communicate() for process in started]
        assert {err for _, err in answers} == {""}
        assert len({out for out, _ in answers}) == 1
        assert not list((results / index.FOLDER).glob("building-*"))


class TestPlaces:
    def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(self, results: Path) -> None:
        (results / index.FOLDER).write_text("a file where the folder should be")
        told = Told()
        assert one(results, "select count(*) from records") == 4
        ask(results, "select 1", tell=told)
        cache = Path.home() / ".cache" / "robust_nc" / "index"
        assert len(list(cache.glob("*.duckdb"))) == 1
        assert "no index in" in told.lines[0]

    def test_a_link_in_place_of_the_folder_is_not_followed(
        self, results: Path, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (results / index.FOLDER).symlink_to(elsewhere)
        assert one(results, "select count(*) from records") == 4
        assert list(elsewhere.iterdir()) == []

    def test_links_inside_the_folder_are_not_followed(self, results: Path, tmp_path: Path) -> None:
        target, absent = tmp_path / "mine.txt", tmp_path / "absent.txt"
        target.write_text("precious")
        (results / index.FOLDER).mkdir()
        (results / index.FOLDER / ".lock").symlink_to(target)
        (results / index.FOLDER / ".gitignore").symlink_to(absent)
        assert one(results, "select count(*) from records") == 4
        assert target.read_text() == "precious"
        assert not absent.exists()

    def test_without_any_place_it_is_made_in_memory(
        self, results: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/dev/null")
        told = Told()
        assert ask(results, "select count(*) from records", tell=told).rows == [(4,)]
        assert told.lines[0] == "the index is made in memory, for this once"
        with pytest.raises(ConfigError, match="file system operations are disabled"):
            ask(results, "from read_text('/etc/hostname')")


class TestQuestions:
    @pytest.mark.parametrize(
        "sql",
        [
            "from records",
            "with a as (select 1 as b) select b from a",
            "describe records",
            "summarize records",
            "show tables",
            "select 1;",
            "/* why */ select 1 -- so",
        ],
    )
    def test_questions_are_answered(self, results: Path, sql: str) -> None:
        assert ask(results, sql).rows

    @pytest.mark.parametrize(
        ("sql", "words"),
        [
            ("drop table records", "only reads"),
            ("delete from records", "only reads"),
            ("insert into records values (1)", "only reads"),
            ("create temp table t as select 1", "only reads"),
            ("copy records to 'stolen.csv'", "only reads"),
            ("attach 'other.duckdb'", "only reads"),
            ("install httpfs", "only reads"),
            ("load httpfs", "only reads"),
            ("set enable_external_access = true", "only reads"),
            ("pragma database_list", "only reads"),
            ("call pragma_version()", "only reads"),
            ("explain analyze select 1", "only reads"),
            ("select 1; select 2", "one statement, found 2"),
            ("select 1; drop table records", "one statement, found 2"),
            ("", "one statement, found 0"),
            ("selct 1", "syntax error"),
            ("select 1 + ?", "cannot be answered"),
            ("from read_text('/etc/hostname')", "file system operations are disabled"),
            ("from read_csv('/etc/passwd')", "file system operations are disabled"),
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
            ask(results, sql)
        assert "\n" not in str(raised.value)

    def test_an_unknown_column_is_answered_with_those_that_exist(self, results: Path) -> None:
        with pytest.raises(
            ConfigError, match=r'"robst" not found.*records has path, cell.*robust,'
        ):
            ask(results, "select robst from records")
        with pytest.raises(ConfigError, match=r"the tables are records, rows, board"):
            ask(results, "select nothing")

    def test_a_long_query_can_be_interrupted(self, results: Path) -> None:
        ask(results, "select 1")
        # Tests that a shell runs in its background inherit that SIGINT is ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        endless = "select sum(a.range * b.range % 7) from range(99999999) a, range(99999) b"
        try:
            with pytest.raises(KeyboardInterrupt):
                ask(results, endless)
        finally:
            signal.signal(signal.SIGINT, before)
        assert ask(results, "select 1").rows == [(1,)]

    def test_without_duckdb_it_says_what_to_do(
        self, results: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "duckdb", None)
        with pytest.raises(ConfigError, match=r"pip install 'robust_nc\[report\]'"):
            ask(results, "select 1")


class TestStrangers:
    def test_names_are_values(self, results: Path) -> None:
        stored = first(results)
        rewrite(stored, model=EVIL, suite=EVIL, head=EVIL, created=EVIL)
        assert one(results, "select count(*) from records") == 4
        sql = "select model || suite from records where starts_with(model, 'x''')"
        assert one(results, sql) == EVIL + EVIL

    def test_a_seed_beyond_64_bits_is_refused(self, results: Path) -> None:
        stored = first(results)
        values = json.loads(stored.path.read_text())
        stored.path.write_text(json.dumps({**values, "seed": 2**64}))
        with pytest.raises(RecordError, match="which no int64 can"):
            ask(results, "select 1")

    def test_rows_of_another_record_are_refused(self, results: Path) -> None:
        stored = first(results)
        with stored.path.with_suffix(".parquet").open("ab") as file:
            file.write(b"x")
        with pytest.raises(RecordError, match="is not the file that"):
            ask(results, "select 1")

    @pytest.mark.parametrize("kind", ["text", "columns", "types"])
    def test_rows_that_are_none_are_refused(self, results: Path, kind: str) -> None:
        stored = first(results)
        path = stored.path.with_suffix(".parquet")
        frame = stored.rows()
        if kind == "text":
            path.write_bytes(b"PAR1" * 100)
        elif kind == "columns":
            frame.drop(columns="value").to_parquet(path)
        else:
            frame.assign(depth="deep").to_parquet(path)
        changed = dataclasses.replace(stored.record.rows, sha256=sha256_of(path))
        rewrite(stored, rows=changed)
        with pytest.raises(RecordError, match="holds no rows of a record") as raised:
            ask(results, "select 1")
        assert "\n" not in str(raised.value)

    def test_a_damaged_record_is_named(self, results: Path) -> None:
        path = first(results).path
        ask(results, "select 1")
        path.write_text("{")
        with pytest.raises(RecordError, match=path.name):
            ask(results, "select 1")

    def test_a_name_that_is_no_text_can_be_listed(self, results: Path) -> None:
        stored = first(results)
        stored.path.parent.rename(os.fsdecode(os.fsencode(results) + b"/\xff\xfe"))
        assert one(results, r"select count(*) from records where path like '\xff\xfe/%'") == 2


def test_an_empty_folder_has_no_records(tmp_path: Path) -> None:
    assert one(tmp_path, "select count(*) from rows") == 0
    with pytest.raises(RecordError, match="run a suite first"):
        ask(tmp_path, "select * from board")
    with pytest.raises(RecordError, match="run a suite first"):
        ask(tmp_path / "absent", "select 1")


def test_a_signature_is_of_a_records_own_files(tmp_path: Path) -> None:
    for name in ("a.json", "a.parquet", "ab.json", "a.b.json", "notes.txt", ".hidden.json"):
        (tmp_path / name).write_text("x")
    before = scan(tmp_path)
    assert list(before.found) == ["a.b.json", "a.json", "ab.json"]
    (tmp_path / "a.parquet").write_text("xy")
    (tmp_path / "notes.txt").write_text("xy")
    after = scan(tmp_path)
    changed = [p for p in after.found if after.found[p].signature != before.found[p].signature]
    assert changed == ["a.json"]
    assert after.state != before.state
    assert scan(tmp_path) == after
