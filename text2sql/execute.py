"""Runs a SELECT on a SQLite file so that no text can change, leave or hang the database.

Queries run in processes of their own (`guard`), which are started once and used again. One that
does not answer within its query's limit is killed and replaced: no limit of SQLite's own bounds
what a single function does. `multiprocessing` would copy this process, with its threads, or import
its main module again, with all of torch; hence a plain program.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from text2sql import guard

Status = Literal["ok", "refused", "failed", "stopped"]

_GRACE = 0.2  # seconds beyond a query's limit after which its process is killed
MOST_SECONDS = 10**6  # beyond some 10**9 sockets and SQLite count no further
_MOST = {"seconds": MOST_SECONDS, "value_bytes": 2**31 - 1, "memory_bytes": 2**62}
_IDLE = 4  # processes that wait for a query; further ones end with theirs


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may take.

    Args:
        seconds: From its start to its last row; at most MOST_SECONDS.
        rows: Of the result.
        result_bytes: Of the result, as Python holds it.
        value_bytes: Of one text or blob, in the result or on the way.
        sql_bytes: Of the query's text.
        memory_bytes: Of the process that runs it, where the system bounds a process (Linux). The
            result, which this one holds, comes on top.
    """

    seconds: float = 10.0
    rows: int = 100_000
    result_bytes: int = 128_000_000
    value_bytes: int = 16_000_000
    sql_bytes: int = 50_000
    memory_bytes: int = 1_000_000_000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value, most = getattr(self, name), _MOST.get(name, math.inf)
            if not 0 < value <= most:
                raise ValueError(f"{name}={value}: must be above 0 and at most {most:g}")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a query.

    Args:
        status: "ok"; "refused" (not a query, or not allowed); "failed" (SQLite's own error);
            "stopped" (it met a limit).
        rows: The result's rows; if it was stopped, those found until then.
        columns: The result's column names.
        message: Why it is not ok.
        size: Bytes of the rows, as Python holds them.
        seconds: From its start to its last row.
    """

    status: Status
    rows: tuple[tuple[Any, ...], ...] = ()
    columns: tuple[str, ...] = ()
    message: str = ""
    size: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)


class Database:
    """A SQLite file that can be read and nothing else; `limits` are what a query may take.

    Nothing is written beside it, and only what is committed is seen: see `guard.connect`.

    Raises:
        ValueError: There is no such file, or it is no SQLite database.
    """

    def __init__(self, path: str | Path, limits: Limits | None = None) -> None:
        self.path = Path(path).absolute()
        self.limits = limits or Limits()
        if not self.path.is_file():
            raise ValueError(f"{path}: no such SQLite file")
        # Not opened in this process: closing it would give up its locks (fcntl) on the file.
        if (looked := self._run(None, self.limits)).status != "ok":
            raise ValueError(f"{path}: cannot be read as a SQLite database: {looked.message}")

    def execute(self, sql: str, limits: Limits | None = None) -> Result:
        """Run one query, which may be any text, from anywhere; nothing that it says raises.

        Args:
            sql: The text.
            limits: What this one may take; None: as the others.
        """
        limits = limits or self.limits
        size = len(sql.encode(errors="replace"))
        if size > limits.sql_bytes:
            return Result("refused", message=f"{size} bytes of SQL, {limits.sql_bytes} allowed")
        return self._run(sql, limits)

    def catalogue(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement of this package's own, which may use PRAGMA; still nothing is written.

        Raises:
            ValueError: It does not run; says why.
        """
        result = self._run(sql, self.limits, trusted=True)
        if result.status != "ok":
            raise ValueError(result.message)
        return list(result.rows)

    def _run(self, sql: str | None, limits: Limits, trusted: bool = False) -> Result:
        request = (
            str(self.path), sql, trusted, limits.seconds, limits.rows, limits.result_bytes,
            limits.value_bytes, limits.memory_bytes,
        )  # fmt: skip
        for _ in range(2):
            worker = _take()
            try:
                result = worker.ask(request, limits.seconds)
            except (EOFError, ConnectionError):
                worker.kill()  # ended by another's hand, or by the query: that is tried once more
                continue
            except BaseException:
                worker.kill()  # in the midst of an answer, as by Ctrl-C
                raise
            _give_back(worker)
            return result
        return Result(
            "failed", message=f"its process ended; it may take {limits.memory_bytes} bytes"
        )


class _Worker:
    """A process that runs queries; it ends when this process does, however that ends."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is not for it
            )
        self.is_ready = False

    def ask(self, request: guard.Request, seconds: float) -> Result:
        """Run one query; kill the process if it does not answer in time.

        Raises:
            EOFError: The process ended.
            ConnectionError: So it did, before it was asked.
        """
        if not self.is_ready:
            guard.receive(self.channel)
            self.is_ready = True
        start = time.perf_counter()
        deadline = time.monotonic() + seconds + _GRACE
        rows: list[tuple[Any, ...]] = []
        columns: tuple[str, ...] = ()
        size, status, message = 0, "", ""
        try:
            self.channel.settimeout(None)
            guard.send(self.channel, request)
            while not status:
                frame: guard.Frame = guard.receive(self.channel, deadline)
                status, columns, part, more, message = frame
                rows += part
                size += more
        except TimeoutError:
            self.kill()
            status, message = "stopped", f"longer than {seconds:g} s"
        if status not in ("ok", "stopped"):
            rows, size = [], 0
        return Result(
            cast(Status, status), tuple(rows), columns, message, size, time.perf_counter() - start
        )

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.channel.close()
        self.process.kill()
        self.process.wait()
        _workers.discard(self)

    def forget(self) -> None:
        """Leave the process, in a fork, to the one that started it."""
        self.channel.close()
        self.process.returncode = 0


_workers: set[_Worker] = set()
_idle: list[_Worker] = []
_lock = threading.Lock()


def _take() -> _Worker:
    """Return a process that no other thread uses."""
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.kill()
        worker = _Worker()
        _workers.add(worker)
        return worker


def _give_back(worker: _Worker) -> None:
    with _lock:
        if worker.process.poll() is None and len(_idle) < _IDLE:
            _idle.append(worker)
            return
    worker.kill()


def _after_fork() -> None:
    """In a fork: its parent's processes are not its own, and end when the parent does."""
    for worker in _workers:
        worker.forget()
    _workers.clear()
    _idle.clear()
    _lock.release()


# No fork while a process starts: it would hold the channel open.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
