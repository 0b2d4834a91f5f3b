"""What leaves no run folder: a dry run, an export, and tasks that a module adds."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from reports.run_record import run_folder, write_json
from runner import dry_run, task_keys
from runner.errors import refusing
from runner.export import export
from runner.folder import checkpoint_of, fill
from runner.job import Job
from runner.parts import build, check_data
from runner.record import now


def run(job: Job) -> dict[str, float]:
    """Do what leaves no run folder; return what it came to, by name.

    Raises:
        ConfigError: Something cannot be built, or the task refuses what it was given.
    """
    if job.settings["dry_run"]:
        return dry_run.show(job.settings)
    if job.task == "export":
        return export(job.settings, **task_keys.given(job.settings))
    return _own_task(job.settings)


def _own_task(settings: dict[str, Any]) -> dict[str, float]:
    """Have the module do what it lists in `tasks`, from a checkpoint if one is given.

    What it lists in `measures` as well is kept in the run folder, as TASK.json.

    Raises:
        ConfigError: The function refuses what it was given, by a ValueError that names key or file.
    """
    task = settings["task"]
    given = task_keys.given(settings)
    pl.seed_everything(settings["seed"], workers=True, verbose=False)
    module = build("module", settings["module"])
    datamodule = build("datamodule", settings["datamodule"])
    checkpoint = None
    if settings["ckpt_path"] is not None:
        checkpoint = checkpoint_of("ckpt_path", settings["ckpt_path"])
        check_data(module, datamodule, checkpoint)
        fill(module, checkpoint)
    module.eval()
    with refusing():
        metrics: dict[str, float] = getattr(module, task)(datamodule, **given)
    folder = None if checkpoint is None else run_folder(checkpoint)
    if checkpoint and folder and task in getattr(module, "measures", ()):
        asked = {key: value for key, value in given.items() if key not in ("ckpt_path", "blimp")}
        said = {"at": now(), "checkpoint": checkpoint.name, "keys": asked, "metrics": metrics}
        write_json(folder / f"{task}.json", said)
        print(f"written: {folder / task}.json")
    return metrics
