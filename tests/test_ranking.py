"""Ranks: what they do not depend on, how often they are wrong, and on a board of records."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers_report import challenged, flags, stored, written
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust_nc.io.files import sha256_of
from robust_nc.record import Caution, Stored
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.ranking import beats, compare_all, ranks
from robust_nc.report.board.table import leaderboard
from robust_nc.statistics.intervals import wilson

Row = dict[int, np.ndarray]


def table(draw: np.random.Generator, kinds: list[int], n: int = 300) -> list[Row]:
    """Rows of 1 to 5 seeds, models of many strengths on examples of many difficulties."""
    hard = draw.random(n)
    return [
        {seed: hard < draw.uniform(0.2, 0.8) + draw.normal(0, 0.1, n) for seed in range(kind)}
        for kind in kinds
    ]


def slowly(first: Row, second: Row) -> tuple[float, int]:
    """Compare two rows in the words of the module, with SciPy."""
    common = sorted(first.keys() & second.keys())
    if len(common) >= 3:
        apart = [int(first[seed].sum()) - int(second[seed].sum()) for seed in common]
        if np.std(apart, ddof=1) < 1:  # as in test_statistics
            return float("nan"), int(np.sign(sum(apart)))
        return float(stats.ttest_1samp(apart, 0).pvalue), int(np.sign(sum(apart)))
    ps, sides = [], set()
    for one, other in itertools.product(first.values(), second.values()):
        alone = [int((one & ~other).sum()), int((other & ~one).sum())]
        ps.append(stats.binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0)
        sides.add(int(np.sign(alone[0] - alone[1])))
    if len(sides) > 1 or 0 in sides:
        return 1.0, 0
    return max(ps), sides.pop()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=2, max_size=7))
def test_every_pair_is_compared_as_documented(seed: int, kinds: list[int]) -> None:
    rows = table(np.random.default_rng(seed), kinds)
    found = compare_all(rows)
    for i, j in itertools.permutations(range(len(rows)), 2):
        p, side = slowly(rows[i], rows[j])
        if not np.isnan(p):
            assert found.p[i, j] == pytest.approx(p, rel=1e-6, abs=1e-12)
        assert found.side[i, j] == side


def test_blocks_give_what_one_block_gives() -> None:
    rows = table(np.random.default_rng(0), [1, 2, 1, 5, 3, 1, 1, 2, 4])
    whole = compare_all(rows)
    for size in (1, 25, 60):
        cut = compare_all(rows, block=size)
        off = ~np.eye(len(rows), dtype=bool)
        assert np.array_equal(cut.p[off], whole.p[off])
        assert np.array_equal(cut.side[off], whole.side[off])


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_permuting_rows_permutes_ranks(seed: int, shuffler) -> None:
    rows = table(np.random.default_rng(seed), [1, 1, 5, 3, 1, 2])
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    assert ranks([rows[i] for i in order]).tolist() == [ranks(rows).tolist()[i] for i in order]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_wins_go_one_way_and_duplicates_and_more_rows_make_none(seed: int, more: list[int]) -> None:
    rows = table(np.random.default_rng(seed), [1, 1, 5, 3, 1, *more])
    found, few = beats(rows), beats(rows[:5])
    assert not (found & found.T).any()
    assert not found.diagonal().any()
    assert not (found[:5, :5] & ~few).any()
    twice = ranks(rows[:5] + rows[:5]).tolist()
    assert twice[:5] == twice[5:]
    last = ranks([{0: np.zeros(300, dtype=bool)}, *rows]).tolist()
    assert last[0] == len(last) > max(last[1:])


def test_a_row_of_several_models_must_win_with_each() -> None:
    one, better = {0: flags(500)}, {seed: flags(600 + seed) for seed in (7, 8)}
    assert ranks([one, better]).tolist() == [2, 1]
    assert ranks([one, {7: flags(600), 8: flags(505)}]).tolist() == [1, 1]


@pytest.mark.parametrize("kinds", [[1] * 6, [1, 1, 5, 2, 2]])
def test_equal_models_are_rarely_told_apart(kinds: list[int]) -> None:
    """Holm holds the chance of any false win in a whole table at 5 %."""
    draw = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        hard = draw.random(200)
        rows = [
            {seed: hard < 0.5 + draw.normal(0, 0.2, 200) for seed in range(kind)} for kind in kinds
        ]
        wrong += bool(beats(rows).any())
    assert wrong / 400 <= 0.05


class TestBoard:
    def test_ranks_count_who_is_significantly_better(self) -> None:
        counts = {"pgd": 600, "trades": 595, "standard": 100}
        records = [stored(flags(k), objective=name) for name, k in counts.items()]
        frame = leaderboard(records)
        # 5 examples apart, all on one side: p = 0.0625, and no better after Holm.
        assert frame["objective"].tolist() == ["pgd", "trades", "standard"]
        assert frame["rank"].tolist() == [1, 1, 3]
        assert frame["unranked"].tolist() == ["", "", ""]
        text = " ".join(format_table(frame).split())
        assert "#: 1 + the number of rows that are significantly better" in text
        assert "not ranked" not in text

    def test_too_few_examples_have_no_rank(self) -> None:
        records = [stored(flags(k, 999), seed=k) for k in (300, 900)]
        frame = leaderboard(records)
        assert frame["rank"].isna().all()
        assert set(frame["unranked"]) == {"fewer than 1,000 examples"}
        told = " ".join(format_table(frame).split())
        assert "not ranked (-): fewer than 1,000 examples" in told

    def test_random_output_is_listed_after_the_ranked_rows(self) -> None:
        doubt = Caution(name="random-output", message="...")
        records = [
            stored(flags(900), objective="standard", warnings=(doubt,)),
            stored(flags(500), objective="pgd"),
            stored(flags(600), objective="trades"),
            stored(flags(800), objective="trades", protocol="rand"),
        ]
        frame = leaderboard(records)
        assert frame["robust"].tolist() == [0.6, 0.5, 0.9, 0.8]
        assert frame["unranked"].tolist() == ["", "", "random output", "random output"]
        assert frame["rank"].tolist()[:2] == [1, 2]

    def test_one_model_judged_twice_is_one_model(self) -> None:
        """Seeds of an attack on the same weights are no seeds of a method: the minimum counts."""
        records = [
            stored(flags(500), seed=0, state="ab"),
            stored(flags(500, start=10), seed=1, state="ab"),
            stored(flags(500), seed=2, state="cd"),
        ]
        (row,) = leaderboard(records[:2]).to_dict("records")
        assert (row["seeds"], row["robust"], row["interval"]) == (1, 0.49, "wilson")
        assert leaderboard(records)["seeds"].tolist() == [2]


class TestStanding:
    def receipt(self, stored: Stored, *badges: str) -> None:
        values = {"record": sha256_of(stored.path), "evidence": None, "badges": badges}
        path = stored.path.with_suffix(".receipt")
        path.write_text(json.dumps({**values, "created": "2026-01-01"}))

    def test_challenges_lower_accuracy_interval_and_rank(self, tmp_path: Path) -> None:
        first = written(tmp_path, flags(600))
        second = written(tmp_path, flags(560), objective="trades")
        before = leaderboard(tmp_path)
        assert before["objective"].tolist() == ["pgd", "trades"]
        assert before["rank"].tolist() == [1, 2]
        challenged(first.path, rows=range(100))
        after = leaderboard([first, second])
        assert after["objective"].tolist() == ["trades", "pgd"]
        assert after["rank"].tolist() == [1, 2]
        row = after.to_dict("records")[1]
        assert (row["robust"], row["challenged"]) == (0.5, 100)
        assert (row["robust_low"], row["robust_high"]) == wilson(500, 1000)[1:3]
        assert "after challenges, which took 100 examples" in " ".join(format_table(after).split())

    def test_the_weakest_badge_of_the_seeds_is_shown(self, tmp_path: Path) -> None:
        seeds = [written(tmp_path, flags(600), seed=seed) for seed in range(3)]
        self.receipt(seeds[0], "schema ok", "upper bound proven", "audited 300")
        self.receipt(seeds[1], "schema ok", "upper bound proven", "audited 50")
        assert leaderboard(tmp_path)["badge"].tolist() == [""]
        assert "badge" not in format_table(leaderboard(tmp_path))
        self.receipt(seeds[2], "schema ok", "audited 1000")
        frame = leaderboard(tmp_path)
        assert frame["badge"].tolist() == ["audited 50"]
        assert "| audited 50 |" in format_table(frame, "markdown")
