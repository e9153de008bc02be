"""Whatever is wrong: one clear sentence, an exit code that is not zero, and nothing is lost.

What a user of the command line can meet is tried through the command line. What cannot be trained
is refused before anything runs.
"""

import fcntl
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import helpers_report
import numpy as np
import pytest
import torch
from helpers_faults import one_process
from helpers_models import small_model
from helpers_runner import Ran, cli, records, tiny, write_suite

from robust_nc.data.hierarchy.tree import embedded, read_hierarchy
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import RobustNCError, StorageError
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import read_suite
from robust_nc.record import Stored
from robust_nc.record.folder import read_all
from robust_nc.runtime.progress import no_report
from robust_nc.threat import Ball
from robust_nc.training.progress import append_log
from robust_nc.training.run import load_classifier


def assert_one_sentence(ran: Ran, sentence: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    assert sentence in ran.err
    assert ran.err.startswith("robust-nc: ")
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err


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


class TestBoard:
    @pytest.mark.parametrize(
        ("damage", "sentence"),
        [
            (lambda text: text[: len(text) // 2], "is not JSON"),
            (lambda text: "", "is not JSON"),
            (lambda text: "{}", "schema version None"),
            (lambda text: json.dumps(json.loads(text) | {"schema_version": 99}), "version 99"),
            (lambda text: json.dumps(json.loads(text) | {"extra": 1}), "unknown key 'extra'"),
            (lambda text: json.dumps(json.loads(text) | {"seed": "0"}), "seed"),
        ],
    )
    def test_a_damaged_record_is_named(self, tmp_path, damage, sentence):
        written: list[Stored] = helpers_report.write_grid(
            tmp_path, objectives=("pgd",), heads=("etf",), seeds=2
        )
        path = written[0].path
        path.write_text(damage(path.read_text()))
        ran = cli("board", tmp_path)
        assert_one_sentence(ran, sentence)
        assert path.name in ran.err


class Faulty(NamedTuple):
    """A run of a suite in which some cells fail."""

    out: Path
    ran: Ran

    def sentence(self, word: str) -> str:
        """Return why the cell failed that has a word in its name."""
        found = re.findall(
            rf"^\[\d+/\d+\] (\S*{word}\S* seed \d, cell \d+ failed: .*)$", self.ran.err, re.M
        )
        assert len(found) == 1, self.ran.err
        return str(found[0])


def npz(folder: Path, name: str, **changed: Any) -> dict[str, str]:
    draws = np.random.default_rng(0)
    labels = np.arange(60) % 3
    arrays = {
        "x_train": draws.random((60, 6, 6), np.float32),
        "y_train": labels,
        "x_test": draws.random((30, 6, 6), np.float32),
        "y_test": labels[:30],
    }
    np.savez(folder / f"{name}.npz", **{**arrays, **changed})
    return {"name": "npz", "path": f"{name}.npz"}


PIXELS = np.random.default_rng(1).random((60, 6, 6), np.float32)
LABELS = np.arange(60) % 3
NAN = np.where(np.arange(60)[:, None, None] == 7, np.float32("nan"), PIXELS)
# What is wrong with the training data: changed arrays, and what is said.
BAD_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "bytes": ({"x_train": PIXELS * 255}, "divide by 255"),
    "normalised": ({"x_train": PIXELS - 0.5}, "normalisation belongs inside the classifier"),
    "nan": ({"x_train": NAN}, "must be finite"),
    "integers": ({"x_train": (PIXELS * 255).astype(np.int64)}, "images.float() / 255"),
    "shape": ({"x_train": PIXELS.reshape(60, 36)}, "3 or 4 axes"),
    "channels": ({"x_train": np.zeros((60, 5, 6, 4), np.uint8)}, "neither axis 1 nor 3"),
    "fewer-labels": ({"y_train": LABELS[:50]}, "50 y_train"),
    "negative": ({"y_train": LABELS - 1}, "found -1"),
    "fractions": ({"y_train": LABELS + 0.5}, "whole numbers"),
    "one-hot": ({"y_train": np.eye(3)[LABELS]}, "one-hot"),
    "one-class": ({"y_train": LABELS * 0, "y_test": np.zeros(30, np.int64)}, "class"),
    "few": ({"x_train": PIXELS[:2], "y_train": LABELS[:2]}, "use more examples"),
}


@pytest.fixture(scope="module")
def bad_data(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    """One cell per kind of bad data; the first and the last are good (one with an empty class)."""
    folder = tmp_path_factory.mktemp("data")
    gap = np.where(LABELS == 1, 3, LABELS)
    parts: list[Any] = [{"name": "synthetic", "train_size": 80, "test_size": 40}, "cifar10"]
    parts += [npz(folder, name, **changed) for name, (changed, _) in BAD_DATA.items()]
    parts += [{"name": "npz", "path": "absent.npz"}, {"name": "npz", "path": "torn.npz"}]
    parts += [npz(folder, "empty-class", y_train=gap, y_test=gap[:30])]
    (folder / "torn.npz").write_bytes((folder / "nan.npz").read_bytes()[:900])
    grid = f"[grid]\n'data.dataset' = [{', '.join(map(as_toml, parts))}]\n"
    text = write_suite(folder, grid).read_text()
    text = re.sub(r"(train|test)_limit.*\n", "", text).replace("epochs = 2", "epochs = 1")
    (folder / "tiny.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ROBUST_NC_DATA", str(folder / "nothing"))
        with one_process():
            ran = cli("run", "tiny.toml", "--out", "out", "--workers", 1)
    return Faulty(folder / "out", ran)


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


class TestBadData:
    def test_what_is_good_is_made_and_the_exit_code_says_that_not_all_is(self, bad_data):
        bad = len(BAD_DATA) + 3
        assert bad_data.ran.code == 1
        lines = bad_data.ran.err.splitlines()
        assert lines[-2] == f"2 cells made, 0 kept, {bad} failed"
        assert lines[-1].startswith("try the failed cells again with: robust-nc run tiny.toml ")
        assert len(lines) == bad + 2 + 3  # one line per cell, and the first and last two
        assert {record.data.dataset for record in records(bad_data.out).values()} == {
            "synthetic",
            "npz",
        }

    @pytest.mark.parametrize("name", BAD_DATA)
    def test_bad_arrays_get_one_sentence(self, bad_data, name):
        sentence = bad_data.sentence(rf"path={name}\.npz")
        assert BAD_DATA[name][1] in sentence
        assert "unexpected" not in sentence

    def test_data_that_are_not_there_are_said_how_to_get(self, bad_data):
        assert "robust-nc data fetch cifar10" in bad_data.sentence("cifar10")
        assert "absent.npz is not there" in bad_data.sentence("absent")
        assert "torn.npz cannot be read" in bad_data.sentence("torn")

    def test_an_empty_class_is_left_out_of_the_measures(self, bad_data):
        (record,) = [r for r in records(bad_data.out).values() if r.data.dataset == "npz"]
        assert record.data.num_classes == 4
        assert record.summary["nc1_clean"] is not None

    def test_bad_data_leave_no_checkpoint(self, bad_data):
        assert len(list((bad_data.out / "checkpoints").rglob("last.json"))) == 2


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
            "leave out train.loss and train.averaging",
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


def test_a_limit_beyond_the_data_is_said_before_training(tmp_path):
    (cell,) = tiny(tmp_path, "[grid]\n'data.test_limit' = [361]\n").cells
    with pytest.raises(RobustNCError, match=r"limit of test must be in 1\.\.360, found 361"):
        run_cell(cell, "tiny", tmp_path / "out", None, report=no_report)
    assert not (tmp_path / "out").exists()


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
