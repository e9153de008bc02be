"""What a run left, to be compared with an undisturbed one; and processes to be killed."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from helpers_runner import living

from robust_nc.config import plain
from robust_nc.record.folder import read_all
from robust_nc.training.progress import read_log

# What a record says of when and how long it was made, and the seals over that.
_OF_THE_TIME = ("created", "seconds", "seals")


class Left(NamedTuple):
    """What a run left: records without times, bytes of rows and evidence, and logs of trainings."""

    records: dict[str, dict[str, Any]]
    files: dict[str, bytes]
    trainings: dict[str, list[int]]


def left_by(out: Path) -> Left:
    """Read what lies in a suite's folder, with paths from there; what is half raises."""
    found: dict[str, dict[str, Any]] = {}
    for stored in read_all(out):
        assert len(stored.rows())
        values = plain(stored.record)
        for name in _OF_THE_TIME:
            values.pop(name)
        found[str(stored.path.relative_to(out))] = json.loads(json.dumps(values))
    kinds = ("*/*.parquet", "*/*.evidence")
    paths = [path for kind in kinds for path in out.glob(kind)]
    logs = out.glob("checkpoints/*/log.jsonl")
    return Left(
        found,
        {str(path.relative_to(out)): path.read_bytes() for path in paths},
        {path.parent.name: [row["epoch"] for row in read_log(path)] for path in logs},
    )


def assert_same(found: Left, wanted: Left) -> None:
    """Compare all that two runs left, and say which part differs."""
    assert found.records.keys() == wanted.records.keys()
    for path, record in wanted.records.items():
        there, here = _flat(found.records[path]), _flat(record)
        keys = sorted(there.keys() | here.keys())
        differing = [key for key in keys if there.get(key) != here.get(key)]
        told = {key: (there.get(key), here.get(key)) for key in differing}
        assert not differing, f"{path} differs in {told}"
    assert found.files.keys() == wanted.files.keys()
    assert [path for path in wanted.files if found.files[path] != wanted.files[path]] == []
    assert found.trainings == wanted.trainings


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested tables by dotted path."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf
        for key, part in value.items()
        for path, leaf in _flat(part, f"{prefix}.{key}").items()
    }


def assert_tidy(out: Path) -> None:
    """No half file, no log of what is finished, no tensors that no checkpoint names."""
    assert list(out.rglob("*.part")) == []
    assert [path.name for path in out.rglob("*.jsonl") if path.name != "log.jsonl"] == []
    for folder in out.glob("checkpoints/*"):
        named = "".join(path.read_text() for path in folder.glob("*.json"))
        assert [p.name for p in folder.glob("*.safetensors") if p.name not in named] == []


def records_are_whole(out: Path) -> None:
    """Whatever was killed when: a record that is there can be read, with its rows."""
    for stored in read_all(out) if out.is_dir() else ():
        assert len(stored.rows())


def workers_of(driver: int) -> list[int]:
    """Worker processes of a driver, from /proc."""
    found = []
    for process in living():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            command = Path(f"/proc/{process}/cmdline").read_text()
            if parent == driver and "spawn_main" in command:
                found.append(process)
    return sorted(found)
