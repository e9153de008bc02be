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
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.report.scanning import Scan, scan

if TYPE_CHECKING:
    import pandas as pd

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
        from robust_nc.report.indexing import get_board

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
    package = Path(__file__).parent.parent
    sources = [*(package / "record").glob("*.py"), *(package / "report").glob("*.py")]
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
    from robust_nc.report.indexing import create, put_board, set_state, states, sync

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
