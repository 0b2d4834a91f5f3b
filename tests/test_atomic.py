"""A folder that is written is there whole or not at all, at whatever moment its writer dies."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atomic import replacing_folder
from tests.forked import Child


def content(folder: Path) -> dict[str, str]:
    """Everything under a folder: the text of each file by its path."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


def write(folder: Path, text: str, error: Exception | None = None) -> None:
    with replacing_folder(folder) as unfinished:
        for name in ("a", "inner/b"):
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text)
        if error is not None:
            raise error


def whole(text: str) -> dict[str, str]:
    return {"step/a": text, "step/inner/b": text}


@pytest.mark.parametrize("before", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_the_new_or_none(before: bool, tmp_path: Path) -> None:
    """The writer dies at its first call of the system that writes or renames, its second, ..."""
    outcomes = []
    for moment in range(16):
        place = tmp_path / str(moment)
        if before:
            write(place / "step", "old")

        def work(place: Path = place, moment: int = moment) -> int:
            calls = 0

            def counted(call: Any, *given: Any, **more: Any) -> Any:
                nonlocal calls
                if calls == moment:
                    os._exit(9)
                calls += 1
                return call(*given, **more)

            for name in ("mkdir", "fsync", "rename", "rmdir"):
                setattr(os, name, partial(counted, getattr(os, name)))
            write(place / "step", "new")
            return 0

        killed = Child(work).wait(20).code == 9
        left = {path: text for path, text in content(place).items() if path.startswith("step/")}
        assert left in ({}, whole("new"), *([whole("old")] if before else [])), left
        outcomes.append((killed, left.get("step/a")))
        with pytest.raises(ValueError, match="refused"):
            write(place / "step", "half", ValueError("refused"))
        kept = content(place)
        assert kept in ({}, whole("new"), whole("old")), "and nothing beside it"
        assert not before or kept
    assert outcomes[0][0]
    assert outcomes[-1] == (False, "new"), "all moments were seen"


def test_what_a_library_says_of_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    write(tmp_path / "step", "old")
    words = "I/O error: No space left on device (os error 28)"  # as safetensors does
    with pytest.raises(OSError, match=rf"step\.tmp: {re.escape(words)}"):
        write(tmp_path / "step", "half", Exception(words))
    assert content(tmp_path) == whole("old")
