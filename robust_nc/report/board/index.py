"""The index of a results folder: all records, all their rows and the leaderboard, for SQL.

The JSON files are the truth; the index is a DuckDB file under `<results>/.index`, made and renewed
when it is asked, and safe to delete. Only records whose files have changed are read again.

>>> import tempfile
>>> ask(Path(tempfile.mkdtemp()), "select count(*) as records from records")
Answer(columns=('records',), rows=[(0,)])
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.untrusted import file_name, read_bounded
from robust_nc.record.folder import is_record_name, read_all, record_folders
from robust_nc.record.schema import COLUMNS as ROW_COLUMNS
from robust_nc.record.schema import Record, Stored, read_record
from robust_nc.record.standing import best_badge, standing
from robust_nc.report.board.gather import identity
from robust_nc.report.board.table import SUMMARIES, leaderboard

if TYPE_CHECKING:
    import pandas as pd


_CHECKED = (".receipt", ".challenge")
_KEPT = (".json", ".parquet", *_CHECKED)
_DIGITS = 32


class Found(NamedTuple):
    """Where a record lies, its signature, and whether receipts or challenges lie beside it."""

    path: Path
    signature: str
    checked: bool


class Scan(NamedTuple):
    """Records by their path from the root, sorted; `state` is the digest of all signatures."""

    found: dict[str, Found]
    state: str


def scan(root: Path) -> Scan:
    """Look at all records under a folder (or at the one record that `root` is).

    Raises `RecordError` as `store.record_folders` does.
    """
    single = root.is_file()
    base = root.parent if single else root
    found = {}
    for folder, names in record_folders(root):
        beside = _by_stem([path.name for path in folder.iterdir()] if single else names)
        for name in names:
            if single or is_record_name(name):
                path = folder / name
                found[_text(path.relative_to(base))] = _look(path, beside)
    found = dict(sorted(found.items()))
    return Scan(found, _digest([f"{path} {one.signature}" for path, one in found.items()]))


def _text(path: Path) -> str:
    """Write a path as text, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _by_stem(names: list[str]) -> dict[str, list[str]]:
    """Gather names up to their first dot, so that a large folder is not searched per record."""
    found = defaultdict(list)
    for name in names:
        if name.endswith(_KEPT):
            found[name.partition(".")[0]].append(name)
    return found


def _look(path: Path, beside: dict[str, list[str]]) -> Found:
    names = beside.get(path.name.partition(".")[0], [])
    own = {path.name, *(one for one in names if one.startswith(f"{path.stem}."))}
    folder, stats = str(path.parent), []
    for name in sorted(own):
        try:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116 (20,000 of them: `Path` is slow)
        except FileNotFoundError:  # gone since it was listed
            continue
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        stats.append(f"{name} {status.st_size} {times}")
    return Found(path, _digest(stats), any(name.endswith(_CHECKED) for name in own))


def _digest(lines: list[str]) -> str:
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:_DIGITS]


T = TypeVar("T")
Tell = Callable[[str], None]

FOLDER = ".index"
TABLES = ("records", "rows", "board")
_ABOUT_BOARD = re.compile("board|show|describe", re.IGNORECASE)
_QUIET = "set enable_progress_bar = false"
_LOCKED = "set lock_configuration = true"
_READ_ONLY = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # no variable of this process is a table
    "enable_external_access": "false",  # no file is read or written by a query
}


class Answer(NamedTuple):
    """What a query gave: names of the columns, and the rows in order."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def ask(results: Path, sql: str, *, tell: Tell | None = None) -> Answer:
    """Answer one SELECT (WITH, FROM, DESCRIBE, SHOW, SUMMARIZE) over `records`, `rows`, `board`.

    `tell` hears where the index lies when it is made or renewed. Raises `ConfigError` for SQL that
    cannot be answered, and `RecordError` if a record is damaged.
    """
    _check(sql)
    parts = ("records", "board") if _ABOUT_BOARD.search(sql) else ("records",)
    return _use(_Job(results, parts, tell), lambda connection: _answer(connection, sql))


def board_frame(results: Path, *, tell: Tell | None = None) -> "pd.DataFrame":
    """Return what `leaderboard` returns, kept from the last time while no record changes."""

    def get(connection: Any) -> "pd.DataFrame":
        from robust_nc.report.board.index import get_board

        return get_board(connection)

    return _use(_Job(results, ("board",), tell), get)


class _Job(NamedTuple):
    root: Path
    parts: tuple[str, ...]  # of `records` (with rows) and `board`: what must be up to date
    tell: Tell | None

    def say(self, text: str) -> None:
        if self.tell is not None:
            self.tell(text)


def _use(job: _Job, action: Callable[[Any], T]) -> T:
    """Open the index, up to date, and use it; one that turns out damaged is made again."""
    for place in _places(job.root):
        for _ in range(2):
            try:
                with contextlib.closing(_opened(place, job)) as connection:
                    return action(connection)
            except _duckdb().Error as error:
                reason = _first_line(error)
                place.unlink(missing_ok=True)
            except OSError as error:
                reason = error.strerror or str(error)
                break
        job.say(f"no index in {place.parent}: {reason}")
    job.say("the index is made in memory, for this once")
    with contextlib.closing(_duckdb().connect(":memory:")) as connection:
        connection.execute(_QUIET)
        _fill(connection, job, scan(job.root), fresh=True)
        for name, value in _READ_ONLY.items():
            connection.execute(f"set {name} = '{value}'")
        connection.execute(_LOCKED)
        try:
            return action(connection)
        except _duckdb().Error as error:
            raise _refusal(error, f"the tables are {', '.join(TABLES)}") from None


def _opened(place: Path, job: _Job) -> Any:
    """Bring the index file up to date, alone, and open it to be read."""
    with _alone(place.parent):
        found = scan(job.root)
        held = _states(place)
        if not all(held.get(part) == found.state for part in job.parts):
            _renew(place, job, found, fresh=not held)
        return _connect(place)


def _connect(place: Path) -> Any:
    duckdb = _duckdb()
    connection = duckdb.connect(str(place), read_only=True, config=_READ_ONLY)
    with contextlib.suppress(duckdb.Error):  # another thread has it open, with all this set
        connection.execute(_QUIET)
        connection.execute(_LOCKED)
    return connection


def _states(place: Path) -> dict[str, str]:
    """Say what the parts of an index file were made of; {} for none, a damaged or a foreign one."""
    if not place.is_file():
        return {}
    try:
        with contextlib.closing(_connect(place)) as connection:
            held = dict(connection.execute("select part, state from held.parts").fetchall())
    except _duckdb().Error:
        return {}
    return held if held.pop("version", "") == _version() else {}


@cache
def _version() -> str:
    """Name the code that the index is made by: another one makes it anew."""
    package = Path(__file__).parents[2]
    sources = [*(package / "record").glob("*.py"), *(package / "report").rglob("*.py")]
    sources += (package / "evidence").glob("*.py")
    total = hashlib.sha256()
    for path in sorted(sources):
        total.update(path.read_bytes())
    return total.hexdigest()


def _renew(place: Path, job: _Job, found: Scan, *, fresh: bool) -> None:
    """Make the index file from the old one, or anew; the old one stays until the new one is whole.

    A record that is being written meanwhile may look damaged: then all is looked at once more.
    """
    with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as folder:
        path = Path(folder) / "index.duckdb"
        if not fresh:
            shutil.copyfile(place, path)
        with contextlib.closing(_duckdb().connect(str(path))) as connection:
            connection.execute(_QUIET)
            try:
                _fill(connection, job, found, fresh=fresh)
            except RecordError:
                again = scan(job.root)
                if again.state == found.state:
                    raise
                _fill(connection, job, again, fresh=False)
        path.replace(place)
    job.say(f"index: {place}")


def _fill(connection: Any, job: _Job, found: Scan, *, fresh: bool) -> None:
    from robust_nc.report.board.index import create, put_board, set_state, states, sync

    if fresh:
        create(connection)
        set_state(connection, "version", _version())
    held = states(connection)
    if "records" in job.parts and held.get("records") != found.state:
        changes = sync(connection, found, job.tell)
        job.say(f"read {changes.read:,} records into the index, {changes.removed:,} left it")
    if "board" in job.parts and held.get("board") != found.state:
        put_board(connection, job.root, found.state)


def _places(root: Path) -> Iterator[Path]:
    """Where the index may lie, best first; a stranger cannot know its name, and put one there."""
    try:
        cache = Path.home() / ".cache" / "robust_nc" / "index"
        name = _name(root, cache)
    except (OSError, RuntimeError):
        return
    if root.is_dir():
        if not (root / FOLDER).is_symlink():
            yield root / FOLDER / name
        yield cache / name


def _name(root: Path, cache: Path) -> str:
    key = cache / "key"
    if not key.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as folder:
            made = Path(folder) / "key"
            made.touch(mode=0o600)
            made.write_text(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):  # another process was first: its key holds
                os.link(made, key)
    text = f"{key.read_text()} {root.resolve()}"
    return f"{hashlib.sha256(os.fsencode(text)).hexdigest()[:24]}.duckdb"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is building in this folder; remove what killed ones left."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.name == FOLDER:
        with contextlib.suppress(FileExistsError), (folder / ".gitignore").open("x") as ignore:
            ignore.write("*\n")
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob("building-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(lock)


def _check(sql: str) -> None:
    """Refuse what is not one question, before any record is read."""
    duckdb = _duckdb()
    with contextlib.closing(duckdb.connect(":memory:")) as connection:
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


def _answer(connection: Any, sql: str) -> Answer:
    """Run a query so that Ctrl-C stops it: DuckDB itself does not look for signals."""

    def run() -> Answer:
        found = connection.execute(sql)
        return Answer(tuple(one[0] for one in found.description), found.fetchall())

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            return running.result()
        except _mistakes() as error:
            raise _refusal(error, _columns(connection, sql)) from None
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _refusal(error: Exception, valid: str) -> ConfigError:
    return ConfigError(f"the query cannot be answered: {_first_line(error)}; {valid}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".!")


def _columns(connection: Any, sql: str) -> str:
    """Name the columns of the tables that a query is about, or the tables."""
    query = "select column_name from information_schema.columns where table_name = ?"
    about = [table for table in TABLES if re.search(rf"\b{table}\b", sql, re.IGNORECASE)]
    lists = []
    for table in about:
        names = [name for (name,) in connection.execute(query, [table]).fetchall()]
        lists.append(f"{table} has {', '.join(names)}")
    return "; ".join(lists) or f"the tables are {', '.join(TABLES)}"


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise ConfigError(
            "the index needs duckdb, which is not installed: pip install 'robust_nc[report]'"
        ) from None
    return duckdb


def _mistakes() -> tuple[type[Exception], ...]:
    """What DuckDB raises for a wrong query; anything else speaks of a damaged file or machine."""
    duckdb = _duckdb()
    return (
        duckdb.ProgrammingError,
        duckdb.DataError,
        duckdb.NotSupportedError,
        duckdb.PermissionException,
        duckdb.OutOfMemoryException,
    )


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
