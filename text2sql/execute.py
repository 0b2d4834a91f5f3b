"""Runs a SELECT on a SQLite file so that no text can change, leave or hang the database.

Five walls, each enough for most attacks: the file is opened read-only; one statement, which must
begin as a query; an authorizer that allows reading and listed functions only, and so refuses
writes, ATTACH, PRAGMA, load_extension and virtual tables; limits on time, rows and bytes; no
temporary file.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlparse

from text2sql.schema import Schema
from text2sql.sql import STAR

Status = Literal["ok", "refused", "failed", "stopped"]

# Functions that only compute (sqlite.org: core, date, aggregate, window, math, JSON). What is
# missing writes, loads, tells about the machine, or allocates or counts by number (zeroblob; one
# printf('%.*c', 2147483647) takes 3 s that nothing can interrupt).
FUNCTIONS = frozenset(
    """abs avg ceil ceiling char coalesce concat concat_ws count date datetime degrees cume_dist
    dense_rank exp first_value floor glob group_concat hex ifnull iif instr julianday lag
    last_value lead length like likelihood likely ln log log10 log2 lower ltrim max median min mod
    nth_value ntile nullif octet_length percent_rank pi pow power quote radians random rank
    replace round row_number rtrim sign soundex sqrt string_agg strftime substr substring sum time
    timediff total trim trunc typeof unicode unixepoch unlikely upper json json_array
    json_array_length json_extract json_object json_type json_valid json_each json_tree
    -> ->>""".split()  # noqa: SIM905
)
_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE))
_COMMENT = re.compile(r"\s+|--[^\n]*\n?|/\*.*?\*/", re.DOTALL)
_FIRST_WORD = re.compile(r"(select|with|values)\b", re.IGNORECASE)
_TEXTS, _CHARACTERS = 5000, 60  # distinct cells of a column that are read, and their length
_STEPS = 2000  # virtual-machine steps between looks at the clock: some 20 microseconds


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may take.

    Args:
        seconds: From its start to its last row.
        rows: Of the result.
        result_bytes: Of the result's texts and blobs, and eight for every other value.
        value_bytes: Of one text or blob, in the result or on the way: also bounds the functions
            that the clock cannot interrupt, such as instr.
        sql_bytes: Of the query's text.
        heap_bytes: Of all that SQLite holds, sorting included. SQLite knows one such limit a
            process, which can be lowered and never raised: the lowest one asked for stays.
    """

    seconds: float = 10.0
    rows: int = 100_000
    result_bytes: int = 64_000_000
    value_bytes: int = 250_000
    sql_bytes: int = 50_000
    heap_bytes: int = 1_000_000_000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a query.

    Args:
        status: "ok"; "refused" (not a query, or not allowed); "failed" (SQLite's own error);
            "stopped" (it met a limit).
        rows: The result's rows; empty unless ok.
        columns: The result's column names.
        message: Why it is not ok.
        seconds: From its start to its last row.
    """

    status: Status
    rows: tuple[tuple[Any, ...], ...] = ()
    columns: tuple[str, ...] = ()
    message: str = ""
    seconds: float = field(default=0.0, compare=False)


class Database:
    """A SQLite file that can be read and nothing else.

    Each query has a connection of its own, so that nothing is left from the one before. The file is
    opened as immutable, which writes nothing at all beside it; if a journal or write-ahead log
    stands there, another program may be at work, and it is opened read-only with SQLite's locks.

    Args:
        path: The file.
        limits: What a query may take.

    Raises:
        ValueError: There is no such file, or it is no SQLite database.
    """

    def __init__(self, path: str | Path, limits: Limits | None = None) -> None:
        self.path = Path(path).absolute()
        self.limits = limits or Limits()
        if not self.path.is_file():
            raise ValueError(f"{path}: no such SQLite file")
        with self.path.open("rb") as stream:
            head = stream.read(16)
        if head not in (b"SQLite format 3\0", b""):
            raise ValueError(f"{path}: is not a SQLite database")

    def execute(self, sql: str) -> Result:
        """Run one query.

        Args:
            sql: Any text, from anywhere.

        Returns:
            Its rows, or why there are none; nothing that the text says raises.
        """
        start = time.perf_counter()
        result = self._refuse(sql) or self._run(sql, start)
        return Result(
            result.status, result.rows, result.columns, result.message, time.perf_counter() - start
        )

    def _refuse(self, sql: str) -> Result | None:
        size = len(sql.encode(errors="replace"))
        if size > self.limits.sql_bytes:
            return Result(
                "refused", message=f"{size} bytes of SQL, {self.limits.sql_bytes} allowed"
            )
        start = 0
        while match := _COMMENT.match(sql, start):
            start = match.end()
        if not _FIRST_WORD.match(sql, start):
            return Result("refused", message="not a query: it must begin with SELECT")
        if ";" in sql and len([part for part in sqlparse.split(sql) if part.strip(" \t\r\n;")]) > 1:
            return Result("refused", message="more than one statement")
        return None

    def _run(self, sql: str, start: float) -> Result:
        limits = self.limits
        deadline = start + limits.seconds
        refused: list[str] = []

        def authorise(action: int, one: str | None, two: str | None, *_: str | None) -> int:
            if action in _ALLOWED:
                return sqlite3.SQLITE_OK
            if action == sqlite3.SQLITE_FUNCTION and (two or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            what = (
                f"the function {two}" if action == sqlite3.SQLITE_FUNCTION else f"action {action}"
            )
            refused.append(f"{what} is not allowed{f' ({one})' if one else ''}")
            return sqlite3.SQLITE_DENY

        db = sqlite3.connect(self._uri(), uri=True, isolation_level=None)
        try:
            db.execute(f"PRAGMA hard_heap_limit={limits.heap_bytes}")
            db.execute("PRAGMA temp_store=MEMORY")
            db.execute("PRAGMA query_only=ON")
            db.text_factory = lambda raw: raw.decode(errors="ignore")
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.value_bytes)
            db.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, limits.sql_bytes)
            db.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 500)
            db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            db.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
            db.set_authorizer(authorise)
            db.set_progress_handler(lambda: time.perf_counter() > deadline, _STEPS)
            try:
                return self._fetch(db, sql, deadline)
            finally:
                db.set_authorizer(None)
                db.set_progress_handler(None, 0)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            words = str(error)
            if refused:
                return Result("refused", message=refused[0])
            if words == "interrupted":
                return Result("stopped", message=f"longer than {limits.seconds:g} s")
            if "one statement" in words:
                return Result("refused", message="more than one statement")
            return Result("failed", message=words)
        except MemoryError:
            return Result("stopped", message=f"more than {limits.heap_bytes} bytes of memory")
        finally:
            db.close()

    def _fetch(self, db: sqlite3.Connection, sql: str, deadline: float) -> Result:
        limits = self.limits
        cursor = db.execute(sql)
        columns = tuple(str(column[0]) for column in cursor.description or ())
        rows: list[tuple[Any, ...]] = []
        size = 0
        for row in cursor:
            rows.append(row)
            size += sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in row)
            if len(rows) > limits.rows:
                return Result("stopped", message=f"more than {limits.rows} rows")
            if size > limits.result_bytes:
                return Result("stopped", message=f"more than {limits.result_bytes} bytes of result")
            if time.perf_counter() > deadline:
                return Result("stopped", message=f"longer than {limits.seconds:g} s")
        return Result("ok", tuple(rows), columns)

    def _uri(self) -> str:
        journals = (Path(f"{self.path}{end}") for end in ("-wal", "-journal"))
        in_use = any(file.exists() for file in journals)
        return f"{self.path.as_uri()}?mode=ro{'' if in_use else '&immutable=1'}"


def cells(database: Path, schema: Schema) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield each column's index and its distinct texts: 5,000 at most, of 1 to 60 characters.

    A column that the file does not have, or that `Limits` stop, has none.

    Args:
        database: A SQLite file.
        schema: Whose columns are read.

    Raises:
        ValueError: There is no such file, or it is no SQLite database.
    """
    # The query is ours: a long text beside the short ones is no attack.
    reader = Database(database, Limits(value_bytes=1_000_000_000))
    for index, column in enumerate(schema.columns):
        if index == STAR:
            continue
        table = schema.tables[column.table].name
        name, place = (part.replace('"', '""') for part in (column.name, table))
        # Without a table's name before it SQLite reads a quoted name that it lacks as a text.
        found = reader.execute(
            f'SELECT DISTINCT t."{name}" FROM "{place}" AS t WHERE typeof(t."{name}") = \'text\' '
            f'AND length(t."{name}") BETWEEN 1 AND {_CHARACTERS} LIMIT {_TEXTS}'
        )
        yield index, tuple(text for (text,) in found.rows)
