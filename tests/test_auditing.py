"""An audit: which examples, which bound, and what a claim that is too high looks like."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_appraisal import (
    EXAMPLES,
    claiming_all,
    opened,
    record_of,
    resealed,
    to_the_border,
)
from helpers_runner import cli
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from robust_nc.evidence.contents import TOLERANCE
from robust_nc.evidence.file import read_evidence
from robust_nc.exceptions import InputError
from robust_nc.io.untrusted import read_json
from robust_nc.record import Stored, unpack_flags
from robust_nc.record.standing import challenge_path, receipt_path
from robust_nc.statistics.sampling import fewest_broken, most_broken
from robust_nc.verification import audit as auditing
from robust_nc.verification.audit import Audit, Remeasured, audit, audit_protocol
from robust_nc.verification.evidence import find_evidence
from robust_nc.verification.originals import examples_of
from robust_nc.verification.rejudge import look_again


@pytest.fixture(scope="module")
def verdict(own_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, str]:
    """With geometry, which is measured again."""
    return record_of(own_model, tmp_path_factory.mktemp("out"), geometry=True), own_model


@pytest.fixture
def copied(
    verdict_copy: tuple[Stored, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Stored, str]:
    monkeypatch.chdir(tmp_path)
    return verdict_copy


@pytest.fixture(autouse=True)
def shorter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audit with PGD, but for the tests that are marked slow."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(auditing, "PROTOCOL", "pgd")


class TestBounds:
    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_they_are_those_of_the_definition(self, data):
        population = data.draw(st.integers(1, 60))
        drawn = data.draw(st.integers(0, population))
        found = data.draw(st.integers(0, drawn))
        possible = range(found, population - (drawn - found) + 1)

        def likely(broken, outcomes):  # in whole numbers: of 6, 3 break, 0 of 3 drawn is 1 in 20
            ways = (
                math.comb(broken, x) * math.comb(population - broken, drawn - x) for x in outcomes
            )
            return 20 * sum(ways) > math.comb(population, drawn)

        assert most_broken(found, drawn=drawn, population=population) == max(
            broken for broken in possible if likely(broken, range(found + 1))
        )
        assert fewest_broken(found, drawn=drawn, population=population) == min(
            broken for broken in possible if likely(broken, range(found, drawn + 1))
        )

    def test_they_are_those_of_the_hypergeometric_distribution(self):
        most = most_broken(4, drawn=300, population=4_000)
        assert hypergeom.cdf(4, 4_000, most, 300) > 0.05 > hypergeom.cdf(4, 4_000, most + 1, 300)

    def test_none_of_300_is_at_most_one_percent(self):
        shares = [most_broken(0, drawn=300, population=size) / size for size in (4_000, 10**6)]
        assert shares == pytest.approx([0.0095, 0.009934])
        assert math.isclose(shares[1], 1 - 0.05 ** (1 / 300), rel_tol=1e-3)

    @pytest.mark.parametrize(("found", "drawn", "population"), [(1, 0, 5), (-1, 2, 5), (0, 6, 5)])
    def test_counts_that_cannot_be_are_refused(self, found, drawn, population):
        with pytest.raises(InputError, match="0 <= found <= drawn <= population"):
            most_broken(found, drawn=drawn, population=population)

    @pytest.mark.parametrize(
        ("drawn", "survivors", "broke", "refutes"),
        [
            *((300, 4_000, broke, broke > 6) for broke in (0, 6, 7, 40)),
            *((3, 21, broke, broke > 1) for broke in range(4)),  # one never refutes
        ],
    )
    def test_a_few_that_break_are_chance_and_many_are_not(self, drawn, survivors, broke, refutes):
        rows = torch.arange(drawn)
        found = Audit("standard", 0, rows, rows[:broke], torch.zeros(0), survivors, 10_000)
        assert found.refutes == refutes


class TestDrawing:
    @pytest.fixture
    def examples(self, verdict):
        return examples_of(verdict[0].record, None)

    @pytest.fixture
    def model(self, verdict):
        return opened(verdict[1])

    def test_the_seed_draws_the_examples_and_only_robust_ones(self, verdict, model, examples):
        first, again, other = (
            audit(verdict[0], model, examples, count=12, seed=seed) for seed in (1, 1, 2)
        )
        assert torch.equal(first.rows, again.rows)
        assert not torch.equal(first.rows, other.rows)
        robust = unpack_flags(verdict[0].record.verdict.robust)
        assert robust[first.rows.numpy()].all()
        assert len(set(first.rows.tolist())) == 12
        assert (first.survivors, first.examples) == (int(robust.sum()), EXAMPLES)

    def test_what_broke_is_pushed_so_that_a_challenge_counts(
        self, verdict, model, examples, monkeypatch
    ):
        points = read_evidence(find_evidence(verdict[0]), examples.images)
        row = int(points.broken[0])
        label = examples.labels[row : row + 1]
        far = points.adversarials[0]
        near = to_the_border(model, examples.images[row], far, label)[None]

        def barely(*given, **named):
            return SimpleNamespace(robust=torch.tensor([False]), adversarials=near)

        robust = np.zeros(EXAMPLES, dtype=bool)
        robust[row] = True
        monkeypatch.setattr(auditing, "evaluate", barely)
        monkeypatch.setattr(auditing, "standing", lambda stored: SimpleNamespace(robust=robust))
        found = audit(verdict[0], model, examples, count=1, seed=0)
        assert found.broke.tolist() == [row]
        weak, strong = (look_again(model, part, label) for part in (near, found.points))
        assert weak.margins < TOLERANCE * weak.ranges
        assert strong.margins > TOLERANCE * strong.ranges

    def test_a_count_beyond_the_survivors_takes_them_all(self, verdict, model, examples):
        found = audit(verdict[0], model, examples, count=10_000, seed=0)
        assert len(found.rows) == found.survivors
        assert found.most == len(found.broke)
        assert found.lowest == (found.survivors - len(found.broke)) / EXAMPLES

    def test_only_a_random_protocol_audits_itself(self):
        names = ("fgsm", "standard", "of a suite of one's own")
        assert {audit_protocol(name) for name in names} == {auditing.PROTOCOL}
        assert audit_protocol("rand") == "rand"

    @pytest.mark.parametrize(("count", "seed"), [(0, 1), (5, -1)])
    def test_senseless_settings_are_refused(self, verdict, model, examples, count, seed):
        with pytest.raises(InputError, match="an audit needs"):
            audit(verdict[0], model, examples, count=count, seed=seed)


class TestGeometry:
    @pytest.mark.parametrize(("leaped", "consistent"), [(50, True), (35, True), (20, False)])
    def test_a_claim_is_held_against_the_interval(self, leaped, consistent):
        found = Remeasured(claimed=0.5, leaped=leaped, examples=100)
        assert found.consistent == consistent
        assert str(found).endswith("consistent")
        assert ("not" in str(found)) != consistent


def audited(record, count, *more):
    return cli("verify", record[0].path, "--model", record[1], "--audit", count, *more)


class TestCommand:
    @pytest.mark.slow
    def test_the_audit_is_by_the_standard_protocol(self, copied):
        ran = audited(copied, 8, "--seed", 3)
        assert "of 8 broken by standard" in ran.out
        assert "the record's own protocol is pgd" in ran.out

    def test_an_honest_record_earns_its_badge(self, copied):
        ran = audited(copied, 30, "--seed", 3, "--save")
        assert ran.code == 0, ran.out + ran.err
        assert "schema ok, upper bound proven, audited 30" in ran.out
        assert "of 30 broken by pgd: at most" in ran.out
        assert "(seed 3)" in ran.out
        assert "measured again on 30 images: consistent" in ran.out
        receipt = read_json(receipt_path(copied[0].path))
        assert receipt["audited"] == 30
        assert 0 <= receipt["overclaim"] < 0.5

    def test_a_seed_that_was_not_given_is_told(self, copied):
        outs = [audited(copied, 5).out for _ in range(2)]
        assert outs[0].partition("(seed ")[2] != outs[1].partition("(seed ")[2]

    def test_who_claims_what_was_broken_is_found_and_can_be_challenged(self, copied):
        stored, reference = copied
        liar = claiming_all(stored)
        ran = audited((liar, reference), 60, "--seed", 1)
        assert ran.code == 1
        assert "verdict.robust: the audit breaks more than 1 %" in ran.out
        assert "audited" not in ran.out.splitlines()[-1]
        points = Path(f"{liar.record.cell}.audit.npz")
        assert points.is_file()
        assert f"--evidence {points}" in ran.out
        challenged = cli("challenge", liar.path, "--evidence", points, "--model", reference)
        assert challenged.code == 0, challenged.out + challenged.err
        assert "robust accuracy falls from" in challenged.out

    def test_a_leap_rate_that_was_made_up_is_found(self, copied):
        stored, reference = copied
        frame = stored.rows()
        at = (frame["measure"] == "leap_rate") & (frame["split"] == "test")
        at &= (frame["tap"] == "penultimate") & (frame["condition"] == "attacked")
        assert at.sum() == 1
        claimed = float(frame.loc[at, "value"].iloc[0])
        invented = {**stored.record.summary, "leap_rate_test": 1.0 if claimed < 0.5 else 0.0}
        liar = resealed(stored, summary=invented)
        ran = audited((liar, reference), 40, "--seed", 3)
        assert ran.code == 1
        assert "summary.leap_rate_test" in ran.out
        assert "not consistent" in ran.out

    def test_what_a_record_says_of_itself_is_no_place_to_write_to(self, copied, tmp_path):
        stored, reference = copied
        liar = resealed(claiming_all(stored), cell=str(tmp_path / "elsewhere"))
        ran = audited((liar, reference), 60, "--seed", 1)
        assert ran.code == 1
        assert not (tmp_path / "elsewhere.audit.npz").exists()
        assert Path(f"{liar.path.stem}.audit.npz").is_file()

    def test_a_false_challenge_takes_no_badge_from_the_record(self, copied):
        stored, _ = copied
        row = int(np.flatnonzero(unpack_flags(stored.record.verdict.robust))[0])
        values = {"cell": stored.record.cell, "evidence": "ab" * 32, "broken": [row]}
        path = challenge_path(stored.path, "ab" * 32)
        path.write_text(json.dumps({**values, "created": "2026-01-01"}))
        ran = audited(copied, 5, "--seed", 3)
        assert ran.code == 1
        assert f"challenge {path.name}: its evidence is not beside it" in ran.out
        assert "audited 5" in ran.out.splitlines()[-1]
        path.write_text("{")
        ran = audited(copied, 5, "--seed", 3)
        assert ran.code == 1
        assert "INVALID" not in ran.out
        assert "upper bound proven" in ran.out

    def test_another_model_is_not_audited(self, copied, tmp_path):
        stored, reference = copied
        other = resealed(
            stored,
            weights=type(stored.record.weights)(parameters=1, state="0" * 64),
        )
        (tmp_path / "out" / other.record.evidence.name).unlink()
        ran = audited((other, reference), 5)
        assert ran.code == 1
        assert "no audit: the model is another one" in ran.out
