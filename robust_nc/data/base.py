"""What every data set answers, and what it answers with.

A data set is a frozen dataclass with its options as fields. Reading never downloads.

>>> from robust_nc.data.digits import Digits
>>> from pathlib import Path
>>> Digits().info(Path()).sizes
{'train': 1437, 'test': 360}
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from robust_nc.exceptions import DataError, InputError, unknown_name
from robust_nc.runtime.torch_state import generator

SPLITS = ("train", "test")


class Split(NamedTuple):
    """Examples on the CPU: `(N, C, H, W)` uint8 in 0..255 or float32 in [0, 1], labels, ids.

    `labels` and `ids` are int64 `(N,)`; an id is the position in the official order of its split.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def at(self, index: Tensor) -> "Split":
        """Return the examples at `index`, in its order."""
        return Split(self.images[index], self.labels[index], self.ids[index])


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without reading its images; `sizes` is per split."""

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    sizes: dict[str, int]


class Dataset(Protocol):
    """A data set: `root` is the folder under which downloaded data sets lie."""

    def info(self, root: Path) -> DatasetInfo:
        """Describe the data set."""
        ...

    def read(self, split: str, root: Path) -> Split:
        """Read "train" or "test" whole; raises `DataError` where it is missing or damaged."""
        ...


@runtime_checkable
class Selective(Dataset, Protocol):
    """A data set that knows its labels before its images, and reads only those it is asked for."""

    def labels(self, split: str, root: Path) -> Tensor:
        """Return the labels of a split, int64 `(N,)`, in the official order."""
        ...

    def read_at(self, split: str, root: Path, ids: Tensor) -> Split:
        """Read the examples with these ids `(n,)`, in their order."""
        ...


class Source(NamedTuple):
    """One way to get a data set: `get` puts files into a work folder and says where they are."""

    label: str
    get: Callable[[Path], Path]


@runtime_checkable
class Fetchable(Protocol):
    """A data set that `robust-nc data fetch` can get."""

    def files(self, root: Path) -> tuple[Path, ...]:
        """All files that reading needs, there or not."""
        ...

    def verify(self, folder: Path) -> tuple[Path, ...]:
        """Return the whole and genuine files in `folder`, or raise `DataError`."""
        ...

    def sources(self) -> tuple[Source, ...]:
        """Where to get it, in the order to try."""
        ...


def numbered(images: Tensor, labels: Tensor) -> Split:
    """Give examples that are in their official order their ids."""
    return Split(images, labels.to(torch.int64), torch.arange(len(labels)))


def first_examples(split: Split, limit: int | None, *, what: str = "limit") -> Split:
    """Return the first `limit` examples in the official order (all for None)."""
    count = _checked(limit, len(split.labels), what)
    return Split(split.images[:count], split.labels[:count], split.ids[:count])


def read_first(
    dataset: Dataset, split: str, root: Path, limit: int | None, *, what: str = "limit"
) -> Split:
    """Read the first `limit` examples in the official order (all for None), and no others."""
    if limit is None or not isinstance(dataset, Selective):
        return first_examples(dataset.read(split, root), limit, what=what)
    count = _checked(limit, len(dataset.labels(split, root)), what)
    return dataset.read_at(split, root, torch.arange(count))


def read_evenly(dataset: Dataset, split: str, root: Path, limit: int | None) -> Split:
    """Read at most `limit` examples (None: all), evenly spread over the split, and no others."""
    if limit is None:
        return dataset.read(split, root)
    if isinstance(dataset, Selective):
        return dataset.read_at(split, root, even_rows(len(dataset.labels(split, root)), limit))
    whole = dataset.read(split, root)
    return whole.at(even_rows(len(whole.labels), limit))


def even_rows(size: int, limit: int) -> Tensor:
    """Return at most `limit` of the numbers below `size`, evenly spread.

    >>> even_rows(7, 3).tolist(), even_rows(2, 3).tolist()
    ([0, 2, 4], [0, 1])
    """
    count = min(size, limit)
    return torch.arange(count) * size // max(count, 1)


def _checked(limit: int | None, size: int, what: str) -> int:
    if limit is None:
        return size
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise InputError(f"{what} must be a whole number, found {limit!r}")
    if not 1 <= limit <= size:
        raise InputError(f"{what} must be in 1..{size}, found {limit}")
    return limit


def shuffled_order(size: int, split: str) -> Tensor:
    """Return the order of chance of a split of `size` examples that is asked to be shuffled."""
    return torch.randperm(size, generator=generator(0, "shuffled-data", split))


def check_split(split: str) -> None:
    """Refuse a split that is neither train nor test."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def content_of(path: Path) -> bytes:
    """Read a file whole, or raise `DataError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def md5_of(content: bytes) -> str:
    """MD5 in hexadecimal: what the homes of old data sets publish."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def reading(name: str, files: Sequence[Path], layout: str) -> Iterator[None]:
    """Read files of a fetchable data set: what is wrong with them is said with the remedy."""
    for path in files:
        if not path.is_file():
            raise DataError(
                f"{name} is not there: no {path.name} in {path.parent}; get it with "
                f"`robust-nc data fetch {name}`, or put {layout} into that folder"
            )
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}; get it anew with `robust-nc data fetch {name}`") from None
