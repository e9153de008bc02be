import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import (
    CIFAR,
    IDX,
    MAT,
    WORDNET,
    TinyCifar,
    TinyFashion,
    TinyImageNette,
    TinyMnist,
    TinySvhn,
    idx_bytes,
    imagenette_archive,
    write_cifar,
    write_idx,
    write_image,
)
from PIL import Image
from scipy.io import savemat

from robust_nc.data.base import Split, read_first
from robust_nc.data.cifar import BinFile, Cifar100, read_rows
from robust_nc.data.fetch import unpack_folder
from robust_nc.data.load import dataset_info, load_dataset, read_split
from robust_nc.data.svhn import MatFile, read_mat
from robust_nc.exceptions import DataError, InputError, RobustNCError


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        (TinyFashion(), "fashion_mnist"),
        (TinyFashion(), "FashionMNIST/raw"),
        (TinyMnist(), "mnist"),
        (TinyMnist(), "MNIST/raw"),
    ],
)
def test_idx_files_are_read_plain_and_compressed(
    tmp_path: Path, dataset: TinyFashion | TinyMnist, folder: str, compressed: bool
) -> None:
    write_idx(tmp_path / folder, compressed=compressed)
    assert dataset.files(tmp_path)[0].parent == tmp_path / folder
    for split, stem in [("train", "train"), ("test", "t10k")]:
        read = dataset.read(split, tmp_path)
        assert np.array_equal(read.images[:, 0].numpy(), IDX[f"{stem}-images-idx3-ubyte"])
        assert read.images.dtype == torch.uint8
        assert np.array_equal(read.labels.numpy(), IDX[f"{stem}-labels-idx1-ubyte"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "magic number is missing, not 00000803"),
        (b"\x00\x00\x08\x01" + bytes(99), "magic number is 00000801, not 00000803"),
        (b"\x00\x00\x0d\x03" + bytes(99), "magic number is 00000d03"),
        (idx_bytes(IDX["t10k-images-idx3-ubyte"])[:-1], r"sizes \(4, 28, 28\)"),
        (idx_bytes(IDX["t10k-images-idx3-ubyte"]) + b"\0", r"sizes \(4, 28, 28\)"),
        (idx_bytes(IDX["t10k-images-idx3-ubyte"][:, ::-1]), "MD5"),
    ],
)
def test_damaged_idx_files_are_refused_with_the_remedy(
    tmp_path: Path, content: bytes, words: str
) -> None:
    folder = tmp_path / "fashion_mnist"
    write_idx(folder, compressed=False)
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=words + ".*robust-nc data fetch fashion_mnist") as caught:
        TinyFashion().read("test", tmp_path)
    assert str(folder / "t10k-images-idx3-ubyte") in str(caught.value)
    assert len(TinyFashion().read("train", tmp_path).labels) == 6


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(bytes(99), mtime=0)[:-9]])
def test_damaged_gzip_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "fashion_mnist"
    write_idx(folder, compressed=True)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz"):
        TinyFashion().read("test", tmp_path)


@pytest.mark.parametrize("folder", ["svhn", "."])
def test_svhn_is_read_from_matlab_files(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, (_, content) in MAT.items():
        (tmp_path / folder / name).write_bytes(content)
    for split, count in (("train", 12), ("test", 11)):
        read = TinySvhn().read(split, tmp_path)
        expected = MAT[f"{split}_32x32.mat"][0]
        assert read.images.shape == (count, 3, 32, 32)
        assert read.images[7, 2, 3, 5] == expected[3, 5, 2, 7]
        assert read.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2][:count]


def test_damaged_svhn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test_32x32.mat"
    content = MAT[path.name][1]
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="MD5"):
        read_mat(path, TinySvhn.TABLE["test"])
    for bad, words in (
        ((b"no matlab", 11), "cannot be read as images"),
        ((content, 10), "not 10 images"),
        ((_saved(X=np.zeros((32, 32, 3, 2), np.uint8)), 2), "cannot be read as images"),
        ((_saved(X=np.zeros((32, 32, 3, 1), np.uint8), y=np.array([[11]])), 1), "beyond 1..10"),
    ):
        path.write_bytes(bad[0])
        with pytest.raises(DataError, match=words):
            read_mat(path, MatFile(path.name, bad[1], hashlib.md5(bad[0]).hexdigest()))


def _saved(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    savemat(content, arrays)
    return content.getvalue()


def test_imagenette_has_its_names_and_is_read_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "all.tgz").write_bytes(imagenette_archive())
    unpack_folder(tmp_path / "all.tgz", tmp_path)
    dataset = TinyImageNette(size=8)
    assert dataset.info(tmp_path).class_names[8:] == ("golf ball", "parachute")
    train = dataset.read("train", tmp_path)
    assert train.images[:, :2, 0, 0].tolist() == [
        [20 * label, 100 * number] for number in range(3) for label in range(10)
    ]
    few = read_first(dataset, "test", tmp_path, 4)
    assert few.labels.tolist() == dataset.labels("test", tmp_path)[:4].tolist() == [0, 1, 2, 3]
    (tmp_path / "imagenette2-160" / "val" / WORDNET[3] / "0.png").unlink()
    with pytest.raises(DataError, match="class 'n03000684' has no"):
        dataset.read("test", tmp_path)
    (tmp_path / "imagenette2-160" / "train" / WORDNET[3] / "1.png").unlink()
    with pytest.raises(DataError, match=r"has 29 images of 10 classes, not 30 of 10; get it"):
        dataset.read("train", tmp_path)


def test_cifar_rows_become_planes_in_order(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10" / "cifar-10-batches-bin")
    train = TinyCifar().read("train", tmp_path)
    rows = np.concatenate([CIFAR["data_batch_1.bin"], CIFAR["data_batch_2.bin"]])
    assert train.images.shape == (24, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert train.images[20, 1, 3, 5] == rows[20, 1 + 1024 + 3 * 32 + 5]
    assert np.array_equal(train.images.numpy().reshape(24, -1), rows[:, 1:])
    assert np.array_equal(train.labels.numpy(), rows[:, 0])
    assert train.ids.tolist() == list(range(24))


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    rows = np.zeros((2, 3074), dtype=np.uint8)
    rows[:, 0] = 19
    rows[:, 1] = [7, 99]
    path = tmp_path / "train.bin"
    path.write_bytes(rows.tobytes())
    read = read_rows(path, BinFile("train.bin", 2, None), 2, 100)
    assert read[:, 1].tolist() == [7, 99]
    rows[1, 1] = 100
    path.write_bytes(rows.tobytes())
    with pytest.raises(DataError, match="label 100 with 100 classes"):
        read_rows(path, BinFile("train.bin", 2, None), 2, 100)


@pytest.mark.parametrize("damage", ["short", "flipped"])
def test_damaged_cifar_files_are_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    write_cifar(folder)
    content = bytearray(CIFAR["data_batch_2.bin"].tobytes())
    content[77] ^= 1
    (folder / "data_batch_2.bin").write_bytes(content[:-1] if damage == "short" else content)
    with pytest.raises(DataError, match=r"data_batch_2\.bin is damaged.*data fetch cifar10"):
        TinyCifar().read("train", tmp_path)


def test_cifar100_names_agree_with_the_official_superclasses() -> None:
    names = Cifar100().info(Path()).class_names
    fish = ["aquarium_fish", "flatfish", "ray", "shark", "trout"]
    assert [names.index(name) for name in fish] == [1, 32, 67, 73, 91]


def make_folder(base: Path, *, held: str = "test") -> Path:
    for split in ("train", held):
        for label, name in enumerate(["ant", "bee"]):
            for number in range(3 - label):
                colour = (10 * label, 20 * number, 200)
                path = base / split / name / f"{number}.{'png' if label else 'PNG'}"
                write_image(path, size=(12, 20), colour=colour)
    (base / "train" / "ant" / "notes.txt").write_text("not an image")
    (base / "train" / ".cache").mkdir()
    return base


@pytest.mark.parametrize("held", ["test", "val"])
def test_a_folder_goes_round_its_classes(tmp_path: Path, held: str) -> None:
    base = make_folder(tmp_path / "mine", held=held)
    part = {"name": "folder", "path": str(base), "size": 8}
    info = dataset_info(part)
    assert info.class_names == ("ant", "bee")
    assert info.sizes == {"train": 5, "test": 5}
    assert info.image_shape == (3, 8, 8)
    split = read_split(part, "test")
    assert split.images.shape == (5, 3, 8, 8)
    assert split.labels.tolist() == [0, 1, 0, 1, 0]
    assert split.images[:, :, 0, 0].tolist() == [
        [0, 0, 200],
        [10, 0, 200],
        [0, 20, 200],
        [10, 20, 200],
        [0, 40, 200],
    ]


@pytest.mark.parametrize(("width", "height"), [(8, 8), (24, 8), (8, 24), (7, 5), (31, 97)])
def test_folder_images_are_cut_in_the_middle(tmp_path: Path, width: int, height: int) -> None:
    base = make_folder(tmp_path)
    column = np.linspace(0, 255, width).round().astype(np.uint8)
    picture = np.broadcast_to(column[None, :, None], (height, width, 3))
    Image.fromarray(np.ascontiguousarray(picture)).save(base / "test" / "ant" / "0.PNG")
    image = read_split({"name": "folder", "path": str(base), "size": 8}, "test").images[0].float()
    assert image.shape == (3, 8, 8)
    assert torch.allclose(image, image[:1, :1])
    ramp = image[0, 0]
    assert bool((ramp.diff() > 0).all())
    assert abs(float(ramp.mean()) - 127.5) < 255 / min(width, height)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_folder_images_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    base = make_folder(tmp_path)
    (base / "test" / "ant" / "0.PNG").unlink()
    ending = "jpg" if mode == "CMYK" else "png"
    image = Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    image.save(base / "test" / "ant" / f"0.{ending}")
    split = read_split({"name": "folder", "path": str(base), "size": 8}, "test")
    assert split.images[0].unique().tolist() == [255]


def test_a_broken_image_and_an_empty_class_are_named(tmp_path: Path) -> None:
    base = make_folder(tmp_path)
    part = {"name": "folder", "path": str(base), "size": 8}
    broken = base / "test" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"bee/1\.png cannot be read as an image"):
        load_dataset(part)
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"bee/1\.png cannot be read as an image"):
        load_dataset(part)
    (base / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"class 'cat' has no \.bmp"):
        load_dataset(part, split="train")
    write_image(base / "train" / "cat" / "0.png", size=(9, 9), colour=(1, 2, 3))
    with pytest.raises(DataError, match="only one has cat"):
        dataset_info(part)


@pytest.mark.parametrize("ending", ["webp", "bmp", "tif", "tiff", "ppm", "pgm", "gif", "JPEG"])
def test_a_folder_takes_images_of_these_kinds(tmp_path: Path, ending: str) -> None:
    base = make_folder(tmp_path)
    (base / "test" / "ant" / "0.PNG").unlink()
    grey = Image.new("L", (9, 9), 200)
    grey.save(base / "test" / "ant" / f"0.{ending}")
    first = read_split({"name": "folder", "path": str(base), "size": 8}, "test", limit=1)
    assert (first.images.float() - 200).abs().max() <= 2


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_images_of_sixteen_bits_keep_their_values(tmp_path: Path, ending: str) -> None:
    base = make_folder(tmp_path)
    (base / "test" / "bee" / "0.png").unlink()
    values = (np.arange(64, dtype=np.uint16) * 1_040 + 7).reshape(8, 8)
    Image.fromarray(values).save(base / "test" / "bee" / f"0.{ending}")
    split = read_split({"name": "folder", "path": str(base), "size": 8}, "test")
    assert split.images.dtype == torch.float32
    assert torch.equal(split.images[1, 2], torch.from_numpy(values.astype(np.float32)) / 65_535)
    assert split.images[0, 2].unique().tolist() == [float(torch.tensor(200.0) / 255)]
    assert split.images[2, 1].unique().tolist() == [float(torch.tensor(20.0) / 255)]


def test_images_of_no_known_range_are_refused(tmp_path: Path) -> None:
    base = make_folder(tmp_path)
    Image.new("F", (9, 9), 0.5).save(base / "test" / "ant" / "0.tif")
    with pytest.raises(DataError, match=r"0\.tif has 32 bits a pixel"):
        load_dataset({"name": "folder", "path": str(base), "size": 8})


def test_only_the_images_that_are_asked_for_are_read(tmp_path: Path) -> None:
    base = make_folder(tmp_path)
    for path in (base / "test" / "bee" / "1.png", base / "test" / "ant" / "2.PNG"):
        path.write_bytes(b"broken")  # of the order ant 0, bee 0, ant 1, bee 1, ant 2
    part = {"name": "folder", "path": str(base), "size": 8}
    assert read_split(part, "test", limit=3).labels.tolist() == [0, 1, 0]
    found = read_split({**part, "shuffle": True}, "train")
    assert found.ids.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        read_split(part, "test", limit=4)
    with pytest.raises(InputError, match=r"limit of test must be in 1\.\.5, found 6"):
        read_split(part, "test", limit=6)


def test_shuffled_files_are_the_same_images_in_another_order(tmp_path: Path) -> None:
    base = make_folder(tmp_path)
    arrays = {
        "x_train": np.arange(40, dtype=np.uint8).reshape(40, 1, 1),
        "y_train": np.arange(40) // 20,
    }
    np.savez(tmp_path / "sorted.npz", **arrays)
    for part, split in (
        ({"name": "folder", "path": str(base), "size": 8}, "test"),
        ({"name": "npz", "path": str(tmp_path / "sorted.npz")}, "train"),
    ):
        plain, mixed = read_split(part, split), read_split({**part, "shuffle": True}, split)
        again = read_split({**part, "shuffle": True}, split)
        assert torch.equal(mixed.images, again.images)
        assert not torch.equal(mixed.images, plain.images)

        def pairs(found: Split) -> list[tuple[list[int], int]]:
            return sorted(zip(found.images.flatten(1).tolist(), found.labels.tolist(), strict=True))

        assert pairs(mixed) == pairs(plain)
        assert torch.equal(mixed.ids, plain.ids)
    assert len(read_split({**part, "shuffle": True}, "train", limit=10).labels.unique()) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "absent"}, "neither test/ nor val/"),
        ({"path": ".", "size": 0}, "at least 1 pixel"),
        ({"path": 3}, "valid string"),
    ],
)
def test_bad_folder_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(RobustNCError, match=words):
        load_dataset({"name": "folder", **options})


def test_a_folder_of_one_class_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "test" / "ant" / "0.png", size=(9, 9), colour=(1, 2, 3))
    with pytest.raises(DataError, match="at least two folders"):
        load_dataset({"name": "folder", "path": str(tmp_path)})


def save_npz(path: Path, images: np.ndarray, **changed: np.ndarray) -> dict[str, str]:
    labels = np.arange(len(images)) % 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:4], "y_test": labels[:4]}
    np.savez(path, **(arrays | changed))
    return {"name": "npz", "path": str(path)}


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (PIXELS, (3, 5, 7)),
        (PIXELS.transpose(0, 3, 1, 2), (3, 5, 7)),
        (PIXELS[..., :1], (1, 5, 7)),
        (PIXELS[..., 0], (1, 5, 7)),
        ((PIXELS / 255).astype(np.float64), (3, 5, 7)),
    ],
)
def test_arrays_of_any_layout_are_read(
    tmp_path: Path, images: np.ndarray, shape: tuple[int, int, int]
) -> None:
    part = save_npz(tmp_path / "x.npz", images)
    assert dataset_info(part).image_shape == shape
    assert dataset_info(part).num_classes == 3
    assert dataset_info(part).sizes == {"train": 6, "test": 4}
    loaded, labels = load_dataset(part, split="train")
    assert loaded.shape == (6, *shape)
    assert loaded.dtype == torch.float32
    channels_last = loaded.permute(0, 2, 3, 1).numpy()
    assert np.allclose(channels_last, PIXELS[..., : shape[0]] / 255, atol=1e-7)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x_test": np.zeros((4, 3, 7, 3), np.uint8)}, InputError, "both axes 1 and 3"),
        ({"x_test": np.zeros((4, 5, 7, 4), np.uint8)}, InputError, "neither axis 1 nor 3"),
        ({"x_test": np.zeros((4, 5), np.uint8)}, InputError, "3 or 4 axes"),
        ({"x_test": np.full((4, 5, 7, 3), 255.0)}, InputError, "divide by 255"),
        ({"x_test": np.full((4, 5, 7, 3), np.nan)}, InputError, "finite"),
        ({"x_test": np.zeros((4, 5, 7, 3), np.int64)}, InputError, "found int64"),
        ({"x_test": np.zeros((0, 5, 7, 3), np.uint8)}, DataError, "x_test of .* is empty"),
        ({"y_test": np.zeros(3, np.int64)}, InputError, "3 y_test for 4 images"),
        ({"y_test": np.eye(4)}, InputError, "one-hot"),
        ({"y_test": np.array([0, 1, -1, 2])}, InputError, "found -1"),
        ({"y_test": np.array(["a", "b", "c", "d"])}, InputError, "y_test"),
        ({"y_test": np.array([{}, 1, 2, 3], dtype=object)}, DataError, "without unpickling"),
    ],
)
def test_bad_arrays_are_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], error: type[Exception], words: str
) -> None:
    part = save_npz(tmp_path / "x.npz", PIXELS, **changed)
    with pytest.raises(error, match=words):
        load_dataset(part)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x_test": PIXELS[:4, :4]}, r"x_train has \(3, 5, 7\), x_test \(3, 4, 7\)"),
        ({"y_test": np.array([0, 1, 10**9, 2])}, "a label 1000000000 but 10 examples"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        dataset_info(save_npz(tmp_path / "x.npz", PIXELS, **changed))


def test_missing_arrays_and_damaged_files_are_refused(tmp_path: Path) -> None:
    part = save_npz(tmp_path / "x.npz", PIXELS)
    whole = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(DataError, match="is not there"):
        load_dataset({"name": "npz", "path": str(tmp_path / "y.npz")})
    np.savez(tmp_path / "x.npz", x_test=PIXELS)
    with pytest.raises(DataError, match=r"has no y_test; .*found x_test"):
        load_dataset(part)
    np.save(tmp_path / "x.npy", PIXELS)
    with pytest.raises(DataError, match="single array"):
        load_dataset({"name": "npz", "path": str(tmp_path / "x.npy")})
    middle = whole[:300] + bytes(40) + whole[340:]
    for content in (b"", b"text", whole[: len(whole) // 2], middle):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz cannot be read"):
            load_dataset(part, split="train")
