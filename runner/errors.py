"""What ends a command in words, without a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Errors of a disk that is full or that nobody may write to.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)

# What SQLite, NumPy ("9 requested and 4 written") and libraries in Rust say of such a disk,
# without a number that Python knows.
DISK_WORDS = (
    "disk I/O error",
    " requested and ",
    "database or disk is full",
    "No space left on device",
    "File too large",
)


# What PyTorch and CUDA say, in a RuntimeError, where memory is short or a size beyond all memory.
MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
)


class ConfigError(ValueError):
    """What was asked for cannot run: which key, what is allowed, how to mend it."""


class MissingPackage(ConfigError):
    """What was asked for needs a package that is not installed here; says which and how."""


class MissingValue(ConfigError):
    """A key that has no default must be given; says which."""


class FailedRun(RuntimeError):
    """A run has failed, of which its words, printed by now, say all."""


class Refusal(SystemExit):
    """What was asked for cannot run: an error that Hydra lets through as it is.

    Hydra turns a callback's other errors into warnings, and prints lines of its own above a job's.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(2)
        self.error = error


@contextmanager
def refusing() -> Iterator[None]:
    """Let what data, module or task refuse be a refusal of the config that names them.

    Raises:
        ConfigError: In place of a ValueError, an ImportError, or a file that is missing, may not be
            read or cannot be written.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"a file cannot be read or written: {error}") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from.

    PyTorch's own error of a checkpoint that was cut short has the disk's behind it.
    """
    behind: BaseException | None = error
    while behind is not None:
        yield behind
        torn = "inline_container" in str(behind)
        behind = behind.__context__ if torn else behind.__cause__


def disk_behind(error: BaseException) -> str | None:
    """Say what the disk refused, None if that is not what ended the run."""
    for behind in _chain(error):
        number = behind.errno if isinstance(behind, OSError) else None
        # A number says it all; without one, only an error of files or databases is read.
        is_of_files = isinstance(behind, OSError) or type(behind).__module__ == "sqlite3"
        said = is_of_files and any(words in str(behind) for words in DISK_WORDS)
        if number in DISK or (number is None and said):
            place = getattr(behind, "filename", None)
            words = getattr(behind, "strerror", None) or str(behind)
            return f"the disk does not take what the run writes: {words}" + (
                f": {place}" if place else ""
            )
    return None


def memory_behind(error: BaseException) -> str | None:
    """Say that memory is too small, None if that is not what ended the run."""
    for behind in _chain(error):
        said = isinstance(behind, RuntimeError) and any(w in str(behind) for w in MEMORY_WORDS)
        if said or isinstance(behind, MemoryError):
            return (
                f"memory does not hold what the run needs: {first_line(behind)}. A smaller model, "
                "batch or context needs less; dry_run=true says how much"
            )
    return None


def machine_behind(error: BaseException) -> str | None:
    """Say what of the machine ended the run, its disk or its memory; None if neither did."""
    return disk_behind(error) or memory_behind(error)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def close(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return " Did you mean PREFIXword?" for the closest known word, "" if none is close."""
    found = difflib.get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6)
    return f" Did you mean {prefix}{found[0]}?" if found else ""


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the same as `close`, or else what is known."""
    options = sorted(set(known))
    shown = ", ".join(f"{prefix}{option}" for option in options[:20])
    there_are = f" There are: {shown}{', ...' if len(options) > 20 else ''}." if options else ""
    return close(word, options, prefix) or there_are
