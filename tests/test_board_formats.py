"""The leaderboard as text."""

import io
import math
from typing import Any

import pandas as pd
import pytest
from helpers_report import stored

from robust_nc.exceptions import RecordError, UnknownNameError
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.render import WIDTH
from robust_nc.report.board.table import COLUMNS, leaderboard, paired

NASTY = "a_b&c%d$e#f{g}h~i^j\\k|l<m>\x1b[31mn\no"


def frame_of(**options: Any) -> pd.DataFrame:
    heads, seeds = ("linear", "etf"), range(3)
    return leaderboard(
        [stored(head=head, seed=seed, **options) for head in heads for seed in seeds]
    )


def test_the_terminal_table_fits_and_says_over_how_many() -> None:
    frame = frame_of(suite="s" * 80)
    long = frame.assign(model=["m" * 90, "short"])
    for table in (frame, long):
        lines = format_table(table, "table").splitlines()
        assert max(map(len, lines)) <= WIDTH
    text = format_table(frame, "table")
    assert text.isascii()
    assert "digits, Linf 0.15, protocol pgd" in text
    assert "200 examples, 3 seeds" in text
    assert "Student t" in text
    first = next(line for line in text.splitlines() if "small_cnn-etf-pgd" in line)
    assert "63.0 [60.5, 65.5]" in first
    assert text.index("small_cnn-etf-pgd") < text.index("small_cnn-linear-pgd")


@pytest.mark.parametrize("style", ["table", "latex", "markdown"])
def test_the_gap_to_a_weaker_protocol_is_told_where_there_is_one(style: str) -> None:
    frame = frame_of()
    assert "gap" not in format_table(frame, style)
    told = frame.assign(beside="pgd_ce", gap=[0.0812, math.nan])
    text = format_table(told, style)
    assert "gap: points by which" in " ".join(text.split())
    rows = [line for line in text.splitlines() if "pgd" in line and "[" in line]
    assert ["+8.1" in row for row in rows] == [True, False]
    if style == "table":
        assert max(map(len, text.splitlines())) <= WIDTH
    else:
        assert "gap, points" in text


def test_columns_that_do_not_fit_a_terminal_are_named() -> None:
    frame = frame_of()
    wide = frame.assign(collapse_radius=0.123, leap_layer=2.5, badge="upper bound proven")
    wide = wide.assign(beside="pgd_ce", gap=0.1, nc1_leap_null=3820.0)
    text = format_table(wide, "table")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "no room for collapse radius, leap layer: see the other formats" in " ".join(
        text.split()
    )
    assert "small_cnn-" in text
    assert "proven" in text
    for style in ("latex", "markdown"):
        told = format_table(wide, style)
        assert "collapse radius" in told
        assert "upper bound proven" in told


def test_a_name_stays_on_its_row() -> None:
    text = format_table(frame_of().assign(model=["two\nlines", "b"]), "table")
    assert "two lines" in text


@pytest.mark.parametrize(("beside", "words"), [("cw", "cw flatters;"), ("ce", "ce, cw flatter;")])
def test_the_caption_names_every_weaker_protocol(beside: str, words: str) -> None:
    told = frame_of().assign(beside=[beside, "cw"], gap=0.1)
    assert f"gap: points by which {words}" in format_table(told, "latex")


def test_long_names_break_after_hyphens_in_the_terminal() -> None:
    name = "wide_resnet-label_relaxation-pgd_at-haframe_cosine-transform_neck"
    text = format_table(frame_of().assign(model=[name, "short"]), "table")
    lines = text.splitlines()
    row = next(i for i, line in enumerate(lines) if "wide_resnet-" in line)
    place = lines[row].index("wide")
    first, second = (lines[i][place:].split(" ")[0] for i in (row, row + 1))
    assert (first[-1], first + second) == ("-", name)


def test_csv_holds_all_columns_as_numbers() -> None:
    frame = frame_of()
    found = pd.read_csv(io.StringIO(format_table(frame, "csv")))
    assert tuple(found.columns) == COLUMNS
    assert found["robust"].tolist() == frame["robust"].tolist()
    assert math.isnan(found["landed"][0])


def test_boards_are_tables_of_their_own() -> None:
    frame = frame_of()
    both = pd.concat([frame, frame.assign(dataset="cifar10")], ignore_index=True)
    assert format_table(both, "table").count("protocol pgd") == 2
    assert format_table(both, "latex").count(r"\begin{tabular}") == 2


def test_latex_is_escaped_and_whole() -> None:
    text = format_table(frame_of().assign(model=[NASTY, "b"]), "latex")
    assert r"a\_b\&c\%d\$e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k" in text
    assert r"\textbar{}l\textless{}m\textgreater{}?[31mn o" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}", r"clean \%"):
        assert rule in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert {row.replace(r"\&", "").count("&") for row in rows} == {9}


def test_markdown_is_escaped_and_rectangular() -> None:
    text = format_table(frame_of().assign(model=[NASTY, "b"]), "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.replace(r"\|", "").count("|") for row in rows} == {11}


def test_a_terminal_is_sent_no_commands() -> None:
    text = format_table(frame_of().assign(model=[NASTY, "[bold]b[/bold]"]), "table")
    assert "\x1b" not in text
    assert "[bold]b[/bold]" in text


def test_a_name_that_stands_twice_is_told_apart() -> None:
    frame = frame_of().assign(model="same", recipe=["abcdef123", "fedcba321"])
    text = format_table(frame, "markdown")
    assert "same (synthetic, abcdef)" in text
    assert "same (synthetic, fedcba)" in text


@pytest.mark.parametrize("style", ["table", "csv", "latex", "markdown"])
def test_paired_differences_have_all_formats(style: Any) -> None:
    records = [stored(head=head, seed=seed) for head in ("linear", "etf") for seed in range(2)]
    text = format_table(paired(records, against="linear", measures=["robust"]), style)
    assert "+0.02" in text or "0.02" in text
    assert "small" in text


def test_nothing_and_unknown_formats_are_refused() -> None:
    frame = frame_of()
    with pytest.raises(RecordError, match="no rows"):
        format_table(frame[:0])
    with pytest.raises(UnknownNameError, match="did you mean 'latex'"):
        format_table(frame, "latx")  # type: ignore[arg-type]
