"""What a cell of a suite leaves beside its verdict: evidence, the digest of its weights, seals."""

import json
from pathlib import Path

import pytest
from helpers_runner import tiny
from safetensors.torch import load_file

from robust_nc.config import plain
from robust_nc.io.digests import state_digest, tensors_digest
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import Suite
from robust_nc.record import Stored, read_record, unpack_flags
from robust_nc.record.folder import evidence_path, record_path
from robust_nc.record.schema import broken_seals
from robust_nc.runtime.progress import no_report

GRID = """
[grid]
"measure.radii" = [[1.0]]
"threat.eps" = [0.3]
"train.epochs" = [8]
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny(tmp_path_factory.mktemp("suite"), GRID)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def stored(suite: Suite, out: Path) -> Stored:
    (cell,) = suite.cells
    run_cell(cell, suite.name, out, None, report=no_report)
    return read_record(record_path(out, cell.model, cell.id))


def test_evidence_lies_beside_the_record(stored):
    evidence, beside = stored.record.evidence, evidence_path(stored.path)
    assert (evidence.name, evidence.bytes) == (beside.name, beside.stat().st_size)
    assert evidence.sha256 == sha256_of(beside)
    verdict = stored.record.verdict
    broken = unpack_flags(verdict.clean_correct) & ~unpack_flags(verdict.robust)
    assert evidence.broken == broken.sum() > 0


def test_the_weights_are_named_by_their_tensors(stored, out):
    record = stored.record
    tensors = load_file(out / record.weights.best.path)
    digests = {name: tensors_digest([tensors[name]])[:16] for name in sorted(tensors)}
    assert record.weights.state == state_digest(digests)


def test_every_field_is_sealed(stored):
    values = json.loads(stored.path.read_text())
    assert set(values["seals"]) == set(values) - {"seals"}
    assert broken_seals(values) == broken_seals(plain(stored.record)) == ()


def test_the_same_cell_leaves_the_same_evidence(stored, suite, tmp_path):
    (cell,) = suite.cells
    run_cell(cell, suite.name, tmp_path, None, report=no_report)
    again = read_record(record_path(tmp_path, cell.model, cell.id)).record
    assert again.evidence == stored.record.evidence
    assert again.verdict == stored.record.verdict


def test_the_collapse_radius_is_a_headline(stored):
    found = stored.record.summary
    rows = stored.rows()
    at = (rows["tap"] == "penultimate") & (rows["measure"] == "collapse_radius")
    (row,) = rows[at].to_dict("records")
    if found["collapse_radius"] is None:
        assert found["collapse_radius_beyond"] == pytest.approx(row["eps"])
    else:
        assert found["collapse_radius"] == pytest.approx(row["value"], rel=1e-6)
