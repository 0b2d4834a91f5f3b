"""A multirun: every job is checked before the first one starts; what stands after the last one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from reports import registry, tables
from runner import output
from runner.errors import ConfigError, Refusal
from runner.job import SWEEP, Job
from runner.run_record import RUN_FILE, read_record
from runner.validate import check


@dataclass(frozen=True)
class Sweep:
    """A multirun of this process.

    Args:
        id: The same for all of its jobs.
        output_dir: Where its jobs' folders lie.
    """

    id: str
    output_dir: Path

    def folders(self) -> list[Path]:
        """Return the run folders of its jobs, in their order."""
        found: list[tuple[int, Path]] = []
        for file in self.output_dir.glob(f"*/*/{RUN_FILE}"):
            try:
                sweep = read_record(file.parent).sweep
            except ConfigError:  # damaged, or somebody else's
                continue
            if sweep is not None and sweep.id == self.id:
                found.append((sweep.job or 0, file.parent))
        return [folder for _, folder in sorted(found)]


_running: list[Sweep] = []


class CheckJobs(Callback):
    """Gives a sweep its id, and checks every job before the first one starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and check the jobs that Hydra's basic sweeper will make of the command line.

        Raises:
            Refusal: A job cannot run.
        """
        sweep = Sweep(
            f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}",
            Path(config.paths.output_dir),
        )
        _running[:] = [sweep]
        os.environ[SWEEP] = sweep.id
        if not str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):
            return  # the values are not known in advance: each job is checked when it starts
        cached = HydraConfig.instance().cfg
        try:
            jobs = _jobs(config)
            _check(config, jobs)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            _running.clear()
            raise Refusal(error) from error
        finally:
            HydraConfig.instance().cfg = cached
        os.environ[SWEEP] = f"{sweep.id}/{len(jobs)}"


def _jobs(config: DictConfig) -> list[Sequence[str]]:
    """Return the overrides of each job that Hydra's basic sweeper will start."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()
    given = [f"{k}={v}" for k, v in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(
        given + list(config.hydra.overrides.task)
    )
    return list(BasicSweeper.split_arguments(overrides, None)[0])


def _check(config: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
    """Check every job, and then build the parts of every one that is a run."""
    loader = GlobalHydra.instance().config_loader()
    checked: list[tuple[Sequence[str], Job]] = []
    for overrides in jobs:
        composed = loader.load_sweep_config(config, list(overrides))
        HydraConfig.instance().set_config(composed)
        with open_dict(composed):
            del composed["hydra"]
        with _of_job(overrides):
            checked.append((overrides, check(composed)))
    output.say_that_it_imports()
    from runner.parts import rehearse  # slow: what cannot run is refused above

    for overrides, job in checked:
        if job.leaves_folder:
            with _of_job(overrides):
                rehearse(job)


@contextmanager
def _of_job(job: Sequence[str]) -> Iterator[None]:
    """Say which job of a sweep was refused."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"Job {' '.join(job)}:\n{error}") from error


def finish() -> None:
    """Tell what became of a sweep's jobs, after the last one and also where one was refused."""
    os.environ.pop(SWEEP, None)
    for sweep in _running:
        show_jobs(sweep.folders())
    _running.clear()


def show_jobs(folders: Sequence[Path]) -> None:
    """Print one table of a sweep's jobs: what differs, how each ended, what it reached.

    Args:
        folders: The run folders of its jobs, in their order.
    """
    if folders:
        tables.jobs(Console(), [registry.read(folder) for folder in folders])
