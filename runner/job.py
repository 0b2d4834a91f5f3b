"""What was asked for: the command, and what of it decides a result."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig

from runner.run_record import SweepJob
from runner.sweep import this_job

# Settings that say how a run is started and found, and change nothing in what it learns.
HOW = ("name", "resume", "stretch", "dry_run", "tags")


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


def origin() -> Origin:
    """Return who asked for what this process is at."""
    if not HydraConfig.initialized():
        return Origin()
    hydra = HydraConfig.get()
    return Origin(
        shlex.join(["python", "run.py", *sys.argv[1:]]),
        tuple(hydra.overrides.task),
        hydra.runtime.choices.get("experiment"),
        this_job(),
    )


def config_hash(settings: Mapping[str, Any]) -> str:
    """Return a hash of all that decides a result: where files go and who logs is left out."""
    decisive = {key: value for key, value in settings.items() if key not in ("paths", "logger")}
    if cache := (settings.get("paths") or {}).get("cache_dir"):
        decisive = replaced(decisive, str(cache), "cache_dir")  # datamodules name it too
    text = json.dumps(decisive, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def arm_hash(settings: Mapping[str, Any]) -> str:
    """Return the hash of what is compared: `config_hash` without any `seed`, and without HOW."""
    return config_hash(_unseeded({k: v for k, v in settings.items() if k not in HOW}))


def _unseeded(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _unseeded(value) for key, value in node.items() if key != "seed"}
    return [_unseeded(value) for value in node] if isinstance(node, list) else node


def replaced(node: Any, old: str, new: str) -> Any:
    """Return plain containers with a part of every text in them replaced."""
    if isinstance(node, Mapping):
        return {key: replaced(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [replaced(value, old, new) for value in node]
    return node.replace(old, new) if isinstance(node, str) else node
