"""How many things are tried, drawn by what, and how each is judged.

FRUGAL_FUZZ_SEED draws others than the suite's; FRUGAL_FUZZ_EXAMPLES draws more or fewer.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

Drawn = TypeVar("Drawn")

SEED = int(os.environ.get("FRUGAL_FUZZ_SEED", "1"))
ROOT = Path(__file__).resolve().parents[2]


def examples(count: int) -> int:
    """Return how many to draw where the suite draws so many."""
    return int(os.environ.get("FRUGAL_FUZZ_EXAMPLES", count))


def each(
    drawn: SearchStrategy[Drawn], count: int, use: Callable[[Drawn], None], shrink: bool = True
) -> None:
    """Do something with many drawn things; one at which it fails is made small.

    Args:
        drawn: How to draw one.
        count: How many.
        use: What to do; must be the same each time.
        shrink: Whether to look for the smallest that fails.
    """

    @seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn)
    def test(one: Any) -> None:
        use(one)

    test()


@dataclass
class Tally:
    """How many of what was tried ended how.

    Args:
        ends: Counts, by how it ended.
        faults: By where in our code the fault came up, its last words and what brought it about.
        slowest: The most seconds that one took.
    """

    ends: Counter[str] = field(default_factory=Counter)
    faults: dict[str, tuple[str, Any]] = field(default_factory=dict)
    slowest: float = 0.0

    def count(self, end: str, seconds: float, said: str = "", cause: Any = None) -> None:
        """Count one; `said` is the traceback of a fault."""
        self.ends[end] += 1
        self.slowest = max(self.slowest, seconds)
        if said and place(said) not in self.faults:
            words = said.strip().splitlines()[-1]
            self.faults[place(said)] = words, cause
            print(f"  {place(said)}\n    {words[:300]}\n    by {cause!r:.300}", flush=True)


def place(trace: str) -> str:
    """Return the innermost line of our own code that a traceback names."""
    own = [
        line.strip()
        for line in trace.splitlines()
        if line.strip().startswith(f'File "{ROOT}') and "/tests/" not in line
    ]
    return own[-1].replace(f"{ROOT}/", "") if own else "elsewhere"


def trace_of(error: BaseException) -> str:
    """Return a traceback as text."""
    return "".join(traceback.format_exception(error))
