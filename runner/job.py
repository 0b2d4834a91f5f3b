"""What was asked for: one checked config, who asked for it, and what follows from it."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from reports.configs import HOW, RUN_DIR, at, differing
from reports.run_record import SweepJob
from runner.errors import ConfigError, MissingValue
from runner.signatures import promise

# Tells the processes of a sweep's jobs what they need to know of it, in JSON: id, jobs, command.
SWEEP = "FRUGAL_SWEEP"

# Launchers and sweepers of ours: each job is a command of its own. Hydra looks for them there only.
OUR_PLUGINS = "hydra_plugins.frugal."


@dataclass(frozen=True)
class Origin:
    """Who asked for a run.

    Args:
        command: The command line; None if Python did.
        overrides: What it sets; of a sweep's job, with that job's own values.
        experiment: The experiment that it chooses.
        job: Which job of a sweep it is.
    """

    command: str | None = None
    overrides: tuple[str, ...] = ()
    experiment: str | None = None
    job: SweepJob | None = None

    def words(self, seed: int) -> str | None:
        """Return the first line of a sweep's job: its number, overrides and seed; else None."""
        if self.job is None or self.job.job is None:
            return None
        number = f"{self.job.job}/{self.job.jobs}" if self.job.jobs else f"{self.job.job}"
        seeded = any(override.startswith("seed=") for override in self.overrides)
        shown = self.overrides if seeded else (*self.overrides, f"seed={seed}")
        return f"job {number}: {' '.join(shown)}"


@dataclass(frozen=True)
class Job:
    """A checked config, and what was found out about it while it was checked.

    Args:
        settings: The resolved config as plain containers, with RUN_DIR for the run folder; what is
            built. Once `runner.pretrained.resolve` has made what `pretrained` names, with folders.
        recorded: The same as it was asked for: what is kept, compared and hashed.
        origin: Who asked for it.
        bases: By what `pretrained` says, `experiment:NAME ...`, the job that makes that model.
    """

    settings: dict[str, Any]
    recorded: dict[str, Any]
    origin: Origin
    bases: Mapping[str, Job] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """What is to be done."""
        return str(self.settings["task"])

    @property
    def leaves_folder(self) -> bool:
        """Whether it is a run, with a folder and a record."""
        return self.task in ("train", "validate", "test") and not self.settings["dry_run"]


def origin() -> Origin:
    """Return who asked for what this process is at."""
    if not HydraConfig.initialized():
        return Origin()
    hydra = HydraConfig.get()
    job = this_job()
    return Origin(
        _sweep().get("command", command_line()) if job is not None else command_line(),
        tuple(hydra.overrides.task),
        hydra.runtime.choices.get("experiment"),
        job,
    )


def command_line() -> str:
    """Return the words that have started this process."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def this_job() -> SweepJob | None:
    """Return which job of which sweep this process is at; None outside of sweeps."""
    if "WANDB_SWEEP_ID" in os.environ:
        return SweepJob(os.environ["WANDB_SWEEP_ID"])
    if not HydraConfig.initialized():
        return None
    hydra, sweep = HydraConfig.get(), _sweep()
    # Unknown while a sweep's jobs are checked, and where it is not a job that is looked at.
    number = None if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num + 1
    if number is None and hydra.mode != RunMode.MULTIRUN:
        return None
    return SweepJob(sweep.get("id", "unknown"), number, sweep.get("jobs"))


def sweep_id() -> str:
    """Return the id of the sweep that this process is at, for the name of its folder."""
    return str(_sweep().get("id", "SWEEP"))


def _sweep() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(os.environ.get(SWEEP, "{}"))
    return told


def difference(
    stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with the stored and the new value.

    Paths, loggers and what says how to start (resume, stretch, dry_run, task) are not compared. A
    node that only one of them has is one key.
    """
    skipped = ("paths", "logger", "ckpt_path", "task", *HOW)
    both = [{k: v for k, v in config.items() if k not in skipped} for config in (stored, settings)]
    return {key: (before, after) for key, (before, after) in differing(both)}


def listed(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a line for each key that differs."""
    return [f"  {key}: {before} -> {after}" for key, (before, after) in changes.items()]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain containers, which is all that a module ever sees.

    Raises:
        ConfigError: An interpolation leads nowhere, or a required value is missing.
    """
    copy = cfg.copy()
    with open_dict(copy):
        copy.paths.run_dir = RUN_DIR
        if copy.get("task") in (promise(copy.get("module"), "without_data") or ()):
            copy.datamodule = None  # its root may be open
    try:
        plain = OmegaConf.to_container(copy, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise MissingValue(
            f"{error.full_key}: has no default; give {error.full_key}=..."
        ) from error
    except OmegaConfBaseException as error:
        message = str(error.msg if hasattr(error, "msg") else error).splitlines()[0]
        followed = re.match(r"Interpolation key '(module|datamodule)\.", message)
        if followed and copy.get(followed[1]) is None:
            message = f"it follows the {followed[1]}; choose one: {followed[1]}=NAME"
        raise ConfigError(f"{error.full_key}: {message}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def nodes(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every group of keys, this one and those below it, with its full key."""
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            yield from nodes(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from nodes(value, f"{key}[{position}]")


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every node that has a `_target_`, with its full key."""
    return ((place, each) for place, each in nodes(node, key) if "_target_" in each)


def methods(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the callbacks that are methods: those that make the promises of one."""
    return {
        name: node
        for name, node in (settings.get("callbacks") or {}).items()
        if promise(node, "leaves_parameters_unused") is not None
    }


def part_checkpoints(settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield what of the module and its parts names a checkpoint or a run: key, node, name in it.

    A class lists in `checkpoints` those of its arguments. What the task reads in `ckpt_path` holds
    the parts as well.
    """
    if settings["ckpt_path"] is not None:
        return
    for key, node in targets(settings["module"], "module"):
        for name in promise(node, "checkpoints") or ():
            if node.get(name) is not None:
                yield f"{key}.{name}", node, name


def plans_steps(settings: dict[str, Any]) -> bool:
    """Return whether the chosen module says itself how long its training is, once it has data."""
    return bool(promise(settings.get("module"), "plans_steps"))


def device_count(trainer: Mapping[str, Any]) -> int:
    """Return how many processes a Trainer's settings ask for; 1 where only the machine knows."""
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    return max(1, count if isinstance(count, int) else 1) * int(trainer.get("num_nodes") or 1)


def with_keys_of_today(node: Any) -> Any:
    """Return a node of an older run: with its keys as they are called now, and all of them read.

    A class lists in `renamed` what was called otherwise, and in `unread` what nothing reads.
    """
    copy = deepcopy(node)
    for _, each in targets(copy):
        for old, new in (promise(each, "renamed") or {}).items():
            if old in each:
                each[new] = each.pop(old)
    for _, each in targets(copy):
        for path in promise(each, "unread") or {}:
            parent, _, name = path.rpartition(".")
            (at(each, parent) or {}).pop(name, None)
    return copy
