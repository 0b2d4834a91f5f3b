"""Output that nobody reads ends nothing: a pipe that was closed, a terminal that is gone."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any

UNREAD = (errno.EPIPE, errno.EIO)
"""What writing to a pipe without a reader, and to a terminal that has gone, fails with."""


class _Unread(io.FileIO):
    """A file descriptor that takes anything once its reader is gone, from child processes too."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in UNREAD:
                raise
            _to_nowhere(self.fileno())
            return len(data)


def outlive() -> None:
    """Let the process go on when nobody reads its output any more; harmless if called again.

    Characters that the terminal's encoding lacks are written as escapes. A hang-up of the terminal
    is ignored, as under `nohup`.
    """
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # somebody else's: a notebook's, a test's
        if stream is None:  # closed by whoever started us: else the next file would take its number
            _to_nowhere(fd)
        else:
            if isinstance(getattr(stream.buffer, "raw", None), _Unread):
                continue
            stream.flush()
        text = io.TextIOWrapper(
            io.BufferedWriter(_Unread(fd, "w", closefd=False)),
            encoding="utf-8" if stream is None else stream.encoding,
            errors="backslashreplace",
            line_buffering=stream is not None and (stream.line_buffering or stream.isatty()),
        )
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def say_that_it_imports() -> None:
    """Say why nothing happens for seconds, in the first process and where it is true."""
    if "pytorch_lightning" not in sys.modules and os.environ.get("LOCAL_RANK", "0") == "0":
        print("importing torch, Lightning and transformers ...", flush=True)


def _to_nowhere(fd: int) -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    if sink != fd:
        os.dup2(sink, fd)
        os.close(sink)
