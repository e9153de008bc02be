"""Small data sets in the official layouts, made by the tests themselves."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from robust_nc.data.base import Split, numbered
from robust_nc.data.cifar import BinFile, Cifar10, Layout
from robust_nc.data.fashion_mnist import FashionMnist, IdxFile
from robust_nc.data.imagenette import ImageNette
from robust_nc.data.mnist import Mnist
from robust_nc.data.svhn import MatFile, Svhn

WORDNET = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)


def random_split(n: int, *, shape: tuple[int, int, int] = (3, 8, 8), classes: int = 3) -> Split:
    draws = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, *shape), generator=draws, dtype=torch.uint8)
    return numbered(images, torch.arange(n) % classes)


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def _idx_contents() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": draws.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
        "t10k-images-idx3-ubyte": draws.integers(0, 256, (4, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(4, dtype=np.uint8),
    }


IDX = _idx_contents()
_IDX_TABLES = [IdxFile(name, array.shape, _md5(idx_bytes(array))) for name, array in IDX.items()]


@dataclass(frozen=True)
class TinyFashion(FashionMnist):
    """Six train and four test images, read by the real reader."""

    TABLE: ClassVar[dict[str, tuple[IdxFile, IdxFile]]] = {
        "train": (_IDX_TABLES[0], _IDX_TABLES[1]),
        "test": (_IDX_TABLES[2], _IDX_TABLES[3]),
    }


@dataclass(frozen=True)
class TinyMnist(Mnist):
    """The same images under the name of MNIST."""

    TABLE: ClassVar[dict[str, tuple[IdxFile, IdxFile]]] = TinyFashion.TABLE


def _mat(rows: int, **changed: np.ndarray) -> tuple[np.ndarray, bytes]:
    draws = np.random.default_rng(rows)
    images = draws.integers(0, 256, (32, 32, 3, rows), dtype=np.uint8)
    labels = 1 + np.arange(rows, dtype=np.uint8)[:, None] % 10
    content = io.BytesIO()
    savemat(content, {"X": images, "y": labels, **changed}, do_compression=True)
    return images, content.getvalue()


MAT = {"train_32x32.mat": _mat(12), "test_32x32.mat": _mat(11)}


@dataclass(frozen=True)
class TinySvhn(Svhn):
    """Twelve train and eleven test images, read by the real reader."""

    TABLE: ClassVar[dict[str, MatFile]] = {
        name.partition("_")[0]: MatFile(name, images.shape[3], _md5(content))
        for name, (images, content) in MAT.items()
    }


@dataclass(frozen=True)
class TinyImageNette(ImageNette):
    """Three train images and one test image of each class, read by the real reader."""

    SIZES: ClassVar[dict[str, int]] = {"train": 30, "test": 10}


def imagenette_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for split, count in (("train", 3), ("val", 1)):
            for label, folder in enumerate(WORDNET):
                for number in range(count):
                    image = io.BytesIO()
                    colour = (20 * label, 100 * number, 9)
                    Image.new("RGB", (20, 16), colour).save(image, format="PNG")
                    name = f"imagenette2-160/{split}/{folder}/{number}.png"
                    _add(tar, name, image.getvalue())
        _add(tar, "imagenette2-160/noisy_imagenette.csv", b"path")
    return buffer.getvalue()


def write_idx(folder: Path, *, compressed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in IDX.items():
        content = idx_bytes(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def _cifar_rows(rows: int, seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed)
    content = draws.integers(0, 256, (rows, 3073), dtype=np.uint8)
    content[:, 0] = np.arange(rows) % 10
    return content


CIFAR = {
    "data_batch_1.bin": _cifar_rows(12, 1),
    "data_batch_2.bin": _cifar_rows(12, 2),
    "test_batch.bin": _cifar_rows(11, 3),
}
_BINS = [BinFile(name, len(rows), _md5(rows.tobytes())) for name, rows in CIFAR.items()]


def cifar_archive(*, extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, rows in CIFAR.items():
            _add(tar, f"cifar-10-batches-bin/{name}", rows.tobytes())
        if extra is not None:
            tar.addfile(extra)
    return buffer.getvalue()


def sheets_archive() -> bytes:
    """Like the npm package: PNG sheets, and labels in JSON."""
    buffer = io.BytesIO()
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, rows in CIFAR.items():
            labels["test" if name.startswith("test") else "train"] += rows[:, 0].tolist()
            png = io.BytesIO()
            sheet = rows[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
            Image.fromarray(np.ascontiguousarray(sheet)).save(png, format="PNG")
            _add(tar, f"package/{Path(name).stem}.png", png.getvalue())
        for split, values in labels.items():
            _add(tar, f"package/{split}_lables.json", json.dumps(values).encode())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


ARCHIVE = cifar_archive()


@dataclass(frozen=True)
class TinyCifar(Cifar10):
    """Two train files and a test file of a few rows, read by the real reader."""

    LAYOUT: ClassVar[Layout] = Cifar10.LAYOUT._replace(
        archive_md5=_md5(ARCHIVE), train=tuple(_BINS[:2]), test=tuple(_BINS[2:])
    )


def write_cifar(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in CIFAR.items():
        (folder / name).write_bytes(rows.tobytes())


def write_image(path: Path, *, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
