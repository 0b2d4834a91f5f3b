"""The life of one run: compose, validate, build once, fit or test, record.

Importing this package is cheap: a wrong setting is refused before Lightning is imported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.job import Job


def run(cfg: DictConfig) -> dict[str, float]:
    """Validate a composed config and do what its `task` says.

    Args:
        cfg: The composed config; its interpolations need not be resolved.

    Returns:
        The run's last metrics.

    Raises:
        ConfigError: The config cannot run; says what is wrong, what is allowed, how to mend it.
        Interrupted: A signal stopped the run.
    """
    from runner.validate import check

    return do(check(cfg))


def do(job: Job) -> dict[str, float]:
    """Do what a checked config asks for, as `run` does: a run with a folder, or another task."""
    from runner import output
    from runner.resume import choose
    from runner.task_keys import FREE_TASKS, run_free

    if job.task in FREE_TASKS:
        return run_free(job.settings)
    start = choose(job.settings) if job.leaves_folder else None
    output.say_that_it_imports()
    from runner import life, parts, pretrained, tasks
    from runner.fit import made_models
    from runner.record import quiet
    from runner.stored import on_its_own

    quiet()
    if start is not None:
        if start.resumed:
            job = replace(job, settings=on_its_own(job.settings, start.folder))
        if made_models(job.settings["module"]):
            parts.rehearse(job)
        return life.run(pretrained.resolve(job, start.resumed), start)
    if job.bases:
        parts.build_data(job.settings)
    return tasks.run(pretrained.resolve(job))
