"""Where suites are written: those of the package, and files of your own. Reads no more than text.

>>> "quickstart" in suite_names()
True
"""

from importlib import resources
from pathlib import Path

from robust_nc.exceptions import ConfigError, unknown_name

CLAIMS = "claims"  # benchmarks/claims.toml holds claims about suites, and is none itself


def suite_names() -> tuple[str, ...]:
    """Names of the suites that come with the package."""
    folder = resources.files("robust_nc.benchmarks")
    found = {e.name.removesuffix(".toml") for e in folder.iterdir() if e.name.endswith(".toml")}
    return tuple(sorted(found - {CLAIMS}))


def suite_text(name: str) -> tuple[str, str]:
    """Return a suite as it is written, by its name or a path that ends with .toml, and its file.

    Raises `ConfigError` for what is neither, or cannot be read.
    """
    if name.endswith(".toml"):
        try:
            return Path(name).read_text(), name
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the suite {name} cannot be read: {error}") from None
    if name not in suite_names():
        unknown = unknown_name("suite", name, suite_names())
        raise ConfigError(f"{unknown}, or a path that ends with .toml")
    file = resources.files("robust_nc.benchmarks") / f"{name}.toml"
    return file.read_text(), f"{name}.toml"
