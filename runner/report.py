"""What a run shows before it: the memory that it needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.table import Table

from ledger import Ledger

BYTES = {"64": 8, "32": 4, "16": 2, "bf16": 2}


@runtime_checkable
class HasLedger(Protocol):
    """A callback or module that can say what it saved."""

    def ledger(self) -> Ledger | None:
        """Return what was saved, None if nothing was measured."""


@runtime_checkable
class HasPlan(Protocol):
    """A callback or module that can say before a run what it will cost."""

    def plan(self, module: Any, batch_shape: tuple[int, int], max_steps: int) -> Table:
        """Return the cost by stage; the shape is sequences and tokens of one in a step."""


@runtime_checkable
class HasCurves(Protocol):
    """A callback or module whose logged metrics are worth a plot."""

    def curves(self) -> tuple[str, ...]:
        """Return the metrics' names."""


@runtime_checkable
class HasFigures(Protocol):
    """A callback or module that draws what its run has reached."""

    def figures(self, folder: Path) -> dict[str, Path]:
        """Draw PNG files in a folder; return them by name."""


@runtime_checkable
class HasTables(Protocol):
    """A callback or module with tables, also of pictures, for loggers that have tables (W&B)."""

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return rows by table, after `figures`; cells are plain values or PIL's images."""


@runtime_checkable
class HasPlaces(Protocol):
    """A callback or module that writes files of its own."""

    def places(self) -> dict[str, Path]:
        """Return them by name."""


@runtime_checkable
class DescribesItself(Protocol):
    """A datamodule that can say what its data is."""

    def describe(self) -> dict[str, Any]:
        """Return what the data is and how large, as JSON data."""


@runtime_checkable
class HasSchedule(Protocol):
    """A module whose learning rate follows `lightning_modules.causal_lm.learning_rate_factor`."""

    schedule_settings: dict[str, Any]


def memory(parameters: int, trainable: int, precision: str) -> Table:
    """Return a table of what training keeps in memory on each device.

    Args:
        parameters: How many parameters the model has.
        trainable: How many of them get a gradient.
        precision: One of Lightning's names: mixed precision keeps the parameters in 32 bits.
    """
    kind = "32" if precision.endswith("-mixed") else precision.split("-")[0]
    size, name = BYTES.get(kind, 4), {"bf16": "bfloat16", "16": "float16", "64": "float64"}
    table = Table(
        "memory", "type", "", title="Memory on each device", caption="without activations"
    )
    table.columns[2].justify = "right"
    rows = (
        ("parameters", parameters * size),
        ("gradients", trainable * size),
        ("optimizer states (AdamW: two a parameter)", 2 * trainable * size),
    )
    for label, count in rows:
        table.add_row(label, name.get(kind, "float32"), size_in_words(count))
    table.add_section()
    table.add_row("in all", "", size_in_words(sum(count for _, count in rows)))
    return table


def size_in_words(count: float) -> str:
    """Return a number of bytes with a fitting unit."""
    power = min(int(math.log(count, 1024)), 4) if count >= 1 else 0
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
