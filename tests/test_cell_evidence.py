"""What a cell of a suite leaves beside its verdict: evidence, the digest of its weights, seals."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
from helpers_runner import tiny
from safetensors.torch import load_file

from robust_nc.config import plain
from robust_nc.io.digests import state_digest, tensors_digest
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.make_record import summary
from robust_nc.pipeline.suite import Suite
from robust_nc.record import Stored, read_record, tidy, unpack_flags
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


class TestLeapLayer:
    AT: ClassVar = {
        "split": "train",
        "condition": "attacked",
        "grouping": "none",
        "measure": "leap_layer",
    }

    def rows(self, counts: dict[tuple[str, int], float], **changed: object):
        rows = [
            {**self.AT, "tap": tap, "depth": depth, "value": value, **changed}
            for (tap, depth), value in counts.items()
        ]
        return tidy(rows)

    def test_it_is_the_depth_where_most_leaps_begin(self):
        counts = {("stem", 0): 2.0, ("mid", 1): 5.0, ("penultimate", 2): 3.0, ("none", -1): 90.0}
        assert summary(self.rows(counts))["leap_layer"] == 1

    def test_of_equal_layers_it_is_the_first(self):
        counts = {("penultimate", 2): 3.0, ("stem", 0): 3.0, ("none", -1): 0.0}
        assert summary(self.rows(counts))["leap_layer"] == 0

    def test_where_nothing_leaps_there_is_none(self):
        counts = {("stem", 0): 0.0, ("penultimate", 2): 0.0, ("none", -1): 90.0}
        assert summary(self.rows(counts))["leap_layer"] is None

    @pytest.mark.parametrize("changed", [{"condition": "gaussian"}, {"split": "test"}])
    def test_other_conditions_and_images_do_not_count(self, changed):
        assert summary(self.rows({("stem", 0): 4.0}, **changed))["leap_layer"] is None


def test_a_radius_that_was_not_reached_says_how_far_was_looked() -> None:
    at = {"tap": "penultimate", "split": "test", "condition": "sweep", "grouping": "none"}
    row = {**at, "measure": "collapse_radius", "eps": 0.25, "value": None}
    found = summary(tidy([row]))
    assert (found["collapse_radius"], found["collapse_radius_beyond"]) == (None, 0.25)
    found = summary(tidy([row | {"value": 0.125}]))
    assert (found["collapse_radius"], found["collapse_radius_beyond"]) == (0.125, None)
