"""A run's folder: where it lies, who is at work in it, and what is read back from it."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from reports import run_record
from reports.configs import RUN_DIR, replaced
from reports.registry import is_held
from reports.run_record import LOCK_FILE, RUN_FILE, RunRecord, run_folder
from runner.errors import ConfigError, first_line, refusing
from runner.job import with_keys_of_today

try:
    import fcntl
except ImportError:  # Windows: two processes in one run folder are then not noticed
    fcntl = None  # type: ignore[assignment]

# All that a folder holds until its run.json is there; RUN_NAMES is what such folders are called.
FIRST_FILES = {LOCK_FILE, "config.yaml", "config.yaml.tmp", f"{RUN_FILE}.tmp"}
RUN_NAMES = "????-??-??_??-??-??-*"
# Under it a checkpoint says which run has written it.
CHECKPOINT_KEY = "frugal"


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


def to_json(start: Start) -> str:
    """Return a start as text, for the processes of the same run."""
    return json.dumps({**asdict(start), "words": []}, default=str)


def from_json(text: str) -> Start:
    """Return the start that `to_json` wrote."""
    content = json.loads(text)
    checkpoint = content["checkpoint"] and Path(content["checkpoint"])
    return Start(Path(content["folder"]), content["run_id"], checkpoint)


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
            raise ConfigError(f"{folder}: another process is at work in this folder") from error
    return file


def is_locked(folder: Path) -> bool:
    """Whether another process is at work in a run folder, or this one cannot write to it."""
    return is_held(folder) or not os.access(folder, os.W_OK)


def open_folder(folder: Path, resumed: bool) -> TextIO:
    """Make a run folder, or take one again, and hold it until the file that is returned is closed.

    Beside it are removed folders whose process was killed before it had written run.json.

    Raises:
        ConfigError: Another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Between being made and being locked a folder looks like a dead one.
    with _one_at_a_time(folder.parent):
        for other in folder.parent.glob(RUN_NAMES):
            begun = other.is_dir() and {file.name for file in other.iterdir()} <= FIRST_FILES
            if begun and not is_locked(other):
                shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(exist_ok=resumed)
        return lock(folder)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for other processes that do this with the same folder."""
    with ExitStack() as stack:
        if fcntl is not None:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def read_record(folder: Path) -> RunRecord:
    """Return the run.json of a run.

    Raises:
        ConfigError: It is missing, damaged, or no record of a run.
    """
    with refusing():
        return run_record.read_record(folder)


def stored_config(folder: Path) -> dict[str, Any]:
    """Return the resolved config of a run, with RUN_DIR for the run folder.

    Raises:
        ConfigError: It is missing or damaged.
    """
    path = folder / "config.yaml"
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    if not isinstance(loaded, dict) or not _is_config(loaded):
        raise ConfigError(f"{path}: no config of a run")
    content = replaced(loaded, loaded["paths"]["run_dir"], RUN_DIR)
    assert isinstance(content, dict)
    content["module"] = with_keys_of_today(content.get("module"))
    return content


def _is_config(content: Mapping[Any, Any]) -> bool:
    """Whether plain containers have the shape that this package relies on."""
    paths, callbacks = content.get("paths"), content.get("callbacks") or {}
    nodes = [content.get("module"), content.get("datamodule")]
    nodes += [*callbacks.values()] if isinstance(callbacks, dict) else [callbacks]
    built = all(
        n is None or (isinstance(n, dict) and isinstance(n.get("_target_"), str)) for n in nodes
    )
    placed = isinstance(paths, dict) and isinstance(paths.get("run_dir"), str)
    named = isinstance(content.get("name"), str) and isinstance(content.get("trainer"), dict)
    return built and placed and named and {"module", "datamodule"} <= content.keys()


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return a run's newest whole checkpoint, to go on from; a sentence for each that is not."""
    return _first_whole(sorted((folder / "checkpoints").glob("step-*.ckpt"), reverse=True))


def checkpoint_of(key: str, place: str | Path) -> Path:
    """Return the checkpoint that is meant where a key asks for a model: the one rule for all keys.

    A run folder means its best checkpoint if it keeps one and that is whole, else its newest whole
    one.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(f"{key}={place}: no such file or folder")
    if not path.is_dir():
        if fault := fault_of(path):
            raise ConfigError(f"{key}={place}: the file {fault}")
        return path
    found, words = _first_whole((path / "checkpoints").glob("best.ckpt"))
    if found is None:
        found, further = newest_whole(path)
        words += further
    print(*words, sep="\n", end="\n" if words else "")
    if found is None:
        raise ConfigError(f"{key}={place}: no whole checkpoint in {path}/checkpoints")
    return found


def _first_whole(files: Iterable[Path]) -> tuple[Path | None, list[str]]:
    words: list[str] = []
    for path in files:
        if (fault := fault_of(path)) is None:
            return path, words
        words.append(f"{path.name} {fault}; another checkpoint of the run is used.")
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
        return "is damaged, or no checkpoint"
    try:
        content = load(path)
    except Exception:  # noqa: BLE001  the bytes of a foreign pickle can raise anything
        return "is no checkpoint"
    known = isinstance(content, dict) and {"state_dict", "global_step"} <= content.keys()
    if not known:
        return "is no checkpoint"
    folder, writer = run_folder(path), content.get(CHECKPOINT_KEY)
    if folder is None or not isinstance(writer, dict):
        return None
    return None if writer.get("id") == read_record(folder).id else "is of another run"


def load(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's content; tensors stay on disk until they are read."""
    import torch  # slow, and needed only where there is a checkpoint

    content: dict[str, Any] = torch.load(
        checkpoint, map_location="cpu", mmap=True, weights_only=True
    )
    return content


def fill(module: Any, checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint into a module outside of a trainer; return what it holds.

    Raises:
        ConfigError: It is of another model.
    """
    content = load(checkpoint)
    try:
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        words = shorten(str(error), 300)
        raise ConfigError(
            f"{checkpoint}: no checkpoint of this {type(module).__name__}: {words}"
        ) from error
    return content


def retire_newer(folder: Path, step: int) -> None:
    """Rename checkpoints of later steps than the one gone on from: they are of another future."""
    for path in (folder / "checkpoints").glob("*.ckpt"):
        _, _, number = path.stem.partition("step-")
        if not number and fault_of(path) is None:  # best.ckpt: its content says
            number = load(path)["global_step"]
        if int(number or 0) > step:
            os.replace(path, path.with_name(f"{path.name}.unused"))
