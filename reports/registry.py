"""Run folders, read: which there are, what each reached, which are of one arm."""

from __future__ import annotations

import csv
import fnmatch
import glob
import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ledger import Ledger

RUN_FILE = "run.json"

# What tasks have measured of a run's checkpoint afterwards: TASK.json.
MEASURED = ("minimal_pairs", "lm_eval")

# Folders beside the runs that belong here and hold none: a sweep's settings, a study, a report,
# W&B's runs.
OWN_FILES = ("multirun.yaml", "study.db", "report.html", "run-*.wandb")

# Settings that say where files go, how a run is found and how it is started.
NOT_OF_THE_ARM = ("paths", "logger", "name", "tags", "resume", "stretch", "dry_run")

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where libyaml is there


class NoRun(ValueError):
    """A folder that holds no readable run, or a word that names none; says which and why."""


@dataclass(frozen=True)
class Run:
    """What run.json holds of a run.

    Args:
        folder: The run folder.
        id: The run's id.
        name: The run's name.
        experiment: The experiment that was chosen, None if none was or an older version ran.
        task: train, validate or test.
        status: running, finished, failed or interrupted.
        seed: The seed.
        started: When it began, in UTC.
        seconds: How long it took.
        command: What starts this run again, None if nobody wrote it down.
        arm: The hash of its settings without the seed, empty in older folders.
        metrics: Its last figures that are finite numbers, and what was measured of it afterwards.
        not_finite: Names of those that are not.
        ledgers: What its methods saved, by config key.
        checkpoint: Its last checkpoint; of validate and test: the one looked at.
        job: Its number in its sweep, None outside of sweeps and where a sweep has no numbers.
    """

    folder: Path
    id: str
    name: str
    experiment: str | None
    task: str
    status: str
    seed: int | None
    started: str
    seconds: float | None
    command: str | None
    arm: str
    metrics: Mapping[str, float]
    not_finite: tuple[str, ...] = ()
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)
    checkpoint: str | None = None
    job: int | None = None

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
        """The columns of metrics.csv, cells as text; empty if there is none."""
        try:
            with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
        except (OSError, ValueError, csv.Error):
            return {}
        # A row that is written this moment may be short.
        rows = [row for row in rows if len(row) == len(header)]
        return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}

    def series(self, metric: str) -> dict[int, float]:
        """Return a logged metric by optimizer step; what is not a finite number is left out."""
        if metric not in self.logged or "step" not in self.logged:
            return {}
        cells = zip(self.logged["step"], self.logged[metric], strict=True)
        numbers = ((_number(step), _number(value)) for step, value in cells if value)
        return {int(s): value for s, value in numbers if s is not None and value is not None}

    def steps(self) -> int:
        """Return the last step at which something was logged."""
        return max(map(int, self.series("step")), default=0)


def read(folder: Path) -> Run:
    """Return the run of a folder.

    Raises:
        NoRun: Its run.json is missing, damaged, or no record of a run.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoRun(f"{folder}: no {RUN_FILE}") from error
    except (ValueError, RecursionError) as error:
        raise NoRun(f"{path}: damaged, {error}") from error
    missing = {"id", "task", "status"} - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise NoRun(f"{path}: no record of a run, {', '.join(sorted(missing))} missing")
    try:
        return _run(folder, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NoRun(f"{path}: no record of a run, {error}") from error


def _run(folder: Path, content: Mapping[str, Any]) -> Run:
    found = {**(content.get("metrics") or {}), **_measured(folder)}
    metrics = {str(name): _number(value) for name, value in found.items()}
    named = "name" in content  # in older records `experiment` is the run's name
    overrides = content.get("overrides") or []
    command = content.get("command")
    if content.get("sweep") and overrides:  # the command is the whole sweep's
        command = shlex.join(["python", "run.py", *map(str, overrides)])
    return Run(
        folder=folder,
        id=str(content["id"]),
        name=str(content.get("name" if named else "experiment") or folder.parent.name),
        experiment=content.get("experiment") if named else None,
        task=str(content["task"]),
        status=str(content["status"]),
        seed=None if content.get("seed") is None else int(content["seed"]),
        started=str(content.get("started") or ""),
        seconds=_number(content.get("seconds")),
        command=None if command is None else str(command),
        arm=str(content.get("arm") or ""),
        metrics={name: value for name, value in metrics.items() if value is not None},
        not_finite=tuple(name for name, value in metrics.items() if value is None),
        ledgers={k: Ledger.from_dict(v) for k, v in (content.get("ledgers") or {}).items()},
        checkpoint=content.get("checkpoint"),
        job=(content.get("sweep") or {}).get("job"),
    )


def _measured(folder: Path) -> dict[str, Any]:
    """Return what tasks have measured of a run afterwards, TASK/NAME."""
    found: dict[str, Any] = {}
    for task in MEASURED:
        path = folder / f"{task}.json"
        if path.exists():
            metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
            found |= {f"{task}/{name}": value for name, value in metrics.items()}
    return found


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def find(places: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in some places, oldest first, and a line for each folder that is skipped.

    Args:
        places: Run folders, folders of runs, or patterns such as `outputs/est_gpt2*/*`.

    Raises:
        NoRun: A place does not exist, or a pattern has no match.
    """
    runs: dict[Path, Run] = {}
    skipped: list[str] = []
    for place in places:
        found = [Path(match) for match in sorted(glob.glob(str(place)))] or [Path(place)]
        for path in found:
            if not path.exists():
                raise NoRun(f"{place}: there is no such folder, and as a pattern it has no match")
            for folder in _run_folders(path, skipped):
                try:
                    runs.setdefault(folder.resolve(), read(folder))
                except NoRun as error:
                    skipped.append(str(error))
    return sorted(runs.values(), key=lambda run: (run.started, run.id)), skipped


def _run_folders(top: Path, skipped: list[str]) -> list[Path]:
    """List the folders at or below a path that hold a run.json; name those where nothing does."""
    if not top.is_dir():
        return []
    found: list[Path] = []
    for name, folders, files in os.walk(top):
        folder = Path(name)
        if RUN_FILE in files:
            found.append(folder)
        elif any(fnmatch.filter(files, own) for own in OWN_FILES):
            pass
        elif not folders or len(folder.relative_to(top).parts) == 2:
            if folder != top or files:
                skipped.append(f"{folder}: no {RUN_FILE}")
        else:
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            continue
        folders.clear()
    return found


def resolve(word: str, folder: Path) -> Run:
    """Return the run that a word means: a folder, a file in one, or the beginning of an id.

    Args:
        word: What was written.
        folder: Where ids are looked for.

    Raises:
        NoRun: It means none, or several.
    """
    path = Path(word)
    if path.exists():
        for candidate in (path, *path.resolve().parents):
            if (candidate / RUN_FILE).exists():
                return read(candidate)
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


def arm_of(config: Mapping[str, Any]) -> str:
    """Return a hash of a config without seeds, places and names: runs of one arm share it."""
    text = json.dumps(settings_of_arm(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_of_arm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that the runs of its arm share."""
    paths = config.get("paths") or {}
    places = [str(paths[name]) for name in ("run_dir", "cache_dir") if paths.get(name)]

    def shared(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: shared(value) for key, value in node.items() if key != "seed"}
        if isinstance(node, list):
            return [shared(value) for value in node]
        for place in places if isinstance(node, str) else ():
            node = node.replace(place, "")
        return node

    kept = {key: value for key, value in config.items() if key not in NOT_OF_THE_ARM}
    settings: dict[str, Any] = shared(kept)
    return settings


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings in which configs differ, with each one's value; a missing one is None.

    A node that not all of them have is one setting: its value is the name of its class.
    """
    return dict(_differing("", [settings_of_arm(config) for config in configs]))


def _differing(key: str, values: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    if all(value == values[0] for value in values):
        return
    if all(isinstance(value, Mapping) for value in values):
        for name in dict.fromkeys(name for value in values for name in value):
            inner = f"{key}.{name}" if key else str(name)
            yield from _differing(inner, [value.get(name) for value in values])
    else:
        yield key, [_brief(value) for value in values]


def _brief(value: Any) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return json.dumps(value, default=str) if isinstance(value, Mapping | list) else value
