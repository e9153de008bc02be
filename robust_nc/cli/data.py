"""`robust-nc data`: which data sets there are, and fetching one."""

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robust_nc.cli.options import DataOptions
from robust_nc.data.fetch import fetch
from robust_nc.data.load import data_root, list_datasets
from robust_nc.exceptions import ConfigError


def data_command(options: DataOptions, stderr: Console) -> int:
    """List the data sets, or fetch one."""
    name, root = options.name, options.root
    if options.action == "fetch":
        if name is None:
            raise ConfigError("say which data set to fetch, e.g. robust-nc data fetch cifar10")
        print(fetch(name, root, partial(stderr.print, markup=False, soft_wrap=True)))
        return 0
    if name is not None:
        raise ConfigError(f"'data list' takes no name; did you mean: robust-nc data fetch {name}")
    Console().print(_table(root))
    return 0


def _table(root: Path | None) -> Table:
    table = Table(title=f"Data sets (folder {data_root(root)})", title_justify="left")
    table.add_column("name", no_wrap=True)
    for heading in ("classes", "image", "train", "test", "there", "how"):
        table.add_column(heading, overflow="fold")  # rather than to leave the end out
    for line in list_datasets(root):
        shape = "x".join(map(str, line.image_shape)) if line.image_shape else "-"
        numbers = [f"{n:,}" if n is not None else "-" for n in (line.train, line.test)]
        classes = str(line.num_classes or "-")
        table.add_row(
            line.name, classes, shape, *numbers, "yes" if line.present else "no", line.how
        )
    return table
