"""A multirun begins: its launcher and sweeper, and every job, are checked before the first one."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import jobs, output, signatures
from runner.errors import ConfigError, MissingPackage, Refusal
from runner.job import OUR_PLUGINS, Job
from runner.jobs import Sweep


class CheckJobs(Callback):
    """Gives a sweep its id, and checks every job before the first one starts."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweeper or launcher where there is no sweep."""
        for name in ("sweeper", "launcher"):  # a search brings its launcher
            if str(config.hydra[name]._target_).startswith(OUR_PLUGINS):
                chosen = config.hydra.runtime.choices[f"hydra/{name}"]
                raise Refusal(
                    ConfigError(
                        f"hydra/{name}={chosen}: for several jobs, which -m asks for: "
                        "python run.py -m ..."
                    )
                )

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and check the jobs that the sweeper will make of the command line."""
        sweep = Sweep(
            f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}",
            Path(config.paths.output_dir),
        )
        jobs.begin(sweep)
        try:
            for name in ("launcher", "sweeper"):
                _check_plugin(config, name)
            given = _jobs(config)
            _check(config, given)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            jobs.forget()
            raise Refusal(error) from error
        if given:
            jobs.begin(replace(sweep, jobs=len(given)))


def _check_plugin(config: DictConfig, name: str) -> None:
    """Check the settings of a launcher or sweeper of ours, and that its package is there."""
    node: Any = OmegaConf.to_container(config.hydra[name])
    target = str(node.pop("_target_"))
    if not target.startswith(OUR_PLUGINS):
        return
    accepted = signatures.signature(target)
    assert accepted is not None, target
    if problems := signatures.bind(f"hydra.{name}", node, accepted):
        raise ConfigError("\n".join(problems))
    package, extra = signatures.attribute(target, "needs") or ("hydra", "")
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(
            f"hydra/{name}={config.hydra.runtime.choices[f'hydra/{name}']}: needs the package "
            f"{package}, of the extra {extra}: pip install '.[{extra}]' -c constraints.txt"
        )


def _jobs(config: DictConfig) -> list[Sequence[str]]:
    """Return the overrides of each job that will be started, of a search those at its corners.

    None of another sweeper, whose values are not known: each job is checked when it starts.
    """
    target = str(config.hydra.sweeper._target_)
    if target.startswith(OUR_PLUGINS):
        if not str(config.hydra.launcher._target_).startswith(OUR_PLUGINS):
            raise ConfigError("hydra/sweeper=search: needs hydra/launcher=pool, or another of ours")
        from runner.search import space_of

        return list(space_of(config).corners())
    if not target.endswith(".BasicSweeper"):
        return []
    return list(BasicSweeper.split_arguments(jobs.overrides_of(config), None)[0])


def _check(config: DictConfig, overrides: Sequence[Sequence[str]]) -> None:
    """Check every job, and then build the parts of every one that is a run."""
    checked: list[tuple[Sequence[str], Job]] = []
    for each in overrides:
        with _of_job(each):
            checked.append((each, jobs.checked(config, each)))
    output.say_that_it_imports()
    from runner.parts import rehearse  # slow: what cannot run is refused above
    from runner.record import quiet

    quiet()
    for each, job in checked:
        if job.leaves_folder:
            with _of_job(each):
                rehearse(job)


@contextmanager
def _of_job(job: Sequence[str]) -> Iterator[None]:
    """Say which job of a sweep was refused."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"Job {' '.join(job)}:\n{error}" if job else str(error)) from error
