"""What one evaluated cell leaves: a `Record` (JSON) and its rows (a tidy parquet table).

A record can be read without this package: values are numbers, never strings; flags of examples are
hexadecimal bit strings in the order of ids (`pack_flags`).

>>> import numpy as np
>>> unpack_flags(pack_flags(np.array([True, False, True]))).tolist()
[True, False, True]

A record carries a seal of each of its fields, so that whatever changed afterwards can be named:
that finds damage and careless edits. Who changes a field can seal it anew, and then has to stand up
to the evidence.

>>> broken_seals({"seed": 1, "seals": {"seed": seal_of(0)}})
('seed',)
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from robust_nc.config import configuration, plain, read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.files import atomic, canonical_json, digest, sha256_of, write_text
from robust_nc.io.untrusted import file_name, read_json

SCHEMA = 1
_SEALS = "seals"
_SHOWN = 10  # classes that the name of data tells
MOST_ROWS = 2_000_000  # that are read of one record

# One row = one value. `i`, `j` index matrices and histograms; `epoch` is -1 for finished weights.
COLUMNS = {
    "tap": "str",  # "penultimate", ...; "output" for logits and accuracies
    "depth": "int64",  # 0 is the first tap
    "feature": "str",  # gap | flatten
    "condition": "str",  # clean | attacked | gaussian | sign | corrupted | ...
    "eps": "float64",
    "attack": "str",  # loss, steps, restarts of the attack, or "fog/3"; "" for clean
    "split": "str",  # train | test
    "grouping": "str",  # true | predicted | landed | none
    "vertices": "str",  # clean-train | same | none
    "epoch": "int64",
    "measure": "str",
    "i": "int64",  # -1 where the value is a scalar
    "j": "int64",
    "value": "float64",  # 7 digits of it in a file
    "n": "int64",
    "note": "str",
}


@configuration
class Score:
    """A share of examples with its 95 % Wilson interval, over `n` examples."""

    value: float
    low: float
    high: float
    n: int


@configuration
class File:
    """A file and its SHA-256; rows lie beside the record, weights below the suite's folder."""

    path: str
    sha256: str


@configuration
class AttackUse:
    """One attack as it was run, and how many examples it was the first to break."""

    name: str
    parameters: dict[str, Any]
    broke: int


@configuration
class Passes:
    """Passes that the verdict cost, over all examples: forward, and backward to the input."""

    forward: int
    backward: int


@configuration
class Facts:
    """The examples that were judged: which data set, which of its images, and their fingerprint.

    `train_examples` is what training saw, `wrong_labels` how many of them had a wrong label, and
    `noise` the share of wrong labels to expect; None in records of earlier versions, and without
    noise. `class_names` by label; None in records of earlier versions, and where classes are but
    numbers.
    """

    dataset: str
    split: str
    examples: int
    which: str
    fingerprint: str
    num_classes: int
    train_examples: int | None = None
    wrong_labels: int | None = None
    noise: float | None = None
    class_names: tuple[str, ...] | None = None


@configuration
class Weights:
    """The weights: `best` (by validation) made the verdict, `last` the geometry; paths from out.

    None for a model that came finished. `state` is the digest of the tensors that the verdict is
    about (`fingerprints.state_digest`); None in records of earlier versions.
    """

    parameters: int
    best: File | None = None
    last: File | None = None
    state: str | None = None


@configuration
class EvidenceFile:
    """The file of adversarial examples: its name, SHA-256, size and the examples that it breaks.

    It lies beside the record, or elsewhere: then only its digest is known here. A file that was cut
    to travel holds the first `rows` examples, and `full` is the SHA-256 of that of all; else None.
    """

    name: str
    sha256: str
    bytes: Annotated[int, Field(ge=0)]
    broken: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=1)] | None = None
    full: str | None = None


@configuration
class Card:
    """What the authors say of a model: text, shown and never believed."""

    name: str = ""
    authors: str = ""
    paper: str = ""
    link: str = ""
    venue: str = ""
    architecture: str = ""
    extra_data: bool | None = None
    notes: str = ""


@configuration
class GeometryUse:
    """How much of the geometry that the settings ask for was measured.

    `passes` forward and backward were made of `allowed`, on the first `train_examples` (evenly
    spread) and `test_examples`; `left_out` says what is not in the rows, and why. All 0: nothing
    yet, or nothing at all.
    """

    passes: Annotated[int, Field(ge=0)]
    allowed: Annotated[int, Field(ge=0)]
    train_examples: Annotated[int, Field(ge=0)]
    test_examples: Annotated[int, Field(ge=0)]
    left_out: tuple[str, ...] = ()


@configuration
class Verdict:
    """Packed flags per example; `broken_by` indexes `attacks` (-1 none, -2 not needed)."""

    clean_correct: str
    robust: str
    broken_by: tuple[int, ...]


@configuration
class Caution:
    """A named warning about the verdict: what it means for the reader."""

    name: str
    message: str


@configuration
class Record:
    """One evaluated cell. `summary` holds the headline measures of the penultimate tap.

    `accelerated` says how the model was made faster for the attacks (the verdict is its own);
    "bf16" or "tf32": they ran in that first, and in float32 where they came near.
    `geometry` says how much of it was measured; None in records of suites and of earlier versions,
    and where none was asked for.
    `seals` are digests of the other fields (`sealed`); none in records of earlier versions.
    """

    schema_version: int = SCHEMA
    cell: str
    suite: str
    model: str
    objective: str
    head: str
    config: dict[str, Any]
    seed: int
    data: Facts
    weights: Weights
    protocol: str
    attacks: tuple[AttackUse, ...]
    accelerated: tuple[str, ...] = ()
    passes: Passes
    verdict: Verdict
    scores: dict[str, Score]
    summary: dict[str, float | None]
    rows: File
    warnings: tuple[Caution, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    created: str
    card: Card | None = None
    evidence: EvidenceFile | None = None
    geometry: GeometryUse | None = None
    seals: dict[str, str] = Field(default_factory=dict)


class Stored(NamedTuple):
    """A record, where it lies, and the fields that are not as they were sealed."""

    record: Record
    path: Path
    changed: tuple[str, ...] = ()

    def rows(self) -> pd.DataFrame:
        """Read the tidy rows (columns `COLUMNS`), checked against their SHA-256."""
        return pd.read_parquet(self.rows_path())

    def rows_path(self) -> Path:
        """Return the file of the tidy rows, checked against its SHA-256, and of bounded length."""
        path = self.path.parent / file_name(self.record.rows.path, what=f"rows of {self.path}")
        if not path.is_file():
            raise RecordError(
                f"{self.path} names {path.name}, which is missing; run its cell again"
            )
        if sha256_of(path) != self.record.rows.sha256:
            raise RecordError(f"{path} is not the file that {self.path.name} was written with")
        try:
            with path.open("rb") as file:
                count = pq.read_metadata(file).num_rows
        except (OSError, ValueError) as error:
            raise RecordError(f"{path} cannot be read as rows of measures: {error}") from None
        if count > MOST_ROWS:  # equal rows take no room in a file
            raise RecordError(f"{path} has {count:,} rows; at most {MOST_ROWS:,} are read")
        return path


def data_name(record: Record) -> str:
    """Return what the images are called: the data set, or the file or folder of one's own.

    Where only some classes of it are taken, with their numbers.
    """
    data = record.config.get("data")
    part = data.get("dataset") if isinstance(data, dict) else None
    options = part.get("options") if isinstance(part, dict) else None
    path = options.get("path") if isinstance(options, dict) else None
    name = (Path(path).name if isinstance(path, str) else "") or record.data.dataset
    classes = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(classes, list):
        return name
    shown = ", ".join(str(label) for label in classes[:_SHOWN] if isinstance(label, int))
    return f"{name} (classes {shown}{', ...' if len(classes) > _SHOWN else ''})"


def tidy(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Make the tidy frame: columns in order, typed, with defaults for what a row leaves out."""
    defaults: dict[str, Any] = {"str": "", "int64": -1, "float64": float("nan")}
    known = [{**{c: defaults[kind] for c, kind in COLUMNS.items()}, **row} for row in rows]
    unknown = {key for row in rows for key in row} - set(COLUMNS)
    assert not unknown, f"rows with unknown columns {unknown}"
    return pd.DataFrame(known, columns=list(COLUMNS)).astype(COLUMNS)


def write_rows(path: Path, frame: pd.DataFrame) -> File:
    """Write tidy rows as parquet, atomically, and return the reference for the record.

    Values are kept to the 7 digits of float32 where its range allows, and what a reader can do
    without (statistics, a second schema) is left out: together a third of the size.
    """
    values = frame["value"].to_numpy(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float32).astype(np.float64)
    lost = ~np.isclose(rounded, values, rtol=1e-6, atol=0, equal_nan=True)
    frame = frame.assign(value=np.where(lost, values, rounded))
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    with atomic(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=19,
            use_dictionary=[column for column in frame.columns if column != "value"],
            column_encoding={"value": "BYTE_STREAM_SPLIT"},
            write_statistics=False,
            store_schema=False,
        )
    return File(path=path.name, sha256=sha256_of(path))


def write_record(path: Path, record: Record) -> None:
    """Write a record, atomically. Its rows and weights must be there already."""
    write_text(path, json.dumps(plain(record), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> Stored:
    """Read and check one record, or raise `RecordError` that says what is wrong with it."""
    values = read_json(path)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA:
        raise RecordError(f"{path} has schema version {version!r}; this version reads {SCHEMA}")
    try:
        record = read(Record, values, source=str(path))
    except ConfigError as error:
        raise RecordError(str(error)) from None
    return Stored(record, path, broken_seals(values) if record.seals else ())


def pack_flags(flags: npt.NDArray[np.bool_]) -> str:
    """Pack booleans as `count:hex`, first example in the highest bit."""
    return f"{len(flags)}:{np.packbits(flags).tobytes().hex()}"


def unpack_flags(text: str) -> npt.NDArray[np.bool_]:
    """Undo `pack_flags`; raises `RecordError` for anything else."""
    try:
        count, bits = text.split(":")
        flags = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8))
        size = int(count)
    except ValueError:
        raise RecordError(f"flags must be 'count:hex', found {text[:40]!r}") from None
    if not 0 <= size <= len(flags) < size + 8:
        raise RecordError(f"flags for {size} examples need {-(-size // 8)} bytes")
    return flags[:size].astype(bool)


def same_record(first: Record, second: Record) -> bool:
    """Whether two records agree in all but when and how long they were made."""
    varying = ("created", "seconds", "hardware", "versions", "seals")
    left, right = plain(first), plain(second)
    for key in varying:
        left.pop(key), right.pop(key)
    return canonical_json(left) == canonical_json(right)


def seal_of(value: object) -> str:
    """First 16 hexadecimal digits of the digest of one field's plain value."""
    return digest(value)[:16]


def sealed(record: Record) -> Record:
    """Return the record with a seal for each of its fields."""
    values = plain(record)
    found = {name: seal_of(value) for name, value in values.items() if name != _SEALS}
    return dataclasses.replace(record, seals=found)


def broken_seals(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the fields that are not as they were sealed, sorted.

    `values` are those of the record's file: a field that came with a later version is not in it.
    """
    seals = values[_SEALS]
    fields = {name: value for name, value in values.items() if name != _SEALS}
    return tuple(
        sorted(
            name
            for name in seals.keys() | fields.keys()
            if name not in fields or seals.get(name) != seal_of(fields[name])
        )
    )
