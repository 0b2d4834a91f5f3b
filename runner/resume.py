"""Which run to go on with, from which checkpoint, and whether it is the same run at all."""

from __future__ import annotations

import json
import os
import re
import secrets
import string
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner import signatures
from runner.errors import ConfigError
from runner.job import HOW, replaced
from runner.run_record import RUN_FILE, first_line, read_record
from runner.validate import RUN_DIR, methods, without_unread

try:
    import fcntl
except ImportError:  # Windows: two processes in one run folder are then not noticed
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
# Under it a checkpoint says which run has written it.
CHECKPOINT_KEY = "frugal"

# The variable that tells a process started by Lightning what its parent has decided.
CHILD = "FRUGAL_START"

# Settings of modules that nothing but training reads.
OF_TRAINING = ("optimizer", "schedule")

# Settings of the data that change how fast it comes, not what comes.
INDIFFERENT = ("cache_dir", "num_workers", "pin_memory", "prefetch_factor", "persistent_workers")


@dataclass(frozen=True)
class Start:
    """Where a run lies and what it goes on from.

    Args:
        folder: The run folder.
        run_id: The run's id.
        checkpoint: The checkpoint to go on from; None: from the beginning.
        words: What to tell the user about it, a line each.
    """

    folder: Path
    run_id: str
    checkpoint: Path | None = None
    words: tuple[str, ...] = ()

    @property
    def resumed(self) -> bool:
        """Whether the folder was there before."""
        return self.checkpoint is not None


def choose(settings: Mapping[str, Any]) -> Start:
    """Decide where the run lies and what it goes on from; all processes of a run agree on it.

    Args:
        settings: The resolved config, with RUN_DIR for the run folder.

    Raises:
        ConfigError: The run that `resume` names cannot be gone on with.
    """
    if CHILD in os.environ:  # started by Lightning from a process that has decided
        return _from_json(os.environ[CHILD])
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return _agree(settings)
    return _decide(settings)


def with_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a task that reads a run, completed from that run.

    A task that reads a checkpoint takes the model, and what is OF_TRAINING, from the run. A module
    that is `bound_to_data` takes all its settings and the data's from the run, the data's also to
    go on with it. What the command line itself sets must not differ, apart from where the data lies
    and what is INDIFFERENT; the module then compares the data.

    Args:
        settings: The resolved config.

    Raises:
        ConfigError: Nothing says which model it is, or the command line says another one, or other
            data for a model that belongs to its data.
    """
    trains = settings["task"] == "train"
    key = "resume" if trains else "ckpt_path"
    path = Path(settings[key] or "never")
    if str(path) in ("never", "auto") or not path.exists():
        return settings
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
    target = stored["module"]["_target_"]
    bound = bool(signatures.attribute(target, "bound_to_data"))
    if bound:
        settings = {**settings, "datamodule": _data_of(stored, settings, f"{key}={path}")}
    if trains:
        return settings
    asked = settings["module"] or stored["module"]
    same = bound and asked["_target_"] == target
    against = {
        name: change
        for name, change in difference({"module": stored["module"]}, {"module": asked}).items()
        if _is_given(name) or not (same or name.split(".")[1] in OF_TRAINING)
    }
    if against:
        lines = "\n".join(_listed(against))
        raise ConfigError(f"ckpt_path={path}: that run's model is another one\n{lines}")
    chosen = {"module": stored["module"], "name": stored["name"]}
    if settings["task"] in (signatures.attribute(target, "without_data") or ()):
        chosen["datamodule"] = None
    elif not settings["datamodule"]:
        chosen["datamodule"] = stored["datamodule"]
    needed = {
        name: node
        for name, node in methods(stored).items()
        if signatures.attribute(node["_target_"], "changes_shapes")
    }
    chosen["callbacks"] = {**needed, **(settings["callbacks"] or {})}
    limit = (stored.get("trainer") or {}).get("limit_val_batches")
    if settings.get("trainer") and limit is not None and not _is_given("trainer.limit_val_batches"):
        chosen["trainer"] = {**settings["trainer"], "limit_val_batches": limit}  # the same figure
    return {**settings, **chosen}


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
        lines = "\n".join(_listed(against))
        raise ConfigError(f"{words}: that run's codes belong to its own data\n{lines}")
    return {**before, **moved}


def _is_given(key: str) -> bool:
    """Whether the command line sets a key itself, or the choice of the same name above all."""
    if not HydraConfig.initialized():
        return False
    given = [re.split("[=@]", o.lstrip("+~"))[0] for o in HydraConfig.get().overrides.task]
    leaf = key.rpartition(".")[2]
    return any(g == leaf or ("." in g and f"{key}.".startswith(f"{g}.")) for g in given)


def device_count(trainer: Mapping[str, Any]) -> int:
    """Return how many processes a Trainer's settings ask for; 1 where only the machine knows."""
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    return max(1, count if isinstance(count, int) else 1) * int(trainer.get("num_nodes") or 1)


def find(settings: Mapping[str, Any], experiment: Path) -> Start | str:
    """Find the run that `resume` means.

    Args:
        settings: The resolved config of the new command.
        experiment: The folder that holds this experiment's runs.

    Returns:
        The run to go on with, or a sentence that says why there is none (auto only).

    Raises:
        ConfigError: The run that was named cannot be gone on with.
    """
    if settings["resume"] != "auto":
        return _named(settings, Path(settings["resume"]))
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
            *stops(changes, stored, settings),
            *stretches(changes, stored, settings),
            *({"seed"} & changes.keys()),
        ]
        checkpoint, words = newest_whole(folder)
        if checkpoint is not None and not against:
            said = [f"Going on with {folder} from {checkpoint.name}.", *words, *skipped]
            return Start(folder, record.id, checkpoint, (*said, *_listed(changes)))
        if checkpoint is not None and not other:
            lines = "\n".join(_listed({key: changes[key] for key in against}))
            other = f" The newest unfinished one, {folder.name}, differs:\n{lines}"
    none = f"resume=auto: a new run, since none in {experiment} can be gone on with.{other}"
    return "\n".join((none, *skipped))


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return a run's newest whole checkpoint, and a sentence for each newer one that is not."""
    words: list[str] = []
    for path in sorted((folder / "checkpoints").glob("step-*.ckpt"), reverse=True):
        if (fault := fault_of(path)) is None:
            return path, words
        words.append(f"{path.name} {fault}; the checkpoint before it is used.")
    return None, words


def fault_of(path: Path) -> str | None:
    """Say what is wrong with a checkpoint file, None if a run can go on from it.

    It is read to its end, every checksum in it is compared, nothing in it is executed, and it must
    be of the run in whose folder it lies.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return "is damaged"
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return "is damaged"
    import torch  # slow, and needed only where there is a checkpoint

    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # noqa: BLE001  the bytes of a foreign pickle can raise anything
        return "is no checkpoint"
    if not isinstance(content, dict) or not {"state_dict", "global_step"} <= content.keys():
        return "is no checkpoint"
    folder, writer = run_folder(path), content.get(CHECKPOINT_KEY)
    if folder is None or not isinstance(writer, dict):
        return None
    return None if writer.get("id") == read_record(folder).id else "is of another run"


def difference(
    stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with the stored and the new value.

    Paths, loggers and what says how to start (resume, stretch, dry_run, task) are not compared.
    """
    skipped = ("paths", "logger", "name", "ckpt_path", "task", *HOW)
    before, after = (
        dict(_flat({key: value for key, value in config.items() if key not in skipped}))
        for config in (stored, settings)
    )
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return {key: (before.get(key), after.get(key)) for key in keys}


def stops(
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


def stretches(
    changes: Mapping[str, Any], stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    """Return those of the changed keys that give a training another length, and so another course.

    None, if nothing in it follows its length (learning rate, stages), or `stretch` asks for it.
    """
    nodes = [settings["module"], *(settings["callbacks"] or {}).values()]
    targets = [node["_target_"] for node in nodes if node is not None]
    if settings["stretch"] or not any(signatures.attribute(t, "follows_length") for t in targets):
        return []
    keys = {"trainer.max_steps", "trainer.max_epochs"}
    if any((config["trainer"].get("max_epochs") or -1) > 0 for config in (stored, settings)):
        # The length of an epoch in optimizer steps.
        keys |= {
            "trainer.accumulate_grad_batches",
            "trainer.limit_train_batches",
            "trainer.devices",
            "trainer.num_nodes",
        }
    return [key for key in changes if key in keys]


def lock(folder: Path) -> TextIO:
    """Hold a run folder until the file that is returned is closed or the process ends.

    Raises:
        ConfigError: Another process holds it.
    """
    file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    if fcntl is not None:
        try:
            # Unlike flock, this lock is not inherited by the data loader's worker processes.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ConfigError(f"{folder}: another process is at work in this run folder") from error
    return file


def is_locked(folder: Path) -> bool:
    """Whether another process is at work in a run folder."""
    try:
        lock(folder).close()
    except ConfigError:
        return True
    return False


def run_folder(path: Path) -> Path | None:
    """Return the run folder that a path is, or lies in; None if it is in none."""
    for folder in (path, *path.resolve().parents):
        if (folder / RUN_FILE).exists():
            return folder
    return None


def stored_config(folder: Path) -> dict[str, Any]:
    """Return the resolved config of a run, with RUN_DIR for the run folder.

    Raises:
        ConfigError: It is missing or damaged.
    """
    path = folder / "config.yaml"
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    if not isinstance(loaded, dict) or not _is_config(loaded):
        raise ConfigError(f"{path}: no config of a run")
    content = replaced(loaded, loaded["paths"]["run_dir"], RUN_DIR)
    assert isinstance(content, dict)
    content["module"] = without_unread(content.get("module"))
    return content


def _is_config(content: Mapping[Any, Any]) -> bool:
    """Whether plain containers have the shape that this package relies on."""
    paths, callbacks = content.get("paths"), content.get("callbacks") or {}
    nodes = [content.get("module"), *(callbacks.values() if isinstance(callbacks, dict) else "?")]
    built = all(
        n is None or (isinstance(n, dict) and isinstance(n.get("_target_"), str)) for n in nodes
    )
    placed = isinstance(paths, dict) and isinstance(paths.get("run_dir"), str)
    return built and placed and "name" in content


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
    return _from_json(store.get("start").decode())


def to_json(start: Start) -> str:
    """Return a start as text, for the processes of the same run."""
    return json.dumps({**asdict(start), "words": []}, default=str)


def _from_json(text: str) -> Start:
    content = json.loads(text)
    checkpoint = content["checkpoint"]
    return Start(
        Path(content["folder"]), content["run_id"], None if checkpoint is None else Path(checkpoint)
    )


def _named(settings: Mapping[str, Any], path: Path) -> Start:
    folder = run_folder(path)
    if folder is None:
        raise ConfigError(f"resume={path}: neither a run folder nor a checkpoint in one")
    record, stored = read_record(folder), stored_config(folder)
    if is_locked(folder):
        raise ConfigError(f"resume={path}: another process is at work in this run folder")
    changes = difference(stored, settings)
    if against := stops(changes, stored, settings):
        lines = "\n".join(_listed({key: changes[key] for key in against}))
        raise ConfigError(
            f"resume={path}: the model, the data or the method differ from that run's, so it would "
            f"be another run. Give the same settings, or start a new run: resume=never\n{lines}"
        )
    if against := stretches(changes, stored, settings):
        lines = "\n".join(_listed({key: changes[key] for key in against}))
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
    said = [f"Going on with {folder} from {checkpoint.name}.", *words]
    return Start(folder, record.id, checkpoint, (*said, *_listed(changes)))


def retire_newer(folder: Path, checkpoint: Path) -> None:
    """Rename checkpoints that are newer than the one gone on from: they are of another future."""
    for path in (folder / "checkpoints").glob("step-*.ckpt"):
        if checkpoint.name.startswith("step-") and path.name > checkpoint.name:
            os.replace(path, path.with_name(f"{path.name}.unused"))


def _listed(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"  {key}: {before} -> {after}" for key, (before, after) in changes.items()]


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        yield key, json.dumps(node, default=str)
    else:
        yield key, node
