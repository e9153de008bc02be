"""RobustBench's files: read, written, and published as rows that nobody takes for checked."""

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers_exchange import HOSTILE, card_of, filed
from helpers_report import challenged, signed, write_grid

from robust_nc.exchange.robustbench_json import (
    ModelInfo,
    export_tree,
    from_fields,
    info_of,
    to_fields,
)
from robust_nc.exchange.robustbench_published import (
    published_cards,
    published_models,
    published_rows,
)
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.table import COLUMNS, leaderboard

ROWS = published_rows()
LINES = files("robust_nc.exchange").joinpath("robustbench_model_info.jsonl").read_bytes()
FIELDS = {
    "link": "https://arxiv.org/abs/2001.00001",
    "name": "A paper",
    "authors": "Ada Lovelace, Alan Turing",
    "additional_data": True,
    "number_forward_passes": 2,
    "dataset": "cifar10",
    "venue": "GitHub,<br>Sep 2019",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "88.5",
    "reported": "",
    "autoattack_acc": "57.20",
    "external": "57.14",
    "footnote": None,
    "unreliable": False,
}


def imported(fields: Any, threat: str = "Linf") -> ModelInfo:
    return from_fields(fields, dataset="cifar10", threat=threat, key="Ours2026")


def read(path: Path) -> ModelInfo:
    """Read `<dataset>/<threat>/<Name>.json`."""
    dataset, threat = path.parts[-3:-1]
    return from_fields(json.loads(path.read_text()), dataset=dataset, threat=threat, key=path.stem)


def test_a_file_becomes_typed_values() -> None:
    info = imported(FIELDS)
    assert (info.dataset, info.threat, info.key) == ("cifar10", "Linf", "Ours2026")
    assert (info.eps, info.clean, info.autoattack, info.external) == (8 / 255, 0.885, 0.572, 0.5714)
    assert info.robust == 0.5714
    assert info.reported is None
    assert info.footnote == ""
    assert info.venue == "GitHub, Sep 2019"
    assert info.additional_data is True
    assert info.passes == 2


def test_every_published_file_reads_the_same_after_it_is_written() -> None:
    for info in published_models():
        fields = json.loads(json.dumps(to_fields(info)))
        place = {"dataset": info.dataset, "threat": info.threat, "key": info.key}
        assert from_fields(fields, **place) == info


def test_records_read_the_same_after_they_are_exported(tmp_path: Path) -> None:
    stored = [filed(tmp_path, seed=0), filed(tmp_path, seed=1), filed(tmp_path, head="linear")]
    paths = export_tree(stored, tmp_path / "info")
    assert len({path.stem for path in paths}) == 3, "seeds of one name have files of their own"
    found = {path.stem: read(path) for path in paths}
    for one in stored:
        info = info_of(one)
        key = f"{info.key}_{one.record.cell}"
        key = key if key in found else info.key
        assert found[key] == dataclasses.replace(info, key=key)
    fields = json.loads(paths[0].read_text())
    assert fields["eps"] == "0.15"
    assert fields["clean_acc"] == "90.00"


def test_only_the_verdict_of_autoattack_is_called_so_and_challenges_count(
    tmp_path: Path, signing_key: Path
) -> None:
    weak = info_of(filed(tmp_path, protocol="pgd"))
    assert (weak.autoattack, weak.reported) == (None, 0.62)
    stored = filed(tmp_path, protocol="standard")
    challenged(stored.path, rows=(0, 1, 2, 3))
    assert info_of(stored).robust == 0.62, "nobody judged it yet"
    signed(stored, signing_key)
    strong = info_of(stored)
    assert (strong.autoattack, strong.external, strong.robust) == (0.62, 0.6, 0.6)
    assert "broke 4 more" in strong.footnote


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_card_stays_text_of_bounded_length(tmp_path: Path, text: str) -> None:
    stored = filed(tmp_path, card=card_of(text))
    (path,) = export_tree([stored], tmp_path / "info")
    assert path.parent == tmp_path / "info" / "digits" / "Linf"
    assert path.stat().st_size < 5_000
    written = json.loads(path.read_text())
    assert all(one.isprintable() for one in written.values() if isinstance(one, str))
    assert not written["link"] or written["link"].startswith("http")
    assert read(path) == info_of(stored)


# The published models.


def test_numbers_are_those_of_the_files() -> None:
    """An oracle that reads the lines in its own way."""
    told = [json.loads(line) for line in LINES.decode().splitlines()]
    assert len(told) == len(published_models()) == len(ROWS) + 48 == 236
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
    assert set(ROWS["state"]) == {"unverified"}
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
