"""Claims: reading, quantities, decisions against SciPy, answers, and the command end to end."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_report import PLACE, curve, quantity_rows, record_of
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
from robust_nc.claims.figure import draw_answer
from robust_nc.claims.page import answers_page, answers_table
from robust_nc.claims.quantities import QUANTITIES, UndefinedError, meaning, quantity_value
from robust_nc.claims.reading import Claims, holds_claims, read_claims
from robust_nc.config import Component
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import digest, sha256_of
from robust_nc.pipeline.suite import read_suite, suite_names
from robust_nc.record import tidy, write_record, write_rows
from robust_nc.record.folder import record_path, rows_path
from robust_nc.report.board.formats import number

VALUES = st.lists(st.floats(-5, 5), min_size=3, max_size=8).filter(lambda v: np.std(v) > 1e-3)


class TestDeciding:
    @settings(deadline=None, max_examples=40)
    @given(VALUES, st.floats(-1, 1), st.floats(0, 1))
    def test_p_equals_scipy_and_agrees_with_the_interval(self, values, reference, effect):
        trial = Trial("above", reference, effect, tuple(values))
        p = p_value(trial)
        oracle = stats.ttest_1samp(values, reference + effect)
        assert p == pytest.approx(oracle.pvalue, abs=1e-12)
        (decision,) = decide([trial])
        assert (decision.verdict != "undecided") == (p < 0.05)
        wanted = {True: "supported", False: "contradicted"}[np.mean(values) > reference + effect]
        assert decision.verdict in {wanted, "undecided"}
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert decision.interval[1:3] == (pytest.approx(low), pytest.approx(high))

    @settings(deadline=None, max_examples=40)
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

    def test_more_tests_make_each_harder_also_those_that_are_barred(self):
        trial = Trial("above", 0.0, 0.0, (0.1, 0.3, 0.2, 0.4, 0.1))
        barred, among = decide([trial._replace(bar="because"), *[trial] * 19])[:2]
        assert decide([trial])[0].verdict == "supported"
        assert (among.verdict, barred.verdict) == ("undecided", "undecided")
        assert among.level == pytest.approx(1 - 0.05 / 20)
        assert (barred.reason, barred.p_holm) == ("because", 1)

    @pytest.mark.parametrize(
        ("expect", "mean", "verdict"),
        [
            ("above", 0.8, "supported"),
            ("above", 0.2, "contradicted"),
            ("above", 0.55, "contradicted"),
            ("below", 0.8, "contradicted"),
            ("below", 0.2, "supported"),
            ("below", 0.45, "contradicted"),
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

    @pytest.mark.parametrize("expect", ["above", "below", "equal"])
    def test_an_open_test_says_how_many_seeds_would_decide(self, expect):
        values = {"above": 0.65, "below": 0.35, "equal": 0.55}[expect] + np.array(
            [-0.2, -0.1, 0.0, 0.1, 0.2]
        )
        (decision,) = decide([Trial(expect, 0.5, 0.1, tuple(values))])
        assert decision.verdict == "undecided"
        assert decision.enough is not None

        def half(seeds: int) -> float:
            level = 0.9 if expect == "equal" else 0.95
            return stats.t.ppf((1 + level) / 2, seeds - 1) * values.std(ddof=1) / seeds**0.5

        assert half(decision.enough) < 0.05 <= half(decision.enough - 1)
        (barred,) = decide([Trial(expect, 0.5, 0.1, tuple(values), bar="because")])
        assert barred.enough is None
        (never,) = decide([Trial("above", 0.5, 0.125, (0.5, 0.75, 0.625))])
        assert (never.verdict, never.enough) == ("undecided", None)

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
    """Write a suite and claims about it: `ENTRY` with changes."""
    (folder / "planted.toml").write_text(suite)
    claims = [ENTRY | entry for entry in entries or ({},)]
    (folder / "claims.toml").write_text(f"claim = {toml(claims)}")
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
            ("claim = ", "is not TOML"),
            ("[[claims]]", "did you mean 'claim'"),
            ("claim = 3", "claims are tables [[claim]]"),
            ("claim = []", "at least one is needed"),
            ({"expct": "above"}, "unknown key 'expct' (did you mean 'expect'?)"),
            ({"expect": "abov"}, "expect: input should be 'above', 'below' or 'equal'"),
            ({"quantity": "landd"}, "unknown quantity 'landd'; did you mean 'landed'"),
            ({"quantity": {"name": "landed", "tab": "x"}}, "no option 'tab' (did you mean 'tap'?)"),
            ({"quantity": {"name": "landed", "split": "all"}}, "should be 'train' or 'test'"),
            ({"beside": ["nc1clean"]}, "did you mean 'nc1_clean'"),
            ({"premise": {"train_acuracy": 0.9}}, "did you mean 'train_accuracy'"),
            ({"premise": {"train_accuracy": {}}}, "needs a minimum or a maximum"),
            ({"premise": {"nc1_clean": {"minimum": 1, "maximum": 0}}}, "its minimum is above"),
            (
                {"premise": {"nc1_clean": {"maximum": 0, "side": "against"}}},
                "`against`, which is not given",
            ),
            ({"suite": "quikstart"}, "unknown suite 'quikstart'; did you mean 'quickstart'"),
            ({"suite": "gone.toml"}, "gone.toml cannot be read"),
            ({"id": "a/b"}, "id: string should match pattern"),
            ({"expect": "equal", "effect": 0.0}, "equal needs a margin"),
            ({"of": {"train": {"objective": "pgd"}}}, "'train' is a table"),
            ({"of": {"train.objectiv": "pgd"}}, "did you mean 'objective'"),
            ({"of": {"seed": 1}}, "seed is what a claim is averaged over"),
            ({"of": {"train.objective": "pgd"}}, "no cell of the suite planted has"),
            ({"of": {"train.objective": "trades"}}, "2 models of the suite planted have"),
            (
                {"of": {"train.objective": {"name": "trades", "bnmode": "eval"}}},
                "did you mean 'bn_mode'",
            ),
            ({"against": {"train.objective": "standard"}}, "are the same cells"),
            ({"variant": [{}, {"feature": "gap"}]}, "two variants are the same quantity landed"),
            ({"quantity": {"name": "landed", "tap": "blok2"}}, "did you mean 'block2'"),
            ({"quantity": {"name": "early_over_late", "early": "blok1"}}, "did you mean 'block1'"),
            ({"beside": [{"name": "ncc", "tap": "x9"}]}, "unknown tap for 'ncc' of 'small_cnn'"),
        ],
    )
    def test_a_bad_claim_or_file_gets_one_sentence(self, tmp_path, entry, sentence):
        path = str(tmp_path / "claims.toml")
        if isinstance(entry, str):
            Path(path).write_text(entry)
        else:
            write_claims(tmp_path, entry)
        with pytest.raises(ConfigError) as raised:
            read_claims(path)
        assert sentence in str(raised.value)
        assert "claims.toml" in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_tap_that_the_suite_leaves_out_is_refused_on_either_side(self, tmp_path):
        entry = {"quantity": {"name": "landed", "tap": "block1"}}
        suite = SUITE.replace("[grid]", '[base.measure]\ntaps = ["block2"]\n[grid]')
        with pytest.raises(ConfigError, match=r"Valid: block2$"):
            read_claims(write_claims(tmp_path, entry, suite=suite))
        suite = SUITE.replace("[grid]", "[base.model]\nmean = [0.5]\nstd = [0.5]\n[grid]")
        (plan,) = read_claims(write_claims(tmp_path, entry, suite=suite)).plans
        assert plan.quantities[0].options == {"tap": "block1"}, "whatever the data's sizes are"
        both = SUITE + '"model.backbone" = ["small_cnn", "preact_resnet18"]\n'
        sides = {
            side: {"train.objective": "standard", "model.backbone": name}
            for side, name in (("of", "small_cnn"), ("against", "preact_resnet18"))
        }
        with pytest.raises(ConfigError, match="unknown tap for 'landed' of 'preact_resnet18'"):
            read_claims(write_claims(tmp_path, entry | sides, suite=both))

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
    def test_a_claim_is_supported_and_its_answer_holds_what_is_needed_to_check_it(self, tmp_path):
        (answer,) = answered(tmp_path, {"beside": ["nc1_clean", "alignment_angle"]})
        assert answer.verdict == "supported"
        (test,) = answer.tests
        values = [0.2 + 0.001 * seed for seed in range(5)]
        assert [one.value for one in test.summary.values] == pytest.approx(values)
        low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        found = test.summary
        assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
        first, second = (one.summary for one in answer.beside)
        assert (first.mean, first.low, first.high) == pytest.approx((-2, -2, -2))
        assert (second.mean, len(second.missing)) == (None, 5)
        assert (answer.scale.dataset, answer.scale.ball) == ("digits", "Linf 8/255")
        assert (answer.scale.epochs, answer.scale.seeds) == (4, (0, 1, 2, 3, 4))
        assert (answer.scale.train_measured, answer.scale.test_measured) == (100, 60)
        assert answer.versions == ({"robust_nc": "0.1.0", "torch": "2.13.0"},)
        assert answer.hardware == ({"device": "cpu"},)
        for used in answer.records:
            path = record_path(tmp_path / "out" / "planted", used.model, used.cell)
            assert used.record == sha256_of(path)
            assert used.rows == sha256_of(path.with_suffix(".parquet"))
        write_answer(tmp_path / "answers", answer)
        assert read_answers(tmp_path / "answers") == (answer,)

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

    def test_a_premise_may_bound_one_side_from_above(self, tmp_path):
        sides = {"against": {"train.objective": {"name": "trades", "bn_mode": "eval"}}}
        entry = sides | {"premise": {"nc1_clean": {"maximum": -1.0, "side": "against"}}}
        (answer,) = answered(tmp_path, entry | {"changed": "In May: it was *open*."})
        assert {one.side for one in answer.premise} == {"against"}
        assert len(answer.premise) == 5
        page = answers_page([answer])
        words = "Premise: `nc1_clean` of `against` at most -1 holds in 5 of 5 cells (most -2)."
        assert words in page
        assert "Changed: In May: it was \\*open\\*." in page

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
        assert answer.verdict == "undecided"
        assert "seed 2: landed: no leaps" in answers_page([answer])

    def test_variants_that_differ_leave_it_undecided(self, tmp_path):
        entry = {"quantity": "early_over_late", "expect": "above", "reference": 0.0}
        entry |= {"effect": 0.02, "variant": [{"feature": "gap"}, {"feature": "flatten"}]}
        (answer,) = answered(tmp_path, entry)
        assert answer.verdict == "supported"
        names = [f"early_over_late(feature={name})" for name in ("gap", "flatten")]
        assert [test.quantity for test in answer.tests] == names
        (answer,) = answered(tmp_path, entry, block2_flatten=lambda seed: 0.5)
        assert [test.verdict for test in answer.tests] == ["supported", "contradicted"]
        assert (answer.verdict, answer.reason) == ("undecided", "its variants differ")

    def test_warnings_of_adaptive_verdicts_are_told(self, tmp_path):
        first, second, third = answered(
            tmp_path,
            {"quantity": "vertex_over_network", "expect": "equal", "reference": 0.0},
            {"id": "T3", "quantity": "ncc_adaptive", "against": TRADES},
            {"id": "T4"},
            warned=lambda seed: "transfer-stronger, masked-gradients" if seed == 0 else "",
            doubted=lambda seed: "masked-gradients" if seed == 4 else "",
        )
        found = [
            [(one.side, one.seed) for one in answer.tests[0].notes]
            for answer in (first, second, third)
        ]
        assert found == [[("of", 0), ("of", 4)], [("of", 0), ("against", 0)], []]
        told, *_, silent = answers_page((first, second, third)).split("\n## ")[1:]
        assert "- notes of the rows: masked-gradients in 1 of 5 cells; transfer-str" in told
        assert "notes of the rows" not in silent

    def test_missing_and_damaged_cells_leave_no_half_answer(self, tmp_path):
        claims, out = read_claims(write_claims(tmp_path)), tmp_path / "out"
        write_cells(claims, out)
        assert missing_cells(claims, out) == ()
        first, second, *_ = claims.plans[0].of.values()
        record_path(out / "planted", first.model, first.id).unlink()
        rows_path(out / "planted", second.model, second.id).write_text("x")
        names = [
            f"planted: {one.model} seed {one.config.seed} ({one.id})" for one in (first, second)
        ]
        assert list(missing_cells(claims, out)) == names
        with pytest.raises(RecordError, match="no claim is answered") as raised:
            answer_claims(claims, out)
        assert all(name in str(raised.value) for name in names)


class TestPage:
    def test_every_claim_has_its_section_and_its_numbers(self, tmp_path):
        answers = answered(
            tmp_path,
            {"premise": {"train_accuracy": 0.999}, "beside": ["nc1_clean", "alignment_angle"]},
            {"id": "T2", "quantity": "kept_collapse", "variant": [{"split": "train"}]},
        )
        assert [answer.family for answer in answers] == [2, 2], "all claims of a file are one"
        page = answers_page(answers, description="Of ours.", folder="../answers/")
        assert page.startswith("# Claims and answers\n\nOf ours.\n")
        for answer in answers:
            assert f"## {answer.claim.id}: {answer.verdict}\n" in page
            section = page.split(f"## {answer.claim.id}: ")[1].split("\n## ")[0]
            assert f"(../answers/{answer.claim.id}.json)" in section
            assert answer.claim.source in section
            assert f"![{answer.claim.id}](../answers/{answer.claim.id}.png)" in section
            for test in answer.tests:
                found = test.summary
                mean, low, high = map(number, (found.mean, found.low, found.high))
                assert f"{mean} [{low}, {high}]" in section
                assert f"{mean} [{low}, {high}]" in answers_table(answers)
                assert f"adjusted {number(test.p_holm)}" in section
                for one in found.values:
                    assert f"| {one.seed} | {number(one.value)} |" in section
        assert "`train_accuracy` at least 0.999 holds in 5 of 5 cells (least 1)" in page
        assert "It is \\*low\\*." in page

    def test_a_figure_shows_every_seed_the_interval_and_what_the_claim_asks_for(self, tmp_path):
        variants = {"variant": [{"split": "train"}, {"condition": "gaussian"}]}
        (answer,) = answered(tmp_path, variants)
        figure = draw_answer(answer)
        (ax,) = figure.axes
        assert ax.get_title(loc="left") == f"{answer.claim.id}: {answer.verdict}"
        drawn = [list(line.get_xdata()) for line in ax.lines]
        for test in answer.tests:
            found = test.summary
            assert [one.value for one in found.values] in drawn
            assert [found.low, found.high] in drawn
        (shaded,) = ax.patches
        right = shaded.get_extents().transformed(ax.transData.inverted()).x1
        assert right == pytest.approx(answer.claim.reference - answer.claim.effect)
        assert len(ax.get_yticklabels()) == 2


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
        assert (folder / "out" / "answers" / "E1.png").read_bytes().startswith(b"\x89PNG")
        assert len(list((folder / "out" / "tiny").rglob("*.parquet"))) == 2

    def test_answers_come_from_the_records_alone_and_none_without_all_of_them(
        self, ended, tmp_path
    ):
        shutil.copytree(ended[0], tmp_path, dirs_exist_ok=True)
        before = (tmp_path / "out" / "answers" / "E1.json").read_text()
        shutil.rmtree(tmp_path / "out" / "answers")
        shutil.rmtree(tmp_path / "out" / "tiny" / "checkpoints")
        ran = run(tmp_path, "--overwrite", "only-cache")
        assert (ran.code, ran.out) == (0, ended[1].out)
        assert (tmp_path / "out" / "answers" / "E1.json").read_text() == before
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


# Quantities, read from planted rows.


def quantity(name: str, *, changes: dict[str, Any] | None = None, **options: Any):
    rows = tidy(quantity_rows(**(changes or {})))
    return quantity_value(Component(name=name, options=options), rows)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("kept_collapse", {}, 1 / 3),
        ("landed", {}, 0.2),
        ("landed", {"condition": "gaussian"}, 0.7),
        ("nc1_clean", {}, -2.0),
        ("nc1_log10", {"tap": "block2"}, math.log10(97)),
        ("nc1_log10", {"split": "test"}, math.log10(98)),
        ("nc1_clean", {"feature": "flatten"}, math.log10(96)),
        ("nc1_attacked", {}, math.log10(50)),
        ("nc1_landed", {}, 0.0),
        ("train_accuracy", {}, 1.0),
        ("ncc_adaptive", {"tap": "block1"}, 0.6),
        ("vertex_over_network", {}, 0.0),
        ("early_over_late", {}, 0.1),
        ("early_over_late", {"early": "block1"}, 0.1),
        ("early_over_late", {"feature": "flatten"}, 0.1),
        ("clean_verdict", {}, 0.9),
        ("clean_verdict", {"weights": "last"}, 0.8),
        ("robust_verdict", {}, 0.5),
        ("robust_verdict", {"weights": "last"}, 0.4),
        ("robust_verdict", {"protocol": "pgd_ce"}, 0.58),
        ("flattery", {}, 0.08),
        ("accuracy", {}, 0.91),
        ("accuracy", {"split": "train"}, 1.0),
        ("mistake_severity", {}, 1.5),
        ("mistake_severity", {"condition": "severest"}, 2.5),
        ("hd", {}, 0.2),
        ("hd", {"k": 5}, 1.2),
        ("leap_severity", {}, 1.8),
        ("wrong_over_right", {}, 0.1),
        ("wrong_over_right", {"which": "wrong"}, 0.3),
        ("fall_over_depth", {"last": "layer4"}, -2.0),
        ("fall_over_depth", {}, -1.0),
        ("feature_correlation", {}, 0.6),
        ("feature_correlation", {"centred": True}, 0.1),
        ("feature_correlation", {"root": False}, 0.9),
        ("epochs_to", {"accuracy": 0.9}, 2.0),
        ("epochs_to", {"accuracy": 0.95}, 4.0),
        ("memorised", {}, 0.9),
        ("memorised_way", {}, 0.6),
        ("dilation_log10", {}, 1.0),
        ("dilation_with_memorization", {}, 1.0),
    ],
)
def test_a_quantity_is_read_from_its_rows(name, options, wanted):
    assert quantity(name, **options) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("robust_verdict", {"protocol": "fast"}, "no row has"),
        ("feature_correlation", {"condition": "attacked"}, r"set measure\.agop_examples"),
        ("alignment_angle", {}, "measure 'alignment_angle'"),
        ("ncc_adaptive", {"tap": "block9"}, "taps that were measured: block1, block2"),
        ("robust_accuracy", {}, "2 different rows"),
    ],
)
def test_what_was_not_measured_is_said(name, options, told):
    with pytest.raises(RecordError, match=told) as raised:
        quantity(name, **options)
    assert not isinstance(raised.value, UndefinedError)


def test_options_are_checked_and_every_quantity_says_what_it_is():
    with pytest.raises(ConfigError, match="needs the option 'accuracy'"):
        quantity("epochs_to")
    with pytest.raises(ConfigError, match="option 'k'"):
        quantity("hd", k=3)
    assert all(10 < len(meaning(Component(name=name))) <= 100 for name in QUANTITIES.names())


def test_dilation_may_be_asked_from_its_least_on():
    """Before it, test features gather because the network learns."""
    dilations = [9.0, 5.0, 1.0, 2.0, 3.0]
    ways = [0.1, 0.2, 0.3, 0.4, 0.5]
    rows = tidy([*curve("memorised_way", ways), *curve("dilation", dilations, split="test")])

    def found(since: str) -> float:
        part = Component(name="dilation_with_memorization", options={"since": since})
        return quantity_value(part, rows)

    assert found("start") == pytest.approx(-0.6)
    assert found("least") == pytest.approx(1.0)
    rows.loc[rows["measure"] == "dilation", "value"] = 1.0
    with pytest.raises(UndefinedError, match="does not change over the epochs"):
        found("start")
    rows = rows[rows["measure"] == "dilation"]
    with pytest.raises(RecordError, match="no row has 'memorised_way' over the epochs on train"):
        found("start")


def test_collapse_at_a_train_accuracy_is_that_of_the_first_epoch_that_reaches_it():
    rows = []
    for epoch, (accuracy, nc1) in enumerate([(0.5, 4.0), (0.8, 2.0), (0.7, 1.0), (0.9, 0.1)], 1):
        at = PLACE | {"epoch": epoch, "condition": "clean", "feature": ""}
        collapse = at | {"measure": "nc1_trace", "grouping": "true", "value": nc1}
        reached = at | {"tap": "output", "measure": "accuracy", "value": accuracy}
        decoy = {"condition": "attacked", "value": 1.0}
        rows += [
            collapse,
            collapse | decoy,
            collapse | {"feature": "gap", "value": 1.0},
            collapse | {"grouping": "landed", "value": 1.0},
        ]
        rows += [reached, reached | decoy, reached | {"split": "validation", "value": 1.0}]

    def found(accuracy: float) -> float:
        part = Component(name="nc1_trace_log10_at", options={"accuracy": accuracy})
        return quantity_value(part, tidy(rows))

    assert found(0.8) == pytest.approx(math.log10(2))
    assert found(0.81) == pytest.approx(-1)
    with pytest.raises(UndefinedError, match=r"no epoch has a train accuracy of 0\.95"):
        found(0.95)


@pytest.mark.parametrize(
    ("name", "options", "changes", "reason"),
    [
        ("landed", {}, {"landed": math.nan}, "landed: no leaps"),
        ("nc1_clean", {}, {"clean": 0.0}, "no logarithm"),
        ("kept_collapse", {}, {"clean": 11.0}, "no more collapsed"),
        ("kept_collapse", {}, {"null": 0.0}, "no logarithm"),
        ("epochs_to", {"accuracy": 0.97}, {}, r"no epoch has a held-out accuracy of 0\.97"),
    ],
)
def test_what_is_undefined_says_why(name, options, changes, reason):
    with pytest.raises(UndefinedError, match=reason):
        quantity(name, changes=changes, **options)


def test_values_over_different_examples_are_not_compared():
    rows = [row | ({"n": 51} if row.get("tap") == "block2" else {}) for row in quantity_rows()]
    with pytest.raises(RecordError, match="51 and over 50"):
        quantity_value(Component(name="early_over_late"), tidy(rows))
