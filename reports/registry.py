"""Run folders, read: which there are, what each reached, which are of one arm."""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import math
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from reports.configs import own_seeds
from reports.run_record import (
    LOCK_FILE,
    RUN_FILE,
    NoRun,
    RunRecord,
    read_measured,
    read_record,
    run_folder,
)

try:
    import fcntl
except ImportError:  # Windows: a run that was killed is not told from one that runs
    fcntl = None  # type: ignore[assignment]

# What tasks have measured of a run's checkpoint afterwards: TASK.json.
MEASURED = ("minimal_pairs", "lm_eval")

SPLITS = ("test", "val", "old")
"""Whose metrics are of the whole model as it stands; training's are of a step before it."""

DEPTH = 4  # how many folders below a place runs are looked for

# Folders beside the runs that belong here and hold none: a sweep's settings, a study, a report,
# W&B's runs.
OWN_FILES = ("multirun.yaml", "study.db", "report.html", "run-*.wandb")

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where libyaml is there


@dataclass(kw_only=True)
class Run(RunRecord):
    """A run: its record, and what else its folder holds; `metrics` has what was measured later."""

    folder: Path
    asked: dict[str, str] = field(default_factory=dict)
    """With which keys tasks have measured it later, by task."""

    @cached_property
    def figures(self) -> dict[str, float]:
        """The metrics that are finite numbers."""
        numbers = {name: _number(value) for name, value in self.metrics.items()}
        return {name: value for name, value in numbers.items() if value is not None}

    @property
    def not_finite(self) -> list[str]:
        """The metrics that are none."""
        return [name for name in self.metrics if name not in self.figures]

    @property
    def state(self) -> str:
        """Its status; `killed` where its process is gone though its record says that it runs.

        Not to be asked by the process that is at work in the folder, which would let others in.
        """
        return "killed" if self.status == "running" and not is_held(self.folder) else self.status

    @property
    def own_command(self) -> str | None:
        """What starts this run again; a sweep's command starts all of its jobs."""
        if self.sweep is not None and self.overrides:
            return shlex.join(["python", "run.py", *self.overrides])
        return self.command

    @cached_property
    def seeds(self) -> str:
        """Its seed, and those of its parts that have their own: by these runs are paired."""
        return ", ".join([str(self.seed), *own_seeds(self.config)])

    @property
    def job(self) -> int | None:
        """Its number in its sweep, None outside of sweeps and where a sweep has no numbers."""
        return None if self.sweep is None else self.sweep.job

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml; empty if it is missing or damaged."""
        try:
            with (self.folder / "config.yaml").open(encoding="utf-8") as file:
                content = yaml.load(file, _Loader)
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def logged(self) -> dict[str, list[str]]:
        """The columns of metrics.csv, cells as text; empty if there is none or it is damaged."""
        try:
            rows = read_rows(self.folder / "metrics.csv")
        except (OSError, ValueError, csv.Error):
            return {}
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def series(self, metric: str) -> dict[int, float]:
        """Return a logged metric by optimizer step; what is not a finite number is left out."""
        return {
            int(step): value
            for step, cell in zip(self._steps, self.logged.get(metric, ()), strict=False)
            if cell and step is not None and (value := _number(cell)) is not None
        }

    @cached_property
    def _steps(self) -> list[float | None]:
        return [_number(step) for step in self.logged.get("step", ())]

    def steps(self) -> int:
        """Return the last step at which something was logged."""
        return max(map(int, self.series("step")), default=0)


def read(folder: Path) -> Run:
    """Return the run of a folder.

    Raises:
        NoRun: Its run.json, or what a task has measured of it, is missing or damaged.
    """
    record = read_record(folder)
    asked: dict[str, str] = {}
    for task in MEASURED:
        path = folder / f"{task}.json"
        if path.exists():
            found, asked[task] = read_measured(path)
            record.metrics |= {f"{task}/{name}": value for name, value in found.items()}
    return Run(folder=folder, asked=asked, **vars(record))


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a run folder; nothing is written, also where that is so."""
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, cells as text.

    A row that is not whole, which a process that was killed may leave, is left out.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: It is missing or damaged.
    """
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    found = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [row for row in found if None not in row and None not in row.values()]


def find(places: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in some places, oldest first, and a line for each folder that is skipped.

    A place is a run folder, a folder of runs, or a pattern such as `outputs/est_gpt2*/*`. Links to
    folders are followed.

    Raises:
        NoRun: A place does not exist, or a pattern has no match.
    """
    runs: dict[Path, Run] = {}
    skipped: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        matches = [path] if path.exists() else [Path(m) for m in sorted(glob.glob(str(path)))]
        if not matches:
            raise NoRun(f"{place}: there is no such folder, and as a pattern it has no match")
        for match in matches:
            for folder in _run_folders(match, skipped):
                try:
                    runs.setdefault(folder.resolve(), read(folder))
                except NoRun as error:
                    skipped.append(str(error))
    return sorted(runs.values(), key=lambda run: (run.started or "", run.id)), skipped


def _run_folders(top: Path, skipped: list[str]) -> list[Path]:
    """List the folders at or below a path that hold a run.json; name those where nothing does."""
    if not top.is_dir():
        return []
    found: list[Path] = []
    for name, folders, files in os.walk(top, followlinks=True):  # to DEPTH, also in a circle
        folder = Path(name)
        if RUN_FILE in files:
            found.append(folder)
        elif any(fnmatch.filter(files, own) for own in OWN_FILES):
            pass
        elif not folders or len(folder.relative_to(top).parts) == DEPTH:
            if folder != top or files:
                skipped.append(f"{folder}: no {RUN_FILE}")
        else:
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            continue
        folders.clear()
    return found


def resolve(word: str, folder: Path) -> Run:
    """Return the run that a word means: a folder, a file in one, or the beginning of an id.

    Raises:
        NoRun: It means none, or several of those in the folder where ids are looked for.
    """
    if Path(word).exists() and (found := run_folder(Path(word))) is not None:
        return read(found)
    if not folder.is_dir():
        raise NoRun(
            f"{word}: no run folder, and there is no folder {folder} to look for it as an id"
        )
    runs = [run for run in find([folder])[0] if run.id.startswith(word)]
    if len(runs) == 1:
        return runs[0]
    if runs:
        shown = ", ".join(run.id for run in runs[:5])
        raise NoRun(f"{word}: {len(runs)} runs have ids that begin so: {shown}")
    raise NoRun(f"{word}: neither a run folder nor the id of a run in {folder}")
