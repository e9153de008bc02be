"""Measured speeds: seconds of one call by the size of its batch, in a file that says on what.

>>> Rate(fixed=0.01, each=0.002).seconds(2, 10)
0.04
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from robust_nc.config import configuration, plain, read
from robust_nc.exceptions import ConfigError, StorageError
from robust_nc.io.files import write_text
from robust_nc.planning.pieces import Probe
from robust_nc.runtime.environment import hardware
from robust_nc.runtime.progress import Report
from robust_nc.runtime.torch_state import default_device

SCHEMA = 3


@configuration
class Rate:
    """Seconds of one call: `fixed`, and `each` for every image."""

    fixed: float = Field(ge=0)
    each: float = Field(ge=0)

    def seconds(self, calls: float, images: float) -> float:
        """Seconds of so many calls, on so many images in all."""
        return self.fixed * calls + self.each * images


@configuration
class Speeds:
    """Rates by the key of their probe, and what they were measured on."""

    schema_version: int = SCHEMA
    device: str
    threads: int
    torch: str
    rates: dict[str, Rate] = Field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether hours are those of an accelerator."""
        return not self.device.startswith("cpu")


def measure_speeds(
    probes: Sequence[Probe], pilot: Callable[[Probe], Rate], *, threads: int, report: Report
) -> Speeds:
    """Time all probes on this machine's device; `report` is told the share and the probe."""
    facts, rates = hardware(default_device()), {}
    for number, probe in enumerate(probes):
        report(number / len(probes), probe.key)
        rates[probe.key] = pilot(probe)
    name = facts.get("gpu", f"cpu {facts['machine']} {facts['cpu']}")
    return Speeds(device=str(name), threads=threads, torch=torch.__version__, rates=rates)


def read_speeds(path: Path) -> Speeds:
    """Read a table of speeds, or raise `ConfigError` that says what is wrong with it."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the speeds {path} cannot be read ({error}); give a file that --plan wrote, or one "
            "that does not exist yet to measure anew"
        ) from None
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != SCHEMA:
        raise ConfigError(
            f"the speeds {path} have schema version {found!r}, this version reads {SCHEMA}; give a "
            "file that --plan wrote, or one that does not exist yet to measure anew"
        )
    return read(Speeds, values, source=str(path))


def write_speeds(path: Path, speeds: Speeds) -> None:
    """Write a table of speeds; raises `StorageError` where that cannot be done."""
    try:
        write_text(path, json.dumps(plain(speeds), indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise StorageError(
            f"cannot write the speeds {path}: {error.strerror or error}; choose another place with "
            "--speeds"
        ) from error


def refuse_lacking(path: Path, speeds: Speeds, probes: Iterable[Probe]) -> None:
    """Raise `ConfigError` that names the models of which a file has no speeds, if there are any."""
    keys = [probe.key for probe in probes if probe.key not in speeds.rates]
    if not keys:
        return
    models = sorted(set(map(_model, keys)))
    known = sorted(set(map(_model, speeds.rates)))
    raise ConfigError(
        f"the speeds {path}, measured on {speeds.device}, lack {len(keys)} of this suite's: "
        f"{'; '.join(models)} (first: {keys[0]!r}); they hold {'; '.join(known) or 'none'}; make "
        "the file with --plan of this suite on that machine, or name a new one"
    )


def _model(key: str) -> str:
    """Return the model that a key names, or all of a key that is none of ours."""
    return key.split(" | ")[1] if " | " in key else key
