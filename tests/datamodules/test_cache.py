"""A folder that is made once: what the disk refuses is an error of the disk, and nothing stays."""

from pathlib import Path
from typing import Any

import pytest

from datamodules.cache import build_once, read_record


def test_what_a_library_says_of_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "half").write_bytes(b"a")
        raise Exception("File too large (os error 27)")  # as tokenizers does

    with pytest.raises(OSError, match=r"made\.tmp: File too large"):
        build_once(tmp_path / "made", build)
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


@pytest.mark.parametrize("content", ["", "[]", "7", "{}", '{"sizes": 3}', "[" * 100_000, "\x00"])
def test_a_record_of_another_shape_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "finished.json").write_text(content)
    assert read_record(tmp_path) is None
