"""A tree of classes, and the distances that it gives: heights of lowest common ancestors.

The height of an inner node is the longest way down from it to a class, also where classes lie at
unequal depths; so the distances are ultrametric whatever the shape of the tree.

>>> tree = read_hierarchy("cifar10")
>>> cat, dog, horse, ship = (tree.classes.index(name) for name in ("cat", "dog", "horse", "ship"))
>>> tree.distances()[cat, [cat, dog, horse, ship]].tolist()
[0.0, 1.0, 2.0, 3.0]
>>> hierarchy_names()
('cifar10', 'cifar100', 'digits', 'fashion_mnist')
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from robust_nc.data.hierarchy.reading import parse
from robust_nc.exceptions import ConfigError, InputError, unknown_name

_SUFFIXES = (".toml", ".json")
_SHOWN = 3  # names that an error shows


@dataclass(frozen=True)
class Hierarchy:
    """Classes in the order of their labels, and each one's groups.

    `groups[k]` are the groups of class k at heights 1..H-1, numbers that count within one height;
    at H, the height of the root, all classes are together. Raises `InputError` for fewer than two
    classes, names that repeat, rows of unequal length, and groups that do not nest.
    """

    name: str
    classes: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise InputError(
                f"{self.name}: a tree needs at least 2 classes, found {len(self.classes)}"
            )
        repeated = [name for name in self.classes if self.classes.count(name) > 1]
        if repeated:
            raise InputError(f"{self.name}: class {repeated[0]!r} is there more than once")
        if len(self.groups) != len(self.classes):
            raise InputError(
                f"{self.name}: each class needs its row of groups, found {len(self.groups)} rows "
                f"for {len(self.classes)} classes"
            )
        self._check_nesting()

    @property
    def num_classes(self) -> int:
        """Return K."""
        return len(self.classes)

    @property
    def height(self) -> int:
        """Height of the root, which is the largest distance."""
        return len(self.groups[0]) + 1

    def distances(self) -> Tensor:
        """Return the height of the lowest common ancestor of each two classes, float64 (K, K)."""
        groups = torch.tensor(self.groups).view(self.num_classes, self.height - 1)
        together = (groups[:, None] == groups[None]).sum(2)  # those that meet once never part
        return (self.height - together).double().fill_diagonal_(0)

    def check_classes(self, classes: int | Sequence[str]) -> None:
        """Refuse a tree of other classes: `classes` is their number, or their names by label.

        A tree that numbers its classes fits any names. Raises `InputError`.
        """
        count = classes if isinstance(classes, int) else len(classes)
        if count != self.num_classes:
            raise InputError(
                f"the tree {self.name} has {self.num_classes} classes, and the data {count}; "
                "give a tree of the data's own classes"
            )
        numbers = tuple(str(label) for label in range(self.num_classes))
        if isinstance(classes, int) or self.classes in (tuple(classes), numbers):
            return
        pairs = enumerate(zip(self.classes, classes, strict=True))
        others = [f"{k} is {own!r}, not {name!r}" for k, (own, name) in pairs if own != name]
        raise InputError(
            f"the tree {self.name} has other classes than the data: {', '.join(others[:_SHOWN])}"
            f"{' and more' * (len(others) > _SHOWN)}; name the data's classes in the order of "
            "their labels"
        )

    def _check_nesting(self) -> None:
        """Classes that share a group must share all groups above it."""
        above: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}
        for name, row in zip(self.classes, self.groups, strict=True):
            if len(row) != self.height - 1:
                raise InputError(
                    f"{self.name}: class {name!r} has groups at {len(row)} heights, and "
                    f"{self.classes[0]!r} at {self.height - 1}; give every class as many"
                )
            for place, group in enumerate(row):
                other, higher = above.setdefault((place, group), (name, row[place + 1 :]))
                if higher != row[place + 1 :]:
                    raise InputError(
                        f"{self.name}: {other!r} and {name!r} share group {group} at height "
                        f"{place + 1} and part higher up; groups must nest (else it is no tree)"
                    )


def hierarchy_names() -> tuple[str, ...]:
    """Names of the trees that come with the package."""
    folder = resources.files("robust_nc.data.hierarchy")
    files = (Path(entry.name) for entry in folder.iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix in _SUFFIXES))


def read_hierarchy(name: str | Path) -> Hierarchy:
    """Read one of the package's trees by name, or one from a path ending in .toml or .json.

    Raises `ConfigError` that names the file, the place in it, what was found and what is valid.
    """
    text, file = _find(str(name))
    found = parse(text, file)
    try:
        return Hierarchy(Path(file).stem, found.classes, found.groups)
    except InputError as error:
        raise ConfigError(f"{file}: {str(error).removeprefix(f'{Path(file).stem}: ')}") from None


def embedded(name: str) -> str:
    """Return a tree's name as it is, and for a path the text of the tree, in one line of JSON.

    `read_hierarchy` reads that too: what holds it needs the file no longer, and changes with it.
    """
    if name in hierarchy_names() or _is_text(name):
        return name
    tree = read_hierarchy(name)
    return json.dumps({"classes": tree.classes, "groups": tree.groups}, separators=(",", ":"))


def tree_of(name: str | None, dataset_name: str) -> Hierarchy | None:
    """Return the named tree, or else the data set's own; None where it has none."""
    if name is None:
        return read_hierarchy(dataset_name) if dataset_name in hierarchy_names() else None
    return read_hierarchy(name)


def _find(name: str) -> tuple[str, str]:
    """Return the text of a tree and the name of its file."""
    if _is_text(name):
        return name, "embedded.json"
    if name.endswith(_SUFFIXES):
        try:
            return Path(name).read_text(encoding="utf-8"), name
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the tree {name} cannot be read: {error}") from None
    if name not in hierarchy_names():
        unknown = unknown_name("tree of classes", name, hierarchy_names())
        raise ConfigError(f"{unknown}, or a path that ends with .toml or .json")
    folder = resources.files("robust_nc.data.hierarchy")
    file = next(f"{name}{suffix}" for suffix in _SUFFIXES if (folder / f"{name}{suffix}").is_file())
    return (folder / file).read_text(encoding="utf-8"), file


def _is_text(name: str) -> bool:
    return name.startswith("{")
