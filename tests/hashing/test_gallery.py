"""A folder of codes knows its items after every session, and wherever the data has gone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hashing.gallery import Gallery
from hashing.pairs import MODALITIES
from hashing.store import CodeStore

NOTHING: Any = {m: {} for m in MODALITIES}
CODES = torch.where(torch.arange(32).reshape(4, 8) % 5 > 1, 1, -1).to(torch.int8)
# Items 0 and 2 have one name; 2 arrives later. Item 3 asks.
NAMES = ("one/cat.png", "dog.png", "one/cat.png", "dog.png")


def gallery(place: str, session: int, names: tuple[str, ...] = NAMES) -> Gallery:
    data: Any = SimpleNamespace(
        items=SimpleNamespace(names=[f"{place}/{name}" for name in names]),
        parts={"retrieval": SimpleNamespace(rows=np.arange(3))},
        groups={"retrieval": np.array([0, 0, 1])},
    )
    return Gallery(data, dict.fromkeys(MODALITIES, CODES[:3]), session)


def test_an_item_is_stored_once_though_its_name_comes_again_and_the_data_has_moved(
    tmp_path: Path,
) -> None:
    assert gallery("/old", 0).write(tmp_path, NOTHING)["stored/image"] == 2
    moved = gallery("new/place", 1)
    assert moved.write(tmp_path, NOTHING) == {
        f"{what}/{m}": count for m in MODALITIES for what, count in (("added", 1), ("stored", 3))
    }
    assert CodeStore.load(tmp_path / "text").names == ["one/cat.png#0", "dog.png", "one/cat.png#2"]
    found = moved.nearest("image", CODES[2], 3, tmp_path)
    assert {(match.row, match.distance) for match in found} == {
        (row, int((CODES[row] != CODES[2]).sum())) for row in range(3)
    }


def test_a_folder_of_other_names_is_refused(tmp_path: Path) -> None:
    gallery("/old", 0).write(tmp_path, NOTHING)
    other = gallery("/old", 0, ("one/cat.png", "wolf.png", "one/cat.png"))
    for use in (
        lambda: other.write(tmp_path, NOTHING),
        lambda: other.nearest("text", CODES[0], 1, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"store=.*: holds these codes under other names"):
            use()
