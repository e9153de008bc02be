"""What cannot be trained is refused before anything runs, in one sentence, with exit code 2."""

import json
from pathlib import Path

import pytest
from helpers_runner import Ran, cli

from robust_nc.data.hierarchy.tree import embedded, read_hierarchy
from robust_nc.pipeline.suite import read_suite
from robust_nc.record.folder import read_all
from robust_nc.training.run import load_classifier

SMALL = """
[base.data]
dataset = "digits"
train_limit = 200
[base.model]
backbone = { name = "small_cnn", width = 8 }
[base.evaluation]
protocol = "fgsm"
examples = 20
[base.measure]
train_examples = 60
test_examples = 20
steps = 1
targets = []
radii = []
trajectories = 0
"""


def run(folder: Path, grid: str, *, base: str = SMALL) -> Ran:
    (folder / "own.toml").write_text(f'name = "own"\n{base}\n[grid]\n{grid}')
    return cli("run", folder / "own.toml", "--out", folder / "out", "--workers", 1)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("'train.objective' = ['standard', {name='awp', gamma=-1.0}]", "gamma must be at least 0"),
        ("together = [{'train.objective'='mart', 'train.loss'='mse'}]", "mart brings its own loss"),
        ("'train.objective' = [{name='trades', beta=-1.0}]", "beta must be at least 0, found -1.0"),
        ("'train.objective' = ['deep_rfm']", "set train.epochs = 0, found 20"),
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
        ("together = [{'train.compile'=true, 'model.head'='nearest_etf'}]", "set it to false"),
        ("'data.noise' = [{name='per_class', rates=[0.1, 0.2]}]", "2 entries for 10 classes"),
        ("'model.backbone' = [{name='vit', patch=3}]", "patch must divide both sides"),
        ("'measure.taps' = [['blok1']]", "did you mean 'block1'"),
        ("together = [{'train.backbone_lr'=0.0, 'model.head'='etf'}]", "no parameter is left"),
        ("'evaluation.beside' = ['fgsm']", "evaluation.beside and evaluation.protocol are both"),
        ("'measure.severities' = [[]]", "should have at least 1 item"),
        ("together = [{'model.head'='etf'}]\n'model.head' = ['linear']", "both set 'model.head'"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(tmp_path: Path, grid: str, sentence: str) -> None:
    ran = run(tmp_path, grid)
    assert ran.code == 2
    assert sentence in ran.err
    assert ran.err.strip().splitlines()[-1].startswith("robust-nc: ")
    assert "Traceback" not in ran.err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_data_set_without_a_tree_says_what_to_set(tmp_path: Path) -> None:
    base = SMALL.replace('"digits"', '"synthetic"')
    for grid in ("'model.head' = ['haframe']", "'measure.targets' = [['severest']]"):
        ran = run(tmp_path, grid, base=base)
        assert ran.code == 2
        assert "set data.hierarchy to a TOML or JSON file" in ran.err


def test_bad_corruptions_end_a_cell_before_its_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROBUST_NC_DATA", str(tmp_path))
    (tmp_path / "digits-c").mkdir()
    (tmp_path / "digits-c" / "fog.npy").write_bytes(b"half a file")
    ran = run(tmp_path, "'measure.corruptions' = [['fog']]")
    assert ran.code == 1
    assert "failed: " in ran.err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


PARITY = {str(k): "even" if k % 2 == 0 else "odd" for k in range(10)}


class TestATreeOfOnesOwn:
    def write(self, folder: Path, tree: dict[str, str]) -> str:
        groups = {name: [k for k in tree if tree[k] == name] for name in set(tree.values())}
        path = folder / "mine.json"
        path.write_text(json.dumps({"classes": sorted(tree), "tree": groups}))
        return str(path)

    def test_it_is_part_of_the_cell(self, tmp_path: Path) -> None:
        """Another tree under the same path is another cell; the weights need the file no longer."""
        path = self.write(tmp_path, PARITY)
        base = SMALL.replace(
            "[base.model]", f'hierarchy = "{path}"\n[base.train]\nepochs = 0\n[base.model]'
        )
        grid = "'model.head' = ['haframe']"
        assert run(tmp_path, grid, base=base).code == 0
        (cell,) = read_suite(str(tmp_path / "own.toml")).cells
        self.write(tmp_path, {**PARITY, "0": "odd"})
        (other,) = read_suite(str(tmp_path / "own.toml")).cells
        assert cell.id != other.id
        (tmp_path / "mine.json").unlink()
        (folder,) = (tmp_path / "out" / "checkpoints").iterdir()
        frame = load_classifier(folder).head.frame()
        assert frame is not None
        cosines = frame @ frame.T
        assert cosines[0, 2] > cosines[0, 1] + 0.1
        (stored,) = read_all(tmp_path / "out")
        assert (stored.rows()["measure"] == "hd_1").any()

    def test_an_embedded_tree_is_the_tree(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, PARITY)
        text = embedded(path)
        assert embedded(text) == text
        assert embedded("digits") == "digits"
        again, first = read_hierarchy(text), read_hierarchy(path)
        assert (again.classes, again.groups) == (first.classes, first.groups)
