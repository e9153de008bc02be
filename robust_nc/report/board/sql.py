"""SQL over a results folder: all records, all their rows and the leaderboard.

The records are read and checked as everywhere; their parquet files are read by DuckDB itself, and
only where the query needs them.

>>> import tempfile
>>> query(Path(tempfile.mkdtemp()), "select count(*) as records from records")
QueryResult(columns=('records',), rows=[(0,)])
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.record.folder import read_all
from robust_nc.record.schema import COLUMNS as ROW_COLUMNS
from robust_nc.record.schema import Stored
from robust_nc.record.standing import standing
from robust_nc.report.board.gather import identity
from robust_nc.report.board.table import SUMMARIES, leaderboard

TABLES = ("records", "rows", "board")
# Headline measures that a column of `records` is made of; others are in the JSON of `summary`.
MEASURES = tuple(
    dict.fromkeys(
        (
            *SUMMARIES,
            *("nc1_gaussian", "nc2_angle_attacked", "nc3_clean", "leap_rate_test"),
            *("leap_rate_gaussian", "landing_fraction", "collapse_radius", "leap_layer"),
        )
    )
)
_SCORES = ("clean_last", "robust_last", "robust_beside", "clean_train")
_INTEGERS = ("seed", "n", "passes_forward", "passes_backward", "parameters", "challenged")
_REALS = ("eps", "clean", "clean_low", "clean_high", "robust", "robust_low", "robust_high")
_ARROW = {"str": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
_KINDS = dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(
    (*_REALS, *_SCORES, *MEASURES), "float64"
)
RECORD_COLUMNS = {
    name: _KINDS.get(name, "str")
    for name in (
        *("path", "cell", "suite", "model", "backbone", "head", "objective", "seed", "dataset"),
        *("norm", "eps", "ball", "protocol", "n", *_REALS[1:], *_SCORES),
        *("passes_forward", "passes_backward", "parameters", "state", "challenged", "warnings"),
        *("created", *MEASURES, "images", "recipe", "summary", "config"),
    )
}
# What `rows` shows of the record that a row belongs to.
_OF_RECORD = ("path", "cell", "suite", "dataset", "model", "head", "objective", "seed")

_ABOUT_BOARD = re.compile("board|show|describe", re.IGNORECASE)
_MOST_BYTES = 64 * 2**20  # of the rows of one record
_IS_KIND: dict[str, Callable[[pa.DataType], bool]] = {
    "str": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "int64": pa.types.is_integer,
    "float64": pa.types.is_floating,
}
_T = TypeVar("_T")


class QueryResult(NamedTuple):
    """What a query gave: names of the columns, and the rows in order."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def query(results: Path, sql: str) -> QueryResult:
    """Answer one SELECT (WITH, FROM, DESCRIBE, SHOW, SUMMARIZE) over `records`, `rows`, `board`.

    Raises `ConfigError` for SQL that cannot be answered, and `RecordError` if a record is damaged.
    """
    _check(sql)
    records = read_all(results)
    base = results.parent if results.is_file() else results
    with (
        tempfile.TemporaryDirectory(prefix="robust_nc-") as folder,
        closing(_duckdb().connect(":memory:")) as connection,
    ):
        _interruptible(connection, lambda: _fill(connection, records, base, Path(folder), sql))
        try:
            return _interruptible(connection, lambda: _answer(connection, sql))
        except _duckdb().Error as error:
            raise _refusal(error, _columns(connection, sql)) from None


def _interruptible(connection: Any, work: Callable[[], _T]) -> _T:
    """Let Ctrl-C stop work of DuckDB, which itself overlooks it or ends with another error."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            return running.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _fill(connection: Any, records: Sequence[Stored], base: Path, folder: Path, sql: str) -> None:
    """Make the tables, the board only for a query that asks for it, and lock them."""
    connection.execute("set enable_progress_bar = false")
    connection.execute(f"set temp_directory = {_quoted(f'{folder}/spilled')}")
    # So that rows come in the order of their files.
    connection.execute("set disabled_optimizers = 'build_side_probe_side'")
    connection.execute("create schema held")
    _make_records(connection, records, base)
    _make_rows(connection, records, folder)
    if _ABOUT_BOARD.search(sql):
        frame = pa.Table.from_pandas(leaderboard(records), preserve_index=False)
        _make_table(connection, "board", frame)
    # A query must have no way to read or write any file but the rows, or to change a setting.
    for name in (
        "autoinstall_known_extensions",
        "autoload_known_extensions",
        "python_enable_replacements",  # no variable of this process is a table
        "enable_external_access",
    ):
        connection.execute(f"set {name} = false")
    connection.execute("set lock_configuration = true")


def _make_table(connection: Any, name: str, table: pa.Table) -> None:
    connection.register("given", table)
    connection.execute(f"create table {name} as select * from given")
    connection.unregister("given")


def _make_records(connection: Any, records: Sequence[Stored], base: Path) -> None:
    facts = []
    for number, stored in enumerate(records):
        path = os.fsencode(stored.path.relative_to(base))  # of any bytes
        text = path.decode("utf-8", "backslashreplace")
        facts.append({"id": number, "path": text, **_facts(stored)})
    columns = [(name, _ARROW[kind]) for name, kind in RECORD_COLUMNS.items()]
    table = pa.Table.from_pylist(facts, pa.schema([("id", pa.int64()), *columns]))
    _make_table(connection, "held.facts", table)
    connection.execute("create view records as select * exclude (id) from held.facts")


def _make_rows(connection: Any, records: Sequence[Stored], folder: Path) -> None:
    """Make the view `rows` of the files themselves, by links whose names no SQL can mistake."""
    first = folder / "none.parquet"  # whose columns and types are those of all
    pq.write_table(pa.schema([(n, _ARROW[k]) for n, k in ROW_COLUMNS.items()]).empty_table(), first)
    links = [folder / f"{number}.parquet" for number in range(len(records))]
    for link, stored in zip(links, records, strict=True):
        link.symlink_to(_checked_rows(stored).resolve())
    names = f"[{', '.join(_quoted(str(path)) for path in (first, *links))}]"
    # In SQL a missing number is NULL, which averages pass over, and not NaN.
    measured = [
        f"nullif(measured.{name}, 'nan') as {name}" if kind == "float64" else f"measured.{name}"
        for name, kind in ROW_COLUMNS.items()
    ]
    connection.execute(f"set allowed_paths = {names}")
    connection.execute(
        f'create view "rows" as select {", ".join((*_OF_RECORD, *measured))} '
        f"from read_parquet({names}, filename = true, hive_partitioning = false) as measured "
        f"join held.facts on filename = {_quoted(f'{folder}/')} || id || '.parquet'"
    )


def _checked_rows(stored: Stored) -> Path:
    """Return the file of a record's rows, checked by its SHA-256, its size and its columns."""
    path = stored.rows_path()
    if path.stat().st_size > _MOST_BYTES:
        raise RecordError(f"{path} is larger than {_MOST_BYTES:,} bytes, the most that is read")
    try:
        with path.open("rb") as file:
            kinds = {field.name: field.type for field in pq.read_schema(file)}
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} holds no rows of a record: {_first_line(error)}") from None
    for name, kind in ROW_COLUMNS.items():
        if name not in kinds or not _IS_KIND[kind](kinds[name]):
            found = f"which is {kinds[name]}" if name in kinds else "which is not there"
            raise RecordError(f"{path} holds no rows of a record: {name} is {kind}, {found}")
    return path


def _facts(stored: Stored) -> dict[str, Any]:
    record, what, stands = stored.record, identity(stored.record), standing(stored)
    scores = {name: one.value for name, one in record.scores.items() if name in _SCORES}
    for name in ("clean", "robust"):
        if name in record.scores:
            one = record.scores[name]
            scores |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return {
        **{name: value for name, value in what._asdict().items() if name in RECORD_COLUMNS},
        "cell": record.cell,
        "seed": record.seed,
        "eps": what.eps if math.isfinite(what.eps) else None,
        "n": record.data.examples,
        **scores,
        "passes_forward": record.passes.forward,
        "passes_backward": record.passes.backward,
        "parameters": record.weights.parameters,
        "state": stands.state,
        "challenged": stands.challenged,
        "warnings": ", ".join(sorted({one.name for one in record.warnings})),
        "created": record.created,
        **{name: value for name, value in record.summary.items() if name in MEASURES},
        "summary": json.dumps(record.summary),
        "config": json.dumps(record.config),
    }


def _check(sql: str) -> None:
    """Refuse what is not one question, before any record is read."""
    duckdb = _duckdb()
    with closing(duckdb.connect(":memory:")) as connection:
        try:
            statements = connection.extract_statements(sql)
        except duckdb.Error as error:
            raise _refusal(error, f"the tables are {', '.join(TABLES)}") from None
    if len(statements) != 1:
        raise ConfigError(f"--sql takes one statement, found {len(statements)}")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = str(statements[0].type).rpartition(".")[2]
        raise ConfigError(
            "--sql only reads: it takes SELECT, WITH, FROM, DESCRIBE, SHOW or SUMMARIZE, "
            f"found {kind}"
        )


def _answer(connection: Any, sql: str) -> QueryResult:
    found = connection.execute(sql)
    return QueryResult(tuple(one[0] for one in found.description), found.fetchall())


def _refusal(error: Exception, valid: str) -> ConfigError:
    return ConfigError(f"the query cannot be answered: {_first_line(error)}; {valid}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".!")


def _columns(connection: Any, sql: str) -> str:
    """Name the columns of the tables that a query is about, or the tables."""
    columns = "select column_name from information_schema.columns where table_name = ?"
    about = [table for table in TABLES if re.search(rf"\b{table}\b", sql, re.IGNORECASE)]
    lists = []
    for table in about:
        names = [name for (name,) in connection.execute(columns, [table]).fetchall()]
        lists.append(f"{table} has {', '.join(names)}")
    return "; ".join(lists) or f"the tables are {', '.join(TABLES)}"


def _quoted(text: str) -> str:
    return f"""'{text.replace("'", "''")}'"""


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise ConfigError(
            "SQL needs duckdb, which is not installed: pip install 'robust-nc[sql]'"
        ) from None
    return duckdb
