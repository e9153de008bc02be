"""Some classes of a data set, as a data set: `data.classes` of a suite.

Labels are places in `classes`; examples keep their order, and their ids count those that are left.

>>> from robust_nc.data.digits import Digits
>>> some = ClassSubset(Digits(), (7, 1))
>>> some.info(Path()).class_names, some.info(Path()).sizes
(('7', '1'), {'train': 307, 'test': 54})
>>> found = some.read("test", Path())
>>> found.labels[:4].tolist(), found.ids[:4].tolist()
([1, 1, 1, 1], [0, 1, 2, 3])
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robust_nc.data.base import Dataset, DatasetInfo, Selective, Split, numbered
from robust_nc.exceptions import ConfigError


@dataclass(frozen=True)
class ClassSubset:
    """Those examples of a data set `whole` whose labels are among `classes`, two or more of them.

    Raises `ConfigError` for a class that it has not.
    """

    whole: Dataset
    classes: tuple[int, ...]

    def info(self, root: Path) -> DatasetInfo:
        """Describe the subset; how large it is, only the labels say."""
        info = self._checked(root)
        return dataclasses.replace(
            info,
            num_classes=len(self.classes),
            class_names=tuple(info.class_names[label] for label in self.classes),
            sizes={
                split: len(self.places(split, root)) if size else 0
                for split, size in info.sizes.items()
            },
        )

    def places(self, split: str, root: Path) -> Tensor:
        """Return where the examples stand in the official order of the whole, `(n,)`."""
        return self._relabelled(self._whole_labels(split, root), root)[0]

    def labels(self, split: str, root: Path) -> Tensor:
        """Return the labels of a split, int64 `(n,)`."""
        return self._relabelled(self._whole_labels(split, root), root)[1]

    def read(self, split: str, root: Path) -> Split:
        """Read a split of the subset."""
        return self._read(split, root, None)

    def read_at(self, split: str, root: Path, ids: Tensor) -> Split:
        """Read the examples with these ids `(m,)`, in their order."""
        return self._read(split, root, ids)

    def _read(self, split: str, root: Path, ids: Tensor | None) -> Split:
        if isinstance(self.whole, Selective):
            places, labels = self._relabelled(self.whole.labels(split, root), root)
            chosen = torch.arange(len(places)) if ids is None else ids
            images = self.whole.read_at(split, root, places[chosen]).images
        else:
            everything = self.whole.read(split, root)
            places, labels = self._relabelled(everything.labels, root)
            chosen = torch.arange(len(places)) if ids is None else ids
            images = everything.images[places[chosen]]
        return numbered(images, labels[chosen])._replace(ids=chosen)

    def _whole_labels(self, split: str, root: Path) -> Tensor:
        if isinstance(self.whole, Selective):
            return self.whole.labels(split, root)
        return self.whole.read(split, root).labels

    def _relabelled(self, labels: Tensor, root: Path) -> tuple[Tensor, Tensor]:
        """Return the places of the classes' examples, and their labels here."""
        table = torch.full((self._checked(root).num_classes,), -1)
        table[list(self.classes)] = torch.arange(len(self.classes))
        found = table[labels]
        places = (found >= 0).nonzero().flatten()
        return places, found[places]

    def _checked(self, root: Path) -> DatasetInfo:
        info = self.whole.info(root)
        for label in self.classes:
            if label >= info.num_classes:
                raise ConfigError(
                    f"data.classes: {info.name} has the classes 0 to {info.num_classes - 1}, found "
                    f"{label}"
                )
        return info
