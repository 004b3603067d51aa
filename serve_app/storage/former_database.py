"""The former application's SQLite file: only read, and never trusted."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from serve_app.errors import ConfigurationError
from serve_app.imports.former_schema import COLUMNS, TableMap, Value, find_tables

MAX_ROWS = 5_000_000
"""Of one table."""
_MAX_VALUE_BYTES = 64 << 20
_MAX_TABLES, _MAX_COLUMNS = 1000, 1000
_ROW_TIMEOUT_S = 30.0
_STEPS = 100_000
_HEAD = b"SQLite format 3\0"
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_PRAGMA, sqlite3.SQLITE_FUNCTION}
_PRAGMAS = {"table_xinfo", "trusted_schema", "query_only", "cell_size_check"}
_HIDDEN_OR_COMPUTED = (1, 2, 3)


class FormerDatabase:
    """Use as a context. Plain tables only: no view, no virtual table, no computed column is ever looked into.

    Raises ConfigurationError for a file that is none, is damaged, or has writes that are not in it yet.
    """

    def __init__(self, path: Path, given: Mapping[str, str]) -> None:
        self.path = path
        self._given = given
        self._until = 0.0
        self._connection: sqlite3.Connection | None = None
        self.tables: dict[str, TableMap] = {}
        self.others: list[str] = []
        """Tables that mean nothing to us."""

    def __enter__(self) -> FormerDatabase:
        _check_file(self.path)
        with self._reading():
            uri = f"file:{quote(str(self.path.absolute()))}?mode=ro&immutable=1"
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._guard(self._connection)
            found = self._schema()
            self.tables = find_tables(found, self._given)
        used = {one.table for one in self.tables.values()}
        self.others = sorted(set(found) - used)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.close()

    def count(self, kind: str) -> int:
        """Rows of the table; 0 where there is none."""
        if kind not in self.tables:
            return 0
        with self._reading():
            found = self._run(f"SELECT count(*) FROM {_quoted(self.tables[kind].table)}").fetchone()
            return int(found[0])

    def rows(self, kind: str) -> Iterator[dict[str, Value]]:
        """Each row by our names of its columns; nothing where there is no such table."""
        found = self.tables.get(kind)
        if found is None or not found.columns:
            return
        fields = [name for name in COLUMNS[kind] if name in found.columns]
        columns = ", ".join(_quoted(found.columns[name]) for name in fields)
        with self._reading():
            cursor = self._run(f"SELECT {columns} FROM {_quoted(found.table)}")
            count = 0
            # The time of whoever takes the rows is not counted.
            while (row := self._next(cursor)) is not None:
                count += 1
                if count > MAX_ROWS:
                    raise ConfigurationError(f"The table {found.table!r} has more than {MAX_ROWS} rows.")
                yield dict(zip(fields, row, strict=True))

    def _next(self, cursor: sqlite3.Cursor) -> tuple[Value, ...] | None:
        self._until = time.monotonic() + _ROW_TIMEOUT_S
        row: tuple[Value, ...] | None = cursor.fetchone()
        return row

    def _schema(self) -> dict[str, list[str]]:
        tables = self._run(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            " AND sql LIKE 'CREATE TABLE%' ORDER BY name"
        ).fetchmany(_MAX_TABLES)
        found: dict[str, list[str]] = {}
        for (name,) in tables:
            columns = self._run(f"PRAGMA table_xinfo({_quoted(name)})").fetchmany(_MAX_COLUMNS)
            found[name] = [column[1] for column in columns if column[6] not in _HIDDEN_OR_COMPUTED]
        return found

    def _run(self, statement: str) -> sqlite3.Cursor:
        assert self._connection is not None
        self._until = time.monotonic() + _ROW_TIMEOUT_S
        return self._connection.execute(statement)

    def _guard(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: time.monotonic() > self._until, _STEPS)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError) as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error}.") from error


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action not in _ALLOWED or (action == sqlite3.SQLITE_PRAGMA and first not in _PRAGMAS) or source is not None:
        # `source`: a view or a trigger that reads.
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and second not in ("count", "like"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            head = stream.read(len(_HEAD))
        log = path.with_name(f"{path.name}-wal")
        unfinished = log.exists() and log.stat().st_size > 0
        journal = path.with_name(f"{path.name}-journal")
        unfinished = unfinished or (journal.exists() and journal.stat().st_size > 0)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    if head != _HEAD:
        raise ConfigurationError(f"{path} is no SQLite database.")
    if unfinished:
        raise ConfigurationError(
            f"{path} has writes that are not in the file yet (-wal or -journal beside it). Stop the former application; if"
            " they are still there, open the file once with the program sqlite3 and run: PRAGMA wal_checkpoint(TRUNCATE)"
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
