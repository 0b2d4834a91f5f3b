"""Work in a process of its own that has everything imported already: forked, watched, ended.

A training that is killed costs what it trained, not ten seconds of imports; what exhausts memory or
ends the interpreter ends a child. What a child leaves running becomes a child of this process
(Linux), which can see it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REFUSED = 2
CRASHED = 70  # an exception that nobody has put into words
MEMORY = 6 << 30  # bytes of address space that a child may take beyond its parent's
LEAVE = 30.0  # seconds in which what a killed child has started must have ended
PR_SET_CHILD_SUBREAPER = 36
_AT_WORK: set[int] = set()  # children that nobody has waited for yet


@dataclass(frozen=True)
class Ended:
    """What became of a child.

    Args:
        code: Its exit code; negative: the signal that ended it; None: it was still at work.
        said: Its output and errors.
        seconds: How long it took.
        survivors: What it had started and did not end with it.
    """

    code: int | None
    said: str
    seconds: float
    survivors: tuple[str, ...] = ()

    @property
    def in_words(self) -> bool:
        """Whether it ended by itself and without a traceback."""
        return self.code is not None and self.code >= 0 and "Traceback (most" not in self.said


class Child:
    """A forked process that does one thing.

    Args:
        work: Its exit code is what this returns; None is 0.
    """

    def __init__(self, work: Callable[[], int | None]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        _adopt(True)
        self._began, self._said = time.monotonic(), b""
        # A pipe and not a file, which a limit on files would stop as well.
        self._output, written = os.pipe()
        self._others = _children()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._output)
            _do(work, written)
        os.close(written)
        os.set_blocking(self._output, False)
        _AT_WORK.add(self.pid)

    def kill(self) -> None:
        """Kill it, and nothing that it has started."""
        os.kill(self.pid, signal.SIGKILL)

    def has_said(self, words: str) -> bool:
        """Whether it has put out some words by now."""
        self._read()
        return words.encode() in self._said

    def is_over(self) -> bool:
        """Whether it has ended; it stays to be waited for."""
        self._read()
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended is not None

    def wait(self, seconds: float) -> Ended:
        """Wait for its end; one that is late is killed with all that it has started."""
        late = False
        while not self.is_over():
            if time.monotonic() - self._began > seconds:
                os.killpg(self.pid, signal.SIGKILL)
                late = True
                break
            time.sleep(0.002)
        _, status = os.waitpid(self.pid, 0)
        _AT_WORK.remove(self.pid)
        took = time.monotonic() - self._began
        survivors = self._survivors()
        if not _AT_WORK:  # what other tests leave behind is init's again
            _adopt(False)
        self._read()
        os.close(self._output)
        said = self._said.decode(errors="replace")
        code = None if late else os.waitstatus_to_exitcode(status)
        return Ended(code, said, took, survivors)

    def _survivors(self) -> tuple[str, ...]:
        """Return the command lines of what it has started that goes on; these are ended here."""
        until = time.monotonic() + LEAVE
        while left := _children() - self._others - _AT_WORK:
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        lines = []
        for pid in left:
            lines.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return tuple(lines)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._output, 1 << 16):
                self._said += part


def _adopt(orphans: bool) -> None:
    """Say whether what children of this process leave running becomes a child of this one."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(orphans))


def _children() -> set[int]:
    """Return the processes whose parent this one is."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            _, parent, *_ = file.read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                found.add(int(file.parent.name))
    return found


def forked(work: Callable[[], int | None], seconds: float = 120) -> Ended:
    """Do something in a child, and wait for it."""
    return Child(work).wait(seconds)


def _do(work: Callable[[], int | None], output: int) -> None:
    """Be the child: never returns."""
    code = CRASHED
    try:
        os.setpgid(0, 0)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = work() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  whatever ends a process
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # whatever happens: the parent's own code must not go on here
