"""The jobs of a sweep: as commands for an engine, what became of each, one table at the end."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from reports import registry, tables
from runner.engines import Command, Engine, follow
from runner.errors import ConfigError, FailedRun
from runner.folder import is_locked
from runner.job import SWEEP, Job
from runner.run_record import RUN_FILE, first_line, read_record
from runner.validate import check

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

    def folders(self) -> list[tuple[int, Path]]:
        """Return the run folders of its jobs, each with its job's number, in their order."""
        found: list[tuple[int, Path]] = []
        for file in self.output_dir.glob(f"*/*/{RUN_FILE}"):
            try:
                sweep = read_record(file.parent).sweep
            except ConfigError:  # damaged, or somebody else's
                continue
            if sweep is not None and sweep.id == self.id:
                found.append((sweep.job or 0, file.parent))
        return sorted(found)

    def told(self) -> str:
        """Return what its jobs' processes are told of it."""
        command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
        return json.dumps({"id": self.id, "jobs": self.jobs, "command": command})


_running: list[Sweep] = []


def begin(sweep: Sweep) -> None:
    """Make a sweep the one that this process is at."""
    _running[:] = [sweep]
    os.environ[SWEEP] = sweep.told()


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
    """Print one table of a sweep's jobs: what differs, how each ended, what it reached.

    A job whose process is gone though its record says that it runs was killed.
    """
    runs = [registry.read(folder) for _, folder in sweep.folders()]
    runs = [
        replace(run, status="killed")
        if run.status == "running" and not is_locked(run.folder)
        else run
        for run in runs
    ]
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
        first: How many jobs of the sweep there were before.

    Returns:
        What Hydra wants of each, in their order: the metric that is watched, or the failure.

    Raises:
        SystemExit: A signal came.
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
        folder = dict(sweep.folders()).get(job.number)
        end = end_of(folder, job.log, code)
        sweep.ended[job.number] = end.status
        print(f"job {job.number}/{sweep.jobs} {own}: {end.words}", flush=True)
        returns[job.number] = JobReturn(overrides=overrides)
        returns[job.number].status = JobStatus.FAILED if code else JobStatus.COMPLETED
        returns[job.number].return_value = FailedRun(end.words) if code else end.value
    return [returns[number] for number in sorted(returns)]


# Overrides of the sweep that are not its jobs'.
_OF_THE_SWEEP = ("hydra.mode=", "hydra.launcher.", "hydra/launcher", "hydra.sweep", "hydra/sweeper")


def command(
    config: DictConfig,
    overrides: Sequence[str],
    number: int,
    log: Path,
    told: Mapping[str, str] | None = None,
) -> Command:
    """Return the command line that is one job of a sweep.

    Args:
        config: The sweep's config.
        overrides: The job's.
        number: Its number, from 1.
        log: Where its output goes.
        told: Further variables for it.
    """
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    options = [
        f"--{name.replace('_', '-')}={getattr(given, name)}"
        for name in ("config_path", "config_name", "config_dir")
        if getattr(given, name)
    ]
    further = [each for each in config.hydra.overrides.hydra if not each.startswith(_OF_THE_SWEEP)]
    words = [sys.executable, str(Path(sys.argv[0]).resolve()), *options, *overrides, *further]
    variables = {name: value for name, value in os.environ.items() if name.startswith("FRUGAL_")}
    words += [f"hydra.job.num={number - 1}"]
    return Command(number, tuple(words), {**variables, **(told or {})}, log)


def checked(config: DictConfig, overrides: Sequence[str]) -> Job:
    """Compose and check one job of a sweep.

    Args:
        config: The sweep's config.
        overrides: The job's.

    Raises:
        ConfigError: It cannot run.
    """
    cached = HydraConfig.instance().cfg
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    try:
        return check(composed)
    finally:
        HydraConfig.instance().cfg = cached


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
    """Return what became of a job whose process has ended, as its run folder says.

    Args:
        folder: Its run folder; None or not there if it has left none.
        log: Where its output is.
        code: Its exit code, below 0 if it was killed.
    """
    status = "finished" if code == 0 else "failed" if code > 0 else "killed"
    words, value = status, None
    if folder is not None and (folder / RUN_FILE).exists():
        wait_for(folder)
        record, monitor = read_record(folder), monitored(folder)
        status = record.status if record.status != "running" else "killed"
        value = record.metrics.get(monitor or "")
        words = f"{status} in {tables.duration(record.seconds)}" if status == "finished" else status
        words += f", {monitor} {value:.4g}" if status == "finished" and value is not None else ""
        words += f": {first_line(ValueError(record.reason))}" if record.reason else ""
    return End(status, words if code == 0 else f"{words}\n  its output: {log}", value)


def wait_for(folder: Path) -> None:
    """Wait for a job that outlives the worker it ran on: it saves and stops."""
    until = time.monotonic() + GRACE
    while is_locked(folder) and time.monotonic() < until:
        time.sleep(0.2)


def monitored(folder: Path) -> str | None:
    """Return the name of the metric that a run watched."""
    config: Any = OmegaConf.load(folder / "config.yaml")
    name = OmegaConf.select(config, "callbacks.checkpoint.monitor")
    return None if name is None else str(name)
