"""The script for a GPU, on the CPU: it resumes, stops in time, brings back what is finished."""

import json
import math
import sys
from pathlib import Path

import pytest

from robust_nc.benchmarks.gpu import cell as script
from robust_nc.config import training_id
from robust_nc.exceptions import ConfigError
from robust_nc.io.files import sha256_of
from robust_nc.pipeline.cell import CellEvent
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.record.folder import checkpoint_folder, read_all
from robust_nc.training.progress import TrainEvent
from robust_nc.verification.evidence import check_evidence

TOML = """
name = "tiny"
[base.data]
dataset = {{ name = "synthetic", image_shape = [{shape}], train_size = 24, test_size = 8 }}
[base.model]
backbone = {backbone}
[base.train]
epochs = {epochs}
batch_size = 8
lr = 0.01
schedule = "constant"
collapse_examples = 20
[base.evaluation]
protocol = "pgd"
examples = 2
[base.measure]
train_examples = 20
test_examples = 8
steps = 1
targets = []
radii = []
trajectories = 0
[grid]
"train.objective" = ["standard", {{ name = "pgd", steps = 1 }}]
"model.head" = [{heads}]
seed = [0, 1]
"""
SMALL, RESNET = '{ name = "small_cnn", width = 4 }', '"preact_resnet18"'


def write_suite(
    folder: Path,
    *,
    backbone: str = SMALL,
    shape: str = "1, 8, 8",
    epochs: int = 3,
    heads: str = '"linear", "etf"',
) -> Path:
    path = folder / "tiny.toml"
    path.write_text(TOML.format(backbone=backbone, shape=shape, epochs=epochs, heads=heads))
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return read_suite(str(write_suite(tmp_path)))


def epochs_saved(work: Path, config) -> int:
    path = checkpoint_folder(work, training_id(config)) / "last.json"
    return json.loads(path.read_text())["epoch"] if path.is_file() else 0


class _EndsIn(script.Clock):
    """The time is up when an epoch, or another stage, is first reported."""

    def __init__(self, epoch: int | None) -> None:
        super().__init__(math.inf)
        self.last = epoch

    def trains(self, event: TrainEvent) -> None:
        if event.epoch == self.last:
            self.end = -math.inf
        super().trains(event)

    def works(self, event: CellEvent) -> None:
        if self.last is None:
            self.end = -math.inf
        super().works(event)


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [(SMALL, "1, 8, 8"), pytest.param(RESNET, "3, 32, 32", marks=pytest.mark.slow)],
)
def test_one_cell_from_the_command_line(tmp_path, monkeypatch, capsys, backbone, shape):
    path = write_suite(tmp_path, backbone=backbone, shape=shape, epochs=1)
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = ["--suite", path, "--cell", "0", "--work", work, "--out", out, "--keep", "best"]
    monkeypatch.setattr(sys, "argv", ["cell", *map(str, arguments)])
    assert script.main() == script.DONE
    (stored,) = read_all(out)
    assert stored.record.objective == "standard"
    assert len(stored.rows())
    assert sha256_of(out / stored.record.weights.best.path) == stored.record.weights.best.sha256
    shown = capsys.readouterr()
    assert stored.record.cell in shown.out
    assert "1/1" in shown.out
    assert "epoch 1/1" in shown.err
    assert script.main() == script.DONE
    assert "epoch" not in capsys.readouterr().err, "a finished cell is not done again"


def test_a_cut_training_goes_on_from_its_last_epoch(tmp_path, suite):
    (cell,) = script.choose(suite, cell=(0,), objective=None, head=None, seed=None)
    work = tmp_path / "work"
    assert not script.work_through([cell], suite, work, _EndsIn(2), reserve=0)
    assert epochs_saved(work, cell.config) == 1
    assert not script.work_through([cell], suite, work, _EndsIn(None), reserve=0)
    assert epochs_saved(work, cell.config) == 3
    assert not read_all(work)
    assert script.work_through([cell], suite, work, _EndsIn(7), reserve=0)
    assert len(read_all(work)) == 1


def test_a_trained_cell_waits_where_less_than_the_reserve_is_left(tmp_path, suite):
    cells, work = [suite.cells[0]], tmp_path / "work"
    assert not script.work_through(cells, suite, work, script.Clock(1e6), reserve=1e7)
    assert epochs_saved(work, cells[0].config) == 3
    assert not read_all(work)
    assert "3/3" in script.progress(cells, work)


def test_a_clock_stops_between_epochs_where_the_next_would_not_fit():
    clock = script.Clock(1e6)
    clock.trains(TrainEvent(1, 9, 1, 90))
    clock.trains(TrainEvent(2, 9, 11, 90))
    clock._longest = 1e7
    clock.trains(TrainEvent(2, 9, 15, 90))
    with pytest.raises(script.TimeUpError):
        clock.trains(TrainEvent(3, 9, 21, 90))
    clock.start()
    clock.trains(TrainEvent(1, 9, 1, 90))
    clock.works(CellEvent("cell", 0.5, "attack"))
    clock.end = -math.inf
    for report in (
        lambda: clock.trains(TrainEvent(1, 9, 2, 90)),
        lambda: clock.works(CellEvent("cell", 0.6, "attack")),
    ):
        with pytest.raises(script.TimeUpError):
            report()


def test_cells_are_chosen_by_place_and_by_what_they_are(suite):
    def chosen(cell=(), objective=None, head=None, seed=None):
        found = script.choose(suite, cell=cell, objective=objective, head=head, seed=seed)
        return [suite.cells.index(one) for one in found]

    assert chosen() == list(range(8))
    assert chosen(cell=(3, 1)) == [3, 1]
    assert chosen(objective="pgd", seed=1) == [5, 7]
    assert chosen(head="etf", objective="standard") == [2, 3]
    for wrong in ({"cell": (8,)}, {"cell": (-1,)}, {"objective": "trades"}, {"seed": 5}):
        with pytest.raises(ConfigError):
            chosen(**wrong)


def test_a_mistake_is_one_sentence_and_a_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cell", "--suite", "cifar10-linf", "--cell", "99"])
    assert script.main() == script.BAD_INPUT
    assert "found 99" in capsys.readouterr().err


def test_all_checkpoints_go_on_elsewhere(tmp_path, suite):
    cells, work, out = [suite.cells[5]], tmp_path / "work", tmp_path / "out"
    assert not script.work_through(cells, suite, work, _EndsIn(3), reserve=0)
    script.bring(cells, work, out, keep="all", evidence=frozenset())
    assert epochs_saved(out, cells[0].config) == 2
    assert script.work_through(cells, suite, out, script.Clock(math.inf), reserve=0)
    assert read_all(out)[0].record.objective == "pgd"


def test_evidence_comes_of_one_cell_of_each_model_first(suite):
    def places(count):
        found = script.with_evidence(suite, count)
        return [place for place, cell in enumerate(suite.cells) if cell.id in found]

    assert (places(None), places(0)) == (list(range(8)), [])
    assert places(4) == [0, 2, 4, 6]
    assert places(5) == [0, 1, 2, 4, 6]
    with pytest.raises(ConfigError, match="--evidence must be at least 0, found -1"):
        script.with_evidence(suite, -1)


@pytest.mark.parametrize("count", [0, 1])
def test_evidence_that_was_left_behind_is_named_in_one_sentence(tmp_path, suite, count):
    cells, work, out = [suite.cells[0]], tmp_path / "work", tmp_path / "out"
    assert script.work_through(cells, suite, work, script.Clock(math.inf), reserve=0)
    evidence = script.with_evidence(suite, count)
    script.bring(cells, work, out, keep="records", evidence=evidence)
    (stored,) = read_all(out)
    assert stored.record.evidence is not None
    assert stored.path.with_suffix(".evidence").is_file() == bool(count)
    found = check_evidence(stored, examples=None, model=None)
    assert not found.wrong
    digest = f"SHA-256 {stored.record.evidence.sha256[:16]}"
    missing = [reason for reason in found.unchecked if "is not beside it" in reason]
    assert len(missing) == 1 - count
    assert all(digest in reason for reason in missing)
