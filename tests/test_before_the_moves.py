"""What the first house left behind (commit d532f6d) is read and continued by this one.

`tests/before` holds what it wrote for `suite.toml`: `finished`, with a record; `training`, stopped
within the last epoch; `judging`, trained, with half of the log of its verdict, torn within a line;
`evaluation.jsonl`, half of the log of `evaluate`. It went on from each of them to the record of
`finished` and to the verdict in `expected.json`, which also has the names that identify an
evaluation, so that a log is continued and not refused.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers_runner import cli
from test_golden import machine

from robust_nc import Ball, build_model, evaluate, read_record
from robust_nc.config import ModelConfig, read
from robust_nc.data.load import read_split, to_unit
from robust_nc.evaluation.identity import attack_identity
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import read_suite
from robust_nc.registry import PROTOCOLS
from robust_nc.training.run import load_classifier, train_cell

BEFORE = Path(__file__).parent / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
RECORD = Path("mlp-etf-pgd", "bb72cb9e50d690a6.json")
TRAINING = Path("checkpoints", "2ad96559c1ea26d3")
LOG = Path("cache", "bb72cb9e50d690a6-best.jsonl")


@pytest.fixture
def out(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a folder of results that the first house left, to go on in."""
    return Path(shutil.copytree(BEFORE / request.param, tmp_path / "out"))


def scores(record: Path) -> dict[str, float]:
    """The accuracies and the geometry that a record sums up."""
    values = json.loads(record.read_text())
    found = {k: v["value"] for k, v in values["scores"].items()} | values["summary"]
    return {k: v for k, v in found.items() if v is not None}


def assert_same_files(out: Path) -> None:
    assert cli("verify", out).code == 0
    assert len(read_record(out / RECORD).rows())
    before = BEFORE / "finished" / RECORD
    assert scores(out / RECORD) == pytest.approx(scores(before), rel=1e-4)
    if machine() == EXPECTED["machine"]:
        wanted = before.with_suffix(".evidence").read_bytes()
        assert (out / RECORD).with_suffix(".evidence").read_bytes() == wanted
        rows, old = (read_record(path).rows() for path in (out / RECORD, before))
        found = set(rows.astype(str).itertuples(index=False, name=None))  # of measures since, more
        assert set(old.astype(str).itertuples(index=False, name=None)) <= found


@pytest.mark.parametrize("out", ["finished"], indirect=True)
def test_a_finished_suite_is_kept(out: Path) -> None:
    ran = cli("run", BEFORE / "suite.toml", "--out", out)
    assert ran.code == 0, ran.err
    assert "0 cells made, 1 kept" in ran.err
    assert_same_files(out)


@pytest.mark.parametrize("out", ["training"], indirect=True)
def test_a_training_goes_on_to_the_same_weights(out: Path) -> None:
    (cell,) = read_suite(str(BEFORE / "suite.toml")).cells
    trained = train_cell(cell.config, folder=out / TRAINING, device="cpu")
    assert [row["epoch"] for row in trained.history] == [1, 2, 3]
    logged = (out / TRAINING / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in logged] == [1, 2, 3]
    wanted = load_classifier(BEFORE / "judging" / TRAINING).state_dict()
    for name, found in trained.best.state_dict().items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out", ["judging"], indirect=True)
def test_the_verdict_of_a_cell_goes_on_in_its_log_to_the_same_files(out: Path) -> None:
    *kept, torn = (out / LOG).read_bytes().splitlines(keepends=True)
    assert len(kept) > 2
    assert not torn.endswith(b"\n")
    seen = []

    def watch(share: float, status: str) -> None:
        if (out / LOG).exists():
            seen.append((out / LOG).read_bytes())

    (cell,) = read_suite(str(BEFORE / "suite.toml")).cells
    run_cell(cell, "before", out, None, report=watch)
    assert seen
    assert all(content.startswith(b"".join(kept)) for content in seen)
    assert_same_files(out)


def test_the_log_of_an_evaluation_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    shutil.copyfile(BEFORE / "evaluation.jsonl", log)
    kept = log.read_bytes()
    test = read_split("digits", "test", limit=24)
    outcome = evaluate(
        load_classifier(BEFORE / "judging" / TRAINING),
        to_unit(test.images),
        test.labels,
        Ball("Linf", 0.05),
        protocol="fast",
        batch_size=8,
        log=log,
    )
    assert log.read_bytes().startswith(kept)
    assert list(outcome.broken_by) == EXPECTED["fast"]["broken_by"]
    assert torch.equal(outcome.robust, torch.tensor(EXPECTED["fast"]["robust"]) == 1)


@pytest.mark.parametrize("protocol", EXPECTED["attack_names"])
def test_attacks_keep_the_names_that_a_log_knows_them_by(protocol: str) -> None:
    plan = PROTOCOLS.load(protocol)
    lists = [plan.under(Ball(norm, 1.0)).attacks for norm in ("Linf", "L1")]
    attacks = [attack for found in lists[: 1 + bool(plan.by_norm)] for _, attack in found]
    known = EXPECTED["attack_names"][protocol]  # a norm may have got a list of its own since
    assert [attack_identity(attack) for attack in attacks][: len(known)] == known


@pytest.mark.parametrize("case", EXPECTED["model_digests"], ids=lambda c: c["model"]["backbone"])
def test_models_keep_the_layers_and_weights_that_a_log_knows_them_by(case: dict) -> None:
    config = {"image_shape": [3, 32, 32], "num_classes": 10} | case["model"]
    model = build_model(read(ModelConfig, config), seed=0)
    told_of = [re.sub(" at 0x[0-9a-f]+", "", repr(model)), *sorted(model.state_dict())]
    assert hashlib.sha256("\n".join(told_of).encode()).hexdigest()[:16] == case["digest"]
