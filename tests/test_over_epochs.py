"""`measure.every` and `train.keep_every`: the geometry over training, of weights that were kept."""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from robust_nc.config import RunConfig, kept_epochs, measured_epochs, training_id
from robust_nc.data.load import dataset_info
from robust_nc.exceptions import CheckpointError, ConfigError
from robust_nc.models.build import build_model
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import (
    check_cell,
    checkpoints_of,
    gather_inputs,
    geometry_of,
    measure_stage,
)
from robust_nc.pipeline.suite import read_suite
from robust_nc.planning.cell_sizes import CellSizer
from robust_nc.planning.pieces import cell_pieces, expected
from robust_nc.profiling.profile_model import measured_at_epochs, profile_cell
from robust_nc.record import folder as store
from robust_nc.record.folder import read_all
from robust_nc.report import figures
from robust_nc.report.board.gather import gather_rows
from robust_nc.runtime.progress import no_report
from robust_nc.training.checkpoint import find_epoch, read_tensors
from robust_nc.training.run import load_classifier, resolve_model, training_data
from robust_nc.training.state import load_weights

SUITE = """
name = "epochs"
[base.data]
dataset = "digits"
train_limit = 150
test_limit = 40
[base.model]
backbone = { name = "small_cnn", width = 4 }
[base.train]
epochs = 3
batch_size = 50
[base.threat]
eps = 0.1
[base.evaluation]
protocol = "fgsm"
examples = 20
[base.measure]
train_examples = 100
test_examples = 40
steps = 2
targets = ["cyclic", "random"]
radii = [1.0]
trajectories = 2
"""


def cell_of(folder: Path, more: str):
    (folder / "epochs.toml").write_text(SUITE + more)
    (cell,) = read_suite(str(folder / "epochs.toml")).cells
    return cell


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs")
    cell = cell_of(folder, "every = 2\nagop_examples = 8\n")
    run_cell(cell, "epochs", folder / "out", None, report=no_report)
    return cell, folder / "out", gather_rows(read_all(folder / "out"))


def test_which_epochs_are_measured_and_kept() -> None:
    def config(every, keep=None):
        return RunConfig(train={"epochs": 9, "keep_every": keep}, measure={"every": every})

    assert measured_epochs(config(4)) == (4, 8, 9)
    assert measured_epochs(config([2, 9, 2])) == (2, 9)
    assert measured_epochs(config(None)) == kept_epochs(config(None)) == ()
    assert kept_epochs(config([2], keep=3)) == (2, 3, 6)
    plain = training_id(config(None))
    assert len({plain, training_id(config(4)), training_id(config(None, keep=3))}) == 3
    assert training_id(config([4, 8])) == training_id(config(4))
    for every, told in ((10, None), ([3, 10], "epoch 10, and train.epochs is 9")):
        if told is None:
            assert measured_epochs(config(every)) == (9,)
        else:
            with pytest.raises(ConfigError, match=told):
                check_cell(config(every), None)
    with pytest.raises(ConfigError, match=r"train.epochs is 0"):
        measured_epochs(dataclasses.replace(config(1), train={"epochs": 0}))


def test_rows_of_an_epoch_are_those_of_its_weights(made) -> None:
    cell, out, rows = made
    layers = rows["measure"].str.startswith(("nfm", "agop", "svd"))
    found = rows[rows["epoch"].ge(0) & (rows["feature"].eq("gap") | layers)]
    assert set(found["epoch"]) == {2, 3}
    for name in ("nfm_agop_root", "nfm_agop_root_centred"):
        of_layers = found[found["measure"] == name]
        assert set(of_layers["condition"]) == {"clean", "attacked"}
        assert of_layers.groupby("epoch").size().tolist() == [10, 10], "five layers, twice"
    assert set(found["condition"]) == {"clean", "attacked", "cyclic", "gaussian", "sign"}
    assert set(found["split"]) == {"train", "test"}
    assert {"nc1", "leap_rate", "ncc", "alignment_angle"} <= set(found["measure"])
    folder = checkpoints_of(cell, out)
    model = load_classifier(folder, which="last")
    load_weights(model, read_tensors(folder, find_epoch(folder, 2)))
    altered, _ = training_data(cell.config, dataset_info("digits"), None)
    given = gather_inputs(cell.config, None)
    shapes = resolve_model(cell.config.model, dataset_info("digits"))
    wanted = profile_cell(
        model.eval(),
        altered.split,
        given.test,
        dataclasses.replace(cell.config, measure=measured_at_epochs(cell.config.measure)),
        distances=given.distances,
        initial=build_model(shapes, seed=cell.config.seed),
        report=no_report,
    )
    wanted = wanted[(wanted["i"] == -1) & (wanted["j"] == -1)]
    columns = ["tap", "condition", "split", "grouping", "measure", "value"]
    pd.testing.assert_frame_equal(
        found[found["epoch"] == 2][columns].reset_index(drop=True),
        wanted[columns].reset_index(drop=True),
        rtol=1e-6,
    )


def test_the_last_epoch_reads_as_the_finished_weights_and_curves_stay_apart(made) -> None:
    _, _, rows = made
    where = {"tap": "penultimate", "measure": "nc1_trace", "split": "train", "grouping": "true"}
    clean = rows[(rows[list(where)] == pd.Series(where)).all(axis=1) & (rows.condition == "clean")]
    last = clean[(clean.epoch == 3) & (clean.feature == "gap")]["value"].item()
    assert last == clean[clean.epoch == -1]["value"].item()
    assert clean[clean.feature == ""]["epoch"].tolist() == [1, 2, 3]


def test_keeping_weights_changes_none(made, tmp_path: Path) -> None:
    cell, out, _ = made
    bare = cell_of(tmp_path, "")
    run_cell(bare, "epochs", tmp_path / "out", None, report=no_report)
    kept, plain = (
        load_classifier(checkpoints_of(one, place), which="last").state_dict()
        for one, place in ((cell, out), (bare, tmp_path / "out"))
    )
    assert all(kept[name].equal(plain[name]) for name in plain)
    assert not list(checkpoints_of(bare, tmp_path / "out").glob("epoch*"))


def test_what_was_measured_is_not_measured_again_and_lost_weights_are_told(made, tmp_path) -> None:
    cell, out, _ = made
    place = tmp_path / "out"
    folder = checkpoints_of(cell, place)
    folder.mkdir(parents=True)
    for file in checkpoints_of(cell, out).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    measure_stage(cell, place, None, report=no_report)
    first = store.geometry_path(place, cell.id, 2)
    before = first.stat().st_mtime_ns
    store.geometry_path(place, cell.id, 3).unlink()
    assert geometry_of(cell, place) is None
    measure_stage(cell, place, None, report=no_report)
    assert first.stat().st_mtime_ns == before
    assert geometry_of(cell, place) is not None
    (kept,) = folder.glob("epoch2-*")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="no whole weights of epoch 2; delete it"):
        geometry_of(cell, place)


def test_a_plan_counts_the_epochs(tmp_path: Path) -> None:
    calls = []
    for more in ("", "every = 1\n"):
        sizes = CellSizer(None).sizes(cell_of(tmp_path, more).config)
        pieces = cell_pieces(sizes, expected(sizes.config, []))
        calls.append(sum(piece.calls for piece in pieces if piece.probe.kind == "measure"))
    assert calls == [1, 4]


def test_figures_over_training(made) -> None:
    _, _, rows = made
    for split, figure in (
        ("train", figures.over_epochs(rows)),
        ("test", figures.over_epochs(rows, split="test")),
    ):
        assert len(figure.axes) == len(figures.curves.OVER_EPOCHS)
        clean = rows[
            (rows.measure == "nc1_unscaled")
            & (rows.epoch >= 0)
            & (rows.condition == "clean")
            & (rows.split == split)
            & (rows.grouping == "true")
            & (rows.tap == "penultimate")
        ]
        line = figure.axes[0].lines[0]
        assert list(line.get_xdata()) == [2, 3]
        wanted = clean.sort_values("epoch")["value"].tolist()
        assert list(line.get_ydata()) == pytest.approx(wanted)
        assert f"{split} examples" in figure.caption
    assert figures.collapse_over_epochs(rows).lines[0].get_xdata().tolist() == [1, 2, 3]
    plt.close("all")
