"""`data.classes`: some classes of a data set, from reading to a record that is verified."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runner import cli, records, write_suite
from PIL import Image

from robust_nc import RunConfig, load_dataset
from robust_nc.config import cell_id, identifying, training_id
from robust_nc.data.hierarchy.tree import Hierarchy, parse, read_hierarchy, tree_of
from robust_nc.data.load import dataset_info, open_dataset, read_split, read_spread
from robust_nc.exceptions import ConfigError, InputError, RecordError
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import check_cell, gather_inputs
from robust_nc.pipeline.suite import read_suite
from robust_nc.planning.cell_sizes import CellSizer
from robust_nc.profiling.measurement import Examples
from robust_nc.record.folder import read_all
from robust_nc.record.schema import data_name
from robust_nc.runtime.progress import no_report
from robust_nc.training.run import check_training
from robust_nc.verification.originals import data_of

CLASSES = (7, 1, 4)


def data(**options: Any) -> Any:
    return RunConfig(data={"classes": list(CLASSES), **options}).data


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_of_the_classes_are_left_in_their_order(split: str) -> None:
    whole, some = read_split("digits", split), read_split(data(), split)
    kept = [row for row, label in enumerate(whole.labels.tolist()) if label in CLASSES]
    assert torch.equal(some.images, whole.images[kept])
    assert [CLASSES[label] for label in some.labels] == whole.labels[kept].tolist()
    assert some.ids.tolist() == list(range(len(kept)))
    info = dataset_info(data())
    assert (info.name, info.num_classes, info.class_names) == ("digits", 3, ("7", "1", "4"))
    assert info.sizes[split] == len(kept)
    few = read_split(data(), split, limit=5)
    assert torch.equal(few.images, some.images[:5])
    images, labels = load_dataset(data(), split=split, limit=5)
    assert torch.equal(labels, some.labels[:5])
    assert len(images) == 5
    with pytest.raises(InputError, match=rf"limit of {split} must be in 1..{len(kept)}"):
        read_split(data(), split, limit=len(kept) + 1)


def test_of_a_folder_only_the_images_of_the_classes_are_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee", "cow")):
            for number in range(4):
                path = tmp_path / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), 10 * label + number, np.uint8)).save(path)
            if name == "bee":
                (tmp_path / split / name / "9.png").write_bytes(b"no image")
    folder = {"name": "folder", "path": str(tmp_path), "size": 8}
    taken = data(dataset=folder, classes=[2, 0])
    assert dataset_info(taken).class_names == ("cow", "ant")
    found = read_split(taken, "test")
    assert found.labels.bincount().tolist() == [4, 4]
    assert (found.images[:, 0, 0, 0] // 10).tolist() == [2 - 2 * one for one in found.labels]
    spread = read_spread(taken, "test", 2)
    assert spread.ids.tolist() == [0, 4]
    assert torch.equal(spread.images, found.images[[0, 4]])


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ([0], "data.classes: input should be two classes or more, each named once, found [0]"),
        (
            [0, 0],
            "data.classes: input should be two classes or more, each named once, found [0, 0]",
        ),
        ([0, -1], "data.classes.1: input should be greater than or equal to 0"),
        ([0, 1.5], "data.classes.1: input should be a valid integer"),
        ("cats", "data.classes: input should be a valid array"),
    ],
)
def test_what_are_no_classes_is_refused(classes: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(data={"classes": classes})
    assert sentence in str(error.value)


def test_a_class_that_the_data_have_not_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = write_suite(tmp_path, "")
    ran = cli("run", path, "--set", "data.classes=[0, 12]", "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert "data.classes: digits has the classes 0 to 9, found 12" in ran.err


def test_names_of_cells_and_weights_are_what_they_were() -> None:
    plain, some = RunConfig(), RunConfig(data={"classes": [0, 1]})
    assert "classes" not in identifying(plain)["data"]
    assert identifying(some)["data"]["classes"] == [0, 1]
    ids = {(cell_id(each), training_id(each)) for each in (plain, some)}
    assert len(ids) == 2
    other = RunConfig(data={"classes": [1, 0]})
    assert training_id(other) != training_id(some), "labels are others"


def test_a_tree_is_cut_as_the_data_are() -> None:
    tree = read_hierarchy("cifar10")
    cut = tree_of(None, "cifar10", (3, 8, 5))
    assert cut is not None
    assert cut.classes == ("cat", "ship", "dog")
    assert torch.equal(cut.distances(), tree.distances()[[3, 8, 5]][:, [3, 8, 5]])
    parsed = parse('{"groups": [[0], [0], [1], [1]]}', "own.json")
    numbered = Hierarchy("own", parsed.classes, parsed.groups)
    numbered.cut((3, 0)).check_classes(("owl", "ant"))
    with pytest.raises(InputError, match=r"has 4 classes, and data.classes names 4"):
        numbered.cut((4, 0))
    with pytest.raises(ConfigError, match="is there more than once"):
        read_hierarchy('{"classes": ["a", "a"], "tree": ["a"]}')


def test_a_head_of_the_tree_gets_the_cut_one() -> None:
    config = RunConfig(data={"classes": [7, 1, 4]}, model={"head": "haframe"})
    model = check_training(config, dataset_info(config.data))
    assert model.num_classes == 3
    tree = check_cell(config, None)
    assert tree is not None
    assert tree.num_classes == 3


ALL = """
[grid]
"data.classes" = [[7, 1, 4]]
"""


def test_a_subset_is_trained_with_noise_and_tail_recorded_and_verified(tmp_path: Path) -> None:
    path, out = write_suite(tmp_path, ALL), tmp_path / "out"
    changes = {
        "data.noise": {"name": "pair", "rate": 0.3, "pairs": [1, 2, 0]},
        "data.imbalance": {"name": "step", "factor": 2.0},
        "model.head": "haframe",
        "measure.targets": ["hierarchy", "cyclic"],
        "measure.corruptions": ["contrast"],
        "measure.severities": [1],
        "data.train_limit": 90,
    }
    (cell,) = read_suite(str(path), changes).cells
    sizes = CellSizer(None).sizes(cell.config)
    assert (sizes.info.num_classes, sizes.learnt + sizes.held_out < 91) == (3, True)
    run_cell(cell, "tiny", out, None, report=no_report)
    (record,) = records(out).values()
    assert record.config["data"]["classes"] == [7, 1, 4]
    assert (record.data.num_classes, record.data.class_names) == (3, ("7", "1", "4"))
    assert record.data.which == "the first 40 of test in the official order, of the classes 7, 1, 4"
    assert data_name(record) == "digits (classes 7, 1, 4)"
    (stored,) = read_all(out)
    ran = cli("verify", stored.path, "--model", out / "checkpoints" / training_id(cell.config))
    assert ran.code == 0, ran.out + ran.err
    assert "40 of digits (classes 7, 1, 4)" in ran.out
    table = {**record.config, "data": {**record.config["data"], "classes": [0, "x"]}}
    with pytest.raises(RecordError, match=r"classes\.1"):
        data_of(table)
    assert cli("board", out).code == 0


def test_stored_corruptions_are_those_of_the_classes(tmp_path: Path) -> None:
    folder = tmp_path / "digits-c"
    folder.mkdir()
    whole = read_split("digits", "test")
    images = (255 * whole.images).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.save(folder / "fog.npy", np.concatenate([images] * 5))
    np.save(folder / "labels.npy", np.concatenate([whole.labels.numpy()] * 5))
    config = RunConfig(
        data={"classes": list(CLASSES)}, measure={"corruptions": ["fog"], "severities": [2]}
    )
    given = gather_inputs(config, tmp_path)
    assert given.corrupted is not None
    test = given.test
    examples = Examples("test", test.images, test.labels, test.ids).part(slice(3, 9))
    found = given.corrupted.images("fog", 2, examples)
    assert torch.allclose(found, examples.images, atol=1 / 255)
    assert open_dataset(config.data).info(tmp_path).sizes["test"] == len(test.labels)
