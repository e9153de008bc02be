"""The verb `board`: conditions, order, queries and exports, and what it refuses."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_report as helpers
import numpy as np
import pandas as pd
import pytest
from helpers_runner import cli
from rich.console import Console

from robust_nc.cli import board
from robust_nc.cli.board import BoardOptions, board_command
from robust_nc.exceptions import ConfigError, RecordError, UnknownNameError
from robust_nc.exchange.robustbench_published import published_rows
from robust_nc.report.board.formats import format_answer
from robust_nc.report.board.querying import kept, ordered
from robust_nc.report.board.table import COLUMNS, leaderboard

Shown = Callable[[BoardOptions], tuple[str, list[str]]]
FRAME = pd.DataFrame(
    {
        "model": ["net-trades", "net-pgd", "Net-TRADES-2", "plain"],
        "head": ["etf", "linear", "etf", "linear"],
        "robust": [0.5, 0.4, 0.45, np.nan],
        "eps": [8 / 255, 8 / 255, 4 / 255, 8 / 255],
        "rank": [1.0, 2.0, np.nan, np.nan],
        "seeds": [9, 10, 100, 9],
        "recipe": ["x", "normalise_features=True>=x", "x", "x"],
    }
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    helpers.write_grid(folder, heads=("linear", "etf"), seeds=2)
    return folder


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Calls the verb, and gives its output and its messages."""

    def call(options: BoardOptions) -> tuple[str, list[str]]:
        told = io.StringIO()
        assert board_command(options, Console(file=told, width=200)) == 0
        return capsys.readouterr().out, told.getvalue().splitlines()

    return call


class TestConditions:
    @pytest.mark.parametrize(
        ("where", "models"),
        [
            (["head=etf"], ["net-trades", "Net-TRADES-2"]),
            (["head==etf", "robust>=0.5"], ["net-trades"]),
            (["head != etf"], ["net-pgd", "plain"]),
            (["model~trades"], ["net-trades", "Net-TRADES-2"]),
            (["robust>=0.45"], ["net-trades", "Net-TRADES-2"]),
            (["robust>0.45"], ["net-trades"]),
            (["robust<0.45"], ["net-pgd"]),
            (["robust<=0.45"], ["net-pgd", "Net-TRADES-2"]),
            (["robust!=0.4"], ["net-trades", "Net-TRADES-2"]),
            (["eps=8/255"], ["net-trades", "net-pgd", "plain"]),
            (["rank="], ["Net-TRADES-2", "plain"]),
            (["rank!="], ["net-trades", "net-pgd"]),
            (["model=plain "], ["plain"]),
            (["seeds>9"], ["net-pgd", "Net-TRADES-2"]),  # as numbers
            (["recipe=normalise_features=True>=x"], ["net-pgd"]),
            ([], ["net-trades", "net-pgd", "Net-TRADES-2", "plain"]),
        ],
    )
    def test_rows_that_meet_all_are_kept(self, where: list[str], models: list[str]) -> None:
        assert kept(FRAME, where)["model"].tolist() == models

    def test_an_unknown_column_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'robust'"):
            kept(FRAME, ["robst>0.4"])
        with pytest.raises(UnknownNameError, match="did you mean 'head'"):
            ordered(FRAME, "-haed")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("robust", "--where takes a column"),
            ("=3", "--where takes a column"),
            ("robust>much", "holds numbers"),
            ("robust>1/0", "holds numbers"),
            ("robust>nan", "holds numbers"),
            ("robust~4", "looks in text"),
        ],
    )
    def test_what_is_no_condition_is_one_sentence(self, text: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            kept(FRAME, [text])


class TestOrder:
    def test_missing_values_come_last_both_ways(self) -> None:
        assert ordered(FRAME, "robust")["robust"].tolist()[:3] == [0.4, 0.45, 0.5]
        assert ordered(FRAME, "-robust")["robust"].tolist()[:3] == [0.5, 0.45, 0.4]
        assert ordered(FRAME, "-robust")["model"].tolist()[3] == "plain"

    def test_equal_rows_keep_their_order(self) -> None:
        models = ordered(FRAME, "-eps")["model"].tolist()
        assert models == ["net-trades", "net-pgd", "plain", "Net-TRADES-2"]

    def test_none_leaves_the_order(self) -> None:
        assert ordered(FRAME, None) is FRAME


@pytest.mark.parametrize(
    ("style", "line", "expected"),
    [
        ("table", 2, "a|b   0.123457  -"),  # numbers are aligned to the right
        ("csv", 1, "a|b,0.123456789,"),  # with every digit
        ("markdown", 2, r"| a\|b | 0.123457 | - |"),
        ("latex", -3, r"c\_\% & - & True \\"),
    ],
)
def test_an_answer_is_written_in_every_style(style: Any, line: int, expected: str) -> None:
    rows = (("a|b", 0.123456789, None), ("c_%", float("nan"), True))
    text = format_answer(("name", "value", "flag"), rows, style)
    assert text.splitlines()[line] == expected


def test_an_answer_of_no_rows_has_a_header_and_a_terminal_is_sent_no_commands() -> None:
    assert format_answer(("name", "value"), [], "table").splitlines()[0] == "name  value"
    assert "\x1b" not in format_answer(("name",), [("\x1b[31mred",)], "table")


class TestBoard:
    def test_conditions_and_order_reach_every_text(self, results: Path, shown: Shown) -> None:
        wanted = BoardOptions(results, "csv", where=("head=etf", "robust>=0.5"), sort="robust")
        out, _ = shown(wanted)
        frame = pd.read_csv(io.StringIO(out))
        assert set(frame["head"]) == {"etf"}
        assert frame["objective"].tolist() == ["pgd", "trades"]
        for style in ("table", "latex", "markdown"):
            out, _ = shown(dataclasses.replace(wanted, format=style))
            assert "etf-pgd" in out
            assert "linear" not in out

    def test_conditions_hold_for_differences_too(self, results: Path, shown: Shown) -> None:
        wanted = BoardOptions(
            results, "csv", against="linear", where=("measure=robust",), sort="-difference"
        )
        out, _ = shown(wanted)
        assert set(pd.read_csv(io.StringIO(out))["measure"]) == {"robust"}

    def test_nothing_left_is_one_sentence(self, results: Path) -> None:
        with pytest.raises(RecordError, match="none of 6 rows meets robust>2"):
            board_command(BoardOptions(results, where=("robust>2",)), Console())

    def test_published_rows_are_there_and_unverified(self, results: Path, shown: Shown) -> None:
        out, _ = shown(BoardOptions(results, "csv", published=True))
        frame = pd.read_csv(io.StringIO(out), keep_default_na=False)
        assert len(frame) == len(published_rows()) + 6
        theirs = frame[frame["suite"] == "robustbench"]
        assert set(theirs["badge"]) == {"unverified"}
        assert set(theirs["rank"]) == {""}

    def test_a_board_without_records_can_show_the_published(
        self, tmp_path: Path, shown: Shown
    ) -> None:
        out, _ = shown(BoardOptions(tmp_path, "csv", published=True))
        assert len(out.splitlines()) == 1 + len(published_rows())
        with pytest.raises(RecordError, match="holds no records"):
            board_command(BoardOptions(tmp_path), Console())


class TestPage:
    def test_conditions_say_which_rows_are_on_it(
        self, results: Path, tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def write_site(records, out, *, published, claims):  # type: ignore[no-untyped-def]
            calls.append((records, published, claims))
            return out / "index.html"

        monkeypatch.setattr(board, "_site_writer", lambda: write_site)
        wanted = BoardOptions(results, "html", tmp_path, where=("head=etf", "objective=pgd"))
        _, told = shown(wanted)
        assert told[-1] == f"wrote {tmp_path / 'index.html'}"
        shown(BoardOptions(results, "html", tmp_path, published=True))
        (some, none, _), (every, theirs, _) = calls
        assert {one.record.head for one in some} == {"etf"}
        assert sorted(one.record.seed for one in some) == [0, 1]
        assert none is None
        assert theirs["authors"].str.contains("Zekai Wang").any()  # what their cards say
        assert len(every) == 12
        assert set(theirs["badge"]) == {"unverified"}


class TestExchange:
    def test_bibtex_is_of_the_rows(self, results: Path, shown: Shown) -> None:
        out, _ = shown(BoardOptions(results, "bibtex"))
        assert out.count("@") == 1
        wanted = BoardOptions(
            results, "bibtex", where=("model=Wang2023Better_WRN-70-16",), published=True
        )
        out, _ = shown(wanted)
        assert out.count("\n@") == 1
        assert "Better Diffusion Models" in out

    def test_model_info_is_of_the_rows(self, results: Path, tmp_path: Path, shown: Shown) -> None:
        wanted = BoardOptions(results, "robustbench", tmp_path, where=("head=etf", "objective=pgd"))
        _, told = shown(wanted)
        files = list(tmp_path.rglob("*.json"))
        assert len(files) == 2
        assert "wrote 2 files" in told[-1]
        assert all(isinstance(json.loads(path.read_text()), dict) for path in files)


class TestQueries:
    def test_every_style_answers(self, results: Path, tmp_path: Path, shown: Shown) -> None:
        sql = "select head, count(*) as n from records group by head order by head"
        expected = {
            "table": "etf     6",
            "csv": "etf,6",
            "markdown": "| etf | 6 |",
            "latex": r"etf & 6 \\",
        }
        for style, line in expected.items():
            out, _ = shown(BoardOptions(results, style, sql=sql))  # type: ignore[arg-type]
            assert line in out.splitlines()
        path = tmp_path / "answer.csv"
        out, told = shown(BoardOptions(results, "csv", path, sql=sql))
        assert out == ""
        assert path.read_text() == "head,n\netf,6\nlinear,6\n"
        assert told[-1] == f"wrote {path}"

    def test_a_long_table_is_cut_and_says_so(self, results: Path, shown: Shown) -> None:
        sql = "select * from range(1500)"
        out, told = shown(BoardOptions(results, sql=sql))
        assert len(out.splitlines()) == 1002
        assert told[-1] == "the first 1,000 of 1,500 rows; --format csv has all"
        out, _ = shown(BoardOptions(results, "csv", sql=sql))
        assert len(out.splitlines()) == 1501

    def test_the_command_line_answers_in_one_sentence(self, results: Path) -> None:
        ran = cli("board", results, "--sql", "select nosuch from records", "--format", "csv")
        assert (ran.code, ran.out) == (2, "")
        assert "nosuch" in ran.err
        assert "records has path, cell" in ran.err
        assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (BoardOptions(format="html", sql="select 1"), "written as table, csv, latex or markdown"),
        (BoardOptions(sql="select 1", where=("head=etf",)), "--sql goes with"),
        (BoardOptions(sql="select 1", published=True), "--sql goes with"),
        (BoardOptions(format="html", sort="robust"), "leave --sort out"),
        (BoardOptions(format="bibtex", against="linear"), "--against is shown as"),
        (BoardOptions(against="linear", published=True), "--against is shown as"),
        (BoardOptions(format="robustbench"), "needs --out"),
        (
            BoardOptions(format="robustbench", out=Path("x"), published=True),
            "RobustBench's own files",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(wanted: BoardOptions, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        board_command(wanted, Console())


def test_conditions_are_on_the_columns_of_the_leaderboard(results: Path) -> None:
    frame = leaderboard(results)
    for column in COLUMNS:
        assert len(ordered(frame, column)) == len(frame)
