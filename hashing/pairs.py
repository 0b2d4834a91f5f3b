"""Pairs of a picture and a text, as lifelong hashing reads them, and the names of their sides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MODALITIES = ("image", "text")
# The direction, whose network makes the query's code, whose codes are searched.
DIRECTIONS = (("i2t", "image", "text"), ("t2i", "text", "image"))

Rows = NDArray[np.int64]


class Items(Protocol):
    """All items of the data, in its own order."""

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Multi-hot, (n, classes)."""

    @property
    def classes(self) -> Sequence[str]:
        """The classes' names."""

    @property
    def names(self) -> Sequence[str]:
        """Of each item; several texts may have one picture, and its name."""

    @property
    def captions(self) -> Sequence[str] | None:
        """The text of each item in words, where there are words."""


class Part(Protocol):
    """Some of the items: `retrieval` is learned from and searched, the others ask."""

    rows: Rows
    labels: Tensor


class PairData(Protocol):
    """Data whose classes arrive in sessions, after its `setup`."""

    items: Items
    parts: Mapping[str, Part]
    groups: Mapping[str, Rows]
    """For each part, the session in which each of its items arrives."""
    batch_size: int
    image_shape: tuple[int, ...]
    text_features: int
    classes: Sequence[str]
    fingerprint: str
    seconds: float
    """Time that training has spent waiting for its batches."""

    def prepare_data(self) -> None:
        """Fetch what is read."""

    def setup(self, stage: str) -> None:
        """Read and split the items, once."""

    def in_order(self, part: str, rows: Rows | None = None) -> Iterable[Mapping[str, Tensor]]:
        """Return batches of a part's items, or of some of its rows, in their order."""

    def encode_query(self, query: str) -> tuple[str, Tensor]:
        """Return which network reads a query, and what it reads: one row.

        Raises:
            ValueError: The query cannot be encoded.
        """

    def picture(self, row: int) -> NDArray[np.uint8] | None:
        """Return the RGB picture of one of `items`, where there are pictures."""
