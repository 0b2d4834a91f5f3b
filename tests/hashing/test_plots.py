"""Plots are written as PNG files, whatever is missing in what they show."""

from pathlib import Path

import numpy as np
from PIL import Image

from hashing.plots import RELEVANT, Cell, precision_recall_plot, retrieval_grid, sessions_plot


def test_a_grid_frames_what_is_relevant(tmp_path: Path) -> None:
    picture = np.full((3, 32, 32), 90, dtype=np.uint8)
    for relevant in (True, False):
        cells = [Cell(picture, "distance 0", relevant), Cell("words at $5 and $6", "1")]
        path = retrieval_grid([Cell("a query " * 40)], [cells], tmp_path / f"new/{relevant}.png")
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        green = (pixels == tuple(bytes.fromhex(RELEVANT[1:]))).all(1)
        assert bool(green.any()) == relevant


def test_curves_are_drawn(tmp_path: Path) -> None:
    results = {
        name: {"all": [0.5, 0.6], "old": [0.5, 0.5], "new": [float("nan"), 0.4]}
        for name in ("lifelong", "retrain")
    }
    curves = {"64 bits": ([1.0, 0.5], [0.1, 1.0])}
    for path in (
        sessions_plot(results, tmp_path / "a.png"),
        precision_recall_plot(curves, tmp_path / "b.png"),
    ):
        with Image.open(path) as image:
            assert image.width > 500
