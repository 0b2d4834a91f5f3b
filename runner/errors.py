"""What ends a command in words, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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

    Args:
        error: Why.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(2)
        self.error = error


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return " Did you mean X?" for the closest known word, else what is known.

    Args:
        word: What was written.
        known: What could have been.
        prefix: Put before each of them, e.g. "trainer.".
    """
    options = sorted(set(known))
    if close := difflib.get_close_matches(word, options, n=1, cutoff=0.6):
        return f" Did you mean {prefix}{close[0]}?"
    shown = ", ".join(f"{prefix}{option}" for option in options[:20])
    return f" There are: {shown}{', ...' if len(options) > 20 else ''}." if options else ""
