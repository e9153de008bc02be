"""What a cell needs beside its model, gathered before any work is done, or refused.

>>> from robust_nc.config import RunConfig
>>> gather_inputs(RunConfig(), None).test.images.shape
torch.Size([360, 1, 8, 8])
"""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from robust_nc.config import RunConfig
from robust_nc.data.base import Split
from robust_nc.data.hierarchy.tree import Hierarchy, tree_of
from robust_nc.data.load import dataset_info, read_split
from robust_nc.exceptions import ConfigError
from robust_nc.profiling.conditions import BY_TREE
from robust_nc.profiling.corruption_rows import CorruptionSource, check_corrupted, corruption_source
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.training.run import check_training


class CellInputs(NamedTuple):
    """The test split, distances between its classes `(K, K)` or None, corrupted images or None."""

    test: Split
    distances: Tensor | None
    corrupted: CorruptionSource | None


def check_cell(config: RunConfig, root: Path | None) -> Hierarchy | None:
    """Refuse a configuration that could not be trained or measured; return the classes' tree.

    Builds all parts and reads no images. Raises `ConfigError`, `InputError` or `DataError`.
    """
    info = dataset_info(config.data.dataset, root)
    chosen_taps(check_training(config, info), config.measure.taps)
    tree = tree_of(config.data.hierarchy, info.name)
    if tree is not None:
        tree.check_classes(info.class_names)
    elif set(config.measure.targets) & set(BY_TREE):
        raise ConfigError(
            f"measure.targets: {' and '.join(BY_TREE)} need a tree of the classes, and {info.name} "
            "has none of its own; set data.hierarchy to a TOML or JSON file"
        )
    return tree


def gather_inputs(config: RunConfig, root: Path | None) -> CellInputs:
    """Gather what the cell needs, and refuse now what would else end it after its training."""
    tree = check_cell(config, root)
    test = read_test(config, root)
    corrupted = None
    if config.measure.corruptions:
        corrupted = corruption_source(dataset_info(config.data.dataset, root).name, root)
        check_corrupted(corrupted, config.measure, test)
    return CellInputs(test, None if tree is None else tree.distances(), corrupted)


def read_test(config: RunConfig, root: Path | None) -> Split:
    """Read the test images of a configuration."""
    return read_split(config.data.dataset, "test", root=root, limit=config.data.test_limit)


def judged_count(config: RunConfig, size: int) -> int:
    """Return how many of the `size` images of the whole test split are judged.

    >>> judged_count(RunConfig(), 360)
    360
    """
    limits = (config.data.test_limit, config.evaluation.examples)
    return min([size, *(limit for limit in limits if limit is not None)])
