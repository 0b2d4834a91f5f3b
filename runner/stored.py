"""The config of a task that reads a run, completed from that run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from datamodules.vocabulary import ORIGINAL
from reports.configs import INDIFFERENT, at
from reports.run_record import run_folder
from runner.errors import ConfigError
from runner.folder import stored_config
from runner.job import difference, listed, methods
from runner.signatures import promise

# Settings of modules that nothing but training reads.
OF_TRAINING = ("optimizer", "schedule")


def with_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a task that reads a run, completed from that run.

    A task that reads a checkpoint takes the model, and what is OF_TRAINING, from the run; keys of a
    module that is not named change the run's. A module that is `bound_to_data` takes all its
    settings and the data's from the run, the data's also to go on with it. What the command line
    itself sets must not differ, apart from what the module lists in `adjustable`, where the data
    lies, and what is INDIFFERENT; the module then compares the data.

    Args:
        settings: The resolved config.

    Raises:
        ConfigError: Nothing says which model it is, or the command line says another one, or other
            data for a model that belongs to its data.
    """
    trains = settings["task"] == "train"
    key = "resume" if trains else "ckpt_path"
    path = Path(settings[key] or "never").expanduser()
    if str(path) in ("never", "auto") or not path.exists():
        return settings
    settings = {**settings, key: str(path)}
    folder = run_folder(path)
    if folder is None:
        if trains or (
            settings["module"] and settings["datamodule"] and settings["task"] != "export"
        ):
            return settings
        raise ConfigError(f"ckpt_path={path}: not in a run folder, so its model is unknown")
    stored = stored_config(folder)
    if not stored["module"]:
        raise ConfigError(f"{key}={path}: {folder / 'config.yaml'} names no module")
    bound = bool(promise(stored["module"], "bound_to_data"))
    if bound:
        settings = {**settings, "datamodule": _data_of(stored, settings, f"{key}={path}")}
    if trains:
        return settings
    chosen = {"module": _module_of(stored, settings, bound), "name": stored["name"]}
    if settings["task"] in (promise(stored["module"], "without_data") or ()):
        chosen["datamodule"] = None
    elif not settings["datamodule"]:
        chosen["datamodule"] = stored["datamodule"]
    needed = {
        name: node for name, node in methods(stored).items() if promise(node, "changes_shapes")
    }
    chosen["callbacks"] = {**needed, **(settings["callbacks"] or {})}
    limit = stored["trainer"].get("limit_val_batches")
    if limit is not None and not _is_given("trainer.limit_val_batches"):
        chosen["trainer"] = {**settings["trainer"], "limit_val_batches": limit}  # the same figure
    return {**settings, **chosen}


def on_its_own(settings: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return a config that reads a run, without the pretrained base that the run began with.

    Its config and its tokenizer stand in the run folder, and all weights are the checkpoint's.

    Args:
        settings: The config, completed from the run.
        folder: The run's; None where a checkpoint lies in none.
    """
    module, data = settings["module"], settings["datamodule"]
    if folder is None or not (folder / "model").is_dir() or at(module, "pretrained") is None:
        return settings
    settings = {**settings, "module": {**module, "pretrained": str(folder / "model")}}
    key, kept = "tokenizer.pretrained", folder / "tokenizer"
    stored = at(stored_config(folder)["datamodule"], key)
    if (kept / ORIGINAL).is_file() and stored is not None and at(data, key) == stored:
        tokenizer = {**data["tokenizer"], "pretrained": str(kept)}
        settings["datamodule"] = {**data, "tokenizer": tokenizer}
    return settings


def _module_of(
    stored: Mapping[str, Any], settings: Mapping[str, Any], bound: bool
) -> dict[str, Any]:
    """Return a run's module with what may be changed of it and was."""
    before = stored["module"]
    asked = settings["module"] or before
    if "_target_" not in asked:
        asked = OmegaConf.to_container(OmegaConf.merge(before, asked), resolve=False)
    same = bound and asked["_target_"] == before["_target_"]
    changes = difference({"module": before}, {"module": asked})
    adjustable = [f"module.{each}" for each in promise(before, "adjustable") or ()]
    against = {
        name: change
        for name, change in changes.items()
        if _is_given(name) or not (same or name.split(".")[1] in OF_TRAINING)
        if name not in adjustable
    }
    if against:
        lines = "\n".join(listed(against))
        path = Path(settings["ckpt_path"]).expanduser()
        raise ConfigError(f"ckpt_path={path}: that run's model is another one\n{lines}")
    chosen: dict[str, Any] = {"module": deepcopy(before)}
    for name in filter(_is_given, changes.keys() & adjustable):
        parent, _, leaf = name.rpartition(".")
        at(chosen, parent)[leaf] = at({"module": asked}, name)
    module: dict[str, Any] = chosen["module"]
    return module


def _data_of(stored: Mapping[str, Any], settings: Mapping[str, Any], words: str) -> dict[str, Any]:
    """Return a run's data settings, with the place where the data lies now if one is given."""
    before, given = stored["datamodule"], settings["datamodule"] or {}
    movable = [*INDIFFERENT, *(["path"] if before.get("path") else [])]
    moved = {key: given[key] for key in movable if given.get(key) is not None}
    changes = difference({"datamodule": before}, {"datamodule": {**before, **given, **moved}})
    against = {
        name: change
        for name, change in changes.items()
        if name.split(".")[1] not in moved and _is_given(name)
    }
    if against:
        lines = "\n".join(listed(against))
        raise ConfigError(f"{words}: that run's codes belong to its own data\n{lines}")
    return {**before, **moved}


def _is_given(key: str) -> bool:
    """Whether the command line sets a key itself, or the choice of the same name above all."""
    if not HydraConfig.initialized():
        return False
    given = [re.split("[=@]", o.lstrip("+~"))[0] for o in HydraConfig.get().overrides.task]
    leaf = key.rpartition(".")[2]
    inside = ("." in g and f"{key}.".startswith(f"{g}.") for g in given)
    return any(inside) or any(g == leaf or g.startswith(f"{key}.") for g in given)
