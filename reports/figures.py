"""Curves over steps, tokens, FLOPs and seconds, as a paper prints them: of one run, of all arms."""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reports.configs import result_settings
from reports.registry import Run, find, read
from reports.statistics import Arm, Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, without its yellow: told apart by colour-blind readers, and on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_ARMS = len(COLOURS) * len(LINES)
FORMATS = ("svg", "png", "pdf")
_PANEL, _LETTERS, _LINE = 3.5, 44, 0.16  # a panel's width, in letters too; a line's height (inch)
MOST_POINTS = 400  # of one line; more cannot be seen

STYLE: Any = {  # matplotlib types its keys one by one
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
    "pdf.fonttype": 42,  # what publishers accept
    "text.parse_math": False,  # a $ in a run's name is a $
}

AXES = {
    "steps": "optimizer step",
    "tokens": "tokens",
    "FLOPs": "FLOPs of training, all (counted)",
    "seconds": "time of training (s)",
}


@dataclass(frozen=True)
class Curve:
    """A metric of one arm: at each step the mean over its runs, and their standard deviation.

    Args:
        x: For each axis that is known, where on it the steps lie.
        mean: The mean of the runs that logged the metric.
        std: Their standard deviation; 0 for one run.
        runs: How many runs these are: those that have logged the metric twice.
    """

    x: Mapping[str, NDArray[np.float64]]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    runs: int


def curve(runs: Sequence[Run], metric: str) -> Curve | None:
    """Return a metric of an arm; None if its runs have logged fewer than two steps in common.

    What is of training is smoothed.
    """
    series = {run.folder: run.series(metric) for run in runs}
    runs = [run for run in runs if len(series[run.folder]) > 1]
    if not runs:
        return None
    steps = sorted(set.intersection(*(set(series[run.folder]) for run in runs)))
    if len(steps) < 2:
        return None
    columns = [[series[run.folder][step] for step in steps] for run in runs]
    if metric.startswith("train/"):
        columns = [smooth(column) for column in columns]
    places = [_positions(run, steps) for run in runs]
    values = list(zip(*columns, strict=True))
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_POINTS)).astype(int))
    return Curve(
        {
            axis: np.mean([place[axis] for place in places], axis=0)[chosen]
            for axis in AXES
            if all(axis in place for place in places)
        },
        np.array([fmean(row) for row in values])[chosen],
        np.array([stdev(row) if len(row) > 1 else 0.0 for row in values])[chosen],
        len(runs),
    )


def smooth(values: Sequence[float]) -> list[float]:
    """Return the means of windows of a twentieth of the values, smaller ones at the ends."""
    half, last = len(values) // 40, len(values) - 1
    total = np.concatenate([[0.0], np.cumsum(values)])
    windows = [(place, min(half, place, last - place)) for place in range(len(values))]
    return [float(total[p + r + 1] - total[p - r]) / (2 * r + 1) for p, r in windows]


def _positions(run: Run, steps: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return where a run's steps lie on each axis that it has logged."""
    at = np.array(steps, dtype=float)
    found = {"steps": at}
    for axis in ("tokens", "FLOPs"):
        if series := run.series(axis):
            found[axis] = _through(np.array([0.0, *series]), np.array([0.0, *series.values()]), at)
    tokens, rates = run.series("tokens"), run.series("perf/tokens_per_second")
    if rates := {step: rate for step, rate in rates.items() if rate and step in tokens}:
        logged = np.array([0.0, *rates])
        read = np.array([0.0, *(tokens[step] for step in rates)])
        spent = np.cumsum(np.diff(read) / np.array([*rates.values()]))
        found["seconds"] = _through(logged, np.array([0.0, *spent]), at)
    return found


def _through(x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64]) -> Any:
    """Interpolate, and go on behind the last point at the last pace."""
    pace = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else 0.0
    return np.interp(at, x, y) + np.clip(at - x[-1], 0, None) * pace


def workload(run: Run) -> str:
    """Return what a run learns from and what decides the cost of its dense step, as a key."""
    settings = result_settings(run.config)
    module, trainer = (settings.get(key) or {} for key in ("module", "trainer"))
    model = {key: module.get(key) for key in ("_target_", "architecture", "pretrained", "lora")}
    keys = ("accumulate_grad_batches", "devices", "num_nodes")
    processes = [trainer.get(key) or 1 for key in keys]
    known = [model, settings.get("datamodule"), processes]
    return json.dumps(known, sort_keys=True, default=str)


def metrics_of(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics that are worth a figure of all arms: losses, else two of validation."""
    first = [arm.runs[0] for arm in arms]
    logged = dict.fromkeys(name for r in first for name in r.logged if len(r.series(name)) > 1)
    losses: list[str] = [name for name in ("val/loss", "train/loss") if name in logged]
    others = [name for name in logged if name.startswith("val/")][:2]
    return losses if "val/loss" in losses else [*losses, *others]


def arms_figure(curves: Mapping[str, Curve], label: str, marked: bool, columns: int = 2) -> Figure:
    """Draw a metric of all arms over every axis that all of them know.

    Args:
        curves: At least one, by the arm's label: the mean over an arm's runs is a line, their
            standard deviation a band around it.
        label: What the metric is called on its axis.
        marked: Whether each value gets a marker.
        columns: Panels side by side.
    """
    axes = [axis for axis in AXES if all(axis in each.x for each in curves.values())]
    with styled():
        figure, panels = panels_of(len(axes), columns, sharey=True)
        for number, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
            for place, (name, each) in enumerate(curves.items()):
                _line(panel, each, axis, place, name, marked)
            _label(panel, axis, "" if number % columns else label)
        _legend(figure, panels)
    return figure


def differences_figure(
    gaps: Mapping[str, Mapping[str, Difference]], labels: Sequence[str], base: str, columns: int = 2
) -> Figure:
    """Draw how arms differ from the baseline: means over pairs of seeds with their 95 % intervals.

    Args:
        gaps: By metric, each a panel, and by the arm's label.
        labels: Of all arms: an arm has here the colour of its curve.
        base: The baseline's label.
        columns: Panels side by side.
    """
    from matplotlib.ticker import MaxNLocator

    with styled():
        rows = [label for label in labels if any(label in each for each in gaps.values())]
        names = [textwrap.fill(label, 24).splitlines() for label in rows]
        room = _LETTERS - max(len(line) for name in names for line in name)
        words = [textwrap.fill(f"{metric} minus {base}", room) for metric in gaps]
        height = 0.65 + _LINE * max(text.count("\n") + 1 for text in words)
        height += _LINE * len(rows) * max(2, *map(len, names))
        figure, panels = panels_of(len(gaps), columns, sharey=True, height=height)
        for found, text, panel in zip(gaps.values(), words, panels, strict=True):
            panel.axvline(0.0, color="#000000", lw=0.8)
            for label, gap in found.items():
                place, number = rows.index(label), labels.index(label)
                low, high = gap.interval or (gap.mean, gap.mean)
                bar = [[gap.mean - low], [high - gap.mean]]
                colour = COLOURS[number % len(COLOURS)]
                panel.errorbar([gap.mean], [place], xerr=bar, fmt="o", color=colour, capsize=3)
            panel.set_yticks(range(len(rows)), map("\n".join, names))
            panel.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))  # long numbers
            panel.set_ylim(len(rows) - 0.5, -0.5)
            panel.set_xlabel(text)
    return figure


def run_figure(run: Run, curves: Sequence[str] = (), dense: Run | None = None) -> Figure | None:
    """Draw a run: its losses over steps, over FLOPs where these are known, and what is asked for.

    Args:
        run: The run.
        curves: Further logged metrics, a panel each.
        dense: The run without a method that it is compared with.

    Returns:
        None if nothing was logged twice.
    """
    both = [(run, ""), *([(dense, ", dense")] if dense else [])]
    losses = [name for name in ("train/loss", "val/loss") if len(run.series(name)) > 1]
    lines = [
        (name, found, words, place)
        for place, (each, words) in enumerate(both)
        for name in losses
        if (found := curve([each], name)) is not None
    ]
    known = [a for a in ("steps", "FLOPs") if lines and all(a in found.x for _, found, *_ in lines)]
    further = [(name, c) for name in curves if (c := curve([run], name)) is not None]
    if not known and not further:
        return None
    with styled():
        figure, panels = panels_of(len(known) + len(further), min(2, len(known) + len(further)))
        for axis, panel in zip(known, panels, strict=False):
            if axis == "steps" and (raw := run.series("train/loss")):
                panel.plot(*zip(*raw.items(), strict=True), color=COLOURS[0], alpha=0.2, lw=0.8)
            for name, found, words, place in lines:
                validation = name.startswith("val/")
                label = ("validation" if validation else "training, smoothed") + words
                _line(panel, found, axis, 2 * place + validation, label, validation)
            _label(panel, axis, label_of("loss", [run]))
        for (name, found), panel in zip(further, panels[len(known) :], strict=True):
            panel.plot(found.x["steps"], found.mean, color=COLOURS[0])
            _label(panel, "steps", label_of(name, [run]))
        if known:
            _legend(figure, panels)
        seed = "" if run.seed is None else f", seed {run.seed}"
        figure.suptitle(f"{run.name} {run.id}{seed}", fontsize=10)
    return figure


def draw_run(folder: Path, curves: Sequence[str], output_dir: Path) -> Path | None:
    """Draw a run into its folder, beside the dense run of the same work and seed if there is one.

    Args:
        folder: The run folder.
        curves: Logged metrics that a method asks for, a panel each.
        output_dir: Where dense runs are looked for.

    Returns:
        The PNG; None if nothing was logged twice.
    """
    run = read(folder)
    dense = dense_beside(run, find([output_dir])[0]) if run.ledgers else None
    figure = run_figure(run, curves, dense)
    return None if figure is None else save(figure, folder / "plots" / "curves", ("png",))


def dense_beside(run: Run, others: Sequence[Run]) -> Run | None:
    """Return the newest finished run of the same workload and seed that has no method, if any."""
    plain = [
        other
        for other in others
        if other.status == "finished"
        and other.task == "train"
        and other.seed == run.seed
        and not other.ledgers
    ]
    # The newest first: configs and metrics are read until one fits.
    same = (o for o in reversed(plain) if workload(o) == workload(run) and o.steps() == run.steps())
    return next(same, None) if run.ledgers else None


def label_of(metric: str, runs: Sequence[Run]) -> str:
    """Return a metric's name for an axis, with its unit where that is known."""
    split, _, name = metric.rpartition("/")
    words = {"val": "validation ", "train": "training ", "test": "test "}.get(split, f"{split} ")
    nats = name == "loss" and any("val/perplexity" in run.figures for run in runs)
    return f"{words}{name}".strip().replace("_", " ") + (" (nats per token)" if nats else "")


def save(figure: Figure, path: Path, formats: Sequence[str] = FORMATS) -> Path:
    """Write a figure in some formats, and return the first one; equal content gives equal files."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    # Ids of an SVG's parts follow from the salt: several SVGs in one page must not share any.
    with styled(), mpl.rc_context({"svg.hashsalt": path.stem}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out by now: once, and not for each format
        for each in formats:
            figure.savefig(path.with_suffix(f".{each}"), dpi=200, metadata=dates.get(each))
    return path.with_suffix(f".{formats[0]}")


@contextmanager
def styled() -> Iterator[None]:
    """Give what is drawn inside the style of all figures."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


def panels_of(
    count: int, columns: int, sharey: bool = False, height: float = 2.5
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, `columns` of them side by side."""
    from matplotlib.figure import Figure  # not pyplot: it keeps figures and picks a window system
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, count)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(wspace=0.06)  # numbers at the ends of two axes meet there
    figure = Figure(figsize=(_PANEL * columns, height * rows + 0.15), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for spare in grid[count:]:
        spare.remove()
    return figure, grid[:count]


def _line(panel: Axes, found: Curve, axis: str, place: int, label: str, marked: bool) -> None:
    """Draw one curve; markers where each value was measured by itself."""
    colour = COLOURS[place % len(COLOURS)]
    panel.plot(
        found.x[axis],
        found.mean,
        LINES[place // len(COLOURS) % len(LINES)],
        color=colour,
        marker=MARKERS[place % len(MARKERS)] if marked and len(found.mean) <= 40 else None,
        # What begins with _ is left out of legends; this space has no width.
        label="\u200b" + label if label.startswith("_") else label,
    )
    if found.std.any():
        low, high = found.mean - found.std, found.mean + found.std
        panel.fill_between(found.x[axis], low, high, color=colour, alpha=0.15, lw=0)


def _label(panel: Axes, axis: str, metric: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    panel.set_xlabel(AXES[axis])
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=axis == "steps"))
    panel.set_ylabel(textwrap.fill(metric, 36))
    if axis != "steps":
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend below all panels, with as many columns as there is room for."""
    handles, labels = panels[0].get_legend_handles_labels()
    room, mark = int(_LETTERS * figure.get_figwidth() / _PANEL), 8  # letters
    names = [textwrap.fill(label, room - mark).splitlines() for label in labels]
    columns = room // (mark + max(len(line) for name in names for line in name))
    columns = min(columns, len(names))
    lines = -(-len(names) // columns) * (max(map(len, names)) + 0.4)  # with the space between two
    figure.set_figheight(figure.get_figheight() + _LINE * lines)
    labels = ["\n".join(name) for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
