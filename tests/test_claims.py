"""Claims: reading, quantities, decisions against SciPy, answers, and the command end to end."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_report import quantity_rows, record_of
from helpers_runner import TINY, Ran, cli
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust_nc.claims.answers import (
    Answer,
    answer_claims,
    missing_cells,
    read_answers,
    write_answer,
)
from robust_nc.claims.deciding import Test as Trial
from robust_nc.claims.deciding import combine, decide, p_value
from robust_nc.claims.page import answers_page, answers_table
from robust_nc.claims.reading import Claims, holds_claims, read_claims
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import digest, sha256_of
from robust_nc.pipeline.suite import read_suite, suite_names
from robust_nc.record import tidy, write_record, write_rows
from robust_nc.record.folder import record_path, rows_path
from robust_nc.report.board.formats import number

VALUES = st.lists(st.floats(-5, 5), min_size=3, max_size=8).filter(lambda v: np.std(v) > 1e-3)


class TestDeciding:
    @settings(deadline=None, max_examples=60)
    @given(VALUES, st.floats(-1, 1), st.floats(0, 1))
    def test_p_equals_scipy_and_agrees_with_the_interval(self, values, reference, effect):
        trial = Trial("above", reference, effect, tuple(values))
        side = 1 if np.mean(values) >= reference else -1
        oracle = stats.ttest_1samp(
            values, reference + side * effect, alternative="greater" if side > 0 else "less"
        )
        p = p_value(trial)
        assert p == pytest.approx(min(1.0, 2 * oracle.pvalue), abs=1e-12)
        (decision,) = decide([trial])
        assert (decision.verdict != "undecided") == (p < 0.05)
        wanted = {True: "supported", False: "contradicted"}[side > 0]
        assert decision.verdict in {wanted, "undecided"}
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert decision.interval[1:3] == (pytest.approx(low), pytest.approx(high))

    @settings(deadline=None, max_examples=60)
    @given(VALUES, st.floats(0.1, 3))
    def test_equality_is_two_one_sided_tests(self, values, margin):
        trial = Trial("equal", 0.0, margin, tuple(values))
        (decision,) = decide([trial])
        tost = max(
            stats.ttest_1samp(values, -margin, alternative="greater").pvalue,
            stats.ttest_1samp(values, margin, alternative="less").pvalue,
        )
        assert (decision.verdict == "supported") == (tost < 0.05)
        if abs(np.mean(values)) < margin:
            assert p_value(trial) == pytest.approx(tost, abs=1e-12)

    def test_decisions_agree_with_adjusted_p_values(self):
        draw = np.random.default_rng(0)
        for _ in range(200):
            trials = [
                Trial("below", 0.0, 0.1, tuple(draw.normal(mean, 0.2, 5)))
                for mean in draw.uniform(-1, 1, 6)
            ]
            for decision in decide(trials):
                assert (decision.verdict != "undecided") == (decision.p_holm < 0.05)

    def test_equality_is_contradicted_only_after_the_adjustment(self):
        draw = np.random.default_rng(0)
        found: set[tuple[str, bool]] = set()
        for _ in range(200):
            trials = [
                Trial("equal", 0.0, 0.3, tuple(draw.normal(mean, 0.2, 5)))
                for mean in draw.uniform(-1, 1, 6)
            ]
            for trial, decision in zip(trials, decide(trials), strict=True):
                within = abs(np.mean(trial.values)) < 0.3
                assert (decision.verdict == "contradicted") == (
                    not within and decision.p_holm < 0.05
                )
                assert (decision.verdict == "supported") == (within and decision.p < 0.05)
                assert (decision.level == 0.9) == (decision.verdict == "supported")
                found.add((decision.verdict, decision.p < 0.05))
        assert found == {(word, True) for word in ("supported", "contradicted", "undecided")} | {
            ("undecided", False)
        }

    def test_more_tests_make_each_harder(self):
        trial = Trial("above", 0.0, 0.0, (0.1, 0.3, 0.2, 0.4, 0.1))
        alone, among = decide([trial])[0], decide([trial] * 20)[0]
        assert (alone.verdict, among.verdict) == ("supported", "undecided")
        assert alone.level == pytest.approx(0.95)
        assert among.level == pytest.approx(1 - 0.05 / 20)

    @pytest.mark.parametrize(
        ("expect", "mean", "verdict"),
        [
            ("above", 0.8, "supported"),
            ("above", 0.2, "contradicted"),
            ("above", 0.55, "undecided"),
            ("below", 0.8, "contradicted"),
            ("below", 0.2, "supported"),
            ("below", 0.45, "undecided"),
            ("equal", 0.51, "supported"),
            ("equal", 0.8, "contradicted"),
            ("equal", 0.2, "contradicted"),
        ],
    )
    @pytest.mark.parametrize("noise", [0.01, 0.0])
    def test_every_verdict_with_and_without_spread(self, expect, mean, verdict, noise):
        values = tuple(mean + noise * step for step in (-1, -0.5, 0, 0.5, 1))
        (decision,) = decide([Trial(expect, 0.5, 0.1, values)])
        assert decision.verdict == verdict
        assert all(math.isfinite(value) for value in (*decision.interval[:3], decision.p))

    def test_an_interval_over_the_end_of_the_margin_is_undecided(self):
        (decision,) = decide([Trial("equal", 0.5, 0.1, (0.59, 0.6, 0.61, 0.6, 0.6))])
        assert decision.verdict == "undecided"

    def test_a_barred_test_counts_and_is_not_decided(self):
        sure = Trial("above", 0.0, 0.1, (0.5, 0.51, 0.52, 0.53, 0.5))
        barred = sure._replace(bar="because")
        decision, other = decide([barred, sure])
        assert (decision.verdict, decision.reason, decision.p_holm) == ("undecided", "because", 1)
        assert other.level == pytest.approx(0.975)

    def test_few_values_have_a_range_and_no_interval(self):
        for values in ((0.9, 0.7), (0.7,)):
            (decision,) = decide([Trial("above", 0.0, 0.1, values)])
            assert decision.verdict == "undecided"
            assert decision.interval[1:3] == (min(values), max(values))
            assert (decision.level, decision.p, decision.p_holm) == (None, None, None)
        assert decide([Trial("above", 0.0, 0.1, ())])[0].interval is None

    def test_variants_must_agree(self):
        up, down, open_ = decide(
            [
                Trial("above", 0.0, 0.1, tuple(np.linspace(*ends, 5)))
                for ends in ((1, 1.1), (-1, -1.1), (-1, 1))
            ]
        )
        assert combine([up, up])[0] == "supported"
        assert combine([down, down])[0] == "contradicted"
        assert combine([up, down]) == combine([up, open_]) == ("undecided", "its variants differ")


SUITE = """
name = "planted"
[base.train]
epochs = 4
[grid]
"train.objective" = [
  "standard",
  { name = "trades", steps = 3 },
  { name = "trades", steps = 3, bn_mode = "frozen" },
]
seed = [0, 1, 2, 3, 4]
"""
ENTRY = {
    "id": "T1",
    "says": "It is *low*.",
    "source": "Somebody, 2020",
    "suite": "planted.toml",
    "quantity": "landed",
    "of": {"train.objective": "standard"},
    "expect": "below",
    "reference": 0.5,
    "effect": 0.1,
}


TRADES = {"train.objective": {"name": "trades", "bn_mode": "frozen"}}


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {toml(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write_claims(folder: Path, *entries: dict[str, Any], suite: str = SUITE) -> str:
    """Write a suite and claims about it: `ENTRY` with changes (None: the key is left out)."""
    (folder / "planted.toml").write_text(suite)
    text = ""
    for entry in entries or ({},):
        whole = {key: item for key, item in (ENTRY | entry).items() if item is not None}
        text += "[[claim]]\n" + "".join(f"{key} = {toml(item)}\n" for key, item in whole.items())
    (folder / "claims.toml").write_text(text)
    return str(folder / "claims.toml")


class TestReading:
    def test_a_claim_finds_its_cells(self, tmp_path):
        (plan,) = read_claims(write_claims(tmp_path)).plans
        assert list(plan.of) == [0, 1, 2, 3, 4]
        assert {cell.config.train.objective.name for cell in plan.of.values()} == {"standard"}
        assert plan.against is None
        (other,) = read_claims(write_claims(tmp_path, {"effect": 0.2})).plans
        assert plan.digest == digest(ENTRY) != other.digest

    def test_an_option_tells_parts_apart_and_a_default_counts(self, tmp_path):
        of = {"train.objective": {"name": "trades", "bn_mode": "eval"}}
        against = TRADES | {"train.epochs": 4}
        (plan,) = read_claims(write_claims(tmp_path, {"of": of, "against": against})).plans
        assert plan.against is not None
        modes = [
            {cell.config.train.objective.options.get("bn_mode") for cell in side.values()}
            for side in (plan.of, plan.against)
        ]
        assert modes == [{None}, {"frozen"}]

    @pytest.mark.parametrize(
        ("entry", "sentence"),
        [
            ({"expct": "above"}, "unknown key 'expct' (did you mean 'expect'?)"),
            ({"expect": "abov"}, "expect: input should be 'above', 'below' or 'equal'"),
            ({"quantity": "landd"}, "unknown quantity 'landd'; did you mean 'landed'"),
            ({"quantity": {"name": "landed", "tab": "x"}}, "no option 'tab' (did you mean 'tap'?)"),
            ({"quantity": {"name": "landed", "split": "all"}}, "should be 'train' or 'test'"),
            ({"variant": [{"featur": "gap"}]}, "did you mean 'feature'"),
            ({"beside": ["nc1clean"]}, "did you mean 'nc1_clean'"),
            ({"premise": {"train_acuracy": 0.9}}, "did you mean 'train_accuracy'"),
            ({"suite": "quikstart"}, "unknown suite 'quikstart'; did you mean 'quickstart'"),
            ({"suite": "gone.toml"}, "gone.toml cannot be read"),
            ({"suite": None}, "suite: field required"),
            ({"says": ""}, "says: string should have at least 1 character"),
            ({"id": "a/b"}, "id: string should match pattern"),
            ({"effect": -0.1}, "effect: input should be greater than or equal to 0"),
            ({"expect": "equal", "effect": 0.0}, "equal needs a margin"),
            ({"of": {"train.objectiv": "pgd"}}, "did you mean 'objective'"),
            ({"of": {"train": {"objective": "pgd"}}}, "'train' is a table"),
            ({"of": {"seed": 1}}, "seed is what a claim is averaged over"),
            ({"of": {"train.objective": "pgd"}}, "no cell of the suite planted has"),
            ({"of": {"train.objective": "trades"}}, "2 models of the suite planted have"),
            (
                {"of": {"train.objective": {"name": "trades", "bnmode": "eval"}}},
                "did you mean 'bn_mode'",
            ),
            ({"against": {"train.objective": "standard"}}, "are the same cells"),
            (
                {"variant": [{}, {"tap": "block1"}, {"tap": "block1"}]},
                "quantity landed(tap=block1)",
            ),
            ({"variant": [{}, {"feature": "gap"}]}, "two variants are the same quantity landed"),
            ({"quantity": {"name": "landed", "tap": "blok2"}}, "did you mean 'block2'"),
            ({"quantity": {"name": "early_over_late", "early": "blok1"}}, "did you mean 'block1'"),
            ({"variant": [{}, {"tap": "penultimat"}]}, "did you mean 'penultimate'"),
            ({"beside": [{"name": "ncc", "tap": "x9"}]}, "unknown tap for 'ncc' of 'small_cnn'"),
        ],
    )
    def test_a_bad_claim_gets_one_sentence(self, tmp_path, entry, sentence):
        path = write_claims(tmp_path, entry)
        with pytest.raises(ConfigError) as raised:
            read_claims(path)
        assert sentence in str(raised.value)
        assert "claims.toml" in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_tap_that_the_suite_leaves_out_is_refused_on_either_side(self, tmp_path):
        def read_with(tap: str, suite: str, **sides: Any) -> Claims:
            entry = {"quantity": {"name": "landed", "tap": tap}}
            return read_claims(write_claims(tmp_path, entry | sides, suite=suite))

        suite = SUITE.replace("[grid]", '[base.measure]\ntaps = ["block2"]\n[grid]')
        for tap in ("block1", "penultimate"):
            with pytest.raises(ConfigError, match=r"Valid: block2$"):
                read_with(tap, suite)
        both = SUITE + '"model.backbone" = ["small_cnn", "preact_resnet18"]\n'
        of, against = (
            {"train.objective": "standard", "model.backbone": name}
            for name in ("small_cnn", "preact_resnet18")
        )
        for tap, model in (("layer1", "small_cnn"), ("block3", "preact_resnet18")):
            with pytest.raises(ConfigError, match=f"unknown tap for 'landed' of '{model}'"):
                read_with(tap, both, of=of, against=against)

    def test_taps_are_known_whatever_the_sizes_of_the_data_are(self, tmp_path):
        suite = SUITE.replace("[grid]", "[base.model]\nmean = [0.5]\nstd = [0.5]\n[grid]")
        entry = {"quantity": {"name": "landed", "tap": "block1"}}
        (plan,) = read_claims(write_claims(tmp_path, entry, suite=suite)).plans
        assert plan.quantities[0].options == {"tap": "block1"}

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("claim = ", "is not TOML"),
            ("[[claims]]", "did you mean 'claim'"),
            ("claim = 3", "claims are tables [[claim]]"),
            ("claim = []", "at least one is needed"),
        ],
    )
    def test_a_bad_file_gets_one_sentence(self, tmp_path, text, sentence):
        (tmp_path / "claims.toml").write_text(text)
        with pytest.raises(ConfigError) as raised:
            read_claims(str(tmp_path / "claims.toml"))
        assert sentence in str(raised.value)

    def test_what_would_be_written_to_one_place_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="two claims have the id 'T1'"):
            read_claims(write_claims(tmp_path, {}, {}))
        path = write_claims(tmp_path, {}, {"id": "T2", "suite": "other.toml"})
        (tmp_path / "other.toml").write_text(SUITE.replace("epochs = 4", "epochs = 5"))
        with pytest.raises(ConfigError, match="claim T2 would be written to the folder 'planted'"):
            read_claims(path)

    def test_claims_are_told_from_suites(self, tmp_path):
        assert holds_claims(write_claims(tmp_path))
        assert holds_claims("claims")
        assert not holds_claims(str(tmp_path / "planted.toml"))
        assert not holds_claims(str(tmp_path / "gone.toml"))
        assert not holds_claims("quickstart")
        assert "claims" not in suite_names()


def write_cells(claims: Claims, out: Path, *, device: str = "cpu", **changes: Any) -> None:
    """Write the records of all cells that claims need; a change is a function of the seed."""
    for plan in claims.plans:
        for cell in (*plan.of.values(), *(plan.against or {}).values()):
            seed, folder = cell.config.seed, out / plan.suite.name
            told = {name: change(seed) for name, change in changes.items()}
            told.setdefault("landed", 0.2 + 0.001 * seed)
            rows = write_rows(rows_path(folder, cell.model, cell.id), tidy(quantity_rows(**told)))
            named = {"model": cell.model, "rows": rows, "hardware": {"device": device}}
            write_record(record_path(folder, cell.model, cell.id), record_of(cell.config, **named))


def answered(
    folder: Path, *entries: dict[str, Any], suite: str = SUITE, **cells: Any
) -> tuple[Answer, ...]:
    claims = read_claims(write_claims(folder, *entries, suite=suite))
    write_cells(claims, folder / "out", **cells)
    return answer_claims(claims, folder / "out")


class TestAnswers:
    def test_a_claim_is_supported(self, tmp_path):
        (answer,) = answered(tmp_path, {"beside": ["nc1_clean", "alignment_angle"]})
        assert answer.verdict == "supported"
        (test,) = answer.tests
        values = [0.2 + 0.001 * seed for seed in range(5)]
        assert [one.value for one in test.summary.values] == pytest.approx(values)
        low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        found = test.summary
        assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
        assert found.level == pytest.approx(0.95)
        first, second = answer.beside
        found = first.summary
        assert (found.mean, found.low, found.high) == pytest.approx((-2, -2, -2))
        assert (second.summary.mean, len(second.summary.missing)) == (None, 5)

    def test_an_answer_holds_what_is_needed_to_check_it(self, tmp_path):
        (answer,) = answered(tmp_path)
        assert answer.scale.dataset == "digits"
        assert (answer.scale.ball, answer.scale.epochs) == ("Linf 8/255", 4)
        assert (answer.scale.train_measured, answer.scale.test_measured) == (100, 60)
        assert answer.scale.seeds == (0, 1, 2, 3, 4)
        assert answer.versions == ({"robust_nc": "0.1.0", "torch": "2.13.0"},)
        assert answer.hardware == ({"device": "cpu"},)
        for used in answer.records:
            path = record_path(tmp_path / "out" / "planted", used.model, used.cell)
            assert used.record == sha256_of(path)
            assert used.rows == sha256_of(path.with_suffix(".parquet"))
        write_answer(tmp_path / "answers", answer)
        assert read_answers(tmp_path / "answers") == (answer,)

    @pytest.mark.parametrize(
        ("landed", "verdict"),
        [
            (lambda seed: 0.8 + 0.001 * seed, "contradicted"),
            (lambda seed: 0.45 + 0.001 * seed, "undecided"),
            (lambda seed: 0.2 * seed, "undecided"),
            (lambda seed: 0.2, "supported"),
        ],
    )
    def test_other_values_other_verdicts(self, tmp_path, landed, verdict):
        assert answered(tmp_path, landed=landed)[0].verdict == verdict

    def test_pairs_are_by_seed(self, tmp_path):
        pair = {"of": TRADES, "against": ENTRY["of"], "reference": 0.0, "expect": "equal"}
        (answer,) = answered(tmp_path, pair, landed=lambda seed: 0.1 * seed)
        values = answer.tests[0].summary.values
        assert [one.value for one in values] == [0, 0, 0, 0, 0]
        assert [one.of for one in values] == [one.against for one in values]
        assert answer.verdict == "supported"
        assert (answer.tests[0].p, answer.tests[0].summary.level) == (0, 0.9)
        assert {used.side for used in answer.records} == {"of", "against"}

    def test_a_premise_that_fails_leaves_it_undecided(self, tmp_path):
        entry = {"premise": {"train_accuracy": 0.999}}
        (answer,) = answered(tmp_path, entry, train=lambda seed: 0.998 if seed == 3 else 1.0)
        assert answer.verdict == "undecided"
        assert answer.reason == "the premise on train_accuracy fails in 1 of 5 cells"
        assert [one.holds for one in answer.premise] == [True, True, True, False, True]
        assert answered(tmp_path, entry, train=lambda seed: 0.999)[0].verdict == "supported"

    def test_seeds_that_are_too_few(self, tmp_path):
        for seeds, device, verdict in (
            ("[0, 1, 2, 3]", "cpu", "undecided"),
            ("[0, 1, 2, 3]", "cuda", "supported"),
            ("[0, 1]", "cuda", "undecided"),
        ):
            suite = SUITE.replace("[0, 1, 2, 3, 4]", seeds)
            (answer,) = answered(tmp_path, suite=suite, device=device)
            assert answer.verdict == verdict
        summary = answer.tests[0].summary
        assert (summary.low, summary.high) == pytest.approx((0.2, 0.201))
        assert summary.level is None
        assert "0.2005 (0.2 to 0.201)" in answers_page([answer])

    def test_a_seed_without_a_value_is_named(self, tmp_path):
        (answer,) = answered(tmp_path, landed=lambda seed: math.nan if seed == 2 else 0.2)
        (gone,) = answer.tests[0].summary.missing
        assert (gone.seed, gone.reason) == (2, "landed: no leaps")
        assert answer.reason == "4 seeds with a value, and on a CPU a decision needs 5"
        (answer,) = answered(tmp_path, landed=lambda seed: math.nan)
        assert answer.tests[0].summary.mean is None
        assert answer.verdict == "undecided"
        assert "seed 4: landed: no leaps" in answers_page([answer])

    def test_variants_that_differ_leave_it_undecided(self, tmp_path):
        entry = {
            "quantity": "early_over_late",
            "expect": "above",
            "reference": 0.0,
            "effect": 0.02,
            "variant": [{"feature": "gap"}, {"feature": "flatten"}],
        }
        (answer,) = answered(tmp_path, entry)
        assert answer.verdict == "supported"
        assert [test.quantity for test in answer.tests] == [
            "early_over_late(feature=gap)",
            "early_over_late(feature=flatten)",
        ]
        (answer,) = answered(tmp_path, entry, block2_flatten=lambda seed: 0.5)
        assert [test.verdict for test in answer.tests] == ["supported", "undecided"]
        assert (answer.verdict, answer.reason) == ("undecided", "its variants differ")
        assert answer.family == 2

    def test_warnings_of_adaptive_verdicts_are_told(self, tmp_path):
        answers = answered(
            tmp_path,
            {"quantity": "vertex_over_network", "expect": "equal", "reference": 0.0},
            {"id": "T2", "quantity": "early_over_late", "reference": 0.0},
            {"id": "T3", "quantity": "ncc_adaptive", "against": TRADES},
            {"id": "T4"},
            warned=lambda seed: "transfer-stronger, masked-gradients" if seed < 2 else "",
            doubted=lambda seed: "masked-gradients" if seed == 4 else "",
        )
        found = [[(one.side, one.seed) for one in answer.tests[0].notes] for answer in answers]
        of = [("of", 0), ("of", 1)]
        assert found == [
            [*of, ("of", 4)],
            of,
            [*of[:1], ("against", 0), *of[1:], ("against", 1)],
            [],
        ]
        assert answers[0].tests[0].notes[2].note == "masked-gradients"
        write_answer(tmp_path / "answers", answers[0])
        assert read_answers(tmp_path / "answers") == (answers[0],)
        first, second, third, fourth = answers_page(answers).split("\n## ")[1:]
        both = "transfer-stronger, masked-gradients in"
        assert f"- notes of the rows: masked-gradients in 1 of 5 cells; {both} 2 of 5" in first
        assert f"- notes of the rows: {both} 2 of 5 cells\n" in second
        assert f"- notes of the rows: {both} 4 of 10 cells\n" in third
        assert "notes of the rows" not in fourth

    def test_p_is_named_after_where_the_mean_lies(self, tmp_path):
        entry = {"expect": "equal", "reference": 0.5}
        near = answered(tmp_path, entry, landed=lambda seed: 0.45 + 0.2 * (seed % 2))
        far = answered(tmp_path, entry, landed=lambda seed: 0.55 + 0.2 * (seed % 2))
        assert [one.verdict for one in (*near, *far)] == ["undecided", "undecided"]
        assert "larger of two one-sided p" in answers_page(near).split("## T1")[1]
        assert "larger of two one-sided p" not in answers_page(far).split("## T1")[1]

    def test_all_claims_of_a_file_are_one_family(self, tmp_path):
        answers = answered(tmp_path, {}, {"id": "T2", "quantity": "nc1_clean"}, {"id": "T3"})
        assert {answer.family for answer in answers} == {3}
        levels = [answer.tests[0].summary.level for answer in answers]
        assert sorted(levels) == pytest.approx([0.95, 0.975, 1 - 0.05 / 3])

    def test_missing_and_damaged_cells_leave_no_half_answer(self, tmp_path):
        claims = read_claims(write_claims(tmp_path))
        write_cells(claims, tmp_path / "out")
        assert missing_cells(claims, tmp_path / "out") == ()
        first, second, *_ = claims.plans[0].of.values()
        record_path(tmp_path / "out" / "planted", first.model, first.id).unlink()
        rows_path(tmp_path / "out" / "planted", second.model, second.id).write_text("x")
        names = [
            f"planted: {cell.model} seed {k} ({cell.id})" for k, cell in enumerate((first, second))
        ]
        assert list(missing_cells(claims, tmp_path / "out")) == names
        with pytest.raises(RecordError, match="no claim is answered") as raised:
            answer_claims(claims, tmp_path / "out")
        assert all(name in str(raised.value) for name in names)

    def test_what_decides_must_have_been_measured(self, tmp_path):
        with pytest.raises(RecordError, match="no row has"):
            answered(tmp_path, {"quantity": "alignment_angle"})


class TestPage:
    def test_every_claim_has_its_section_and_its_numbers(self, tmp_path):
        answers = answered(
            tmp_path,
            {"premise": {"train_accuracy": 0.999}, "beside": ["nc1_clean"]},
            {"id": "T2", "quantity": "kept_collapse", "variant": [{"split": "train"}]},
        )
        for answer in answers:
            write_answer(tmp_path / "answers", answer)
        page = answers_page(answers, description="Of ours.", folder="../answers/")
        assert page.startswith("# Claims and answers\n\nOf ours.\n")
        table = answers_table(answers)
        for path in sorted((tmp_path / "answers").glob("*.json")):
            told = json.loads(path.read_text())
            name = told["claim"]["id"]
            assert f"## {name}: {told['verdict']}\n" in page
            assert f"({'../answers/'}{name}.json)" in page
            section = page.split(f"## {name}: ")[1].split("\n## ")[0]
            assert told["claim"]["source"] in section
            for test in told["tests"]:
                summary = test["summary"]
                numbers = [summary[key] for key in ("mean", "low", "high")]
                mean, low, high = map(number, numbers)
                assert f"{mean} [{low}, {high}]" in section
                assert f"{mean} [{low}, {high}]" in table
                assert f"adjusted {number(test['p_holm'])}" in section
                for one in summary["values"]:
                    assert f"| {one['seed']} | {number(one['value'])} |" in section
        assert "`train_accuracy` at least 0.999 holds in 5 of 5 cells (least 1)" in page
        assert "It is \\*low\\*." in page

    def test_the_table_aligns(self, tmp_path):
        lines = answers_table(answered(tmp_path)).splitlines()
        assert len(lines) == 3
        assert lines[0].index("quantity") == lines[2].index("landed")


CLAIM = """
[[claim]]
id = "E1"
says = "Attacked examples land at other vertices."
source = "a test"
suite = "tiny.toml"
quantity = "leap_rate"
of = { "model.head" = "linear" }
against = { "model.head" = "etf" }
expect = "above"
effect = 0.1
beside = ["nc1_clean"]
"""


def run(folder: Path, *options: object) -> Ran:
    return cli("run", folder / "mine.toml", "--out", folder / "out", "--workers", 1, *options)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("claims")
    grid = '[grid]\n"model.head" = ["linear", "etf"]\n"measure.taps" = [["penultimate"]]\n'
    (folder / "tiny.toml").write_text(TINY + grid)
    (folder / "mine.toml").write_text(CLAIM)
    return folder, run(folder)


class TestCommand:
    def test_claims_are_answered_end_to_end(self, ended):
        folder, ran = ended
        assert ran.code == 0, ran.err
        assert "E1" in ran.out
        assert "leap_rate" in ran.out
        assert "2 cells made, 0 kept, 0 failed" in ran.err
        (answer,) = read_answers(folder / "out" / "answers")
        assert answer.verdict == "undecided"
        assert answer.reason == "1 seed with a value, and on a CPU a decision needs 5"
        assert (folder / "out" / "answers" / "claims.md").read_text() == answers_page([answer])
        assert len(list((folder / "out" / "tiny").rglob("*.parquet"))) == 2

    def test_answers_come_from_the_records_alone(self, ended, tmp_path):
        shutil.copytree(ended[0], tmp_path, dirs_exist_ok=True)
        before = (tmp_path / "out" / "answers" / "E1.json").read_text()
        shutil.rmtree(tmp_path / "out" / "answers")
        shutil.rmtree(tmp_path / "out" / "tiny" / "checkpoints")
        ran = run(tmp_path, "--overwrite", "only-cache")
        assert (ran.code, ran.out) == (0, ended[1].out)
        assert (tmp_path / "out" / "answers" / "E1.json").read_text() == before

    def test_missing_cells_are_named_and_nothing_is_answered(self, ended, tmp_path):
        shutil.copytree(ended[0], tmp_path, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "out" / "answers")
        cell = read_suite(str(tmp_path / "tiny.toml")).cells[0]
        record_path(tmp_path / "out" / "tiny", cell.model, cell.id).unlink()
        ran = run(tmp_path, "--overwrite", "only-cache")
        assert (ran.code, ran.out) == (1, "")
        assert f"tiny: {cell.model} seed 0 ({cell.id})" in ran.err
        assert not (tmp_path / "out" / "answers").exists()

    def test_a_bad_claim_ends_before_anything_runs(self, tmp_path):
        (tmp_path / "mine.toml").write_text(CLAIM.replace("leap_rate", "leaprate"))
        (tmp_path / "tiny.toml").write_text(TINY)
        ran = run(tmp_path)
        assert (ran.code, ran.out) == (2, "")
        assert "did you mean 'leap_rate'" in ran.err
        assert not (tmp_path / "out").exists()
