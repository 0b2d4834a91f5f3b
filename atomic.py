"""A file is there whole or not at all."""

import os
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
