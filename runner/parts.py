"""The parts of a run: built from their nodes, and asked whether they go together."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from runner.errors import ConfigError
from runner.fit import is_language_model, made_models
from runner.folder import load
from runner.job import Job
from runner.validate import RUNNER_KEYS


def answer(part: Any, name: str, *given: Any) -> Any:
    """Call a method that a part may have, see docs/ADDING.md; None where it has none."""
    method = getattr(part, name, None)
    return method(*given) if callable(method) else None  # `TextToSql.tables` is a file's name


def build(key: str, node: Any, **further: Any) -> Any:
    """Build what a node's `_target_` names, inner nodes first: the one place where it happens.

    Args:
        key: The node's config key, for errors.
        node: Plain containers, checked by runner.validate.
        further: Arguments that no config can hold, handed on as they are.

    Raises:
        ConfigError: The target refuses its arguments.
    """
    if isinstance(node, list):
        return [build(f"{key}[{position}]", item) for position, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {name: build(f"{key}.{name}", value) for name, value in node.items()}
    if "_target_" not in arguments:
        return arguments
    module, _, name = arguments.pop("_target_").rpartition(".")
    target = getattr(importlib.import_module(module), name)
    for extra in RUNNER_KEYS.get(key, ()):
        arguments.pop(extra, None)
    try:
        return target(**arguments, **further)
    except (ValueError, ImportError, MisconfigurationException) as error:
        words = str(error)
        raise ConfigError(words if words.startswith(key) else f"{key}: {words}") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Let what data or module refuse be a refusal of the config that names them.

    Raises:
        ConfigError: In place of a ValueError, an ImportError, or a file that is missing, may not be
            read or cannot be written.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"a file cannot be read or written: {error}") from error


def rehearse(job: Job) -> None:
    """Build a run's parts without their weights and folder, and read the user's own files.

    What cannot be built is thereby refused before a base model is trained, and before the first job
    of a sweep.

    Args:
        job: What was asked for.

    Raises:
        ConfigError: A part cannot be built as it was asked for.
    """
    settings = job.settings
    check_devices(settings["trainer"])
    build_data(settings)
    module = without_weights(job)
    if not made_models(module):
        build("module", module)
    for name, node in (settings["callbacks"] or {}).items():
        build(f"callbacks.{name}", node)


def check_devices(node: Mapping[str, Any]) -> None:
    """Refuse a trainer's node if this machine has no such devices, and say what to take."""
    chosen = ("_target_", "accelerator", "devices", "num_nodes", "strategy")
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    try:
        build(
            "trainer",
            {key: value for key, value in node.items() if key in chosen},
            **dict.fromkeys(silent, False),
        )
    except ConfigError as error:
        given = f"trainer.accelerator={node.get('accelerator', 'auto')}"
        mend = "trainer=cpu, or trainer.accelerator=auto, which takes what there is"
        raise ConfigError(f"{error}. {given}; take {mend}") from error


def build_data(settings: Mapping[str, Any]) -> Any:
    """Build the datamodule and have it look at the user's own files, which ConfigError refuses."""
    datamodule = build("datamodule", settings["datamodule"])
    with refusing():
        answer(datamodule, "check_files")
    return datamodule


def without_weights(job: Job) -> dict[str, Any]:
    """Return the module's node before anything is trained, converted or downloaded for it.

    Where it says which model it is, or the experiment does that makes the model, nothing
    pretrained is loaded.
    """
    module = {**job.settings["module"]}
    if (base := job.bases.get(str(module.get("pretrained")))) is not None:
        module["architecture"] = base.settings["module"]["architecture"]
    known = bool(module.get("architecture")) and is_language_model(module)
    return {**module, "pretrained": None} if known else module


def prepare(datamodule: Any, opened: bool = True) -> None:
    """Have the data made, so that what is wrong with it is refused before anything starts.

    Args:
        datamodule: The data.
        opened: Whether it is to be opened as well.

    Raises:
        ConfigError: The data cannot be used.
    """
    with refusing():
        datamodule.prepare_data()
        if opened:
            datamodule.setup("fit")


def planned_steps(module: Any, datamodule: Any, limit: int) -> int:
    """Ask a module that plans its steps how many there are; `limit` at most, unless it is -1.

    Raises:
        ConfigError: The data cannot be used, or do not fit the module.
    """
    prepare(datamodule)
    with refusing():
        steps: int = module.max_steps(datamodule, None if limit == -1 else limit)
    return steps


def check_data(module: Any, datamodule: Any, checkpoint: Path) -> None:
    """Compare the data with a checkpoint's, where a module says that it belongs to them.

    Raises:
        ConfigError: They are others, or cannot be used.
    """
    if hasattr(module, "check_data"):
        prepare(datamodule)
        with refusing():
            module.check_data(datamodule, load(checkpoint))


def best_precision(accelerator: str) -> str:
    """Return what trainer.precision=auto means on this machine."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
