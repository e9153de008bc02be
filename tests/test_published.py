"""RobustBench's published models are all there, as rows that nobody takes for checked."""

import hashlib
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
from helpers_report import write_grid

from robust_nc.exceptions import UnknownNameError
from robust_nc.exchange.robustbench_published import (
    left_out,
    published_cards,
    published_models,
    published_rows,
)
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.table import COLUMNS, leaderboard

ROWS = published_rows()
LINES = files("robust_nc.exchange").joinpath("robustbench_model_info.jsonl").read_bytes()


def test_all_236_are_read_and_those_of_corruptions_counted() -> None:
    assert len(published_models()) == 236
    counts = Counter((info.dataset, info.threat) for info in published_models())
    assert counts["cifar10", "Linf"] == 99
    assert counts["imagenet", "corruptions"] == 12
    assert left_out() == 48
    assert len(ROWS) == 236 - 48


def test_numbers_are_those_of_the_files() -> None:
    """An oracle that reads the lines in its own way."""
    told = [json.loads(line) for line in LINES.decode().splitlines()]
    rows = ROWS.set_index(["dataset", "norm", "model"])
    for one in told:
        place = (one["dataset_folder"], one["threat_folder"], one["key"])
        if "autoattack_acc" not in one:
            assert place not in rows.index
            continue
        row = rows.loc[place]
        known = [float(one[name]) for name in ("autoattack_acc", "external") if name in one]
        assert row["robust"] == pytest.approx(min(known) / 100, abs=1e-12)
        assert row["clean"] == pytest.approx(float(one["clean_acc"]) / 100, abs=1e-12)
    assert (ROWS["robust"] < ROWS["clean"]).all()


def test_rows_have_the_columns_of_the_board_and_claim_nothing() -> None:
    assert tuple(ROWS.columns) == COLUMNS
    assert set(ROWS["badge"]) == {"unverified"}
    assert ROWS["rank"].isna().all()
    assert set(ROWS["protocol"]) == {"AutoAttack"}
    assert set(zip(ROWS["dataset"], ROWS["examples"], strict=True)) == {
        ("cifar10", 10_000),
        ("cifar100", 10_000),
        ("imagenet", 5_000),
    }
    assert ROWS["recipe"].is_unique
    text = ROWS.select_dtypes(exclude="number").drop(columns="rank", errors="ignore")
    assert text.notna().all().all()
    assert set(ROWS.loc[ROWS["warnings"] != "", "model"]) == {"Kang2021Stable", "Xiao2020Enhancing"}


def test_rows_can_stand_below_measured_ones_in_every_format(tmp_path: Path) -> None:
    board = leaderboard(write_grid(tmp_path, seeds=1))
    both = pd.concat([board, ROWS], ignore_index=True)
    assert (both[: len(board)].dtypes["seeds"]) == board.dtypes["seeds"]
    assert both.dtypes["examples"] == "int64"
    for style in ("table", "csv", "latex", "markdown"):
        text = format_table(both, style)
        assert "nan" not in text.lower().replace("standard", "")
        assert "Wang2023Better" in text


def test_rows_are_chosen_by_data_set_and_norm() -> None:
    assert len(published_rows("cifar10", "L2")) == 21
    assert set(published_rows(norm="Linf")["dataset"]) == {"cifar10", "cifar100", "imagenet"}
    with pytest.raises(UnknownNameError, match="cifar100"):
        published_rows("cifar-10")
    with pytest.raises(UnknownNameError, match="Linf"):
        published_rows("cifar10", "corruptions")
    best = published_rows("imagenet", "Linf")
    assert best["robust"].is_monotonic_decreasing


def test_each_row_has_a_card_with_data_venue_and_link() -> None:
    cards = published_cards()
    assert set(cards) == set(ROWS["recipe"])
    for recipe, model in zip(ROWS["recipe"], ROWS["model"], strict=True):
        card = cards[recipe]
        assert card.name == model
        assert card.extra_data in {True, False}
        assert card.venue
        assert card.link == "" or card.link.startswith("http")
    kang = ROWS.loc[ROWS["model"] == "Kang2021Stable", "recipe"].iloc[0]
    assert "unreliable" in cards[kang].notes


def test_the_file_is_the_one_that_was_carried_over() -> None:
    assert len(LINES.splitlines()) == 236
    assert hashlib.sha256(LINES).hexdigest() == (
        "129952f104cb1d9954fad4fb36a1210ddc406683f1293d2b6d00c83d073a23c5"
    )
