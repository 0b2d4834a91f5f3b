"""Tables for the terminal: the list of runs, one run, several beside each other, a sweep's jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ledger import Ledger
from reports.configs import at, differences, shortened
from reports.registry import SPLITS, Run
from terminal import literal

COLOURS = {
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "killed": "red",
    "running": "cyan",
}

MOST_COLUMNS = 6  # of settings in a sweep's table


def list_runs(console: Console, runs: Sequence[Run], skipped: Sequence[str]) -> None:
    """Print runs, a line each, newest last, and a line for each folder that was skipped."""
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "name", "task", "seed", "status", "started", "time", "result"):
        table.add_column(heading, justify="right" if heading in ("seed", "time") else "left")
    for run in runs:
        table.add_row(
            literal(run.id),
            literal(run.name),
            literal(run.task),
            "" if run.seed is None else str(run.seed),
            _status(run.state),
            moment(run.started),
            duration(run.seconds),
            literal(_result(run)),
        )
    console.print(table)
    for line in skipped:
        console.print(literal(f"skipped {line}"), soft_wrap=True, style="dim")


def show_run(console: Console, run: Run) -> None:
    """Print all that the record of a run says."""
    facts = {
        "folder": run.folder,
        "experiment": run.experiment,
        "status": run.state,
        "reason": run.reason,
        "seed": run.seed,
        "started": moment(run.started),
        "time": duration(run.seconds),
        "command": run.own_command,
        "checkpoint": run.checkpoint,
    }
    title = f"{run.name} {run.id}, {run.task}"
    table = Table(title=literal(title), title_justify="left", show_header=False)
    for name, value in facts.items():
        if value not in (None, ""):
            table.add_row(name, literal(value))
    console.print(table)
    reached(console, "", run.figures, run.ledgers.values(), {})
    for name in run.not_finite:
        console.print(literal(f"{name}: not a finite number"))


def reached(
    console: Console,
    title: str,
    metrics: Mapping[str, float],
    ledgers: Iterable[Ledger],
    places: Mapping[str, Path | None],
) -> None:
    """Print what a run reached, what its methods saved, and where its files are."""
    table = Table(title=literal(title), title_justify="left", show_header=False)
    for name in sorted(metrics, key=_rank):
        table.add_row(literal(name), f"{metrics[name]:.6g}")
    console.print(table)
    for ledger in ledgers:
        console.print(ledger.table())
    for name, place in places.items():
        if place is not None and place.exists():
            console.print(literal(f"{name + ':':17}{place}"), soft_wrap=True)


def without_constants(metrics: Mapping[str, float], run: Run) -> dict[str, float]:
    """Leave out metrics that a run logged at several steps with always the same value.

    Figures of the whole model stay: that these do not change is a result.
    """
    series = {name: run.series(name) for name in metrics}
    constant = {name for name, each in series.items() if len(each) > 1 == len(set(each.values()))}
    return {
        name: value
        for name, value in metrics.items()
        if name not in constant or name.partition("/")[0] in SPLITS
    }


def compare(console: Console, runs: Sequence[Run]) -> None:
    """Print in which settings runs differ, and what each reached, beside each other."""
    settings = differences([run.config for run in runs])
    metrics = sorted({name for run in runs for name in run.figures}, key=_rank)
    table = Table(row_styles=("", "dim") if len(metrics) > 12 else None)
    table.add_column()
    for run in runs:
        table.add_column(literal(f"{run.name}\n{run.id}"), justify="right")
    table.add_row("status", *(_status(run.state) for run in runs))
    table.add_row("seed", *(str(run.seed) for run in runs))
    table.add_section()
    for key, values in settings.items():
        table.add_row(literal(key), *map(_setting, values))
    table.add_section()
    for name in metrics:
        table.add_row(literal(name), *(_figure(run.figures.get(name)) for run in runs))
    saved = [
        {
            f"{ledger.method}: {row.quantity}, saved": row.saved
            for ledger in run.ledgers.values()
            for row in ledger.savings
        }
        for run in runs
    ]
    table.add_section()
    for name in dict.fromkeys(name for each in saved for name in each):
        table.add_row(
            literal(name), *(_share(each[name]) if name in each else "" for each in saved)
        )
    console.print(table)


def jobs(console: Console, runs: Sequence[Run], without: Mapping[int, str]) -> None:
    """Print one table of all jobs of a sweep: what differs between them, and what each reached.

    `without` says how jobs ended that have left no run, by their numbers.
    """
    ends = [*(run.state for run in runs), *without.values()]
    counts = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))
    columns: dict[str, list[object]] = {
        "name": [run.name for run in runs],
        "experiment": [run.experiment for run in runs],
    }
    # An experiment's own settings are not what its jobs were told.
    told: dict[str, None] = {}
    for experiment in dict.fromkeys(columns["experiment"]):
        told |= dict.fromkeys(differences([r.config for r in runs if r.experiment == experiment]))
    metrics = _shared_metrics(runs)
    words = shortened(told, ("job", "id", *columns, "seed", "status", "time", *metrics))
    columns |= {words[key]: [at(run.config, key) for run in runs] for key in told}
    shown = {name: values for name, values in columns.items() if len(set(map(str, values))) > 1}
    hidden = list(shown)[MOST_COLUMNS:]
    shown = {name: values for name, values in shown.items() if name not in hidden}
    table = Table("job", "id", caption_justify="left")
    if hidden:
        table.caption = literal(f"They also differ in {', '.join(hidden)}.")
    for name in shown:
        table.add_column(literal(name), overflow="fold")
    for name in ("seed", "status", "time", *metrics):
        table.add_column(literal(name), justify="left" if name == "status" else "right")
    for place, run in enumerate(runs):
        table.add_row(
            "" if run.job is None else str(run.job),
            literal(run.id),
            *(_setting(values[place]) for values in shown.values()),
            str(run.seed),
            _status(run.state),
            duration(run.seconds),
            *(_figure(run.figures.get(name)) for name in metrics),
        )
    for number, end in sorted(without.items()):
        table.add_row(str(number), "", *("" for _ in shown), "", _status(end))
    console.print(f"Jobs of the sweep: {counts}.", soft_wrap=True, highlight=False)
    console.print(table)


def _shared_metrics(runs: Sequence[Run]) -> list[str]:
    """Return at most three metrics: of test, else of validation, else of training."""
    names = dict.fromkeys(name for run in runs for name in run.figures)
    for split in ("test/", "val/", "train/"):
        if found := [name for name in names if name.startswith(split)]:
            return found[:3]
    return []


def _result(run: Run) -> str:
    names = _shared_metrics([run])[:2]
    return ", ".join(f"{name} {_figure(run.figures[name])}" for name in names)


def _setting(value: object) -> Text:
    shown = json.dumps(value) if isinstance(value, Mapping | list) else value
    return literal("-" if shown is None else shown, 40, 1)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _status(words: str) -> Text:
    return Text(words, COLOURS.get(words, ""))


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _rank(metric: str) -> tuple[int, str]:
    """Sort what was reached before what it took."""
    split = metric.partition("/")[0]
    order = (*SPLITS, "train")
    return (order.index(split) if split in order else len(order), metric)


def moment(time: str | None) -> str:
    """Write a record's time as this machine's clocks show it; what is no time as it is."""
    try:
        return f"{datetime.fromisoformat(time or '').astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return time or ""


def duration(seconds: float | None) -> str:
    """Write a time as people say it: 45 s, 12 min, 3 h 20 min; empty where none is known."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
