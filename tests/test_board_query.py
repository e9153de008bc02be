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
from helpers_exchange import appraised
from rich.console import Console

from robust_nc.cli.board import BoardOptions, board_command
from robust_nc.exceptions import ConfigError, RecordError, UnknownNameError
from robust_nc.exchange.robustbench_published import published_rows
from robust_nc.report.board.formats import format_answer
from robust_nc.report.board.querying import kept, ordered

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
        models = ordered(FRAME, "-eps")["model"].tolist()
        assert models == ["net-trades", "net-pgd", "plain", "Net-TRADES-2"], "equal ones in order"


@pytest.mark.parametrize(
    ("style", "line", "expected"),
    [
        ("table", 2, "a|b        0.123457  -"),  # numbers are aligned to the right
        ("csv", 1, "a|b,0.123456789,"),  # with every digit
        ("markdown", 2, r"| a\|b | 0.123457 | - |"),
        ("latex", -3, r"c\_\% & - & True \\"),
    ],
)
def test_an_answer_is_written_in_every_style(style: Any, line: int, expected: str) -> None:
    rows = (("a|b", 0.123456789, None), ("c_%", float("nan"), True))
    text = format_answer(("name\x1b[31m", "value", "flag"), rows, style)
    assert style == "csv" or "\x1b" not in text
    assert text.splitlines()[line] == expected


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
            assert "\nsmall_cnn-linear" not in out
        where = ("measure=robust",)
        out, _ = shown(
            BoardOptions(results, "csv", against="linear", where=where, sort="-difference")
        )
        assert set(pd.read_csv(io.StringIO(out))["measure"]) == {"robust"}, "of differences too"

    def test_nothing_left_is_one_sentence(self, results: Path, tmp_path: Path) -> None:
        with pytest.raises(RecordError, match="none of 6 rows meets robust>2"):
            board_command(BoardOptions(results, where=("robust>2",)), Console())
        with pytest.raises(RecordError, match="holds no records"):
            board_command(BoardOptions(tmp_path), Console())

    def test_published_rows_are_there_and_unverified(
        self, results: Path, tmp_path: Path, shown: Shown
    ) -> None:
        out, _ = shown(BoardOptions(results, "csv", published=True))
        frame = pd.read_csv(io.StringIO(out), keep_default_na=False)
        assert len(frame) == len(published_rows()) + 6
        theirs = frame[frame["suite"] == "robustbench"]
        assert set(theirs["state"]) == {"unverified"}
        assert set(theirs["rank"]) == {""}
        out, _ = shown(BoardOptions(tmp_path, "csv", published=True))  # without records
        assert len(out.splitlines()) == 1 + len(published_rows())


class TestPage:
    def test_conditions_say_which_rows_are_on_it(self, tmp_path: Path, shown: Shown) -> None:
        results, page = tmp_path / "results", tmp_path / "site" / "index.html"
        for count in (200, 300):
            appraised(results, count=count)
        some = BoardOptions(results, "html", page.parent, where=("examples=300",))
        assert shown(some)[1][-1] == f"wrote {page}"
        assert page.read_text().count('<a href="model/') == 1
        assert "Zekai Wang" not in page.read_text()
        shown(BoardOptions(results, "html", page.parent, published=True))
        assert page.read_text().count('<a href="model/') == 2
        assert "Zekai Wang" in page.read_text(), "what the cards of the published say"


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
    def test_an_answer_is_shown_or_written(
        self, results: Path, tmp_path: Path, shown: Shown
    ) -> None:
        sql = "select head, count(*) as n from records group by head order by head"
        assert "| etf | 6 |" in shown(BoardOptions(results, "markdown", sql=sql))[0].splitlines()
        path = tmp_path / "answer.csv"
        out, told = shown(BoardOptions(results, "csv", path, sql=sql))
        assert (out, told[-1]) == ("", f"wrote {path}")
        assert path.read_text() == "head,n\netf,6\nlinear,6\n"

    def test_a_long_table_is_cut_and_says_so(self, results: Path, shown: Shown) -> None:
        sql = "select * from range(1500)"
        out, told = shown(BoardOptions(results, sql=sql))
        assert len(out.splitlines()) == 1002
        assert told[-1] == "the first 1,000 of 1,500 rows; --format csv has all"
        out, _ = shown(BoardOptions(results, "csv", sql=sql))
        assert len(out.splitlines()) == 1501


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
        (BoardOptions(format="pdf"), "figures need --out"),
        (BoardOptions(figures=()), "figures need --out"),
        (BoardOptions(figures=(), format="latex"), "written as pdf, svg or png"),
        (BoardOptions(format="svg", out=Path("x"), sort="robust"), "leave --published, --sort"),
        (BoardOptions(format="png", out=Path("x"), against="etf"), "--against is shown as"),
        (BoardOptions(width="page"), "--width is of figures"),
        (BoardOptions(format="html", columns=("model",)), "--columns are of a table"),
        (BoardOptions(columns=()), "--columns needs names"),
        (
            BoardOptions(format="robustbench", out=Path("x"), published=True),
            "RobustBench's own files",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(wanted: BoardOptions, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        board_command(wanted, Console())
