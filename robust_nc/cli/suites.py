"""`robust-nc suites`: which suites there are, and one as TOML with every default."""

from rich import box
from rich.console import Console
from rich.table import Table

from robust_nc.claims.reading import read_claims
from robust_nc.cli.options import SuitesOptions
from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.suite import read_suite
from robust_nc.pipeline.suite_files import CLAIMS, suite_names
from robust_nc.pipeline.suite_toml import suite_toml


def suites_command(options: SuitesOptions, stderr: Console) -> int:
    """List the suites, or show one."""
    if options.action == "show":
        if options.name is None:
            raise ConfigError("say which suite to show, e.g. robust-nc suites show quickstart")
        print(suite_toml(options.name), end="")
        return 0
    if options.name is not None:
        raise ConfigError(
            f"'suites list' takes no name; did you mean: robust-nc suites show {options.name}"
        )
    Console().print(_table())
    return 0


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("suite", no_wrap=True)
    table.add_column("cells", justify="right")
    table.add_column("what it is")
    for name in suite_names():
        suite = read_suite(name)
        table.add_row(name, str(len(suite.cells)), suite.description)
    claims = read_claims(CLAIMS)
    cells = sum(len(suite.cells) for suite in claims.suites())
    names = ", ".join(suite.name for suite in claims.suites())
    table.add_row(CLAIMS, str(cells), f"All cells that claims are decided on, of {names}.")
    return table
