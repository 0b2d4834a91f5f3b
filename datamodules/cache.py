"""Folders that one process makes and all others find: whole, or not at all."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datamodules.files import files_under

# No file, no JSON, or other JSON than is written here.
ABSENT_OR_DAMAGED = (
    FileNotFoundError,
    NotADirectoryError,
    ValueError,
    LookupError,
    TypeError,
    RecursionError,
)

log = logging.getLogger(__name__)


def build_once(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make `folder` by `build`, unless it is there and whole, and return its record.

    Whoever comes second waits for the first and takes its folder. `build` works under another name;
    the marker `finished.json` is written last and the folder renamed after that, so what a killed
    build leaves is never taken for whole, and the next build removes it.

    Args:
        folder: The result. Beside it lie `FOLDER.lock` and, during a build, `FOLDER.tmp`.
        build: Fills the folder that it is given and returns the record, JSON data.

    Raises:
        OSError: It cannot be written, whichever library writes.
    """
    if (record := read_record(folder)) is not None:
        return record
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Another process is making %s: waiting for it", folder)
        lock.acquire()
    try:
        return read_record(folder) or _built(folder, build)
    finally:
        lock.release()


def _built(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    unfinished = folder.with_name(f"{folder.name}.tmp")
    for leftover in (folder, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir()
    try:
        record = build(unfinished)
        record["sizes"] = {
            str(file.relative_to(unfinished)): file.stat().st_size
            for file in files_under(unfinished)
        }
        (unfinished / "finished.json").write_text(json.dumps(record, indent=2))
        unfinished.rename(folder)
    except BaseException as error:
        shutil.rmtree(unfinished)
        if isinstance(error, Exception) and "(os error " in str(error):
            # tokenizers and safetensors say what the disk refuses by errors of their own.
            raise OSError(f"{unfinished}: {error}") from error
        raise
    return record


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what `build_once` recorded in `folder`; None when it is absent or damaged."""
    try:
        record = json.loads((folder / "finished.json").read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in record["sizes"]}
    except ABSENT_OR_DAMAGED:
        return None
    return record if sizes == record["sizes"] else None
