"""What leaves no run folder: a dry run, an export, and tasks that a module or a package adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner import report, task_keys
from runner.card import card
from runner.errors import ConfigError
from runner.folder import checkpoint_of, load, run_folder, stored_config
from runner.hub import push
from runner.hub import refuse as refuse_push
from runner.job import Job, device_count, plans_steps
from runner.parts import (
    best_precision,
    build,
    check_data,
    check_files,
    planned_steps,
    refusing,
)
from runner.record import now
from runner.report import HasPlan, HasSchedule
from runner.run_record import read_record, write_json
from runner.validate import refuse_misfits


@runtime_checkable
class Exports(Protocol):
    """A module that can be written for other programs."""

    def export(self, folder: Path, files: list[Any]) -> None:
        """Write the model into a folder, and beside it what has a `save_pretrained`."""


def run(job: Job) -> dict[str, float]:
    """Do what leaves no run folder.

    Args:
        job: What was asked for; what its `pretrained` names is made, where a task needs it.

    Returns:
        What the task came to, by name.

    Raises:
        ConfigError: Something cannot be built, or the task refuses what it was given.
    """
    if job.settings["dry_run"]:
        return _dry_run(job.settings)
    if job.task == "export":
        return export(job.settings, **task_keys.given(job.settings))
    return _own_task(job.settings)


def _dry_run(settings: dict[str, Any]) -> dict[str, float]:
    """Build the module without data, print what it is and what it will cost."""
    console = Console()
    known = settings["module"]
    datamodule = build("datamodule", settings["datamodule"])
    check_files(datamodule)
    module = build("module", known)
    if not known.get("architecture"):
        refuse_misfits(settings, getattr(module, "hf_config", None))
    trainer = {**settings["trainer"]}
    if plans_steps(settings):
        trainer["max_steps"] = planned_steps(module, datamodule, trainer["max_steps"])
    # Without weights, at once and at any size; what is pretrained, or has such parts, is loaded.
    with torch.device("meta" if known.get("architecture") else "cpu"):
        module.configure_model()
    parameters = sum(p.numel() for p in module.parameters())
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    data = settings["datamodule"]
    sequences = data.get("batch_size", 1) * trainer.get("accumulate_grad_batches", 1)
    shape = (sequences * device_count(trainer), data.get("context_length", 1))
    tokens, unit = shape[0] * shape[1], "tokens" if "context_length" in data else "examples"
    title = Text(f"{settings['name']}, dry run")
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("parameters", f"{parameters:,}")
    table.add_row("of these trained", f"{trainable:,}")
    table.add_row(f"{unit} per optimizer step", f"{tokens:,}")
    table.add_row("optimizer steps", f"{trainer['max_steps']:,}")
    table.add_row(f"{unit} in all", f"{tokens * trainer['max_steps']:,}")
    console.print(table)
    precision = trainer.get("precision") or "32-true"
    if precision == "auto":
        precision = best_precision(str(trainer.get("accelerator", "auto")))
    console.print(report.memory(parameters, trainable, precision))
    for name, node in (settings["callbacks"] or {}).items():
        callback = build(f"callbacks.{name}", node)
        if isinstance(callback, HasPlan):
            console.print(callback.plan(module, shape, trainer["max_steps"]))
    if isinstance(module, HasSchedule):
        from lightning_modules.optimization import remarks

        for line in remarks(module.schedule_settings, trainer["max_steps"]):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("Dry run: nothing was trained and nothing was written.")
    return {"parameters": float(parameters), "tokens_per_step": float(tokens)}


def export(settings: dict[str, Any], *, hub: str | None = None) -> dict[str, float]:
    """Write a checkpoint as a folder for `from_pretrained`, with its tokenizer and a card.

    Args:
        settings: The checked config.
        hub: OWNER/NAME of a repository of the Hugging Face hub, to which the folder is pushed.

    Raises:
        ConfigError: The module exports nothing, or the hub does not take it.
    """
    if hub is not None:
        refuse_push(hub)
    checkpoint = checkpoint_of("ckpt_path", settings["ckpt_path"])
    folder = run_folder(checkpoint)
    if folder is None:
        raise ConfigError(
            f"ckpt_path={checkpoint}: not in a run folder, so its tokenizer is unknown"
        )
    module = build("module", settings["module"])
    exports = isinstance(module, Exports)
    if not exports:
        raise ConfigError(
            f"task=export: {type(module).__name__} writes nothing that other programs read. Its "
            "checkpoint is the model: see the tasks in its card in docs/methods"
        )
    module.configure_model()
    content = load(checkpoint)
    module.load_state_dict(content["state_dict"])
    files: list[Any] = []
    if (folder / "tokenizer").exists():
        from transformers import AutoTokenizer

        files.append(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    target = folder / "export" / f"step-{content['global_step']:08d}"
    module.export(target, files)
    config, record = getattr(module, "hf_config", None), read_record(folder)
    text = card(record, stored_config(folder), checkpoint, content, config, hub)
    (target / "README.md").write_text(text, encoding="utf-8")
    Console().print(Text(f"exported: {target}"), soft_wrap=True)
    if hub is not None:
        Console().print(Text(f"pushed: {push(target, hub)}"), soft_wrap=True)
    return {}


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
        content = load(checkpoint)
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
    module.eval()
    with refusing():
        metrics: dict[str, float] = getattr(module, task)(datamodule, **given)
    folder = None if checkpoint is None else run_folder(checkpoint)
    if checkpoint and folder and task in getattr(module, "measures", ()):
        asked = {key: value for key, value in given.items() if key not in ("ckpt_path", "blimp")}
        said = {"at": now(), "checkpoint": checkpoint.name, "keys": asked, "metrics": metrics}
        write_json(folder / f"{task}.json", said)
        Console().print(Text(f"written: {folder / task}.json"), soft_wrap=True)
    return metrics
