"""Tiers: what they do not depend on, how often they are wrong, and on a board of records."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers_report import challenged, flags, resealed, signed, stored, written
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust_nc.exceptions import RecordError
from robust_nc.record import AttackUse, Caution, Stored
from robust_nc.record.standing import receipt_path
from robust_nc.report.board.formats import format_table
from robust_nc.report.board.ranking import compare_with, tiers
from robust_nc.report.board.table import leaderboard
from robust_nc.statistics.intervals import wilson
from robust_nc.types import DOUBTS

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
    for first in rows:
        found = compare_with(first, rows)
        for i, other in enumerate(rows):
            p, side = slowly(first, other)
            if not np.isnan(p):
                assert found.p[i] == pytest.approx(p, rel=1e-6, abs=1e-12)
            assert found.side[i] == side


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=1, max_size=9))
def test_tiers_go_down_with_the_share_and_each_begins_with_who_was_beaten(
    seed: int, kinds: list[int]
) -> None:
    rows = table(np.random.default_rng(seed), kinds)
    found = tiers(rows, clean=rows)
    share = [np.mean([flags.mean() for flags in row.values()]) for row in rows]
    order = np.argsort(-np.array(share), kind="stable").tolist()
    assert np.diff(found[order], prepend=1.0).min() >= 0
    assert sorted(set(found)) == list(range(1, int(found.max()) + 1))
    for i, tier in enumerate(found[order]):
        best = rows[order[found[order].tolist().index(tier)]]
        beaten = compare_with(best, [rows[order[i]]])
        pairs = len(rows) * (len(rows) - 1) / 2
        assert i == 0 or beaten.p[0] * pairs >= 0.05 or beaten.side[0] < 1
    shuffled = [rows[i] for i in order]
    assert tiers(shuffled, clean=shuffled).tolist() == found[order].tolist()


def test_near_copies_change_nobodys_tier() -> None:
    """Forty copies of the worst row, nudged, would make every comparison forty times as hard."""
    draw = np.random.default_rng(0)
    clean = [{0: flags(990)} for _ in range(3)]
    rows = [{0: flags(count, start=start)} for count, start in ((640, 0), (600, 10), (560, 30))]
    alone = tiers(rows, clean=clean).tolist()
    assert alone == [1, 2, 3]
    nudged = []
    for _ in range(40):
        at = draw.integers(0, 1000, 5)
        copy = rows[2][0].copy()
        copy[at] ^= True
        nudged.append({0: copy})
    found = tiers(rows + nudged, clean=clean + clean[:1] * 40).tolist()
    assert found[:3] == alone
    assert set(found[3:]) == {3}
    apart = [{0: np.roll(flags(990), 20 * i)} for i in range(40)]  # other models, as bad
    assert tiers(rows + nudged, clean=clean + apart).tolist()[:3] == alone


def test_a_row_of_several_models_must_win_with_each() -> None:
    one, better = {0: flags(500)}, {seed: flags(600 + seed) for seed in (7, 8)}
    assert tiers([one, better], clean=[one, better]).tolist() == [2, 1]
    mixed = [one, {7: flags(600), 8: flags(505)}]
    assert tiers(mixed, clean=mixed).tolist() == [1, 1]


@pytest.mark.parametrize("kinds", [[1] * 6, [1, 1, 5, 2, 2]])
def test_equal_models_are_rarely_told_apart(kinds: list[int]) -> None:
    """The chance of a second tier among equals is at most 5 %, though the best was chosen."""
    draw = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        hard = draw.random(200)
        rows = [
            {seed: hard < 0.5 + draw.normal(0, 0.2, 200) for seed in range(kind)} for kind in kinds
        ]
        wrong += bool(tiers(rows, clean=rows).max() > 1)
    assert wrong / 400 <= 0.05


def doubted(stored: Stored, name: str, broke: int = 11) -> Stored:
    """A record with a warning, of whose examples Square broke some after the other attacks."""
    square = AttackUse(name="square", parameters={"attack": "Square"}, broke=broke)
    return stored._replace(
        record=dataclasses.replace(
            stored.record,
            warnings=(Caution(name=name, message="..."),),
            attacks=(*stored.record.attacks, square),
        )
    )


class TestBoard:
    @pytest.fixture
    def made(self, tmp_path: Path, signing_key: Path):
        """Write records that a trusted party reproduced."""

        def make(count: int, n: int = 1000, **options: object) -> Stored:
            return signed(written(tmp_path, flags(count, n), **options), signing_key)

        return make

    def test_the_first_tier_is_what_the_best_does_not_beat(self, made) -> None:
        counts = {"pgd": 600, "trades": 595, "standard": 100}
        frame = leaderboard([made(count, objective=name) for name, count in counts.items()])
        # 5 examples apart, all on one side: p = 0.0625, and no better after Holm.
        assert frame["objective"].tolist() == ["pgd", "trades", "standard"]
        assert frame["rank"].tolist() == [1, 1, 2]
        assert frame["unranked"].tolist() == ["", "", ""]
        assert frame["state"].tolist() == ["reproduced"] * 3
        assert frame["bound"].tolist() == [0.004] * 3
        text = " ".join(format_table(frame).split())
        assert "#: the tier; the best row of one is significantly better" in text
        assert "small_cnn-etf-pgd leads with 60.0 % robust, 0.5 points above" in text
        assert "(p = 0.062, paired over 1,000 examples), which may be chance" in text
        assert "not ranked" not in text

    def test_what_is_claimed_has_an_order_by_value_and_no_rank(self, made, signing_key) -> None:
        records = [
            made(900, objective="standard"),
            signed(made(400, objective="trades"), signing_key, state="checked"),
            made(600, objective="pgd"),
        ]
        receipt_path(records[0].path).unlink()
        frame = leaderboard(records)
        assert frame["robust"].tolist() == [0.6, 0.9, 0.4]
        reasons = ["", "claimed, not reproduced", "checked, not reproduced"]
        assert frame["unranked"].tolist() == reasons
        assert frame["rank"].fillna(0).tolist() == [1, 0, 0]
        assert frame["order"].fillna(0).tolist() == [0, 1, 2]
        told = format_table(frame)
        assert re.search(r"^\(1\)  small_cnn-etf-standard", told, re.MULTILINE)
        assert "(n), by value and not tested: checked, not" in " ".join(told.split())

    def test_too_few_examples_have_no_rank(self, made) -> None:
        frame = leaderboard([made(k, 999, objective=o) for k, o in ((300, "pgd"), (900, "trades"))])
        assert frame["rank"].isna().all()
        assert set(frame["unranked"]) == {"fewer than 1,000 examples"}
        told = " ".join(format_table(frame).split())
        assert "(n), by value and not tested: fewer than 1,000 examples" in told

    @pytest.mark.parametrize("doubt", sorted(DOUBTS))
    def test_a_doubt_stands_below_the_ranked_rows_with_its_reason(self, made, doubt) -> None:
        records = [
            doubted(made(900, objective="standard"), doubt),
            made(500, objective="pgd"),
            made(600, objective="trades"),
        ]
        frame = leaderboard(records)
        assert frame["robust"].tolist() == [0.6, 0.5, 0.9]
        assert frame["unranked"].tolist() == ["", "", f"in doubt: {doubt}"]
        assert frame["rank"].tolist()[:2] == [1, 2]
        assert f"-, not ranked: in doubt: {doubt}" in " ".join(format_table(frame).split())

    def test_a_few_examples_that_fall_without_gradients_are_no_doubt(self, made) -> None:
        frame = leaderboard([doubted(made(900), "black-box-stronger", broke=10)])
        assert (frame["rank"].tolist(), frame["unranked"].tolist()) == ([1], [""])
        assert frame["warnings"].tolist() == ["black-box-stronger"]

    def test_random_protocols_have_no_rank(self, made) -> None:
        frame = leaderboard([made(800, protocol="rand")])
        assert frame["unranked"].tolist() == ["in doubt: random-output"]

    def test_attacks_that_are_not_the_protocols_make_a_table_of_their_own(self, made) -> None:
        honest, short = made(500, objective="pgd"), made(900, objective="trades")
        weaker = dataclasses.replace(
            short.record.attacks[0], parameters={**short.record.attacks[0].parameters, "steps": 1}
        )
        more = dataclasses.replace(honest.record.attacks[0], name="own", broke=0)
        honest = resealed(honest, attacks=(*honest.record.attacks, more))
        for attacks in ((weaker, short.record.attacks[1]), short.record.attacks[:1]):
            frame = leaderboard([honest, resealed(short, attacks=attacks)])
            assert frame["protocol"].tolist() == ["custom", "pgd"]
            assert frame["rank"].isna().all()
            assert "attacks that are not those" in frame["unranked"].iloc[0]

    def test_a_record_that_was_changed_after_it_was_sealed_is_refused(self, made) -> None:
        stored = resealed(made(500))
        values = json.loads(stored.path.read_text()) | {"objective": "trades"}
        stored.path.write_text(json.dumps(values))
        with pytest.raises(RecordError, match="changed after it was sealed, in objective"):
            leaderboard(stored.path)

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

    def test_weights_that_came_finished_under_one_name_are_the_seeds_of_one_row(self) -> None:
        def judged(state: str, count: int, seed: int = 0, **config: object) -> Stored:
            made = stored(flags(count), seed=seed, state=state)
            model = {"reference": f"{state}.py:net", "state": state}
            config = {**made.record.config, "model": model, "seed": seed, **config}
            return made._replace(record=dataclasses.replace(made.record, config=config))

        records = [judged(state, count) for state, count in (("a", 500), ("b", 520), ("c", 510))]
        (row,) = leaderboard(records).to_dict("records")
        assert (row["seeds"], row["robust"], row["interval"]) == (3, pytest.approx(0.51), "t95")
        again = judged("a", 490, seed=1)  # the same weights, attacked with another seed
        (row,) = leaderboard([*records, again]).to_dict("records")
        assert (row["seeds"], row["robust"]) == (3, pytest.approx((490 + 520 + 510) / 3000))
        other = judged("d", 500, evaluation={"protocol": "pgd", "examples": 7})
        assert len(leaderboard([*records, other])) == 2
        with pytest.raises(RecordError, match="the same model"):
            leaderboard([*records, records[0]])


class TestStanding:
    def test_challenges_that_hold_lower_accuracy_interval_and_rank(
        self, tmp_path: Path, signing_key: Path
    ) -> None:
        first = signed(written(tmp_path, flags(600)), signing_key)
        second = signed(written(tmp_path, flags(560), objective="trades"), signing_key)
        before = leaderboard(tmp_path)
        assert before["objective"].tolist() == ["pgd", "trades"]
        assert before["rank"].tolist() == [1, 2]
        challenged(first.path, rows=range(100))
        pending = leaderboard([first, second])
        assert pending["robust"].tolist() == before["robust"].tolist()
        assert "1 challenge that nobody judged yet" in " ".join(format_table(pending).split())
        after = leaderboard([signed(first, signing_key), second])
        assert after["objective"].tolist() == ["trades", "pgd"]
        assert after["rank"].tolist() == [1, 2]
        row = after.to_dict("records")[1]
        assert (row["robust"], row["challenged"], row["pending"]) == (0.5, 100, 0)
        assert (row["robust_low"], row["robust_high"]) == wilson(500, 1000)[1:3]
        assert "after challenges, which took 100 examples" in " ".join(format_table(after).split())

    def test_the_weakest_state_of_the_seeds_is_shown(
        self, tmp_path: Path, signing_key: Path
    ) -> None:
        seeds = [written(tmp_path, flags(600), seed=seed) for seed in range(3)]
        signed(seeds[0], signing_key)
        signed(seeds[1], signing_key, bound=0.009)
        assert leaderboard(tmp_path)["state"].tolist() == ["claimed"]
        assert "claimed |" not in format_table(leaderboard(tmp_path), "markdown")
        signed(seeds[2], signing_key, state="checked", bound=None)
        frame = leaderboard(tmp_path)
        assert frame["state"].tolist() == ["checked"]
        assert frame["bound"].isna().all()
        assert "| checked |" in format_table(frame, "markdown")
        signed(seeds[2], signing_key)
        assert leaderboard(tmp_path)["bound"].tolist() == [0.009]
