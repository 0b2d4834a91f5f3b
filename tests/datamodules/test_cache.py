"""A folder that is made once: of what fails nothing stays, and no damaged record is taken."""

from pathlib import Path
from typing import Any

import pytest

from datamodules.cache import build_once, read_record


def test_of_a_build_that_fails_nothing_stays(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "half").write_bytes(b"a")
        raise ValueError("as the test wants it")

    with pytest.raises(ValueError, match="as the test wants it"):
        build_once(tmp_path / "made", build)
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


@pytest.mark.parametrize("content", ["", "[]", "7", "{}", '{"sizes": 3}', "[" * 100_000, "\x00"])
def test_a_record_of_another_shape_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "finished.json").write_text(content)
    assert read_record(tmp_path) is None
