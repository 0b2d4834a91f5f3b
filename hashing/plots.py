"""Pictures of what retrieval finds and of how it holds up over sessions, as PNG files."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

RELEVANT, OTHER = "#1a9850", "#c4c4c4"
COLOURS = ("#1b6ca8", "#d1495b", "#8d8d8d", "#2e8b57", "#edae49", "#6a4c93")


@dataclass(frozen=True)
class Cell:
    """One picture or text of a grid.

    Args:
        content: RGB, uint8 (3, height, width) or (height, width, 3), or words.
        title: Above it; nothing for a query.
        relevant: Whether it shares a label with the query; None where that is not known.
    """

    content: NDArray[np.uint8] | str
    title: str = ""
    relevant: bool | None = None

    def shown(self) -> Image.Image | str:
        """The picture, or the words."""
        if isinstance(self.content, str):
            return self.content
        is_planar = self.content.shape[-1] != 3
        return Image.fromarray(self.content.transpose(1, 2, 0) if is_planar else self.content)


def retrieval_grid(queries: Sequence[Cell], found: Sequence[Sequence[Cell]], path: Path) -> Path:
    """Draw each query and, right of it, what was found: green frames where it is relevant.

    Args:
        queries: One for each row.
        found: Of each query, nearest first; as many for each.
        path: The PNG to write.

    Returns:
        The path.
    """
    rows, columns = len(queries), 1 + max(len(row) for row in found)
    figure = Figure(figsize=(1.5 * columns + 0.4, 1.75 * rows + 0.35), layout="constrained")
    axes = figure.subplots(
        rows, columns, squeeze=False, width_ratios=[1.35] + [1.0] * (columns - 1)
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, (query, cells) in enumerate(zip(queries, found, strict=True)):
        _draw_cell(axes[row, 0], query, is_query=True)
        for column, cell in enumerate(cells, start=1):
            _draw_cell(axes[row, column], cell)
    axes[0, 0].set_title("query", fontsize=10, fontweight="bold")
    return _write(figure, path)


def _draw_cell(axis: Any, cell: Cell, is_query: bool = False) -> None:
    if cell.title:
        axis.set_title(cell.title, fontsize=9)
    if isinstance(cell.content, str):
        words = textwrap.shorten(cell.content, 110, placeholder=" …").replace("$", r"\$")
        text = "\n".join(textwrap.wrap(words, 20 if is_query else 15))
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=7.5)
        axis.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1)
    else:
        axis.imshow(cell.shown())
    if is_query:
        return
    colour, width = (RELEVANT, 4) if cell.relevant else (OTHER, 2)
    frame: dict[str, Any] = {"edgecolor": colour, "linewidth": width, "clip_on": False}
    axis.add_patch(Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, **frame))


def sessions_plot(results: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> Path:
    """Draw mAP after each session, a panel for each group of queries.

    Args:
        results: By line (a strategy, a direction) and group (`all`, `old`, `new`): mAP after each
            session, NaN where the group has no queries yet.
        path: The PNG to write.

    Returns:
        The path.
    """
    groups = list(dict.fromkeys(group for found in results.values() for group in found))
    count = max(len(values) for found in results.values() for values in found.values())
    figure = Figure(figsize=(3.7 * len(groups), 3.4), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axis, group in zip(axes, groups, strict=True):
        for number, (line, found) in enumerate(results.items()):
            values = found.get(group, ())
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(range(len(values)), values, "o-", color=colour, label=line)
        axis.set_title(f"{group} queries", fontsize=10)
        axis.set_xticks(range(count), ["original", *map(str, range(1, count))])
        axis.set_xlabel("after increment")
        _clean(axis)
    axes[0].set_ylabel("mAP")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return _write(figure, path)


def precision_recall_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path
) -> Path:
    """Draw precision over recall, one mark for each Hamming radius.

    Args:
        curves: By name: precision and recall at each radius from 0 on.
        path: The PNG to write.

    Returns:
        The path.
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    for number, (name, (precision, recall)) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(recall, precision, ".-", color=colour, label=name)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(frameon=False)
    _clean(axis)
    return _write(figure, path)


def _clean(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _write(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path
