"""Whatever is wrong: one clear sentence, an exit code that is not zero, and nothing is lost.

What a user of the command line can meet is tried through the command line. What cannot be trained
is refused before anything runs.
"""

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import helpers_report
import numpy as np
import pytest
import torch
from helpers_faults import one_process
from helpers_models import small_model
from helpers_runner import Ran, cli, records, write_suite

from robust_nc.data.hierarchy.tree import embedded, read_hierarchy
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import StorageError
from robust_nc.pipeline.suite import read_suite
from robust_nc.record.folder import read_all
from robust_nc.threat import Ball
from robust_nc.training.progress import append_log
from robust_nc.training.run import load_classifier


def assert_one_sentence(ran: Ran, sentence: str) -> None:
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("robust-nc: ")
    assert sentence in ran.err


class TestPlacesThatCannotBeWritten:
    @pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere/out"])
    def test_out(self, tmp_path, place):
        (tmp_path / "file").write_text("kept")
        ran = cli("run", write_suite(tmp_path), "--out", tmp_path / place)
        assert ran.code == 2
        header, sentence = ran.err.splitlines()
        assert header.startswith("tiny: 4 cells into ")
        assert sentence.startswith(f"robust-nc: cannot write to {tmp_path / place}: ")
        assert "--out" in sentence
        assert (tmp_path / "file").read_text() == "kept"

    def test_out_where_another_run_writes(self, tmp_path):
        (tmp_path / "out").mkdir()
        with (tmp_path / "out" / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ran = cli("run", write_suite(tmp_path), "--out", tmp_path / "out")
        assert (ran.code, len(ran.err.splitlines())) == (2, 2)
        assert "another run is writing to" in ran.err

    def test_the_output_of_board(self, tmp_path):
        helpers_report.write_grid(tmp_path, objectives=("pgd",), heads=("etf",), seeds=1)
        (tmp_path / "file").write_text("kept")
        ran = cli("board", tmp_path, "--format", "csv", "--out", tmp_path / "file" / "below")
        assert_one_sentence(ran, "cannot write")
        assert (tmp_path / "file").read_text() == "kept"

    def test_logs(self, tmp_path):
        with pytest.raises(StorageError, match="No space left on device"):
            append_log(Path("/dev/full"), {"epoch": 1})
        images, labels, ball = torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), Ball("Linf", 0.1)
        log = tmp_path / "file" / "log"
        log.parent.write_text("")
        with pytest.raises(StorageError, match="cannot write the log"):
            evaluate(small_model().eval(), images, labels, ball, protocol="clean", log=log)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "{}", "schema version None"),
        (lambda text: json.dumps(json.loads(text) | {"extra": 1}), "unknown key 'extra'"),
    ],
)
def test_a_board_names_a_damaged_record(tmp_path, damage, sentence):
    written = helpers_report.write_grid(tmp_path, objectives=("pgd",), heads=("etf",), seeds=2)
    path = written[0].path
    path.write_text(damage(path.read_text()))
    ran = cli("board", tmp_path)
    assert_one_sentence(ran, sentence)
    assert path.name in ran.err


PIXELS = np.random.default_rng(1).random((60, 6, 6), np.float32)
LABELS = np.arange(60) % 3
GOOD = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:30], "y_test": LABELS[:30]}
NAN = np.where(np.arange(60)[:, None, None] == 7, np.float32("nan"), PIXELS)
GAP = np.where(LABELS == 1, 3, LABELS)  # class 1 has no examples
# What is wrong with the training data: changed arrays, and what is said.
BAD_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "bytes": ({"x_train": PIXELS * 255}, "divide by 255"),
    "nan": ({"x_train": NAN}, "must be finite"),
    "integers": ({"x_train": (PIXELS * 255).astype(np.int64)}, "images.float() / 255"),
    "fractions": ({"y_train": LABELS + 0.5}, "whole numbers"),
    "one-class": ({"y_train": LABELS * 0, "y_test": np.zeros(30, np.int64)}, "class"),
    "few": ({"x_train": PIXELS[:2], "y_train": LABELS[:2]}, "use more examples"),
}
ELSEWHERE = {
    "cifar10": "robust-nc data fetch cifar10",
    "absent.npz": "absent.npz is not there",
    "torn.npz": "torn.npz cannot be read",
}


def test_bad_data_cost_their_own_cells_only(tmp_path, monkeypatch):
    """One cell per kind; the first and the last are good (one with an empty class)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUST_NC_DATA", str(tmp_path / "nothing"))
    for name, (changed, _) in BAD_DATA.items():
        np.savez(f"{name}.npz", **{**GOOD, **changed})
    np.savez("gap.npz", **{**GOOD, "y_train": GAP, "y_test": GAP[:30]})
    Path("torn.npz").write_bytes(Path("nan.npz").read_bytes()[:900])
    files = [*(f"{name}.npz" for name in BAD_DATA), "absent.npz", "torn.npz", "gap.npz"]
    parts = ["{name = 'synthetic', train_size = 80, test_size = 40}", "'cifar10'"]
    parts += [f"{{name = 'npz', path = '{file}'}}" for file in files]
    text = write_suite(tmp_path, f"[grid]\n'data.dataset' = [{', '.join(parts)}]\n").read_text()
    text = re.sub(r"(train|test)_limit.*\n", "", text).replace("epochs = 2", "epochs = 1")
    Path("tiny.toml").write_text(text)
    with one_process():
        ran = cli("run", "tiny.toml", "--out", "out", "--workers", 1)
    assert ran.code == 1
    bad = {f"{name}.npz": said for name, (_, said) in BAD_DATA.items()} | ELSEWHERE
    lines = ran.err.splitlines()
    assert lines[-2] == f"2 cells made, 0 kept, {len(bad)} failed"
    assert lines[-1].startswith("try the failed cells again with: robust-nc run tiny.toml ")
    assert len(lines) == len(bad) + 2 + 3, "one line per cell, and the first and last two"
    for name, said in bad.items():
        (line,) = [
            line for line in lines if " failed: " in line and f"{name} " in line.split(":")[0]
        ]
        assert said in line
        assert "unexpected" not in line
    found = {record.data.dataset: record for record in records(tmp_path / "out").values()}
    assert found.keys() == {"synthetic", "npz"}
    assert found["npz"].data.num_classes == 4
    assert found["npz"].summary["nc1_clean"] is not None, "the empty class is left out"
    assert len(list((tmp_path / "out" / "checkpoints").rglob("last.json"))) == 2


def run(folder: Path, grid: str) -> Ran:
    suite = write_suite(folder, f"[grid]\n{grid}\n")
    with one_process():
        return cli("run", suite, "--out", folder / "out", "--workers", 1)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("'train.objective' = ['standard', {name='awp', gamma=-1.0}]", "gamma must be at least 0"),
        ("together = [{'train.objective'='mart', 'train.loss'='mse'}]", "mart brings its own loss"),
        ("'train.objective' = [{name='trades', beta=-1.0}]", "beta must be at least 0, found -1.0"),
        ("'train.objective' = ['deep_rfm']", "set train.epochs = 0, found 2"),
        (
            "together = [{'train.objective'='deep_rfm', 'train.epochs'=0}]",
            "fits the backbone 'deep_rfm', found 'small_cnn'",
        ),
        (
            "together = [{'train.objective'='deep_rfm','train.epochs'=0,'train.averaging'='ema'}]",
            "leave out train.averaging",
        ),
        (
            "together = [{'train.objective'='deep_rfm','train.epochs'=0,'train.stream'=true}]",
            "leave out train.stream",
        ),
        ("'model.head' = [{name='nearest_etf', momentum=2.0}]", "momentum must be at least 0"),
        ("'model.head' = [{name='haframe', gamma=-1.0}]", "gamma must be finite and above 0"),
        ("'model.head' = [{name='haframe', hierarchy='cifar10'}]", "has other classes than"),
        ("'data.hierarchy' = ['cifar10']", "0 is 'airplane', not '0'"),
        ("'train.loss' = ['haframe']", "reads the head's fixed frame, and LinearHead has none"),
        ("together = [{'train.compile'=true, 'train.loss'='dot_regression'}]", "set it to false"),
        ("'data.noise' = [{name='per_class', rates=[0.1, 0.2]}]", "2 entries for 10 classes"),
        ("'model.backbone' = [{name='vit', patch=3}]", "patch must divide both sides"),
        ("'measure.taps' = [['blok1']]", "did you mean 'block1'"),
        ("together = [{'train.backbone_lr'=0.0, 'model.head'='etf'}]", "no parameter is left"),
        ("'evaluation.beside' = ['fgsm']", "evaluation.beside and evaluation.protocol are both"),
        ("together = [{'model.head'='etf'}]\n'model.head' = ['linear']", "both set 'model.head'"),
        ("'model.num_classes' = [7]", "model.num_classes is 7, but digits has 10"),
        *(
            (f"'data.dataset' = ['synthetic']\n{part}", "set data.hierarchy to a TOML or JSON file")
            for part in ("'model.head' = ['haframe']", "'measure.targets' = [['severest']]")
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_first(tmp_path: Path, grid: str, sentence: str) -> None:
    ran = run(tmp_path, grid)
    assert ran.code == 2
    assert sentence in ran.err
    assert ran.err.strip().splitlines()[-1].startswith("robust-nc: ")
    assert "Traceback" not in ran.err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_bad_corruptions_end_a_cell_before_its_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROBUST_NC_DATA", str(tmp_path))
    (tmp_path / "digits-c").mkdir()
    (tmp_path / "digits-c" / "fog.npy").write_bytes(b"half a file")
    ran = run(tmp_path, "'measure.corruptions' = [['fog']]")
    assert ran.code == 1
    assert "failed: " in ran.err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_tree_of_ones_own_is_part_of_the_cell(tmp_path: Path) -> None:
    """Another tree under the same path is another cell; the weights need the file no longer."""
    path = tmp_path / "mine.json"

    def write(even: str, odd: str) -> None:
        tree = {"even": list(even), "odd": list(odd)}
        path.write_text(json.dumps({"classes": list("0123456789"), "tree": tree}))

    write("02468", "13579")
    text = embedded(str(path))
    assert embedded(text) == text
    assert embedded("digits") == "digits"
    again, first = read_hierarchy(text), read_hierarchy(str(path))
    assert (again.classes, again.groups) == (first.classes, first.groups)
    grid = f"'data.hierarchy' = ['{path}']\n'train.epochs' = [0]\n'model.head' = ['haframe']"
    assert run(tmp_path, grid).code == 0
    (cell,) = read_suite(str(tmp_path / "tiny.toml")).cells
    write("2468", "013579")
    (other,) = read_suite(str(tmp_path / "tiny.toml")).cells
    assert cell.id != other.id
    path.unlink()
    (folder,) = (tmp_path / "out" / "checkpoints").iterdir()
    frame = load_classifier(folder).head.frame()
    assert frame is not None
    cosines = frame @ frame.T
    assert cosines[0, 2] > cosines[0, 1] + 0.1
    (stored,) = read_all(tmp_path / "out")
    assert (stored.rows()["measure"] == "hd_1").any()
