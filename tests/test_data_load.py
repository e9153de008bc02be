from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import random_split, write_cifar

from robust_nc.data.base import Split
from robust_nc.data.load import (
    data_root,
    dataset_info,
    fingerprint,
    list_datasets,
    load_dataset,
    read_split,
    to_unit,
)
from robust_nc.data.synthetic import Synthetic
from robust_nc.exceptions import ConfigError, DataError, InputError
from robust_nc.registry import DATASETS


def test_digits_are_scikit_learns_in_order_and_scaled() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    train, test = (read_split("digits", split) for split in ("train", "test"))
    fifth = np.arange(len(labels)) % 5 == 0
    for part, chosen in ((train, ~fifth), (test, fifth)):
        assert part.labels.tolist() == labels[chosen].tolist()
        wanted = torch.from_numpy(pixels[chosen]).float()
        assert torch.equal(part.images.flatten(1) * 16, wanted)
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert test.ids.tolist() == list(range(360))


@pytest.mark.parametrize("name", ["digits", "synthetic"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_loading_keeps_the_contract(name: str, split: str) -> None:
    info = dataset_info(name)
    images, labels = load_dataset(name, split=split)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.shape == (info.sizes[split], *info.image_shape)
    assert len(labels) == info.sizes[split]
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(labels.tolist()) == set(range(info.num_classes))
    assert len(info.class_names) == info.num_classes


def test_a_limit_takes_the_first_examples() -> None:
    every, labels = load_dataset("digits", split="train")
    images, first = load_dataset("digits", split="train", limit=7)
    assert torch.equal(images, every[:7])
    assert torch.equal(first, labels[:7])
    assert len(load_dataset("digits", limit=360)[1]) == 360


@pytest.mark.parametrize("limit", [0, 361, 1.5, True])
def test_a_limit_beyond_the_data_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=r"limit of test must be in 1\.\.360, found|whole number"):
        load_dataset("digits", limit=limit)


def test_unknown_names_splits_and_options_are_answered_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_dataset("digit")
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        load_dataset("digits", split="tests")
    with pytest.raises(ConfigError, match=r"no option 'nois'.*did you mean 'noise'"):
        load_dataset({"name": "synthetic", "nois": 1.0})
    with pytest.raises(ConfigError, match="needs the option 'path'"):
        load_dataset("npz")


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "fashion_mnist", "imagenette", "mnist", "svhn"]
)
def test_missing_data_are_not_downloaded_but_explained(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"robust-nc data fetch {name}") as caught:
        load_dataset(name, root=tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_root_is_the_argument_then_the_environment_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ROBUST_NC_DATA", str(tmp_path / "set"))
    assert data_root(tmp_path) == tmp_path
    assert data_root() == tmp_path / "set"
    monkeypatch.delenv("ROBUST_NC_DATA")
    assert data_root() == Path.home() / ".cache" / "robust_nc"


def test_bytes_become_unit_floats_and_floats_stay() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    expected = torch.tensor([level / 255 for level in range(256)], dtype=torch.float32)
    assert torch.equal(to_unit(levels), expected)
    assert torch.equal(to_unit(expected), expected)


def test_a_fingerprint_sees_every_part() -> None:
    split = random_split(5)
    touched = [split.images.clone(), split.labels.clone(), split.ids.clone()]
    touched[0][3, 1, 2, 2] ^= 1
    touched[1][4] += 1
    touched[2][0] += 9
    others = [
        Split(touched[0], split.labels, split.ids),
        Split(split.images, touched[1], split.ids),
        Split(split.images, split.labels, touched[2]),
        split._replace(images=split.images.view(5, 8, 3, 8)),
        split._replace(images=split.images.view(torch.int8)),
        split.at(torch.tensor([1, 0, 2, 3, 4])),
    ]
    prints = {fingerprint(part) for part in [split, *others]}
    assert len(prints) == 7
    assert fingerprint(split) == fingerprint(split.at(torch.arange(5)))


def test_the_list_names_every_data_set_and_what_is_there(tmp_path: Path) -> None:
    listed = {line.name: line for line in list_datasets(tmp_path)}
    assert tuple(listed) == DATASETS.names()
    assert listed["digits"].present
    assert listed["digits"].train == 1437
    assert not listed["cifar10"].present
    assert listed["cifar10"].how == "robust-nc data fetch cifar10"
    assert listed["npz"].num_classes is None
    assert "path" in listed["npz"].how


def test_the_list_tells_of_files_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    write_cifar(folder)
    for number in (3, 4, 5):
        (folder / f"data_batch_{number}.bin").write_bytes(b"not read")
    listed = {line.name: line for line in list_datasets(tmp_path)}
    assert listed["cifar10"].present
    assert str(folder) in listed["cifar10"].how


def test_synthetic_means_are_a_simplex_and_draws_are_around_them() -> None:
    made = Synthetic(num_classes=4, image_shape=(1, 5, 5), train_size=4_000, noise=0.05)
    means = made.means()
    centred = means - 0.5
    cosines = torch.nn.functional.normalize(centred) @ torch.nn.functional.normalize(centred).T
    expected = torch.full((4, 4), -1 / 3, dtype=torch.float64).fill_diagonal_(1)
    assert torch.allclose(cosines, expected, atol=1e-12)
    assert means.min() >= 0.25
    assert means.max() <= 0.75
    split = made.read("train", Path())
    for label in range(4):
        around = split.images[split.labels == label].flatten(1).double() - means[label]
        assert float(around.mean(0).abs().max()) < 0.01
        assert abs(float(around.std()) - 0.05) < 0.002


def test_synthetic_draws_follow_seed_and_split() -> None:
    made = [Synthetic(seed=0), Synthetic(seed=0), Synthetic(seed=1)]
    prints = [fingerprint(part.read("test", Path())) for part in made]
    assert prints[0] == prints[1] != prints[2]
    other = made[0].read("train", Path()).images[:500]
    assert not torch.equal(other, made[0].read("test", Path()).images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 1}, "at least 2"),
        ({"num_classes": 65}, "as many pixels as classes"),
        ({"image_shape": [0, 8, 8]}, "image_shape"),
        ({"train_size": 0}, "train_size"),
        ({"noise": -1.0}, "noise"),
        ({"num_classes": "3"}, "valid integer"),
    ],
)
def test_bad_synthetic_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_dataset({"name": "synthetic", **options})
