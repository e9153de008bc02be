"""`robust-nc doctor`: what this environment has, and what to do about what it has not."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from robust_nc.cli.options import DoctorOptions
from robust_nc.data.corruptions import DISTRIBUTION, corruption_library
from robust_nc.exceptions import ConfigError
from robust_nc.runtime.environment import hardware, versions
from robust_nc.runtime.third_party import PEERS, Peer, PeerState, peer_state
from robust_nc.runtime.torch_state import default_device
from robust_nc.runtime.waiting import wait_policy
from robust_nc.zoo.sandbox import confined

_CORRUPTIONS = "imagecorruptions"
_PARTS = (
    Peer("seaborn", "seaborn", "figures", "seaborn"),
    Peer("pyarrow", "pyarrow", "rows of records", "pyarrow"),
    Peer("sklearn", "scikit-learn", "the digits data", "scikit-learn"),
    Peer(_CORRUPTIONS, DISTRIBUTION, "common corruptions", '"robust_nc[corruptions]"'),
    Peer("ray", "ray", "--engine ray", '"robust_nc[ray]"'),
    *PEERS,
)
_WORDS = {True: "works", False: "broken", None: "not installed"}


def doctor_command(_: DoctorOptions, __: Console) -> int:
    """Print the report; the exit code is 1 if a part is installed but does not work."""
    console = Console()
    machine = {**hardware(default_device()), "cuda_available": torch.cuda.is_available()}
    waits = ", ".join(f"{name}={value}" for name, value in wait_policy().items())
    machine["threads wait"] = waits
    with TemporaryDirectory() as scratch:
        machine["isolation"] = confined(Path(scratch)).missing or "bubblewrap works"
    facts = {**versions(), **{key: str(value) for key, value in machine.items()}}
    for key, value in facts.items():
        console.print(f"{key:>16}  {value}", highlight=False)
    found = [(part, _state(part)) for part in _PARTS]
    console.print(_table(found))
    for part, known in found:
        if known.works is not None and known.remedy:
            mark = "note" if known.works else "broken"
            told = f"{mark}: {part.distribution}: {known.remedy}"
            console.print(told, highlight=False, markup=False, soft_wrap=True)
    return 1 if any(known.works is False for _, known in found) else 0


def _state(part: Peer) -> PeerState:
    """Return the state of a part; another package may be where that of corruptions should be."""
    known = peer_state(part)
    if part.module == _CORRUPTIONS and known.works:
        try:
            corruption_library()
        except ConfigError as error:
            return PeerState(known.version, False, str(error))
    return known


def _table(found: list[tuple[Peer, PeerState]]) -> Table:
    table = Table(Column("part", no_wrap=True), "version", Column("state", overflow="fold"), "for")
    for part, known in found:
        word = _WORDS[known.works]
        told = f"{word}; {known.remedy}" if known.works is None else word
        table.add_row(part.distribution, known.version, Text(told), part.purpose)
    return table
