from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.runner import laboratory


@pytest.fixture(autouse=True)
def _tiny_classes() -> None:
    laboratory.allow_tests()


@pytest.fixture
def pictures() -> None:
    """Has a run draw its curves, which takes a third of a tiny run's time."""


@pytest.fixture(autouse=True)
def _small_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" in request.fixturenames:
        return

    def save(figure: Any, path: Path, formats: Sequence[str] = ("png",)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path.with_suffix(".png"))
        return path.with_suffix(f".{formats[0]}")

    monkeypatch.setattr("reports.figures.save", save)
