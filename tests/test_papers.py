"""Measures by a paper's names: whose rows they are, and times what."""

import math
from pathlib import Path

import helpers_report as helpers
import pytest
from helpers_runner import cli

from robust_nc.exceptions import RecordError, UnknownNameError
from robust_nc.geometry.measures import MEASURES
from robust_nc.record.folder import read_all
from robust_nc.report.board.gather import gather_rows
from robust_nc.report.board.papers import PAPERS, SOURCES, like_paper, papers_table

ROOT = Path(__file__).parent.parent


def test_every_measure_is_one_of_ours_and_stands_on_the_page() -> None:
    assert PAPERS.keys() == SOURCES.keys()
    ours = {one.ours for measures in PAPERS.values() for one in measures}
    assert ours - {"accuracy"} <= MEASURES.keys()
    page = (ROOT / "docs/measures.md").read_text()
    assert f"\n\n{papers_table()}\n\n" in page
    assert all(source in page for source in SOURCES.values())


def test_values_are_means_over_seeds_times_the_factor() -> None:
    made = read_all(ROOT / "results/deep-rfm")
    rows = gather_rows(made)
    found = like_paper(made, "beaglehole2024")
    assert set(found["seeds"]) == {5}
    one = found[found["measure"] == "NC1 of features"].iloc[0]
    wanted = rows[
        (rows["model"] == one["model"])
        & (rows["measure"] == "nc1_trace")
        & (rows["tap"] == "penultimate")
        & (rows["split"] == "train")
        & (rows["grouping"] == "true")
        & (rows["condition"] == "clean")
        & (rows["epoch"] < 0)
    ]
    assert len(wanted) == 5
    classes = made[0].record.data.num_classes
    assert one["clean"] == pytest.approx(wanted["value"].mean() / classes)
    angle = next(each for each in PAPERS["su2023"] if each.ours == "alignment_angle")
    assert angle.scale(10) == pytest.approx(math.pi / 180)


def test_what_is_unknown_or_not_there_is_said(tmp_path: Path) -> None:
    helpers.write_grid(tmp_path, objectives=("pgd",), seeds=1)
    with pytest.raises(UnknownNameError, match=r"unknown paper 'su2024'; did you mean 'su2023'"):
        like_paper(tmp_path, "su2024")
    with pytest.raises(RecordError, match="no record has rows that liang2023 measured"):
        like_paper(tmp_path, "liang2023")


def test_the_board_shows_them_and_refuses_what_does_not_go_with_it() -> None:
    ran = cli("board", ROOT / "results/deep-rfm", "--like", "beaglehole2024")
    assert ran.code == 0, ran.err
    assert "NC1 of features" in ran.out
    for more, told in (
        (("--like", "su2024"), "unknown paper 'su2024'; did you mean 'su2023'"),
        (("--like", "su2023", "--sql", "select 1"), "--like is shown as table, csv"),
    ):
        ran = cli("board", ROOT / "results/deep-rfm", *more)
        assert ran.code == 2
        assert told in ran.err
