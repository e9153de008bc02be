"""The leaderboard against computations by hand."""

import dataclasses
import math
from pathlib import Path

import helpers_report as helpers
import pytest
from helpers_report import stored

from robust_nc.exceptions import InputError, RecordError, UnknownNameError
from robust_nc.record import Caution, Stored
from robust_nc.report.board.table import COLUMNS, leaderboard, paired
from robust_nc.statistics.intervals import wilson

T_975_2 = 4.302652729911275  # Student t quantile, two degrees of freedom


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


def test_a_measure_that_one_seed_lacks_is_missing() -> None:
    (row,) = leaderboard([stored(seed=0), stored(seed=1)]).to_dict("records")
    assert math.isnan(row["landed"])
    assert math.isnan(row["robust_last"])
    assert row["nc1_clean"] == pytest.approx(0.105)


def test_intervals_are_cut_to_shares() -> None:
    frame = leaderboard([stored(seed=seed, correct=c) for seed, c in enumerate((200, 200, 150))])
    assert frame["robust_high"].item() == 1
    assert frame["robust_low"].item() > 0


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


def test_other_examples_are_another_board() -> None:
    first = stored(correct=90)
    data = dataclasses.replace(first.record.data, fingerprint="a" * 64)
    other = Stored(dataclasses.replace(first.record, data=data), Path("other.json"))
    assert leaderboard([first, other])["images"].tolist() == ["a" * 64, "f" * 64]


def test_two_recipes_under_one_name_stay_apart() -> None:
    longer = helpers.config(seed=1)
    longer = dataclasses.replace(longer, train=dataclasses.replace(longer.train, epochs=99))
    records = [stored(), Stored(helpers.record_of(longer), Path("longer.json"))]
    frame = leaderboard(records)
    assert frame["seeds"].tolist() == [1, 1]
    assert frame["recipe"].nunique() == 2


def test_a_seed_counts_once() -> None:
    with pytest.raises(RecordError, match="a seed counts once"):
        leaderboard([stored(), stored()])


def test_a_record_of_another_kind_of_model_has_its_row() -> None:
    record = dataclasses.replace(stored().record, config={"threat": "L2"}, scores={}, summary={})
    (row,) = leaderboard([Stored(record, Path("x.json"))]).to_dict("records")
    assert (row["backbone"], row["ball"], row["unranked"]) == ("", "", "no verdict")
    assert math.isnan(row["rank"])
    assert math.isnan(row["robust"])


def test_warnings_are_named() -> None:
    warning = Caution(name="gradient masking", message="...")
    frame = leaderboard([stored(warnings=(warning,)), stored(seed=1)])
    assert frame["warnings"].tolist() == ["gradient masking"]


def test_folders_and_lists_give_the_same(tmp_path: Path) -> None:
    records = helpers.write_grid(tmp_path, objectives=("pgd",), seeds=2)
    assert leaderboard(str(tmp_path)).equals(leaderboard(records))
    assert leaderboard(tmp_path)["seeds"].tolist() == [2, 2]


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="run a suite first"):
        leaderboard(tmp_path)
    with pytest.raises(InputError, match="results must be"):
        leaderboard([1])  # type: ignore[list-item]


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
