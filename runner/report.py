"""What a run shows: memory before it, tables and plots after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ledger import Ledger
from runner.record import MetricsFile

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


def show(
    console: Console,
    title: str,
    metrics: Mapping[str, float],
    ledgers: Iterable[Ledger],
    places: Mapping[str, Path | None],
) -> None:
    """Print what a run reached, what it saved, and where its files are.

    Args:
        console: Where to.
        title: The run's name and id.
        metrics: Its last metrics.
        ledgers: What its methods saved.
        places: Its files by name.
    """
    table = Table(title=Text(title), title_justify="left", show_header=False)
    for name in sorted(metrics, key=_rank):
        table.add_row(Text(name), f"{metrics[name]:.6g}")
    console.print(table)
    for ledger in ledgers:
        console.print(ledger.table())
    for name, place in places.items():
        if place is not None and place.exists():
            console.print(Text(f"{name + ':':17}{place}"), soft_wrap=True)


def plot(rows: Sequence[Mapping[str, str]], curves: Sequence[str], path: Path) -> Path | None:
    """Draw the losses, and what else a method asked for below them, over the steps.

    Args:
        rows: metrics.csv.
        curves: Names of logged metrics.
        path: The PNG to write.

    Returns:
        The path, None if nothing was logged.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [[name for name in ("train/loss", "val/loss") if _series(rows, name)]]
    panels += [[name] for name in curves if _series(rows, name)]
    panels = [panel for panel in panels if panel]
    if not panels:
        return None
    heights = [2.5] + [1.0] * (len(panels) - 1)
    figure, axes = plt.subplots(
        len(panels),
        figsize=(8, 1.6 * sum(heights)),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for name in panel:
            steps, values = zip(*_series(rows, name), strict=True)
            axis.plot(steps, values, label=name, marker="o" if name == "val/loss" else None)
        axis.legend()
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("optimizer step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Return a run's metrics.csv."""
    return MetricsFile(str(folder)).rows()


def _rank(metric: str) -> tuple[int, str]:
    """Sort what was reached before what it took."""
    split = metric.partition("/")[0]
    order = ("test", "val", "train")
    return (order.index(split) if split in order else len(order), metric)


def _series(rows: Sequence[Mapping[str, str]], name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
