"""The jobs of a sweep: as commands for an engine, what became of each, one table at the end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from rich.console import Console

from reports import registry, tables
from reports.registry import Run
from reports.run_record import RUN_FILE
from runner.engines import Command, Engine, follow
from runner.errors import FailedRun
from runner.folder import is_locked
from runner.job import SWEEP, Job, command_line
from runner.validate import check_apart

# Seconds that a job has to save and stop after the worker that ran it was killed.
GRACE = 60.0


@dataclass(frozen=True)
class Sweep:
    """A multirun of this process.

    Args:
        id: The same for all of its jobs; the name of the folder with its settings.
        output_dir: Where its jobs' folders lie.
        jobs: How many jobs there are, None while nobody knows.
        ended: What became of jobs that ran in processes of their own, by their numbers.
    """

    id: str
    output_dir: Path
    jobs: int | None = None
    ended: dict[int, str] = field(default_factory=dict)

    def runs(self) -> list[Run]:
        """Return the runs of its jobs, in their order."""
        found, _ = registry.find([self.output_dir] if self.output_dir.exists() else [])
        own = [run for run in found if run.sweep is not None and run.sweep.id == self.id]
        return sorted(own, key=lambda run: (run.job or 0, run.folder))


_running: list[Sweep] = []


def begin(sweep: Sweep) -> None:
    """Make a sweep the one that this process is at, and tell the processes of its jobs."""
    _running[:] = [sweep]
    told = {"id": sweep.id, "jobs": sweep.jobs, "command": command_line()}
    os.environ[SWEEP] = json.dumps(told)


def forget() -> None:
    """Be at no sweep any more."""
    _running.clear()
    os.environ.pop(SWEEP, None)


def finish() -> None:
    """Tell what became of a sweep's jobs, after the last one and also where one was refused."""
    for sweep in _running:
        show(sweep)
    forget()


def show(sweep: Sweep) -> None:
    """Print one table of a sweep's jobs: what differs, how each ended, what it reached."""
    runs = sweep.runs()
    if runs or sweep.ended:
        numbers = {*range(1, (sweep.jobs or 0) + 1)} - {run.job for run in runs}
        tables.jobs(Console(), runs, {n: sweep.ended.get(n, "not started") for n in numbers})


def launch(
    engine: Engine, config: DictConfig, jobs: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Run jobs in processes of their own, one failing or killed without the others.

    Args:
        engine: Where they run.
        config: The sweep's config.
        jobs: Each one's overrides.
        first: How many jobs the sweep had before.

    Returns:
        What Hydra wants of each, in their order: the metric that is watched, or the failure.
    """
    (sweep,) = _running
    place = Path(config.hydra.sweep.dir)
    shared = set.intersection(*map(set, jobs))
    commands = [
        command(config, job, number, place / f"job-{number}.log")
        for number, job in enumerate(jobs, start=first + 1)
    ]
    at_once = f"{engine.workers} at once" if engine.workers else "all at once"
    print(f"{len(jobs)} jobs, {at_once}; what each prints: {place}/job-NUMBER.log", flush=True)
    returns: dict[int, JobReturn] = {}
    for job, code in follow(engine, iter(commands)):
        overrides = list(jobs[job.number - first - 1])
        own = " ".join(each for each in overrides if each not in shared)
        folders = {run.job: run.folder for run in sweep.runs()}
        end = end_of(folders.get(job.number), job.log, code)
        sweep.ended[job.number] = end.status
        print(f"job {job.number}/{sweep.jobs} {own}: {end.words}", flush=True)
        status = JobStatus.FAILED if code else JobStatus.COMPLETED
        returned = JobReturn(overrides=overrides, status=status)
        returned.return_value = FailedRun(end.words) if code else end.value
        returns[job.number] = returned
    return [returns[number] for number in sorted(returns)]


# Overrides of the sweep that are not its jobs'.
_OF_THE_SWEEP = ("hydra.mode=", "hydra.launcher.", "hydra/launcher", "hydra.sweep", "hydra/sweeper")


def command(
    config: DictConfig, overrides: Sequence[str], number: int, log: Path, **variables: str
) -> Command:
    """Return the command line that is one job of a sweep; `variables` are for its process."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    options = [
        f"--{name.replace('_', '-')}={getattr(given, name)}"
        for name in ("config_path", "config_name", "config_dir")
        if getattr(given, name)
    ]
    further = [each for each in config.hydra.overrides.hydra if not each.startswith(_OF_THE_SWEEP)]
    words = [sys.executable, str(Path(sys.argv[0]).resolve()), *options, *overrides, *further]
    words += [f"hydra.job.num={number - 1}"]
    ours = {name: value for name, value in os.environ.items() if name.startswith("FRUGAL_")}
    return Command(number, tuple(words), {**ours, **variables}, log)


def overrides_of(config: DictConfig) -> list[Override]:
    """Return what a sweep's config and then its command line set, those with several values too."""
    loader = GlobalHydra.instance().config_loader()
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    return OverridesParser.create(config_loader=loader).parse_overrides(
        [*given, *config.hydra.overrides.task]
    )


def checked(config: DictConfig, overrides: Sequence[str]) -> Job:
    """Compose and check one job of a sweep; ConfigError says why it cannot run."""
    loader = GlobalHydra.instance().config_loader()
    return check_apart(loader.load_sweep_config(config, list(overrides)))


@dataclass(frozen=True)
class End:
    """What became of a job.

    Args:
        status: finished, failed, interrupted or killed.
        words: The same in a few words, for the terminal.
        value: What its run reached in the metric that is watched; None without a run.
    """

    status: str
    words: str
    value: float | None = None


def end_of(folder: Path | None, log: Path, code: int) -> End:
    """Return what became of a job with an exit code, as its run folder says, if there is one."""
    status = "finished" if code == 0 else "failed" if code > 0 else "killed"
    words, value = status, None
    if folder is not None and (folder / RUN_FILE).exists():
        wait_for(folder)
        run = registry.read(folder)
        status = words = run.state
        monitor = ((run.config.get("callbacks") or {}).get("checkpoint") or {}).get("monitor")
        value = run.figures.get(str(monitor))
        if status == "finished":
            words += f" in {tables.duration(run.seconds)}"
            words += "" if value is None else f", {monitor} {value:.4g}"
        words += f": {run.reason.splitlines()[0]}" if run.reason else ""
    return End(status, words if code == 0 else f"{words}\n  its output: {log}", value)


def wait_for(folder: Path) -> None:
    """Wait for a job that outlives the worker it ran on: it saves and stops."""
    until = time.monotonic() + GRACE
    while is_locked(folder) and time.monotonic() < until:
        time.sleep(0.2)
