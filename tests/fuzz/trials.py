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
    of: str,
    drawn: SearchStrategy[Drawn],
    count: int,
    use: Callable[[Drawn], None],
    shrink: bool = True,
) -> None:
    """Do something with many drawn things; one at which it fails is made small.

    Args:
        of: What is tried: others are drawn for another one.
        drawn: How to draw one.
        count: How many.
        use: What to do; must be the same each time.
        shrink: Whether to look for the smallest that fails.
    """

    @seed(f"{SEED} {of}")
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
        faults: By where in our code it came up, or what was said first: last words and cause.
        slowest: The most seconds that one took.
    """

    ends: Counter[str] = field(default_factory=Counter)
    faults: dict[str, tuple[str, Any]] = field(default_factory=dict)
    slowest: float = 0.0

    def count(self, end: str, seconds: float, said: str = "", cause: Any = None) -> None:
        """Count one; `said` is the traceback of a fault, or what was said instead of one."""
        self.ends[end] += 1
        self.slowest = max(self.slowest, seconds)
        first, *_, last = said.strip().splitlines() * 2 or [""] * 2
        where = place(said) or first[:80]
        if said and where not in self.faults:
            self.faults[where] = last, cause
            print(f"  {end}: {where}\n    {last[:300]}\n    by {cause!r:.300}", flush=True)


def place(trace: str) -> str:
    """Return the innermost line of our own code that a traceback names, "" if it names none."""
    own = [
        line.strip()
        for line in trace.splitlines()
        if line.strip().startswith(f'File "{ROOT}') and "/tests/" not in line
    ]
    return own[-1].replace(f"{ROOT}/", "") if own else ""


def trace_of(error: BaseException) -> str:
    """Return a traceback as text."""
    return "".join(traceback.format_exception(error))
