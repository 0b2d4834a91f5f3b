"""Folders that one process makes and all others find: whole, or not at all."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atomic import replacing_folder
from datamodules.files import files_under

# No file, no JSON, or other JSON than is written here.
ABSENT_OR_DAMAGED = (
    *(FileNotFoundError, NotADirectoryError),
    *(ValueError, LookupError, TypeError, RecursionError),
)

log = logging.getLogger(__name__)


def build_once(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make `folder` by `build`, unless it is there and whole, and return its record.

    Whoever comes second waits for the first and takes its folder. `build` works under another name,
    see `atomic.replacing_folder`, and the marker `finished.json` is written last.

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
    shutil.rmtree(folder, ignore_errors=True)  # damaged
    with replacing_folder(folder) as unfinished:
        record = build(unfinished)
        record["sizes"] = {
            str(file.relative_to(unfinished)): file.stat().st_size
            for file in files_under(unfinished)
        }
        (unfinished / "finished.json").write_text(json.dumps(record, indent=2))
    return record


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what `build_once` recorded in `folder`; None when it is absent or damaged."""
    try:
        record = json.loads((folder / "finished.json").read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in record["sizes"]}
    except ABSENT_OR_DAMAGED:
        return None
    return record if sizes == record["sizes"] else None
