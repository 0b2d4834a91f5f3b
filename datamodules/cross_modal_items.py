"""Items that are known both as a picture and as a text: what every source of them returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CrossModalItems:
    """Pairs of an image and a text, row by row, with their classes.

    Args:
        image: Features, float32 (n, features), or RGB pictures, uint8 (n, 3, height, width).
        text: Features, float32 (n, features).
        labels: Multi-hot, uint8 (n, classes); every row has at least one class.
        classes: The classes' names.
        names: Of each item, for messages and results: a file's path, or `row 17`.
        captions: The text of each item in words, where there are words.
        skipped: How many items of the source were left out, by reason.
        split: Rows of `query`, `retrieval` (and `validation`), where the source publishes a split.
    """

    image: NDArray[Any]
    text: NDArray[np.float32]
    labels: NDArray[np.uint8]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    split: Mapping[str, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.labels)
