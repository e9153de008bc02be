"""An audit: which examples, which bound, and what a claim that is too high looks like."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_appraisal import EXAMPLES, claiming_all, opened, record_of
from helpers_report import resealed
from helpers_runner import cli
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.exceptions import InputError
from robust_nc.record import Stored, unpack_flags
from robust_nc.record.standing import challenge_path, receipt_path
from robust_nc.statistics.sampling import fewest_broken, most_broken
from robust_nc.verification import audit as auditing
from robust_nc.verification.audit import Audit, audit, audit_protocol
from robust_nc.verification.originals import examples_of


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
    @settings(max_examples=80, deadline=None)
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

    def test_none_of_300_is_at_most_one_percent_and_what_cannot_be_is_refused(self):
        found = most_broken(0, drawn=300, population=10**6) / 10**6
        assert math.isclose(found, 1 - 0.05 ** (1 / 300), rel_tol=1e-3)
        for counts in ((1, 0, 5), (-1, 2, 5), (0, 6, 5)):
            with pytest.raises(InputError, match="0 <= found <= drawn <= population"):
                most_broken(counts[0], drawn=counts[1], population=counts[2])

    @pytest.mark.parametrize(
        ("drawn", "survivors", "broke", "refutes"),
        [
            *((300, 4_000, broke, broke > 9) for broke in (0, 7, 9, 10, 40)),
            *((3, 21, broke, broke > 1) for broke in range(4)),  # one never refutes
        ],
    )
    def test_a_few_that_break_are_chance_and_many_are_not(self, drawn, survivors, broke, refutes):
        rows = torch.arange(drawn)
        found = Audit("standard", 0, rows, rows[:broke], torch.zeros(0), survivors, 10_000)
        assert found.refutes == refutes


class TestDrawing:
    def test_the_seed_draws_the_examples_and_only_robust_ones(self, verdict):
        model, examples = opened(verdict[1]), examples_of(verdict[0].record, None)
        robust = unpack_flags(verdict[0].record.verdict.robust)
        draw = partial(audit, verdict[0], model, examples, robust=robust)
        first, again, other = (draw(count=12, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first.rows, again.rows)
        assert not torch.equal(first.rows, other.rows)
        assert robust[first.rows.numpy()].all()
        assert len(set(first.rows.tolist())) == 12
        every = draw(count=10_000, seed=0)
        assert len(every.rows) == every.survivors
        assert every.most == len(every.broke)
        assert every.lowest == (every.survivors - len(every.broke)) / EXAMPLES
        assert (first.survivors, first.examples) == (int(robust.sum()), EXAMPLES)

    def test_where_nothing_is_claimed_robust_nothing_is_missing(self, verdict):
        model, examples = opened(verdict[1]), examples_of(verdict[0].record, None)
        none = np.zeros(EXAMPLES, dtype=bool)
        for count in (None, 5):
            found = audit(verdict[0], model, examples, robust=none, count=count, seed=0)
            assert (len(found.rows), found.bound, found.refutes) == (0, 0, False)

    def test_only_a_random_protocol_audits_itself(self):
        names = ("fgsm", "standard", "of a suite of one's own")
        assert {audit_protocol(name) for name in names} == {auditing.PROTOCOL}
        assert audit_protocol("rand") == "rand"


def audited(record, count, *more):
    return cli("verify", record[0].path, "--model", record[1], "--audit", count, *more)


class TestCommand:
    @pytest.mark.slow
    def test_the_audit_is_by_the_standard_protocol(self, copied):
        ran = audited(copied, 8, "--seed", 3)
        assert "of 8 broken by standard" in ran.out
        assert "the record's own protocol is pgd" in ran.out

    def test_an_honest_record_earns_its_state(self, copied, signing_key):
        ran = audited(copied, 30, "--seed", 3, "--sign", signing_key)
        assert ran.code == 0, ran.out + ran.err
        assert "state        checked" in ran.out
        assert "of 30 broken by pgd: at most" in ran.out
        assert "(seed 3)" in ran.out
        assert "measured again on 30 images: consistent" in ran.out
        receipt = json.loads(receipt_path(copied[0].path).read_text().partition("-----")[0])
        assert (receipt["audited"], receipt["seed"], receipt["broke"]) == (30, 3, [])
        assert 0.01 < receipt["bound"] < 0.5

    def test_what_bounds_the_loss_by_one_point_reproduces_it(self, copied):
        stored, reference = copied
        words = ("verify", stored.path, "--model", reference, "--reproduce", "--seed", 3)
        trusted = cli(*words, "--trusted")
        assert "state        checked; reproduced: with --reproduce, and without" in trusted.out
        ran = cli(*words)
        assert ran.code == 0, ran.out + ran.err
        assert "state        reproduced" in ran.out
        survivors = int(unpack_flags(stored.record.verdict.robust).sum())
        (line,) = [line for line in ran.out.splitlines() if "broken by pgd" in line]
        assert f"of {survivors} robust examples break (95 %)" in line

    def test_who_claims_what_was_broken_is_found_and_can_be_challenged(self, copied, tmp_path):
        stored, reference = copied
        liar = resealed(
            claiming_all(stored), cell=str(tmp_path / "elsewhere")
        )  # no place to write to
        ran = audited((liar, reference), 60, "--seed", 1)
        assert ran.code == 1
        assert not (tmp_path / "elsewhere.audit.npz").exists()
        assert "verdict.robust: more than 1 % of it breaks" in ran.out
        assert ran.out.splitlines()[-1] == "  state        claimed"
        points = Path(f"{liar.path.stem}.audit.npz")
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

    def test_a_false_challenge_takes_no_state_from_the_record(self, copied):
        stored, _ = copied
        row = int(np.flatnonzero(unpack_flags(stored.record.verdict.robust))[0])
        values = {"cell": stored.record.cell, "evidence": "ab" * 32, "broken": [row]}
        path = challenge_path(stored.path, "ab" * 32)
        path.write_text(json.dumps({**values, "created": "2026-01-01"}))
        ran = audited(copied, 5)
        assert ran.code == 1
        assert f"challenge {path.name}: its evidence is not beside it" in ran.out
        assert "checked" in ran.out.splitlines()[-1]
        path.write_text("{")
        before, ran = ran, audited(copied, 5)
        assert ran.out.partition("(seed ")[2] != before.out.partition("(seed ")[2], "drawn, told"
        assert ran.code == 1
        assert "INVALID" not in ran.out
        assert "checked" in ran.out.splitlines()[-1]

    def test_a_model_that_fails_under_the_attack_has_passed_no_audit(self, copied, tmp_path):
        stored, reference = copied
        (tmp_path / "fails.py").write_text(
            "import runpy\n"
            "def make():\n"
            f"    model = runpy.run_path({reference.rpartition(':')[0]!r})['make']()\n"
            "    def refuse(module, inputs):\n"
            "        if inputs[0].requires_grad:\n"
            "            raise ValueError('no gradients for you')\n"
            "    model.register_forward_pre_hook(refuse)\n"
            "    return model\n"
        )
        for trusted in ((), ("--trusted",)):
            ran = audited((stored, f"{tmp_path / 'fails.py'}:make"), 5, *trusted)
            assert ran.code == 2, ran.out
            assert "no gradients for you" in ran.err
            assert "state " not in ran.out

    def test_another_model_is_not_audited(self, copied, tmp_path):
        stored, reference = copied
        other = resealed(stored, weights=type(stored.record.weights)(parameters=1, state="0" * 64))
        (tmp_path / "out" / other.record.evidence.name).unlink()
        ran = audited((other, reference), 5)
        assert ran.code == 1
        assert "no audit: the model is another one" in ran.out
