"""The process that runs queries on SQLite files; `execute.Database` starts it, and kills it.

A program of its own, from the standard library alone: it starts in a few milliseconds, holds none
of its parent's memory, and can be ended in the middle of an opcode, where SQLite looks at no limit.
Walls within it, each enough for most attacks: the file is opened read-only; one statement, which
must begin as a query; an authorizer that allows reading and listed functions only, and so refuses
writes, ATTACH, PRAGMA and load_extension; limits on memory, rows and bytes; no file can grow.
"""

from __future__ import annotations

import marshal
import os
import re
import resource
import select
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Functions that only compute (sqlite.org: core, date, aggregate, window, math, JSON, FTS5). What is
# missing writes, loads, or tells about the machine or the connection.
FUNCTIONS = frozenset(
    """abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling char coalesce concat concat_ws
    cos cosh count cume_dist current_date current_time current_timestamp date datetime degrees
    dense_rank exp first_value floor format glob group_concat hex if ifnull iif instr julianday lag
    last_value lead length like likelihood likely ln log log10 log2 lower ltrim max median min mod
    nth_value ntile nullif octet_length percent_rank percentile percentile_cont percentile_disc pi
    pow power printf quote radians random randomblob rank replace round row_number rtrim sign sin
    sinh soundex sqrt strftime string_agg substr substring sum tan tanh time timediff total trim
    trunc typeof unhex unicode unistr unistr_quote unixepoch unlikely upper zeroblob
    json json_array json_array_length json_each json_error_position json_extract json_group_array
    json_group_object json_insert json_object json_patch json_pretty json_quote json_remove
    json_replace json_set json_tree json_type json_valid jsonb jsonb_array jsonb_extract
    jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove
    jsonb_replace jsonb_set -> ->> bm25 highlight match snippet""".split()  # noqa: SIM905
)
_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE))
_COMMENT = re.compile(r"\s+|--[^\n]*\n?|/\*.*?\*/", re.DOTALL)
_FIRST_WORD = re.compile(r"(select|with|values)\b", re.IGNORECASE)
# What a semicolon may stand in, the semicolon itself, and all else.
_PIECE = re.compile(
    r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|;|[^;'"`\[/-]+|.""", re.DOTALL
)
_LEFT_BEHIND = (
    "was left behind by a program that did not end well; open and close the database once with "
    "SQLite, then read it"
)
_STEPS = 2000  # virtual-machine steps between looks at the clock: some 20 microseconds
_FRAME = 64_000  # bytes of rows that are sent together
_KEPT = 200_000_000  # bytes of freed memory that a process may hold for its next query

# What runs: path, SQL (None: only look whether it is a database), whether it is this package's own
# and so may use PRAGMA, seconds, rows, result_bytes, value_bytes, memory_bytes.
Request = tuple[str, "str | None", bool, float, int, int, int, int]
# Status ("" if more follows), column names, rows with their size, message.
Frame = tuple[str, tuple[str, ...], list[tuple[Any, ...]], int, str]


def write_ahead_log(path: str | Path) -> Path | None:
    """Return where a file's log of committed changes would stand; None if it keeps none.

    Args:
        path: The file; symbolic links are followed, because logs stand beside what they mean.

    Raises:
        sqlite3.DatabaseError: It is no SQLite database.
    """
    path = Path(path).resolve()
    with path.open("rb") as stream:
        head = stream.read(20)
    if head[:16] not in (b"SQLite format 3\0", b""):
        raise sqlite3.DatabaseError("file is not a database")
    # sqlite.org/fileformat2: byte 19, the version for reading, is 2 with a write-ahead log.
    return Path(f"{path}-wal") if head[19:] == b"\2" else None


def connect(path: str | Path, log: Path | None, seconds: float) -> sqlite3.Connection:
    """Open a SQLite file so that nothing is written, and only what is committed is seen.

    A file with a rollback journal is opened with SQLite's locks. With a write-ahead log these need
    files beside it. If the log is there, so are they; if not, nobody writes, and the file is opened
    as immutable. Another program's lock is waited for, for so many seconds.

    Raises:
        sqlite3.Error: It cannot be opened; or a log was left behind, which reading would change.
    """
    path = Path(path).resolve()
    if log is not None and log.exists() and not Path(f"{path}-shm").exists():
        raise sqlite3.OperationalError(f"{log.name} {_LEFT_BEHIND}")
    immutable = "&immutable=1" if log is not None and not log.exists() else ""
    db = sqlite3.connect(
        f"{path.as_uri()}?mode=ro{immutable}",
        uri=True,
        isolation_level=None,
        timeout=seconds,
        cached_statements=0,
    )
    db.text_factory = lambda raw: raw.decode(errors="ignore")
    return db


class Reader:
    """Answers queries; keeps the last file open, so that its schema is read once."""

    def __init__(self) -> None:
        self._db: sqlite3.Connection | None = None
        self._log: Path | None = None
        self._state: tuple[Any, ...] = ()
        self._trusted = False
        self._refused: list[str] = []

    def answer(self, request: Request) -> Iterator[Frame]:
        """Run one query and yield its rows, then how it ended.

        Raises:
            MemoryError: It needs more than it may.
        """
        path, sql, trusted, seconds, rows, result_bytes, value_bytes, memory_bytes = request
        deadline = time.monotonic() + seconds
        late = f"longer than {seconds:g} s"
        _bound_memory(memory_bytes)
        self._trusted, self._refused = trusted, []
        columns: tuple[str, ...] = ()
        part: list[tuple[Any, ...]] = []
        count = size = sent = 0
        status, message = "ok", ""
        cursor = None
        try:
            if sql is None:
                write_ahead_log(path)
                yield "ok", (), [], 0, ""
                return
            first, rest = _first_statement(sql)
            if not trusted and (rest or not _FIRST_WORD.match(sql, _start(sql))):
                why = "more than one statement" if rest else "no query: it must begin with SELECT"
                yield "refused", (), [], 0, why
                return
            db = self._open(path, seconds)
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, value_bytes)
            db.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            cursor = db.execute(first)
            columns = tuple(str(column[0]) for column in cursor.description or ())
            for row in cursor:
                more = sys.getsizeof(row) + sum(map(sys.getsizeof, row))
                if count == rows:
                    status, message = "stopped", f"more than {rows} rows"
                elif size + more > result_bytes:
                    status, message = "stopped", f"more than {result_bytes} bytes of result"
                elif time.monotonic() > deadline:
                    status, message = "stopped", late
                if status != "ok":
                    break
                part.append(row)
                count, size = count + 1, size + more
                if size - sent > _FRAME:
                    yield "", columns, part, size - sent, ""
                    part, sent = [], size
            if self._is_immutable() and self._state != self._look(path, seconds):
                raise sqlite3.OperationalError("another program opened the database; ask again")
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, OSError) as error:
            status, message = "failed", str(error)
            if self._refused:
                status, message = "refused", self._refused[0]
            elif message == "interrupted":
                status, message = "stopped", late
            elif message == "database is locked":
                status, message = "stopped", f"another program has locked the database; {late}"
            elif getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY_ROLLBACK":
                message = f"{Path(path).resolve().name}-journal {_LEFT_BEHIND}"
        finally:
            if cursor is not None:
                cursor.close()
            if not self._is_immutable() and self._log is not None:
                self._close()  # open, it would keep its program from ending the log
        yield status, columns, part, size - sent, message

    def _open(self, path: str, seconds: float) -> sqlite3.Connection:
        if self._db is not None and self._state == self._look(path, seconds):
            return self._db
        self._close()
        self._log = write_ahead_log(path)
        self._state = self._look(path, seconds)
        db = connect(path, self._log, seconds)
        try:
            db.execute("PRAGMA temp_store=MEMORY")
            db.execute("PRAGMA query_only=ON")
            _meet_virtual_tables(db)
            db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            db.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
            db.set_authorizer(self._authorise)
        except BaseException:
            db.close()
            raise
        self._db = db  # only now: what is kept is guarded
        return db

    def _is_immutable(self) -> bool:
        return self._log is not None and not self._state[-1]

    def _look(self, path: str, seconds: float) -> tuple[Any, ...]:
        """What must not change while the file stays open."""
        file = os.stat(path)
        there = self._log is not None and self._log.exists()
        return path, seconds, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, there

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _authorise(self, action: int, one: str | None, two: str | None, *_: str | None) -> int:
        if self._trusted or action in _ALLOWED:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (two or "").lower() in FUNCTIONS:
            return sqlite3.SQLITE_OK
        if (action, one, two) == (sqlite3.SQLITE_PRAGMA, "data_version", None):
            return sqlite3.SQLITE_OK  # a number, which FTS5 asks for when it reads
        what = f"the function {two}" if action == sqlite3.SQLITE_FUNCTION else f"action {action}"
        self._refused.append(f"{what} is not allowed{f' ({one})' if one else ''}")
        return sqlite3.SQLITE_DENY


def identifier(name: str) -> str:
    """Return a table's or a column's name as SQL takes it whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _start(sql: str) -> int:
    """Where a text begins, after blanks and comments."""
    start = 0
    while match := _COMMENT.match(sql, start):
        start = match.end()
    return start


def _first_statement(sql: str) -> tuple[str, bool]:
    """Return the statement that a text begins with, and whether more than comments follow it."""
    for piece in _PIECE.finditer(sql):
        if piece[0] == ";":
            rest = sql[piece.end() :]
            return sql[: piece.start()], any(part[_start(part) :] for part in rest.split(";"))
    return sql, False


def _meet_virtual_tables(db: sqlite3.Connection) -> None:
    """Let virtual tables declare their columns, which the authorizer would take for a write."""
    names = ["json_each", "json_tree"]
    names += [
        name
        for (name,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL%'"
        )
    ]
    for name in names:
        try:
            db.execute(f"SELECT 1 FROM {identifier(name)} LIMIT 0")
        except sqlite3.OperationalError:  # of a module that is not here: who asks for it is told
            continue


def _bound_memory(size: int) -> None:
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(
            kind, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard)
        )


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            pages = int(stream.read().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _die_with(channel: socket.socket) -> None:
    """End as soon as the other side has closed the channel, whatever SQLite is doing."""
    hung_up = select.poll()
    hung_up.register(channel, 0)
    hung_up.poll()
    os._exit(0)


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """Read one message, until a deadline of `time.monotonic`, or for ever.

    Raises:
        EOFError: The other side is gone.
        TimeoutError: The deadline is over.
    """
    return marshal.loads(_read(channel, int.from_bytes(_read(channel, 8, deadline)), deadline))


def _read(channel: socket.socket, size: int, deadline: float | None = None) -> memoryview:
    buffer = memoryview(bytearray(size))
    found = 0
    while found < size:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        new = channel.recv_into(buffer[found:])
        if not new:
            raise EOFError
        found += new
    return buffer


def send(channel: socket.socket, message: Any) -> None:
    """Write one message: what `marshal` knows, which no text can make run."""
    content = marshal.dumps(message)
    channel.sendall(len(content).to_bytes(8) + content)


def main() -> None:
    """Answer requests from the socket that is the standard input, until it is closed."""
    channel = socket.socket(fileno=0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    threading.Thread(target=_die_with, args=(channel,), daemon=True).start()
    reader = Reader()
    send(channel, "ready")
    while _resident() < _KEPT:
        request: Request = receive(channel)
        try:
            for frame in reader.answer(request):
                send(channel, frame)
        except MemoryError:
            send(channel, ("stopped", (), [], 0, f"more than {request[-1]} bytes of memory"))


if __name__ == "__main__":
    main()
