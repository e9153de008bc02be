"""Trees of classes: those of the package, every way to write one, and every way to get it wrong."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.hierarchical import height_of_common_ancestor

from robust_nc.config import Component
from robust_nc.data.hierarchy.tree import Hierarchy, hierarchy_names, parse, read_hierarchy, tree_of
from robust_nc.data.load import dataset_info
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.geometry.severity import check_distances

NAMES = ["ant", "bee", "elm", "oak"]
# K, classes per group, pairs of classes at distance 1, 2, ...
PACKAGED = {
    "cifar10": (10, 3, [5, 16, 24]),
    "cifar100": (100, 5, [200, 525, 1050, 900, 2275]),
    "digits": (10, 3, [8, 13, 24]),
    "fashion_mnist": (10, 3, [6, 15, 24]),
}

each_packaged = pytest.mark.parametrize("name", PACKAGED)


def written(folder: Path, values: dict[str, Any] | str, name: str = "own.json") -> str:
    file = folder / name
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(file)


def lowest_ancestor(tree: Any, one: int, other: int) -> tuple[bool, bool, int, int | None]:
    """Whether each class is below a node, the node's height, and that of their lowest ancestor."""
    if isinstance(tree, int):
        return tree == one, tree == other, 0, None
    below = [lowest_ancestor(child, one, other) for child in tree]
    height = 1 + max(child[2] for child in below)
    found = [child[3] for child in below if child[3] is not None]
    has = any(child[0] for child in below), any(child[1] for child in below)
    return *has, height, found[0] if found else height if all(has) else None


@st.composite
def nested(draw: Any) -> Any:
    """A tree of 2 to about 20 classes at any depths, its labels in an order of chance."""
    shape = draw(
        st.recursive(
            st.none(), lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=20
        )
    )
    shape = [shape, None]

    def count(node: Any) -> int:
        return 1 if node is None else sum(map(count, node))

    labels = draw(st.permutations(range(count(shape))))
    left = iter(labels)

    def fill(node: Any) -> Any:
        return next(left) if node is None else [fill(child) for child in node]

    return fill(shape)


class TestPackaged:
    def test_all_are_listed(self):
        assert hierarchy_names() == tuple(sorted(PACKAGED))

    @each_packaged
    def test_classes_are_those_of_the_data_in_the_order_of_their_labels(self, name):
        info = dataset_info(Component(name=name))
        assert read_hierarchy(name).classes == info.class_names
        read_hierarchy(name).check_classes(info.class_names)

    @each_packaged
    def test_pairs_by_distance(self, name):
        num_classes, height, pairs = PACKAGED[name]
        tree = read_hierarchy(name)
        above = torch.triu_indices(num_classes, num_classes, offset=1)
        found = Counter(tree.distances()[above[0], above[1]].tolist())
        assert (tree.num_classes, tree.height) == (num_classes, height)
        assert [found[distance] for distance in range(1, height + 1)] == pairs
        assert sum(pairs) == num_classes * (num_classes - 1) // 2

    @each_packaged
    def test_distances_are_heights_of_common_ancestors(self, name):
        tree = read_hierarchy(name)
        groups = tree.groups
        wanted = [[height_of_common_ancestor(one, other) for other in groups] for one in groups]
        np.fill_diagonal(wanted := np.array(wanted), 0)
        assert np.array_equal(tree.distances().numpy(), wanted)
        assert tree.distances().dtype == torch.float64

    def test_cifar100_has_its_twenty_superclasses(self):
        tree = read_hierarchy("cifar100")
        heights = list(zip(*tree.groups, strict=True))
        assert [len(set(groups)) for groups in heights] == [20, 8, 4, 2]
        assert set(Counter(heights[0]).values()) == {5}
        fruit = [tree.classes[k] for k in range(100) if heights[0][k] == heights[0][0]]
        assert fruit == ["apple", "mushroom", "orange", "pear", "sweet_pepper"]

    def test_the_tree_of_a_data_set(self, tmp_path):
        assert tree_of(None, "digits") == read_hierarchy("digits")
        assert tree_of(None, "folder") is None
        assert tree_of("cifar10", "digits") == read_hierarchy("cifar10")
        own = written(tmp_path, {"tree": [[0, 1], [2]]})
        assert tree_of(own, "digits").num_classes == 3


class TestWays:
    WAYS = {  # noqa: RUF012
        "tables.toml": 'tree.animal.insects = ["bee", "ant"]\ntree.plant.trees = ["elm", "oak"]\n',
        "lists.toml": 'tree = [["bee", "ant"], ["oak", "elm"]]\n',
        "mixed.toml": "[tree]\nanimal = [0, 1]\nplant = [2, 'oak']\n",
        "parents.toml": "[parents]\n"
        'ant = "animal"\nbee = "animal"\nelm = "plant"\noak = "plant"\n'
        'animal = "life"\nplant = "life"\n',
        "groups.toml": "groups = [[0], [0], [7], [7]]\n",
    }

    @pytest.mark.parametrize("name", WAYS)
    def test_every_way_says_the_same_tree(self, name, tmp_path):
        text = f"classes = {NAMES}\n" + self.WAYS[name]
        distances = read_hierarchy(written(tmp_path, text, name)).distances()
        ranks = distances.unique(return_inverse=True)[1]  # tables.toml has one height more
        assert ranks.tolist() == [[0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]]

    def test_groups_by_name_name_the_classes(self, tmp_path):
        tree = read_hierarchy(written(tmp_path, {"groups": {"b": [3], "a": [3], "c": [0]}}))
        assert tree.classes == ("b", "a", "c")
        assert tree.distances().tolist() == [[0, 1, 2], [1, 0, 2], [2, 2, 0]]

    @given(nested())
    @settings(max_examples=60, deadline=None)
    def test_any_tree_gives_heights_and_is_ultrametric(self, tree):
        groups = parse(json.dumps({"tree": tree}), "any.json").groups
        found = Hierarchy("any", tuple(map(str, range(len(groups)))), groups).distances()
        labels = range(len(groups))
        wanted = [
            [lowest_ancestor(tree, i, j)[3] or 0 if i != j else 0 for j in labels] for i in labels
        ]
        assert found.tolist() == wanted
        widest = torch.maximum(found[:, :, None], found[None])  # d(i, j) and d(j, k)
        assert bool((found[:, None] <= widest).all())
        check_distances(found, len(groups))

    def test_a_path_is_read_as_its_text(self, tmp_path):
        own = written(tmp_path, {"tree": [[0, 1], [2]]})
        assert read_hierarchy(Path(own)) == read_hierarchy(own)
        with pytest.raises(ConfigError, match=r"gone.toml cannot be read"):
            read_hierarchy(tmp_path / "gone.toml")


FAULTS = {
    "not JSON": ('{"tree": [0, 1}', r"own.json is not JSON: .*line 1"),
    "too deep": ("[" * 100_000, r"own.json is not JSON: "),
    "a key twice": ('{"tree": {"a": [0], "a": [1]}}', r"the key 'a' is there more than once"),
    "unknown key": ({"tre": [0, 1]}, r"unknown key in .*own.json 'tre'; did you mean 'tree'"),
    "no form": ({"classes": NAMES}, r"must give one of tree, groups, parents; found none"),
    "two forms": ({"tree": [0], "groups": [[0]]}, r"found tree and groups"),
    "classes twice": ({"classes": ["a", "a"], "tree": ["a"]}, r"classes: 'a' is there more than"),
    "unknown class": (
        {"classes": NAMES, "tree": {"a": ["ant", "be"]}},
        r"tree.a\[1\]: unknown class 'be'; did you mean 'bee'\?",
    ),
    "names without classes": ({"tree": {"a": ["ant"]}}, r"tree.a\[0\]: found the name 'ant', but"),
    "class twice": (
        {"classes": NAMES, "tree": {"a": ["ant", "bee"], "b": [["ant"], "elm", "oak"]}},
        r"tree.b\[0\]\[0\]: class 'ant' is at tree.a\[0\] already",
    ),
    "class missing": (
        {"classes": NAMES, "tree": {"a": ["ant", "bee"], "b": ["oak"]}},
        r"class 'elm' is nowhere in the tree",
    ),
    "label missing": ({"tree": [[0, 1], [3]]}, r"class 2 is nowhere in the tree"),
    "label too large": ({"classes": NAMES, "tree": [0, 4]}, r"labels must be in 0..3, found 4"),
    "label no number": ({"tree": [0, 1.5]}, r"tree\[1\]: must be a class, by name or label"),
    "empty group": ({"tree": {"a": [0, 1], "b": []}}, r"tree.b: holds no class"),
    "one class": ({"tree": [0]}, r"needs at least 2 classes, found 1"),
    "cycle": (
        {"parents": {"0": "a", "1": "a", "a": "b", "b": "c", "c": "a"}},
        r"parents: a -> b -> c -> a is a cycle",
    ),
    "two roots": (
        {"parents": {"0": "a", "1": "b"}},
        r"parents: '0' is below 'a' and '1' below 'b'; a tree has one root",
    ),
    "a class is a parent": (
        {"classes": ["p", "q", "r"], "parents": {"p": "q", "q": "top", "r": "top"}},
        r"class 'q' is nowhere in the tree",
    ),
    "parents no table": ({"parents": [1]}, r"parents: must be a table of names"),
    "groups part and meet": (
        {"groups": {"a": [0, 1], "b": [0, 2]}},
        r"'a' and 'b' share group 0 at height 1 and part higher up",
    ),
    "groups uneven": (
        {"groups": {"a": [0, 1], "b": [0]}},
        r"class 'b' has groups at 1 heights, and 'a' at 2",
    ),
    "group no number": ({"groups": [[0], [0.5]]}, r"groups\[1\]: must be a list of group numbers"),
    "groups too few": (
        {"classes": NAMES, "groups": [[0], [0]]},
        r"found 2 rows for 4 classes",
    ),
    "groups of others": (
        {"classes": ["a", "b"], "groups": {"b": [0], "a": [0]}},
        r"classes: must name those of groups, in the same order",
    ),
    "other pairs": (
        {"groups": [[0], [0], [1]], "pairs_by_distance": {"1": 2, "2": 1}},
        r"the tree has \{'1': 1, '2': 2\} pairs of classes, not",
    ),
}


class TestFaults:
    @pytest.mark.parametrize(("values", "message"), FAULTS.values(), ids=FAULTS.keys())
    def test_every_fault_is_one_sentence_with_its_place(self, values, message, tmp_path):
        with pytest.raises(ConfigError, match=message) as caught:
            read_hierarchy(written(tmp_path, values))
        assert "own.json" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_toml_file_says_so(self, tmp_path):
        with pytest.raises(ConfigError, match=r"own.toml is not TOML: .*line 2"):
            read_hierarchy(written(tmp_path, "source = ''\ntree = [0 1]", "own.toml"))

    def test_an_unknown_name_is_answered_with_the_nearest(self):
        with pytest.raises(ConfigError, match=r"'cifar1000'; did you mean .*, or a path that ends"):
            read_hierarchy("cifar1000")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match=r"gone.toml cannot be read"):
            read_hierarchy(str(tmp_path / "gone.toml"))
        (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match=r"bytes.json cannot be read"):
            read_hierarchy(str(tmp_path / "bytes.json"))

    def test_a_tree_of_other_classes_is_refused(self):
        tree = read_hierarchy("cifar10")
        tree.check_classes(10)
        read_hierarchy("digits").check_classes(tree.classes)  # a tree of labels fits any names
        with pytest.raises(InputError, match=r"cifar10 has 10 classes, and the data 7"):
            tree.check_classes(7)
        with pytest.raises(InputError, match=r"has 10 classes, and the data 2"):
            tree.check_classes(("a", "b"))
        renamed = ("plane", "car", *tree.classes[2:])
        with pytest.raises(InputError, match=r"0 is 'airplane', not 'plane', 1 is .*; name the"):
            tree.check_classes(renamed)
        with pytest.raises(InputError, match=r"0 is 'airplane', not 'truck', .* and more;"):
            tree.check_classes(tree.classes[::-1])

    def test_a_tree_made_by_hand_is_checked(self):
        with pytest.raises(InputError, match=r"mine: class 'a' is there more than once"):
            Hierarchy("mine", ("a", "a"), ((0,), (0,)))
        with pytest.raises(InputError, match=r"mine: each class needs its row of groups"):
            Hierarchy("mine", ("a", "b"), ((0,),))
