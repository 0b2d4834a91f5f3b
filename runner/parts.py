"""The parts of a run: built from their nodes, and asked whether they go together."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from runner.errors import ConfigError, refusing
from runner.fit import is_language_model, made_models
from runner.folder import load
from runner.job import Job, plans_steps


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
    target = pkgutil.resolve_name(arguments.pop("_target_"))
    try:
        return target(**arguments, **further)
    except (ValueError, OverflowError, ImportError, MisconfigurationException) as error:
        words = str(error)
        if key.startswith("module."):  # a part names its keys as if it were the module
            words = words.replace("module.", f"{key}.")
        raise ConfigError(words if words.startswith(key) else f"{key}: {words}") from error


def rehearse(job: Job) -> None:
    """Build a run's parts without their weights and folder, and read the user's own files.

    What cannot be built is thereby refused before a base model is trained, and before the first job
    of a sweep.
    """
    settings = job.settings
    check_devices(settings["trainer"])
    build_data(settings)
    node = without_weights(job)
    build_callbacks(settings, None if made_models(node) else build("module", node))


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


def build_callbacks(settings: Mapping[str, Any], module: Any) -> dict[str, Any]:
    """Build the callbacks, each of which may refuse the module; ConfigError says why.

    Args:
        settings: The checked config.
        module: The built module, without its model; None: nobody is asked.
    """
    nodes = {name: node for name, node in (settings["callbacks"] or {}).items() if node is not None}
    found = {name: build(f"callbacks.{name}", node) for name, node in nodes.items()}
    for name, callback in found.items() if module is not None else ():
        try:
            answer(callback, "refuse", module)
        except ValueError as error:
            raise ConfigError(f"callbacks.{name}: {error}") from error
    return found


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
    """Have the data made, and opened unless told otherwise; ConfigError says what is wrong."""
    with refusing():
        datamodule.prepare_data()
        if opened:
            datamodule.setup("fit")


def trainer_node(settings: dict[str, Any], module: Any, datamodule: Any) -> dict[str, Any]:
    """Return the trainer's node with the length and the precision that are left to the program.

    A module that plans its steps is asked how many there are, once the data is prepared.
    """
    node = {**settings["trainer"]}
    node.pop("checkpoint_every", None)  # which only the callbacks follow
    if plans_steps(settings) and (settings["task"] == "train" or settings["dry_run"]):
        prepare(datamodule)
        limit = None if node["max_steps"] == -1 else node["max_steps"]
        with refusing():
            node["max_steps"] = module.max_steps(datamodule, limit)
    if node.get("precision") == "auto":
        on_gpu = node.get("accelerator", "auto") in ("auto", "gpu", "cuda")
        is_fast = on_gpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        node["precision"] = "bf16-mixed" if is_fast else "32-true"
    return node


def check_data(module: Any, datamodule: Any, checkpoint: Path) -> None:
    """Compare the data with a checkpoint's, where a module says that it belongs to them.

    Raises:
        ConfigError: They are others, or cannot be used.
    """
    if hasattr(module, "check_data"):
        prepare(datamodule)
        with refusing():
            module.check_data(datamodule, load(checkpoint))
