"""What the stages of a cell leave for its record: the geometry, and how long each stage took.

>>> import pathlib, tempfile
>>> from robust_nc.record.schema import tidy
>>> path = pathlib.Path(tempfile.mkdtemp()) / "geometry.parquet"
>>> write_geometry(path, tidy([{"measure": "nc1", "value": 0.1}]), weights="00ff", seconds=2.0)
>>> found = read_geometry(path, weights="00ff")
>>> found.rows["value"].tolist(), found.seconds, read_geometry(path, weights="another")
([0.1], 2.0, None)
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robust_nc.io.files import atomic, write_text
from robust_nc.record.schema import COLUMNS

_OURS = b"robust_nc"


class Geometry(NamedTuple):
    """The rows of a geometry, and how many seconds they took."""

    rows: pd.DataFrame
    seconds: float


def write_geometry(path: Path, rows: pd.DataFrame, *, weights: str, seconds: float) -> None:
    """Keep the rows of a geometry, exactly, with the digest of the weights that it is of."""
    about = {"weights": weights, "seconds": seconds, "digest": _digest(rows)}
    table = pa.Table.from_pandas(rows, preserve_index=False)
    table = table.replace_schema_metadata({_OURS: json.dumps(about).encode()})
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_geometry(path: Path, *, weights: str) -> Geometry | None:
    """Return what `write_geometry` kept; None where it is missing, damaged, or of other weights."""
    try:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[_OURS])
        rows = table.to_pandas().astype(COLUMNS)
        if about["weights"] != weights or about["digest"] != _digest(rows):
            return None
        return Geometry(rows, float(about["seconds"]))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None


def _digest(rows: pd.DataFrame) -> str:
    """Digest of the names and values of all columns, in order."""
    total = hashlib.sha256("\n".join(rows.columns).encode())
    total.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return total.hexdigest()


def note_seconds(path: Path, seconds: float) -> None:
    """Note how long a stage took."""
    write_text(path, json.dumps({"seconds": seconds}) + "\n")


def noted_seconds(path: Path) -> float | None:
    """Return what `note_seconds` noted, or None.

    >>> noted_seconds(Path("nowhere"))
    """
    try:
        return float(json.loads(path.read_text())["seconds"])
    except (OSError, KeyError, TypeError, ValueError):
        return None
