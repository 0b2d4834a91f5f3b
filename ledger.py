"""What a method saved, against which baseline, at what quality: one type for every method.

FLOPs planned or counted, of the blocks or of everything, time, steps, annotated examples: each is a
row of its own, so that no convention hides behind another.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Saving:
    """One quantity that was spent: by the method, and by its baseline.

    Args:
        quantity: What is counted, e.g. "counted FLOPs, blocks".
        unit: Its unit, e.g. "FLOPs", "s", "steps", "turns".
        spent: The method's figure, at least 0 and finite (ValueError otherwise).
        baseline: The baseline's figure, above 0 and finite; None when nobody measured it.
        estimated: Whether the baseline's figure was not measured in a run of the baseline.
    """

    quantity: str
    unit: str
    spent: float
    baseline: float | None
    estimated: bool = False

    def __post_init__(self) -> None:
        baseline = 1 if self.baseline is None else self.baseline
        if not (0 <= self.spent < math.inf and 0 < baseline < math.inf):
            raise ValueError(
                f"{self.quantity}: spent={self.spent} must be finite and at least 0, baseline="
                f"{self.baseline} finite and above 0, or None where it was not measured"
            )

    @property
    def saved(self) -> float | None:
        """Share of the baseline that was not spent: 0.25 is a quarter, below 0 cost more."""
        return None if self.baseline is None else 1 - self.spent / self.baseline


@dataclass(frozen=True)
class Quality:
    """One metric, as the method and its baseline reached it, and which side of it is better.

    None is no finite number, as JSON has none.
    """

    metric: str
    value: float | None
    baseline: float | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def gain(self) -> float | None:
        """Lead over the baseline in the metric's own unit; below 0 the baseline leads."""
        sign = 1 if self.better == "higher" else -1
        if self.value is None or self.baseline is None:
            return None
        return sign * (self.value - self.baseline)


@dataclass(frozen=True)
class Ledger:
    """Everything `method` saved against `baseline`; `notes` are sentences shown under the table."""

    method: str
    baseline: str
    savings: tuple[Saving, ...] = ()
    quality: tuple[Quality, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [slug(s.quantity) for s in self.savings] + [slug(q.metric) for q in self.quality]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.method}: two rows share a name: {', '.join(sorted(names))}")

    def table(self) -> Table:
        """Return the rows as a table for the terminal."""
        title = Text(f"{self.method} against {self.baseline}")
        table = Table(title=title, caption=Text("\n".join(self.notes)), caption_justify="left")
        table.add_column()
        for heading in (self.method, "baseline", "saved"):
            table.add_column(Text(heading), justify="right")
        for row in self.savings:
            baseline = amount(row.baseline, row.unit)
            baseline += " (estimated)" if row.estimated and row.baseline is not None else ""
            figures = (amount(row.spent, row.unit), baseline)
            table.add_row(Text(row.quantity), *figures, _verdict(row.saved, percent=True))
        table.add_section()
        for line in self.quality:
            figures = (amount(line.value), amount(line.baseline))
            table.add_row(Text(line.metric), *figures, _verdict(line.gain))
        return table

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return a logger's flat metrics: `est/counted_flops_blocks_saved` for prefix "est"."""
        flat: dict[str, float | None] = {}
        for row in self.savings:
            figures = {"spent": row.spent, "baseline": row.baseline, "saved": row.saved}
            flat |= {f"{slug(row.quantity)}_{name}": value for name, value in figures.items()}
        for line in self.quality:
            figures = {"baseline": line.baseline, "gain": line.gain}  # the value has its own name
            flat |= {f"{slug(line.metric)}_{name}": value for name, value in figures.items()}
        return {f"{prefix}/{key}": value for key, value in flat.items() if value is not None}


def amount(value: float | None, unit: str = "") -> str:
    """Write a figure with its unit: four digits or whole thousands, from a million an SI prefix."""
    if value is None:
        return "not measured"
    power = int(math.log10(value) // 3) if 1e6 <= value < 1e24 else 0
    digits = f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value / 1000**power:.4g}"
    return f"{digits} {['', 'k', *'MGTPEZ'][power]}{unit}"


def slug(name: str) -> str:
    """Return a name in small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _verdict(lead: float | None, percent: bool = False) -> Text:
    """Write a lead over the baseline: green where there is one, red where it is lost."""
    if lead is None:
        return Text("not measured")
    word, style = ("worse", "red") if lead < 0 else ("better", "green")
    return Text(f"{100 * lead:.1f} %" if percent else f"{abs(lead):.4g} {word}", style)
