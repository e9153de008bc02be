"""Forgeries of a result that were tried on the leaderboard: each is refused or has no rank.

And the other side: what is honest is not refuted.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_appraisal import claiming_all, judge, record_of
from helpers_exchange import appraised
from helpers_report import challenged, config, flags, resealed, signed, trust, write_cell, written
from helpers_runner import cli

from robust_nc.evidence.file import read_evidence, write_evidence
from robust_nc.exceptions import RecordError
from robust_nc.exchange.submission import ready
from robust_nc.pipeline import appraise as appraising
from robust_nc.pipeline.finished_model import SUITE as EVALUATED
from robust_nc.pipeline.make_record import summary
from robust_nc.plugins import find_protocol
from robust_nc.record import AttackUse, Stored, read_record, unpack_flags, write_rows
from robust_nc.record.protocol import parameters_of
from robust_nc.record.standing import challenge_path, receipt_path, standing
from robust_nc.report.board.table import leaderboard
from robust_nc.types import DOUBTS
from robust_nc.verification import audit as auditing
from robust_nc.verification.originals import examples_of
from robust_nc.verification.results_tree import check_tree

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "results" / EVALUATED
FASHION = Path("~/.cache/robust_nc/fashion_mnist").expanduser()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Results of the main branch: one record."""
    ready(appraised(tmp_path / "out"), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def head(base: Path) -> Path:
    """The same, to be forged."""
    return shutil.copytree(base, base.with_name("head"))


def rival(results: Path) -> Stored:
    (path,) = (results / EVALUATED / "net").glob("*.json")
    return read_record(path)


def refused(base: Path, head: Path) -> str:
    return "\n".join(map(str, check_tree(base, head).refused))


def unranked(results: Path) -> list[str]:
    frame = leaderboard(results)
    assert frame["rank"].isna().all()
    return sorted(frame["unranked"])


def audited(stored: Stored, reference: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What an audit of 60 examples by a quick attack says of a record that it refutes."""
    monkeypatch.setattr(auditing, "PROTOCOL", "pgd")
    monkeypatch.chdir(stored.path.parent)
    ran = cli("verify", stored.path, "--model", reference, "--audit", 60, "--seed", 1)
    assert ran.code == 1
    assert ran.out.splitlines()[-1] == "  state        claimed"
    return ran.out


def test_a_resealed_record_that_calls_every_correct_example_robust(
    verdict_copy: tuple[Stored, str], base: Path, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, reference = verdict_copy
    images = examples_of(honest.record, None).images
    evidence = read_evidence(honest.path.with_suffix(".evidence"), images)
    forged = claiming_all(honest)
    with pytest.raises(RecordError, match="carries no evidence"):
        ready(forged, head)
    nothing = evidence.broken[:0]
    clean = torch.from_numpy(unpack_flags(forged.record.verdict.clean_correct))
    evidence = dataclasses.replace(
        evidence,
        robust=clean,
        broken_by=torch.tensor(forged.record.verdict.broken_by),
        broken=nothing,
        adversarials=evidence.adversarials[:0],
        margins=evidence.margins[:0],
        ranges=evidence.ranges[:0],
    )
    forged = resealed(
        forged, evidence=write_evidence(forged.path.with_suffix(".evidence"), evidence, images)
    )
    submitted = read_record(ready(forged, head)[0])
    assert refused(base, head) == "", "it contradicts nothing, and is a claim"
    assert standing(submitted).state == "claimed"
    assert "verdict.robust: more than 1 % of it breaks" in audited(forged, reference, monkeypatch)


def test_a_claim_on_enough_examples_has_no_rank(tmp_path: Path, signing_key: Path) -> None:
    made = written(tmp_path / "suite" / "first", flags(600))
    signed(made, signing_key)
    written(tmp_path / "suite" / "liar", flags(1000), model="liar")
    frame = leaderboard(tmp_path)
    assert frame["model"].tolist() == [made.record.model, "liar"]
    assert frame["unranked"].tolist() == ["", "claimed, not reproduced"]


@pytest.mark.parametrize("key", [False, True], ids=["plain JSON", "a key of anyone"])
def test_a_receipt_that_anyone_wrote(
    key: bool, base: Path, head: Path, signing_key: Path, tmp_path: Path
) -> None:
    stored = signed(rival(head), signing_key, trusted=False)
    if not key:
        text = receipt_path(stored.path).read_text()
        receipt_path(stored.path).write_text(text.partition("-----BEGIN")[0])
    trust(rival(base), None)
    assert standing(stored).state == "claimed"
    assert "receipts come from maintainers" in refused(base, head)
    assert unranked(head) == ["fewer than 1,000 examples"]


def test_a_challenge_with_junk_beside_it(base: Path, head: Path) -> None:
    stored = rival(head)
    path = challenge_path(stored.path, "ab" * 32)
    values = {"cell": stored.record.cell, "evidence": "ab" * 32, "created": "2026"}
    values["broken"] = list(range(200))
    path.write_text(json.dumps(values))
    path.with_suffix(".npz").write_bytes(b"junk")
    assert f"{path.relative_to(head)} has no evidence beside it, or another" in refused(base, head)
    with pytest.raises(RecordError, match=path.name):
        leaderboard(head)
    ran = cli("board", head)
    assert (ran.code, path.name in ran.err) == (2, True)


def test_a_challenge_by_junk_that_is_named_rightly(base: Path, head: Path) -> None:
    path = challenged(rival(head).path, rows=range(200), content=b"junk")
    assert f"{path.relative_to(head)}: " in refused(base, head)
    assert leaderboard(head)["robust"].tolist() == leaderboard(base)["robust"].tolist() == [0.7]


def _weak(name: str) -> tuple[AttackUse, ...]:
    protocol = find_protocol("standard" if name == "one step" else "fgsm")
    uses = [(each, parameters_of(attack)) for each, attack in protocol.attacks]
    if name == "one step":
        uses = [(each, {**told, "steps": 1}) for each, told in uses]
    return tuple(AttackUse(name=each, parameters=told, broke=0) for each, told in uses)


@pytest.mark.parametrize("name", ["one step", "FGSM alone"])
def test_weak_attacks_that_are_called_standard(
    name: str, tmp_path: Path, signing_key: Path
) -> None:
    """They have no rank even where a maintainer signed that they were reproduced."""
    options = {"protocol": "standard", "attacks": _weak(name)}
    signed(written(tmp_path / "suite" / "weak", flags(1000), **options), signing_key)
    assert leaderboard(tmp_path)["protocol"].tolist() == ["custom"]
    assert unranked(tmp_path) == ["attacks that are not those of the protocol it names"]


def test_a_record_of_a_suite_without_evidence_or_seals(base: Path, head: Path) -> None:
    stored = write_cell(head / "synthetic", config(), robust=flags(1000))
    assert not stored.record.seals
    assert "comes without seals or without evidence" in refused(base, head)
    reasons = {"claimed, not reproduced", "fewer than 1,000 examples"}
    assert set(unranked(head)) == reasons


def test_rows_of_nc1_that_were_edited(
    own_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = record_of(own_model, tmp_path / "out", geometry=True)
    frame = stored.rows()
    frame.loc[frame["measure"] == "nc1", "value"] *= 0.1
    rows = write_rows(stored.path.parent / stored.record.rows.path, frame)
    told = {**stored.record.summary, **{k: v for k, v in summary(frame).items() if "nc1" in k}}
    forged = resealed(stored, rows=rows, summary=told)
    text = audited(forged, own_model, monkeypatch)
    assert "schema       ok" in text
    assert "rows: nc1 of clean training images at penultimate is" in text


def test_a_removed_rival(base: Path, head: Path) -> None:
    shutil.rmtree(head / EVALUATED)
    assert refused(base, head).count("was removed; only a maintainer removes results") == 3


def test_forty_near_copies_of_the_worst_row(tmp_path: Path, signing_key: Path) -> None:
    shares = {"best": (640, 0), "second": (600, 10), "worst": (560, 30)}
    clean = flags(990)
    for name, (count, start) in shares.items():
        folder = tmp_path / "suite" / name
        signed(written(folder, flags(count, start=start), clean=clean, model=name), signing_key)
    before = leaderboard(tmp_path).set_index("model")["rank"]
    assert before.tolist() == [1, 2, 3]
    draw = np.random.default_rng(0)
    for copy in range(40):
        robust, name = flags(560, start=30), f"copy{copy}"
        robust[draw.integers(0, 990, 5)] ^= True
        signed(written(tmp_path / "suite" / name, robust, clean=clean, model=name), signing_key)
    after = leaderboard(tmp_path).set_index("model")["rank"]
    assert after[before.index].tolist() == [1, 2, 3]
    assert set(after) == {1, 2, 3}


WRAPPED = """

def wrapped():
    import robust_nc.pipeline.appraise, robust_nc.verification.audit

    def around(real):
        def call(*args, **options):
            found = real(*args, **options)
            codes = found.codes.clamp_max(-1)
            return found._replace(robust=found.clean_correct, codes=codes, warnings=())

        return call

    for module in (robust_nc.pipeline.appraise, robust_nc.verification.audit):
        module.evaluate = around(module.evaluate)
    return make()
"""
ONE_HOT = """

class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make()

    def forward(self, images):
        return nn.functional.one_hot(self.net(images).argmax(1), 10).float()
"""


@pytest.fixture
def code(own_model: str, tmp_path: Path) -> Path:
    """The file of a model, to be written on."""
    folder = shutil.copytree(Path(own_model.rpartition(":")[0]).parent, tmp_path / "code")
    return folder / "net.py"


def test_a_model_that_wraps_evaluate_in_its_own_factory(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It forges a record where it is judged, and reaches nothing where that is audited."""
    code.write_text(code.read_text() + WRAPPED)
    with monkeypatch.context() as kept:
        for module in (appraising, auditing):
            kept.setattr(module, "evaluate", module.evaluate)  # put back afterwards
        forged = judge(f"{code}:wrapped", tmp_path / "out", n=80).stored
    claims = {name: forged.record.scores[name].value for name in ("clean", "robust")}
    assert claims["robust"] == claims["clean"] > 0.8
    assert "verdict.robust: more than 1 % of it breaks" in audited(
        forged, f"{code}:wrapped", monkeypatch
    )


def test_a_one_hot_argmax_around_an_undefended_network(code: Path, tmp_path: Path) -> None:
    code.write_text(code.read_text() + ONE_HOT)
    stored = judge(f"{code}:Hidden", tmp_path / "out", n=20).stored
    assert {one.name for one in stored.record.warnings} & DOUBTS
    (row,) = leaderboard([stored]).to_dict("records")
    assert row["unranked"].startswith("in doubt: ")


def test_broken_seals_given_to_the_board_alone(base: Path) -> None:
    stored = rival(base)
    values = json.loads(stored.path.read_text())
    values["scores"]["robust"]["value"] = 0.99
    stored.path.write_text(json.dumps(values))
    ran = cli("board", base)
    assert (ran.code, ran.out) == (2, "")
    assert "was changed after it was sealed, in scores" in ran.err


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not here")
def test_an_honest_record_is_not_refuted_over_a_margin_that_no_challenge_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (COMMITTED / "fashion-etf-trades").glob("*.json")
    model = COMMITTED / "checkpoints" / "fashion-etf-trades"
    monkeypatch.chdir(tmp_path)  # what an audit breaks would be left here
    ran = cli("verify", path, "--model", model, "--audit", 3, "--seed", 7)
    assert ran.code == 0, ran.out + ran.err
    assert "WRONG" not in ran.out
    assert "state        checked" in ran.out
