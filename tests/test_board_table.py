"""The leaderboard: its numbers against computations by hand, and its texts."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import helpers_report as helpers
import pandas as pd
import pytest
from helpers_report import stored

from robust_nc.exceptions import InputError, RecordError, UnknownNameError
from robust_nc.record import Caution, Stored, Verdict
from robust_nc.report.board.formats import format_table, percent
from robust_nc.report.board.render import WIDTH
from robust_nc.report.board.table import COLUMNS, leaderboard, paired
from robust_nc.statistics.intervals import wilson

T_975_2 = 4.302652729911275  # Student t quantile, two degrees of freedom
NASTY = "a_b&c%d$e#f{g}h~i^j\\k|l<m>\x1b[31mn\no"


def test_seeds_are_aggregated_by_hand() -> None:
    records = [stored(seed=seed, correct=correct) for seed, correct in enumerate((100, 110, 126))]
    frame = leaderboard(records)
    assert tuple(frame.columns) == COLUMNS
    (row,) = frame.to_dict("records")
    half = T_975_2 * math.sqrt((0.06**2 + 0.01**2 + 0.07**2) / 2) / math.sqrt(3)
    assert row["robust"] == pytest.approx(0.56)
    assert row["robust_low"] == pytest.approx(0.56 - half)
    assert row["robust_high"] == pytest.approx(0.56 + half)
    assert (row["clean"], row["clean_low"], row["clean_high"]) == pytest.approx((0.9, 0.9, 0.9))
    assert (row["interval"], row["seeds"], row["examples"]) == ("t95", 3, 200)
    assert row["passes_per_example"] == 30
    assert row["parameters"] == 12_345
    assert row["leap_rate"] == pytest.approx(0.21)
    assert (row["ball"], row["norm"], row["eps"]) == ("Linf 0.15", "Linf", 0.15)
    assert (row["backbone"], row["head"], row["objective"]) == ("small_cnn", "etf", "pgd")
    cut = leaderboard([stored(seed=seed, correct=c) for seed, c in enumerate((200, 200, 150))])
    assert cut["robust_high"].item() == 1, "intervals are cut to shares"


def test_a_measure_that_one_seed_lacks_is_missing_and_warnings_are_named() -> None:
    warning = Caution(name="gradient masking", message="...")
    (row,) = leaderboard([stored(warnings=(warning,)), stored(seed=1)]).to_dict("records")
    assert math.isnan(row["landed"])
    assert math.isnan(row["robust_last"])
    assert row["nc1_clean"] == pytest.approx(0.105)
    assert row["warnings"] == "gradient masking"


def test_one_and_two_seeds_say_so() -> None:
    (one,) = leaderboard([stored(correct=100)]).to_dict("records")
    assert (one["interval"], one["seeds"]) == ("wilson", 1)
    assert (one["robust_low"], one["robust_high"]) == wilson(100, 200)[1:3]
    both = [stored(seed=0, correct=100), stored(seed=1, correct=120)]
    (two,) = leaderboard(both).to_dict("records")
    assert two["interval"] == "range"
    assert (two["robust_low"], two["robust"], two["robust_high"]) == (0.5, 0.55, 0.6)


def test_rows_are_sorted_within_their_board() -> None:
    records = [
        stored(objective="pgd", correct=90),
        stored(objective="trades", correct=110),
        stored(objective="standard", correct=90),
        stored(dataset="cifar10", correct=50),
    ]
    frame = leaderboard(records)
    assert frame["dataset"].tolist() == ["cifar10", "digits", "digits", "digits"]
    assert frame["objective"].tolist() == ["pgd", "trades", "pgd", "standard"]
    assert frame["rank"].isna().all(), "200 examples are too few to rank"
    other = [stored(correct=90), stored(correct=90, fingerprint="a" * 64)]
    assert leaderboard(other)["images"].tolist() == ["a" * 64, "f" * 64], "other examples"


def test_two_recipes_under_one_name_stay_apart() -> None:
    longer = helpers.config(seed=1)
    longer = dataclasses.replace(longer, train=dataclasses.replace(longer.train, epochs=99))
    records = [stored(), Stored(helpers.record_of(longer), Path("longer.json"))]
    frame = leaderboard(records)
    assert frame["seeds"].tolist() == [1, 1]
    assert frame["recipe"].nunique() == 2


def test_a_record_of_another_kind_of_model_has_its_row() -> None:
    record = stored(config={"threat": "L2"}, scores={}, summary={})
    (row,) = leaderboard([record]).to_dict("records")
    assert (row["backbone"], row["ball"], row["unranked"]) == ("", "", "no verdict")
    assert math.isnan(row["rank"])
    assert math.isnan(row["robust"])


def test_nothing_and_a_seed_that_counts_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="run a suite first"):
        leaderboard(tmp_path)
    with pytest.raises(InputError, match="results must be"):
        leaderboard([1])  # type: ignore[list-item]
    with pytest.raises(RecordError, match="a seed counts once"):
        leaderboard([stored(), stored()])
    short = helpers.record(helpers.flags(500, 1200)).verdict
    for damaged in (short, Verdict(clean_correct="x", robust="y", broken_by=())):
        with pytest.raises(RecordError, match=r"\.json has"):
            leaderboard([stored(verdict=damaged)])


def test_heads_are_compared_seed_by_seed() -> None:
    counts = {("linear", 0): 90, ("linear", 1): 100, ("linear", 2): 80}
    counts |= {("etf", 0): 100, ("etf", 1): 100, ("etf", 2): 96, ("etf", 3): 0}
    records = [stored(head=head, seed=seed, correct=c) for (head, seed), c in counts.items()]
    frame = paired(records, against="linear", measures=["robust"])
    (row,) = frame.to_dict("records")
    # Differences 0.05, 0, 0.08; seed 3 has no partner.
    mean = 0.13 / 3
    spread = math.sqrt(sum((d - mean) ** 2 for d in (0.05, 0, 0.08)) / 2)
    assert row["difference"] == pytest.approx(mean)
    assert row["high"] - mean == pytest.approx(T_975_2 * spread / math.sqrt(3))
    assert (row["seeds"], row["interval"]) == (3, "t95")
    assert (row["model"], row["against"]) == ("small_cnn-etf-pgd", "small_cnn-linear-pgd")


def test_only_models_that_differ_in_the_head_are_paired() -> None:
    records = [stored(head="etf"), stored(head="linear", objective="trades")]
    assert paired(records, against="linear").empty
    with pytest.raises(UnknownNameError, match="linear"):
        paired(records, against="linaer")
    with pytest.raises(UnknownNameError, match="robust"):
        paired(records, against="linear", measures=["robustness"])


# As text.


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
    assert "200 examples, 3 seeds" in " ".join(text.split())
    assert "Student t" in text
    first = next(line for line in text.splitlines() if "small_cnn-etf-pgd" in line)
    assert "63.0 [60.5, 65.5]" in first
    assert text.index("small_cnn-etf-pgd") < text.index("small_cnn-linear-pgd")


@pytest.mark.parametrize("style", ["table", "latex", "markdown"])
def test_columns_that_only_some_boards_have_are_shown_or_named(style: str) -> None:
    frame = frame_of()
    assert "gap" not in format_table(frame, style)
    wide = frame.assign(beside=["ce", "cw"], gap=[0.0812, math.nan], nc1_leap_null=3820.0)
    wide = wide.assign(collapse_radius=0.123, leap_layer=2.5, state="checked")
    text = format_table(wide, style)
    told = " ".join(text.split())
    assert "gap: points by which ce, cw flatter;" in told
    lines = text.replace(r"\textbf{63.0}", "63.0").splitlines()
    rows = [line for line in lines if "63.0 [" in line or "61.0 [" in line]
    assert ["+8.1" in row for row in rows] == [True, False]
    if style == "table":
        assert max(map(len, text.splitlines())) <= WIDTH
        assert "no room for collapse radius, leap layer: see the other formats" in told
    else:
        assert "collapse radius" in text.replace(r"\\", " ")
        assert "checked" in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_is_told_what_it_has_no_room_for(width: int) -> None:
    frame = frame_of().assign(beside=["ce", "cw"], gap=0.08, state="checked", leap_layer=2.5)
    whole = {*format_table(frame, "markdown").splitlines()[2].strip("| ").split(" | ")} - {r"\#"}
    for table in (frame, frame.assign(model=["m" * 90, "short"])):
        text = format_table(table, width=width)
        assert max(map(len, text.splitlines())) <= width
        heads, _, rest = text.partition("\n---")
        told = " ".join(rest.split()).partition("no room for ")[2]
        for name in whole:
            shown = all(word in heads for word in name.split())
            assert (name in told) != shown, name
    records = [stored(head=head, seed=seed) for head in ("etf", "linear") for seed in (0, 1)]
    text = format_table(paired(records, against="linear"), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_differences_are_in_points_as_the_board_is() -> None:
    records = [stored(head=head, seed=seed) for head in ("etf", "linear") for seed in range(3)]
    frame = paired(records, against="linear", measures=["robust", "nc1_clean"])
    robust, nc1 = format_table(frame, "markdown").splitlines()[4:6]
    assert robust.endswith("| 3 | +2.0 [+2.0, +2.0] |")
    assert nc1.endswith("| 3 | +0 [+0, +0] |")
    board = leaderboard(records).set_index("head")["robust"]
    assert percent(board["etf"]) == "63.0"
    assert percent(board["linear"]) == "61.0"


@pytest.mark.parametrize("style", ["table", "markdown", "latex", "csv"])
def test_columns_are_shown_by_name(style: Any) -> None:
    frame = frame_of()
    names = ["model", "head", "robust_last", "robust"]
    text = format_table(frame, style, columns=names)
    for word in ("etf", "63.0" if style != "csv" else "0.63"):
        assert word in text
    assert "NC1" not in text
    assert "null" not in text
    if style == "csv":
        assert text.startswith("model,head,robust_last,robust\n")
    if style == "markdown":
        assert "| model | head | robust last % | robust % |" in text
    with pytest.raises(UnknownNameError, match="unknown column 'robst'; did you mean 'robust'"):
        format_table(frame, style, columns=["robst"])


def test_csv_holds_all_columns_as_numbers() -> None:
    frame = frame_of()
    found = pd.read_csv(io.StringIO(format_table(frame, "csv")))
    assert tuple(found.columns) == COLUMNS
    assert found["robust"].tolist() == frame["robust"].tolist()
    assert math.isnan(found["landed"][0])
    both = pd.concat([frame, frame.assign(dataset="cifar10")], ignore_index=True)
    assert format_table(both, "latex").count(r"\begin{tabular}") == 2, "boards are tables apart"


def test_latex_is_escaped_and_whole() -> None:
    text = format_table(frame_of().assign(model=[NASTY, "b"]), "latex")
    assert r"a\_b\&c\%d\$e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k" in text
    assert r"\textbar{}l\textless{}m\textgreater{}?[31mn o" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}", r"clean \%"):
        assert rule in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert {row.replace(r"\&", "").count("&") for row in rows} == {9}


def test_a_table_in_latex_has_its_label_and_its_first_tier_is_bold() -> None:
    frame = frame_of()
    text = format_table(frame, "latex", columns=["model", "clean", "robust"])
    assert r"\label{tab:digits-linf-0-15-protocol-pgd}" in text
    assert text.count(r"\textbf{") == 1, "the first by value"
    assert r"\textbf{63.0} [60.5, 65.5]" in text
    assert "bold: the first by value, which is not tested" in text
    assert r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" in text
    assert text.startswith(r"% needs \usepackage{booktabs,graphicx}")
    assert text.count("{") == text.count("}")
    ranked = frame.assign(rank=1.0, order=math.nan)
    text = format_table(ranked, "latex")
    assert text.count(r"\textbf{") == 2, "all of the first tier"
    assert "bold: the first tier" in text
    doubted = format_table(frame.assign(order=math.nan), "latex")
    assert r"\textbf" not in doubted
    two = pd.concat([frame, frame.assign(images="others")], ignore_index=True)
    assert r"\label{tab:digits-linf-0-15-protocol-pgd-2}" in format_table(two, "latex")


def test_markdown_is_rectangular_and_a_terminal_is_sent_no_commands() -> None:
    text = format_table(frame_of().assign(model=[NASTY, "b"]), "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.replace(r"\|", "").count("|") for row in rows} == {11}
    text = format_table(frame_of().assign(model=[NASTY, "[bold]b[/bold]"]), "table")
    assert "\x1b" not in text
    assert "?[31mn o" in text  # on its row
    assert "[bold]b[/bold]" in text


def test_a_name_that_stands_twice_is_told_apart() -> None:
    frame = frame_of().assign(model="same", recipe=["abcdef123", "fedcba321"])
    text = format_table(frame, "markdown")
    assert "same (synthetic, abcdef)" in text
    assert "same (synthetic, fedcba)" in text


def test_nothing_and_unknown_formats_are_refused() -> None:
    frame = frame_of()
    with pytest.raises(RecordError, match="no rows"):
        format_table(frame[:0])
    with pytest.raises(UnknownNameError, match="did you mean 'latex'"):
        format_table(frame, "latx")  # type: ignore[arg-type]
