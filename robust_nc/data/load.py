"""Reading a data set by name. Nothing here downloads; `robust-nc data fetch NAME` does.

>>> images, labels = load_dataset("digits", split="test", limit=5)
>>> images.shape, labels.tolist()
(torch.Size([5, 1, 8, 8]), [0, 5, 0, 5, 0])
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_nc.config import Component, DataConfig, build, component
from robust_nc.data.base import (
    Dataset,
    DatasetInfo,
    Fetchable,
    Split,
    check_split,
    read_evenly,
    read_first,
)
from robust_nc.data.class_subset import ClassSubset
from robust_nc.exceptions import ConfigError
from robust_nc.registry import DATASETS

Named = str | Mapping[str, Any] | Component | DataConfig


def load_dataset(
    name: Named, *, split: str = "test", limit: int | None = None, root: Path | str | None = None
) -> tuple[Tensor, Tensor]:
    """Return images float32 `(N, C, H, W)` in [0, 1] and labels int64 `(N,)`.

    `name` is registered ("digits", "cifar10", ...) or a table such as `{"name": "npz", "path":
    "x.npz"}`, or a `DataConfig`, for its data set and classes; `limit` takes the first examples in
    the official order; `root` is the folder of downloaded data sets, else `$ROBUST_NC_DATA`, else
    `~/.cache/robust_nc`. Raises `DataError` for data that are missing or damaged, `InputError` for
    a limit beyond the data.
    """
    found = read_split(name, split, root=root, limit=limit)
    return to_unit(found.images), found.labels


def read_split(
    part: Named, split: str, *, root: Path | str | None = None, limit: int | None = None
) -> Split:
    """Read the first `limit` examples (None: all) of "train" or "test", as they are stored."""
    check_split(split)
    return read_first(open_dataset(part), split, data_root(root), limit, what=f"limit of {split}")


def read_spread(
    part: Named, split: str, limit: int | None, *, root: Path | str | None = None
) -> Split:
    """Read at most `limit` examples (None: all), evenly spread over a split, as they are stored."""
    check_split(split)
    return read_evenly(open_dataset(part), split, data_root(root), limit)


def dataset_info(part: Named, root: Path | str | None = None) -> DatasetInfo:
    """Describe a data set without reading its images; of some classes, its labels are read."""
    return open_dataset(part).info(data_root(root))


def open_dataset(part: Named) -> Dataset:
    """Return a data set by name, or what a configuration takes of one."""
    if isinstance(part, DataConfig):
        whole = open_dataset(part.dataset)
        return whole if part.classes is None else ClassSubset(whole, part.classes)
    dataset: Dataset = build(DATASETS, component(part))
    return dataset


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder of downloaded data sets."""
    chosen = root if root is not None else os.environ.get("ROBUST_NC_DATA") or "~/.cache/robust_nc"
    return Path(chosen).expanduser()


def to_unit(images: Tensor) -> Tensor:
    """Return stored images as float32 in [0, 1]; bytes are divided by 255."""
    if images.dtype != torch.uint8:
        return images.to(torch.float32)
    # By a tensor: accelerators turn a division by a number into a multiplication by its rounded
    # inverse, and pixels would then depend on the device.
    return images.to(torch.float32) / torch.full((), 255.0, device=images.device)


def fingerprint(split: Split) -> str:
    """SHA-256 over the types, shapes and bytes of images, labels and ids, in hexadecimal."""
    state = hashlib.sha256()
    for part in split:
        state.update(f"{part.dtype} {tuple(part.shape)};".encode())
        state.update(part.contiguous().numpy().data)
    return state.hexdigest()


class Listed(NamedTuple):
    """One line of `robust-nc data list`; numbers are None where they depend on the user's files."""

    name: str
    num_classes: int | None
    image_shape: tuple[int, int, int] | None
    train: int | None
    test: int | None
    present: bool
    how: str


def list_datasets(root: Path | str | None = None) -> list[Listed]:
    """Describe every registered data set, reading none of them."""
    return [_listed(name, data_root(root)) for name in DATASETS.names()]


def _listed(name: str, root: Path) -> Listed:
    try:
        dataset: Dataset = build(DATASETS, Component(name=name))
    except ConfigError:
        how = f'your own: {{ name = "{name}", path = "..." }}'
        return Listed(name, None, None, None, None, False, how)
    info = dataset.info(root)
    shape = (name, info.num_classes, info.image_shape, info.sizes["train"], info.sizes["test"])
    if not isinstance(dataset, Fetchable):
        return Listed(*shape, True, "built in")
    files = dataset.files(root)
    if all(path.exists() for path in files):
        return Listed(*shape, True, f"in {files[0].parent}")
    return Listed(*shape, False, f"robust-nc data fetch {name}")
