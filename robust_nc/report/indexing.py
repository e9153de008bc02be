"""Records as tables of a DuckDB connection: `records`, `rows` and `board`.

Everything that comes from a record goes in as a value, never as a part of a statement, and into
columns that are known here: a record cannot name a column.

>>> import duckdb, tempfile
>>> from robust_nc.report.scanning import scan
>>> connection = duckdb.connect(":memory:")
>>> create(connection)
>>> sync(connection, scan(Path(tempfile.mkdtemp())))
Changes(read=0, removed=0)
>>> connection.execute("select count(*) from rows").fetchone()
(0,)
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robust_nc.exceptions import RecordError
from robust_nc.io.untrusted import file_name, read_bounded
from robust_nc.record.folder import read_all
from robust_nc.record.schema import COLUMNS as ROW_COLUMNS
from robust_nc.record.schema import Record, Stored, read_record
from robust_nc.record.standing import best_badge, standing
from robust_nc.report.gather import identity
from robust_nc.report.scanning import Found, Scan
from robust_nc.report.table import SUMMARIES, leaderboard

# Headline measures that a column is made of; others are in the JSON of `summary`.
MEASURES = tuple(
    dict.fromkeys(
        (
            *SUMMARIES,
            *("nc1_gaussian", "nc2_angle_attacked", "nc3_clean", "leap_rate_test"),
            *("leap_rate_gaussian", "landing_fraction", "collapse_radius", "leap_layer"),
        )
    )
)
SCORES = ("clean_last", "robust_last", "robust_beside", "clean_train")
_TEXT, _REAL, _INT = "varchar", "double", "bigint"
_INTS = ("seed", "n", "passes_forward", "passes_backward", "parameters", "challenged")
_REALS = ("eps", "clean", "clean_low", "clean_high", "robust", "robust_low", "robust_high")
_ORDER = (
    *("path", "cell", "suite", "model", "backbone", "head", "objective", "seed", "dataset"),
    *("norm", "eps", "ball", "protocol", "n", *_REALS[1:], *SCORES),
    *("passes_forward", "passes_backward", "parameters", "badge", "challenged", "warnings"),
    *("created", *MEASURES, "images", "recipe", "summary", "config"),
)
_TYPES = dict.fromkeys(_INTS, _INT) | dict.fromkeys((*_REALS, *SCORES, *MEASURES), _REAL)
RECORDS = {name: _TYPES.get(name, _TEXT) for name in _ORDER}
# What the view `rows` shows of the record that a row belongs to.
JOINED = ("path", "cell", "suite", "dataset", "model", "head", "objective", "seed")
_ARROW = {_TEXT: pa.string(), _REAL: pa.float64(), _INT: pa.int64()}
_ROW_TYPES = {"str": _TEXT, "int64": _INT, "float64": _REAL}
ROWS = {name: _ROW_TYPES[kind] for name, kind in ROW_COLUMNS.items()}
_MAX_ROWS_BYTES, _MAX_ROWS = 64 * 2**20, 5_000_000
_BATCH, _BATCH_ROWS = 500, 1_000_000  # what is put in at a time


class Changes(NamedTuple):
    """How many records were read, and how many of those held before are gone or read again."""

    read: int
    removed: int


class _Entry(NamedTuple):
    id: int
    signature: str
    facts: dict[str, Any]
    rows: pa.Table


def create(connection: Any) -> None:
    """Make the empty tables; `board` is there once `put_board` has been called."""
    records = ", ".join(f'"{name}" {kind}' for name, kind in RECORDS.items())
    rows = ", ".join(f'"{name}" {kind}' for name, kind in ROWS.items())
    joined = ", ".join(f"facts.{name}" for name in JOINED)
    connection.execute("create schema held")
    connection.execute(f"create table held.facts (id integer, {records})")
    connection.execute(f"create table held.measured (id integer, {rows})")
    connection.execute("create table held.files (id integer, path varchar, signature varchar)")
    connection.execute("create table held.parts (part varchar, state varchar)")
    connection.execute("create view records as select * exclude (id) from held.facts")
    connection.execute(
        f'create view "rows" as select {joined}, measured.* exclude (id) '
        "from held.measured join held.facts using (id)"
    )


def sync(connection: Any, found: Scan, tell: Callable[[str], None] | None = None) -> Changes:
    """Read what is new or changed since the tables were filled, and drop what is gone.

    Raises `RecordError` for a damaged record, and for rows that are not those of their record.
    """
    held = {
        path: (number, signature)
        for number, path, signature in connection.execute("select * from held.files").fetchall()
    }
    old = [
        number
        for path, (number, signature) in held.items()
        if path not in found.found or found.found[path].signature != signature
    ]
    new = [
        path
        for path, one in found.found.items()
        if path not in held or held[path][1] != one.signature
    ]
    if tell is not None and len(new) >= _BATCH:
        tell(f"reading {len(new):,} records for the index")
    for table in ("facts", "measured", "files") if old else ():
        connection.execute(f"delete from held.{table} where id in (select unnest(?))", [old])
    first = 1 + max((number for number, _ in held.values()), default=-1)
    batch: list[_Entry] = []
    for number, path in enumerate(new, first):
        batch.append(_entry(number, path, found.found[path]))
        if len(batch) == _BATCH or sum(one.rows.num_rows for one in batch) > _BATCH_ROWS:
            _put(connection, batch)
            batch = []
    _put(connection, batch)
    set_state(connection, "records", found.state)
    return Changes(len(new), len(old))


def put_board(connection: Any, root: Path, state: str) -> pd.DataFrame:
    """Make the leaderboard of all records under `root` the table `board`, and return it."""
    frame = leaderboard(read_all(root))
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    connection.register("batch", pa.Table.from_pandas(frame, preserve_index=False))
    connection.execute("create or replace table board as select * from batch")
    connection.unregister("batch")
    connection.execute(
        "create or replace table held.board_kinds as select ?::varchar as kinds",
        [json.dumps(kinds)],
    )
    set_state(connection, "board", state)
    return frame


def get_board(connection: Any) -> pd.DataFrame:
    """Return the frame that `put_board` was given, types and order as they were."""
    kinds = json.loads(connection.execute("select kinds from held.board_kinds").fetchone()[0])
    frame: pd.DataFrame = connection.execute("select * from board").df()
    return frame.astype(kinds)


def states(connection: Any) -> dict[str, str]:
    """Return which state of the results folder each part, `records` and `board`, was made of."""
    return dict(connection.execute("select part, state from held.parts").fetchall())


def set_state(connection: Any, part: str, state: str) -> None:
    """Note which state of the results folder a part was made of."""
    connection.execute("delete from held.parts where part = ?", [part])
    connection.execute("insert into held.parts values (?, ?)", [part, state])


def _put(connection: Any, entries: Sequence[_Entry]) -> None:
    if not entries:
        return
    facts = [{"id": one.id, **one.facts} for one in entries]
    schema = pa.schema([("id", pa.int64()), *((n, _ARROW[kind]) for n, kind in RECORDS.items())])
    _insert(connection, "facts", pa.Table.from_pylist(facts, schema))
    rows = pa.concat_tables(
        [one.rows.append_column("id", _repeated(one.id, one.rows.num_rows)) for one in entries]
    )
    _insert(connection, "measured", rows)
    files = [{"id": e.id, "path": e.facts["path"], "signature": e.signature} for e in entries]
    _insert(connection, "files", pa.Table.from_pylist(files))


def _insert(connection: Any, table: str, batch: pa.Table) -> None:
    # In SQL a missing number is NULL, which averages pass over, and not NaN.
    reals = [field.name for field in batch.schema if pa.types.is_floating(field.type)]
    cleaned = ", ".join(f'if(isnan("{name}"), null, "{name}") as "{name}"' for name in reals)
    replaced = f"* replace ({cleaned})" if reals else "*"
    connection.register("batch", batch)
    connection.execute(f"insert into held.{table} by name select {replaced} from batch")
    connection.unregister("batch")


def _repeated(number: int, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(number, pa.int64()), count)


def _entry(number: int, path: str, found: Found) -> _Entry:
    stored = read_record(found.path)
    facts = {"path": path, **_facts(stored), **_standing(stored, found.checked)}
    return _Entry(number, found.signature, facts, _rows(stored))


def _standing(stored: Stored, checked: bool) -> dict[str, Any]:
    if not checked:
        return {"badge": "", "challenged": 0}
    found = standing(stored)
    return {"badge": best_badge(found.badges), "challenged": found.challenged}


def _facts(stored: Stored) -> dict[str, Any]:
    record, what = stored.record, identity(stored.record)
    scores = {name: one.value for name, one in record.scores.items() if name in SCORES}
    for name in ("clean", "robust"):
        if name in record.scores:
            one = record.scores[name]
            scores |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    facts = {
        **{name: value for name, value in what._asdict().items() if name in RECORDS},
        "cell": record.cell,
        "seed": record.seed,
        "eps": what.eps if math.isfinite(what.eps) else None,
        "n": record.data.examples,
        **scores,
        "passes_forward": record.passes.forward,
        "passes_backward": record.passes.backward,
        "parameters": record.weights.parameters,
        "warnings": ", ".join(sorted({one.name for one in record.warnings})),
        "created": record.created,
        **_measures(record),
        "summary": json.dumps(record.summary),
        "config": json.dumps(record.config),
    }
    _check_integers(facts, stored.path)
    return facts


def _measures(record: Record) -> Mapping[str, float | None]:
    return {name: value for name, value in record.summary.items() if name in MEASURES}


def _check_integers(facts: Mapping[str, Any], path: Path) -> None:
    for name, value in facts.items():
        if RECORDS[name] == _INT and not -(2**63) <= value < 2**63:
            raise RecordError(f"{path} has a {name} of more than 64 bits, which no table can hold")


def _rows(stored: Stored) -> pa.Table:
    """Read the rows of a record, checked against their SHA-256 and the columns of all rows."""
    path = stored.path.parent / file_name(stored.record.rows.path, what=f"rows of {stored.path}")
    if not path.is_file():
        raise RecordError(f"{stored.path} names {path.name}, which is missing; run its cell again")
    content = read_bounded(path, limit=_MAX_ROWS_BYTES)
    if hashlib.sha256(content).hexdigest() != stored.record.rows.sha256:
        raise RecordError(f"{path} is not the file that {stored.path.name} was written with")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if file.metadata.num_rows > _MAX_ROWS:
            raise RecordError(f"{path} has {file.metadata.num_rows:,} rows; {_MAX_ROWS:,} are read")
        table = file.read(columns=list(ROWS), use_threads=False).select(list(ROWS))
        return table.cast(pa.schema([(name, _ARROW[kind]) for name, kind in ROWS.items()]))
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecordError(f"{path} holds no rows of a record: {reason}") from None
