"""Which run to go on with, from which checkpoint, and whether it is the same run at all."""

from __future__ import annotations

import os
import secrets
import string
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from reports.configs import INDIFFERENT
from reports.run_record import RUN_FILE, run_folder
from runner.errors import ConfigError, refusing
from runner.folder import (
    Start,
    fault_of,
    from_json,
    is_locked,
    load,
    lock,
    newest_whole,
    read_record,
    stored_config,
    to_json,
)
from runner.job import difference, listed, methods
from runner.signatures import promise

# Tells a process that Lightning or a search has started what its parent has decided.
CHILD = "FRUGAL_START"


def choose(settings: Mapping[str, Any]) -> Start:
    """Decide where the run lies and what it goes on from; all processes of a run agree on it.

    Args:
        settings: The resolved config, with RUN_DIR for the run folder.

    Raises:
        ConfigError: The run that `resume` names cannot be gone on with.
    """
    if CHILD in os.environ:  # heeded once: a base model that is trained first has its own run
        return from_json(os.environ.pop(CHILD))
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return _agree(settings)
    return _decide(settings)


def find(settings: Mapping[str, Any], experiment: Path) -> Start | str:
    """Find the run that `resume` means among those of an experiment's folder.

    Returns:
        The run to go on with, or a sentence that says why there is none (auto only).

    Raises:
        ConfigError: The run that was named cannot be gone on with.
    """
    if settings["resume"] != "auto":
        return _named(settings, Path(settings["resume"]).expanduser())
    other, skipped = "", list[str]()
    for folder in sorted(experiment.glob("*"), reverse=True):
        if not (folder / RUN_FILE).exists():
            continue
        try:
            record, stored = read_record(folder), stored_config(folder)
        except ConfigError as error:
            skipped.append(f"Skipped {error}.")
            continue
        if record.status == "finished" or record.task != "train" or is_locked(folder):
            continue
        changes = difference(stored, settings)
        against = [
            *changes_that_forbid_resuming(changes, stored, settings),
            *changes_of_length(changes, stored, settings),
            *({"seed"} & changes.keys()),
        ]
        checkpoint, words = newest_whole(folder)
        if checkpoint is not None and _steps_beyond(checkpoint, settings):
            against += {"trainer.max_steps"} & changes.keys()
        if checkpoint is not None and not against:
            said = [f"Going on with {folder} from {checkpoint.name}.", *words, *skipped]
            return Start(folder, record.id, checkpoint, (*said, *listed(changes)))
        if checkpoint is not None and not other:
            lines = "\n".join(listed({key: changes[key] for key in against}))
            other = f" The newest unfinished one, {folder.name}, differs:\n{lines}"
    none = f"resume=auto: a new run, since none in {experiment} can be gone on with.{other}"
    return "\n".join((none, *skipped))


def changes_that_forbid_resuming(
    changes: Mapping[str, Any], stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    """Return those of the changed keys that make it another run: the model's, data's, method's."""
    names = {**methods(dict(stored)), **methods(dict(settings))}
    roots = ["module", "datamodule", *(f"callbacks.{name}" for name in names)]
    return [
        key
        for key in changes
        if any(key == root or key.startswith((f"{root}.", f"{root}[")) for root in roots)
        and key.rpartition(".")[2] not in INDIFFERENT
    ]


def changes_of_length(
    changes: Mapping[str, Any], stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    """Return those of the changed keys that give a training another length, and so another course.

    None, if nothing in it follows its length (learning rate, stages), or `stretch` asks for it.
    """
    nodes = [settings["module"], *(settings["callbacks"] or {}).values()]
    if settings["stretch"] or not any(promise(node, "follows_length") for node in nodes):
        return []
    keys = {"trainer.max_steps", "trainer.max_epochs"}
    lengths = [config["trainer"].get("max_epochs") for config in (stored, settings)]
    if any(isinstance(epochs, int) and epochs > 0 for epochs in lengths):
        # The length of an epoch in optimizer steps.
        keys |= {
            "trainer.accumulate_grad_batches",
            "trainer.limit_train_batches",
            "trainer.devices",
            "trainer.num_nodes",
        }
    return [key for key in changes if key in keys]


def _decide(settings: Mapping[str, Any]) -> Start:
    experiment = Path(settings["paths"]["output_dir"]) / settings["name"]
    words: tuple[str, ...] = ()
    if settings["resume"] != "never":
        found = find(settings, experiment)
        if isinstance(found, Start):
            return found
        words = (found,)
    run_id = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
    if "WANDB_SWEEP_ID" in os.environ:  # a W&B agent has named the run that it waits for
        run_id = os.environ["WANDB_RUN_ID"]
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Start(experiment / f"{time}-{run_id}", run_id, None, words)


def _agree(settings: Mapping[str, Any]) -> Start:
    """Let the first process decide and tell the others, through the store that torchrun keeps."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError("torchrun keeps no store for its processes: start it with --standalone")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"frugal/{attempt}", TCPStore(address, port, is_master=False))
    if os.environ["RANK"] == "0":
        start = _decide(settings)
        store.set("start", to_json(start))
        return start
    return from_json(store.get("start").decode())


def _named(settings: Mapping[str, Any], path: Path) -> Start:
    folder = run_folder(path)
    if folder is None:
        raise ConfigError(f"resume={path}: neither a run folder nor a checkpoint in one")
    record, stored = read_record(folder), stored_config(folder)
    with refusing():
        lock(folder).close()
    changes = difference(stored, settings)
    if against := changes_that_forbid_resuming(changes, stored, settings):
        lines = "\n".join(listed({key: changes[key] for key in against}))
        raise ConfigError(
            f"resume={path}: the model, the data or the method differ from that run's, so it would "
            f"be another run. Give the same settings, or start a new run: resume=never\n{lines}"
        )
    if against := changes_of_length(changes, stored, settings):
        lines = "\n".join(listed({key: changes[key] for key in against}))
        raise ConfigError(
            f"resume={path}: the training would get another length; its learning rate and stages, "
            "shares of it, would jump. Give the same length, or stretch=true to fit them to the "
            f"new one\n{lines}"
        )
    words: list[str] = []
    checkpoint: Path | None = path
    if path.is_dir():
        checkpoint, words = newest_whole(folder)
    elif fault := fault_of(path):
        raise ConfigError(f"resume={path}: the file {fault}. Take the run folder: resume={folder}")
    if checkpoint is None:
        raise ConfigError(f"resume={path}: no whole checkpoint in {folder}/checkpoints")
    if taken := _steps_beyond(checkpoint, settings):
        raise ConfigError(
            f"resume={path}: {checkpoint.name} has taken {taken} steps already, more than "
            f"trainer.max_steps={settings['trainer']['max_steps']}; give as many at least"
        )
    said = [f"Going on with {folder} from {checkpoint.name}.", *words]
    return Start(folder, record.id, checkpoint, (*said, *listed(changes)))


def _steps_beyond(checkpoint: Path, settings: Mapping[str, Any]) -> int:
    """Return the steps of a checkpoint if they are more than a training is to have, else 0."""
    taken, limit = int(load(checkpoint)["global_step"]), settings["trainer"].get("max_steps")
    return taken if isinstance(limit, int) and 0 <= limit < taken else 0
