"""What a run shows before it: the memory that it needs."""

from __future__ import annotations

import math

from rich.table import Table

BYTES = {"64": 8, "32": 4, "16": 2, "bf16": 2}


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
