"""Stored corruptions in the layout of CIFAR-10-C and CIFAR-100-C (Hendrycks & Dietterich, 2019).

A folder with one file per corruption, `fog.npy`: bytes `(5 N, H, W, C)`, the N test images in their
official order at severity 1, then at 2, to 5; and `labels.npy` `(5 N,)`. CIFAR-10-C is
doi:10.5281/zenodo.2535967, CIFAR-100-C doi:10.5281/zenodo.3555552; unpacked, they belong into
`<data root>/cifar10-c` and `<data root>/cifar100-c`. Files are mapped into memory, never unpickled.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> np.save(folder / "fog.npy", np.zeros((10, 4, 4, 3), np.uint8))
>>> np.save(folder / "labels.npy", np.tile([0, 1], 5))
>>> CifarC(folder).names(), CifarC(folder).read("fog", 2).images.shape
(('fog',), torch.Size([2, 3, 4, 4]))
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robust_nc.checks import check_labels
from robust_nc.data.base import Split, numbered
from robust_nc.data.corruptions import SEVERITIES, check_severity
from robust_nc.exceptions import DataError, InputError, unknown_name

LABELS = "labels"


@dataclass(frozen=True)
class CifarC:
    """A folder of stored corruptions."""

    folder: Path

    def names(self) -> tuple[str, ...]:
        """Return the corruptions that are there; raises `DataError` where there is none."""
        found = sorted(path.stem for path in self.folder.glob("*.npy") if path.stem != LABELS)
        if not found:
            raise DataError(
                f"{self.folder} holds no corruptions; put one .npy file for each, and "
                f"{LABELS}.npy, into it"
            )
        return tuple(found)

    def read(self, corruption: str, severity: int) -> Split:
        """Read all images of one severity, bytes `(N, C, H, W)`, with their labels and ids."""
        images, labels = self._parts(corruption, severity)
        return numbered(_channels_first(images), labels)

    def at(self, corruption: str, severity: int, *, ids: Tensor, labels: Tensor) -> Tensor:
        """Read the images `(n, C, H, W)` of test examples by their places in the official order.

        `ids` (n,) are those places and `labels` (n,) what the test split says; `DataError` where
        the folder says otherwise, for then it was made of other images, or in another order.
        """
        images, known = self._parts(corruption, severity)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(images):
            raise DataError(
                f"{self.folder} has {len(images)} images of each severity, but test examples "
                f"{int(ids.min())} to {int(ids.max())} are wanted; it is of another test split"
            )
        wrong = int((known[ids] != labels).sum())
        if wrong:
            raise DataError(
                f"{self.folder / LABELS}.npy differs from the labels of the test split in {wrong} "
                f"of {len(ids)} examples; it is of another test split, or in another order"
            )
        return _channels_first(images[ids.numpy()])

    def _parts(self, corruption: str, severity: int) -> tuple[np.ndarray, Tensor]:
        """Return the images `(N, H, W, C)` of one severity, not yet read, and the labels `(N,)`."""
        check_severity(severity)
        names = self.names()
        if corruption not in names:
            raise unknown_name(f"corruption in {self.folder}", corruption, names)
        path = self.folder / f"{corruption}.npy"
        images = _mapped(path)
        levels = len(SEVERITIES)
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise DataError(
                f"{path} must hold bytes of the shape (5 N, H, W, C), found {images.dtype} of the "
                f"shape {images.shape}"
            )
        count, rest = divmod(len(images), levels)
        if rest:
            raise DataError(
                f"{path} must hold {levels} severities of the same images, found {len(images)} "
                f"images, which {levels} does not divide"
            )
        labels = self._labels(len(images))
        return images[(severity - 1) * count : severity * count], labels

    def _labels(self, images: int) -> Tensor:
        """Return the labels of one severity; they are stored once for each."""
        path = self.folder / f"{LABELS}.npy"
        try:
            labels = check_labels(np.array(_mapped(path)), images, what=f"labels in {path}")
        except InputError as error:
            raise DataError(str(error)) from None
        blocks = labels.view(len(SEVERITIES), -1)
        if not bool((blocks == blocks[0]).all()):
            raise DataError(
                f"{path} must repeat the same labels for each of the {len(SEVERITIES)} severities, "
                "found different ones"
            )
        return blocks[0]


def _mapped(path: Path) -> np.ndarray:
    """Map an array into memory, or raise `DataError`."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is not there") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except (ValueError, EOFError):  # NumPy's words are advice to allow pickles
        raise DataError(
            f"{path} is not a whole .npy file of numbers; fetch it again, or save it with "
            "numpy.save"
        ) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise DataError(f"{path} holds several arrays; save one with numpy.save")
    return found


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
