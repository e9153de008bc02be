"""A tree of classes, and the distances that it gives: heights of lowest common ancestors.

The height of an inner node is the longest way down from it to a class, also where classes lie at
unequal depths; so the distances are ultrametric whatever the shape of the tree.

A file in TOML or JSON gives one of three: `tree`, nested tables or lists down to classes; `groups`,
each class's groups at heights 1, 2, ... below the root; or `parents`, the parent of every class and
group but the topmost. Classes stand by name, where `classes` lists the names in the order of their
labels (or `groups` is a table, whose order counts), or by label. `source` and `note` are for the
reader, and `pairs_by_distance`, where it is there, is checked.

>>> tree = read_hierarchy("cifar10")
>>> cat, dog, horse, ship = (tree.classes.index(name) for name in ("cat", "dog", "horse", "ship"))
>>> tree.distances()[cat, [cat, dog, horse, ship]].tolist()
[0.0, 1.0, 2.0, 3.0]
>>> hierarchy_names()
('cifar10', 'cifar100', 'digits', 'fashion_mnist')
>>> text = 'classes = ["ant", "bee", "oak"]\\ntree.animal = ["bee", "ant"]\\ntree.plant = ["oak"]'
>>> parse(text, "garden.toml").groups
((0,), (0,), (1,))
>>> parse(text.replace("oak", "bee"), "garden.toml")
Traceback (most recent call last):
...
robust_nc.exceptions.ConfigError: garden.toml, classes: 'bee' is there more than once
"""

import json
import tomllib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_nc.exceptions import ConfigError, InputError, unknown_name

_SUFFIXES = (".toml", ".json")
_SHOWN = 3  # names that an error shows
_FORMS = ("tree", "groups", "parents")
_KEYS = ("classes", *_FORMS, "pairs_by_distance", "source", "note")

Groups = tuple[tuple[int, ...], ...]


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

    def cut(self, classes: Sequence[int]) -> "Hierarchy":
        """Return the tree of some of its classes, in this order; distances stay as they are.

        Raises `InputError` for a class that it has not.
        """
        for label in classes:
            if label >= self.num_classes:
                raise InputError(
                    f"the tree {self.name} has {self.num_classes} classes, and data.classes names "
                    f"{label}; give a tree of the whole data set"
                )
        numbered = self.classes == _numbers(self.num_classes)
        names = tuple(self.classes[label] for label in classes)
        kept = _numbers(len(names)) if numbered else names
        return Hierarchy(self.name, kept, tuple(self.groups[label] for label in classes))

    def text(self) -> str:
        """Return it in one line of JSON, which `read_hierarchy` reads."""
        told = {"classes": self.classes, "groups": self.groups}
        return json.dumps(told, separators=(",", ":"))

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
    return read_hierarchy(name).text()


def tree_of(
    name: str | None, dataset_name: str, classes: Sequence[int] | None = None
) -> Hierarchy | None:
    """Return the named tree, or else the data set's own; None where it has none.

    Trees are of the whole data set: with `classes`, it is what they leave of it.
    """
    own = dataset_name if dataset_name in hierarchy_names() else None
    chosen = own if name is None else name
    if chosen is None:
        return None
    tree = read_hierarchy(chosen)
    return tree if classes is None else tree.cut(classes)


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


class ParsedTree(NamedTuple):
    """Classes in the order of their labels, and each one's groups at heights 1..H-1."""

    classes: tuple[str, ...]
    groups: Groups


class _Leaf(NamedTuple):
    """A class as written, where it was written, and what is above it, up to the root."""

    written: object
    place: str
    above: tuple[Hashable, ...]


def parse(text: str, file: str) -> ParsedTree:
    """Read the text of a tree; `file` is its name, which says the format and goes into errors.

    Raises `ConfigError` with the place in the file, what was found there and what is valid.
    """
    values = _load(text, file)
    for key in values:
        if key not in _KEYS:
            raise unknown_name(f"key in {file}", key, _KEYS)
    forms = [form for form in _FORMS if form in values]
    if len(forms) != 1:
        raise ConfigError(
            f"{file} must give one of {', '.join(_FORMS)}; found {' and '.join(forms) or 'none'}"
        )
    classes = _classes(values["classes"], file) if "classes" in values else None
    if forms == ["groups"]:
        found = _from_groups(values["groups"], classes, file)
    else:
        if forms == ["tree"]:
            leaves = _from_tree(values["tree"], file)
        else:
            leaves = _from_parents(values["parents"], classes or (), file)
        found = _grouped(list(leaves), classes, file)
    if "pairs_by_distance" in values:
        _check_pairs(found.groups, values["pairs_by_distance"], file)
    return found


def _load(text: str, file: str) -> dict[str, Any]:
    kind = "JSON" if file.endswith(".json") else "TOML"
    try:
        values = (
            json.loads(text, object_pairs_hook=_once) if kind == "JSON" else tomllib.loads(text)
        )
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not {kind}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold an object, found {type(values).__name__}")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two equal keys the first would be lost in silence."""
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} is there more than once")
    return dict(pairs)


def _classes(values: object, file: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{file}, classes: must be a list of names, found {values!r}")
    if not values:
        raise ConfigError(f"{file}, classes: is empty; name every class, or leave it out")
    repeated = [name for name, times in Counter(values).items() if times > 1]
    if repeated:
        raise ConfigError(f"{file}, classes: {repeated[0]!r} is there more than once")
    return tuple(values)


def _numbers(num_classes: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(num_classes))


def _from_tree(tree: object, file: str) -> Iterator[_Leaf]:
    """Yield the classes of nested tables and lists; a group is named by its place."""
    if not isinstance(tree, dict | list):
        raise ConfigError(f"{file}, tree: must be a table or a list, found {tree!r}")
    waiting: list[tuple[str, object, tuple[str, ...]]] = [("tree", tree, ())]
    while waiting:
        place, node, above = waiting.pop()
        inner: list[tuple[str, object]]
        if isinstance(node, dict):
            inner = [(f"{place}.{key}", value) for key, value in node.items()]
        elif isinstance(node, list):
            inner = [(f"{place}[{index}]", value) for index, value in enumerate(node)]
        else:
            yield _Leaf(node, place, above)
            continue
        if not inner:
            raise ConfigError(f"{file}, {place}: holds no class; fill it or leave it out")
        waiting += [(where, value, (place, *above)) for where, value in reversed(inner)]


def _from_parents(parents: object, classes: tuple[str, ...], file: str) -> Iterator[_Leaf]:
    """Yield what is nobody's parent, with all that is above it; keys can write a label as text."""
    if not isinstance(parents, dict) or not all(isinstance(p, str) for p in parents.values()):
        raise ConfigError(f"{file}, parents: must be a table of names, found {parents!r}")
    if not parents:
        raise ConfigError(f"{file}, parents: holds no class")
    inner = set(parents.values())
    tops = {}
    for name in parents:
        above = _way_up(name, parents, file)
        tops[above[-1]] = name
        if name not in inner:
            label = name not in classes and name.isdecimal()
            yield _Leaf(int(name) if label else name, f"parents.{name}", tuple(above))
    if len(tops) > 1:
        (one, below), (other, beside) = list(tops.items())[:2]
        raise ConfigError(
            f"{file}, parents: {below!r} is below {one!r} and {beside!r} below {other!r}; a tree "
            "has one root, so give these a parent in common"
        )


def _way_up(name: str, parents: Mapping[str, str], file: str) -> list[str]:
    """Return what is above a node, up to the root."""
    way = [name]
    seen = {name}
    while way[-1] in parents:
        way.append(parents[way[-1]])
        if way[-1] in seen:
            cycle = " -> ".join(way[way.index(way[-1]) :])
            raise ConfigError(f"{file}, parents: {cycle} is a cycle; a tree has none")
        seen.add(way[-1])
    return way[1:]


def _grouped(leaves: list[_Leaf], classes: tuple[str, ...] | None, file: str) -> ParsedTree:
    """Bring leaves into the order of their labels, and their ancestors to heights."""
    by_label: dict[int, _Leaf] = {}
    for leaf in leaves:
        label = _label(leaf, classes, file)
        if label in by_label:
            raise ConfigError(
                f"{file}, {leaf.place}: class {leaf.written!r} is at {by_label[label].place} "
                "already; every class belongs once"
            )
        by_label[label] = leaf
    size = len(classes) if classes is not None else max(by_label) + 1
    if len(by_label) < size:
        missing = next(label for label in count() if label not in by_label)
        name = repr(classes[missing]) if classes is not None else str(missing)
        raise ConfigError(f"{file}: class {name} is nowhere in the tree; every class belongs once")
    ways = [by_label[label].above for label in range(size)]
    return ParsedTree(classes or _numbers(size), _groups(ways))


def _label(leaf: _Leaf, classes: tuple[str, ...] | None, file: str) -> int:
    """Return the label of a class, written by its name or as the label itself."""
    where, written = f"{file}, {leaf.place}", leaf.written
    if isinstance(written, str) and classes is not None:
        if written not in classes:
            raise ConfigError(f"{where}: {unknown_name('class', written, classes)}")
        return classes.index(written)
    if isinstance(written, str):
        raise ConfigError(
            f"{where}: found the name {written!r}, but no list `classes` of the names in the order "
            "of their labels; add it, or write labels"
        )
    if isinstance(written, bool) or not isinstance(written, int):
        raise ConfigError(f"{where}: must be a class, by name or label, found {written!r}")
    if written < 0 or (classes is not None and written >= len(classes)):
        valid = "0 or more" if classes is None else f"in 0..{len(classes) - 1}"
        raise ConfigError(f"{where}: labels must be {valid}, found {written}")
    return written


def _groups(ways: list[tuple[Hashable, ...]]) -> Groups:
    """Name at each height below the root the topmost ancestor that is not above that height.

    Where that is none, the class is a group of its own.
    """
    heights: dict[Hashable, int] = {}
    for way in ways:
        for steps, node in enumerate(way, 1):
            heights[node] = max(heights.get(node, 0), steps)
    rows = []
    for label, way in enumerate(ways):
        tops = [
            next((node for node in reversed(way) if heights[node] <= height), ("class", label))
            for height in range(1, heights[way[-1]])
        ]
        rows.append(tops)
    columns = [_counted(column) for column in zip(*rows, strict=True)]
    return tuple(zip(*columns, strict=True)) if columns else ((),) * len(ways)


def _counted(nodes: tuple[Hashable, ...]) -> list[int]:
    """Number nodes in the order in which they come."""
    order = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
    return [order[node] for node in nodes]


def _from_groups(values: object, classes: tuple[str, ...] | None, file: str) -> ParsedTree:
    """Read a row of groups per class: a table by name, or a list in the order of the labels."""
    if isinstance(values, dict):
        if classes not in (None, tuple(values)):
            raise ConfigError(f"{file}, classes: must name those of groups, in the same order")
        classes, values = tuple(values), list(values.values())
    if not isinstance(values, list):
        raise ConfigError(f"{file}, groups: must be a table or a list, found {values!r}")
    for label, row in enumerate(values):
        whole = isinstance(row, list) and all(type(group) is int for group in row)
        if not whole or min(row, default=0) < 0:
            raise ConfigError(
                f"{file}, groups[{label}]: must be a list of group numbers, 0 or more, "
                f"found {row!r}"
            )
    return ParsedTree(classes or _numbers(len(values)), tuple(tuple(row) for row in values))


def _check_pairs(groups: Groups, stated: object, file: str) -> None:
    """Compare the pairs of classes at each distance with what the file says they are."""
    found = Counter(
        1 + sum(one != other for one, other in zip(first, second, strict=False))
        for first, second in combinations(groups, 2)
    )
    counted = {str(distance): found[distance] for distance in sorted(found)}
    if stated != counted:
        raise ConfigError(
            f"{file}, pairs_by_distance: the tree has {counted} pairs of classes, not {stated!r}"
        )
