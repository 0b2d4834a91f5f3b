"""A file or a folder is there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path, mode: str = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """Open a file beside its place, and put it there when the block ends and it is on disk.

    A reader finds the old content or the new one, never a part, also after a crash at any moment.

    Args:
        path: The place, in a folder that is there.
        mode: `w` for text in UTF-8, `wb` for bytes.
        newline: As `open` takes it.
    """
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open(mode, encoding=None if "b" in mode else "utf-8", newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder, `FOLDER.tmp`, and put it in its place when the block ends.

    A reader finds the old content or the new one, never a part, and between two renames neither. An
    error leaves the old one. What a crash leaves beside the place, the next use puts right.

    Args:
        folder: The place; its parents are made.

    Raises:
        OSError: It cannot be written, whichever library writes.
    """
    beside, before = (folder.with_name(f"{folder.name}.{end}") for end in ("tmp", "old"))
    _put_right(folder, beside, before)
    beside.mkdir(parents=True)
    try:
        yield beside
        for file in (*beside.rglob("*"), beside):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if folder.exists():
            os.rename(folder, before)
        os.rename(beside, folder)
    except Exception as error:
        if "(os error " in str(error):
            # tokenizers and safetensors say what the disk refuses by errors of their own.
            raise OSError(f"{beside}: {error}") from error
        raise
    finally:
        _put_right(folder, beside, before)


def _put_right(folder: Path, beside: Path, before: Path) -> None:
    """Leave the old folder where there is no new one, and nothing beside it."""
    if before.exists() and not folder.exists():
        os.rename(before, folder)
    for leftover in (beside, before):
        shutil.rmtree(leftover, ignore_errors=True)
