"""A file that is damaged or foreign is read, or refused in words that name it; soon."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.fuzz import files
from tests.fuzz.loaders import LOADERS
from tests.fuzz.trials import each, examples
from tests.fuzz.warm import warm_up


def _reads(name: str, folder: Path, count: int) -> None:
    loader = LOADERS[name]
    loader.write(folder)
    warm_up()

    def use(edits: list[files.Edit]) -> None:
        ended = files.read(loader, folder, edits)
        assert ended.code in (0, 2), ended.said

    assert files.read(loader, folder, []).code in (0, 2)
    each(name, files.damages(), count, use)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore")  # some libraries say more than that it is damaged
def test_a_foreign_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    """Here and not in a child, for speed."""
    loader = LOADERS[name]
    loader.write(tmp_path)
    with contextlib.suppress(ValueError):  # a checkpoint of something else is refused as well
        loader.read(tmp_path)
    file = tmp_path / loader.file
    faults = []
    for what, content in files.foreign(file.read_bytes()).items():
        file.write_bytes(content)
        try:
            loader.read(tmp_path)
        except ValueError as error:
            if file.name not in str(error) and str(file.parent) not in str(error):
                faults.append(f"{what}: names no file: {error!r}")
        except Exception as error:  # noqa: BLE001  what a reader should have put into words
            faults.append(f"{what}: {error!r:.200}")
    assert faults == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LOADERS)
def test_many_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    _reads(name, tmp_path, examples(500))
