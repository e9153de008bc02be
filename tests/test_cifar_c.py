"""Folders of the CIFAR-10-C layout: what is read, and each fault in one sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_nc.data.cifar_c import CifarC
from robust_nc.exceptions import DataError, InputError, UnknownNameError

COUNT, SHAPE = 6, (5, 4, 3)  # H, W, C


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5 * COUNT, *SHAPE), dtype=np.uint8)


def labels() -> np.ndarray:
    return np.tile(np.array([3, 0, 1, 1, 2, 0]), 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "fog.npy", images())
    np.save(tmp_path / "snow.npy", 255 - images())
    np.save(tmp_path / "labels.npy", labels())
    return tmp_path


class TestRead:
    def test_names_are_those_of_the_files(self, folder: Path) -> None:
        (folder / "README.txt").write_text("no corruption")
        assert CifarC(folder).names() == ("fog", "snow")

    @pytest.mark.parametrize("severity", [1, 2, 5])
    def test_gives_one_block(self, folder: Path, severity: int) -> None:
        found = CifarC(folder).read("fog", severity)
        block = images()[(severity - 1) * COUNT : severity * COUNT]
        assert found.images.dtype == torch.uint8
        assert found.images.is_contiguous()
        np.testing.assert_array_equal(found.images.numpy(), block.transpose(0, 3, 1, 2))
        assert found.labels.tolist() == labels()[:COUNT].tolist()
        assert found.ids.tolist() == list(range(COUNT))

    def test_takes_grey_images_and_labels_of_bytes(self, folder: Path) -> None:
        np.save(folder / "fog.npy", images()[..., :1])
        np.save(folder / "labels.npy", labels().astype(np.uint8))
        found = CifarC(folder).read("fog", 3)
        assert found.images.shape == (COUNT, 1, *SHAPE[:2])
        assert found.labels.dtype == torch.int64


class TestAt:
    def test_gives_the_examples_in_the_order_asked_for(self, folder: Path) -> None:
        ids = torch.tensor([4, 0, 3])
        found = CifarC(folder).at("snow", 2, ids=ids, labels=torch.tensor([2, 3, 1]))
        assert torch.equal(found, CifarC(folder).read("snow", 2).images[ids])

    def test_refuses_another_test_split(self, folder: Path) -> None:
        with pytest.raises(DataError, match="differs from the labels of the test split in 2 of 3"):
            CifarC(folder).at("fog", 1, ids=torch.arange(3), labels=torch.tensor([3, 1, 0]))

    @pytest.mark.parametrize("ids", [[0, 6], [-1, 0]])
    def test_refuses_examples_that_it_does_not_have(self, folder: Path, ids: list[int]) -> None:
        with pytest.raises(DataError, match="has 6 images of each severity"):
            CifarC(folder).at("fog", 1, ids=torch.tensor(ids), labels=torch.tensor([3, 3]))


def _array(name: str, values: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"{name}.npy", values)


def _bytes(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / f"{name}.npy").write_bytes(content)

    return write


def _cut(folder: Path) -> None:
    path = folder / "fog.npy"
    path.write_bytes(path.read_bytes()[:-1])


def _pickled(folder: Path) -> None:
    np.save(folder / "fog.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _folder(folder: Path) -> None:
    (folder / "fog.npy").unlink()
    (folder / "fog.npy").mkdir()


def _several(folder: Path) -> None:
    with (folder / "fog.npy").open("wb") as file:
        np.savez(file, a=images(), b=images())


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "floats": (_array("fog", images() / 255), "must hold bytes .* found float64"),
    "grey without an axis": (_array("fog", images()[..., 0]), r"found uint8 of the shape \(30, 5"),
    "empty": (_array("fog", images()[:0]), r"of the shape \(0, 5, 4, 3\)"),
    "not five blocks": (_array("fog", images()[:-1]), "found 29 images, which 5 does not divide"),
    "labels of one block": (_array("labels", labels()[:COUNT]), "found 6 labels in .* for 30"),
    "labels too long": (_array("labels", np.tile(labels(), 2)), "found 60 labels in .* for 30"),
    "labels differ": (_array("labels", np.arange(30)), "repeat the same labels"),
    "labels one-hot": (_array("labels", np.eye(30)), r"must have the shape \(N,\)"),
    "labels negative": (_array("labels", labels() - 1), "must be in 0 or more, found -1"),
    "no labels": (lambda folder: (folder / "labels.npy").unlink(), "labels.npy is not there"),
    "cut off": (_cut, "is not a whole .npy file"),
    "no array": (_bytes("fog", b"fog"), "is not a whole .npy file"),
    "no byte": (_bytes("fog", b""), "is not a whole .npy file"),
    "a pickle": (_pickled, "is not a whole .npy file"),
    "a folder": (_folder, "cannot be read: .*directory"),
    "several arrays": (_several, "several arrays"),
}


@pytest.mark.parametrize(("spoil", "told"), FAULTS.values(), ids=list(FAULTS))
def test_faults_are_told(folder: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=told) as error:
        CifarC(folder).read("fog", 1)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


class TestNames:
    def test_an_unknown_corruption_is_answered_with_the_nearest(self, folder: Path) -> None:
        with pytest.raises(UnknownNameError, match=r"'fogg'; did you mean 'fog'.*Valid: fog, snow"):
            CifarC(folder).read("fogg", 1)

    def test_labels_are_no_corruption(self, folder: Path) -> None:
        with pytest.raises(UnknownNameError, match="'labels'"):
            CifarC(folder).read("labels", 1)

    @pytest.mark.parametrize("severity", [0, 6])
    def test_severities_are_1_to_5(self, folder: Path, severity: int) -> None:
        with pytest.raises(InputError, match="must be 1, 2, 3, 4 or 5"):
            CifarC(folder).read("fog", severity)

    def test_an_empty_or_missing_folder_says_what_belongs_there(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(DataError, match="holds no corruptions"):
                CifarC(path).names()
