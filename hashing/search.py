"""The nearest codes of a store: exact top-k search by Hamming distance, over packed bits.

Ties are frequent (k bits have k + 1 distances) and broken by one rule: of items at the same
distance the one stored first comes first. faiss keeps to it, and so does the search without faiss.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hashing.store import Packed

Backend = Literal["faiss", "numpy"]

CHUNK_BYTES = 1 << 19  # codes that are compared with a query at once: they stay in the cache


@dataclass(frozen=True)
class Hits:
    """What was found for each query, nearest first.

    Args:
        rows: Of the items, int64 (queries, top).
        distances: Bits that differ, int32 (queries, top).
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.int32]


def nearest(queries: Packed, database: Packed, top: int, backend: Backend | None = None) -> Hits:
    """Find the items with the nearest codes; of items at the same distance, the first rows.

    With faiss it is the kernel of its `IndexBinaryFlat`, run on the codes where they lie: a store
    on disk is searched through its memory map, without a copy.

    Args:
        queries: Packed codes, uint8 (queries, bits / 8).
        database: Packed codes, uint8 (items, bits / 8).
        top: How many to find, at least 1; all items if there are fewer.
        backend: `faiss`, `numpy`, or None for faiss where it is installed.

    Raises:
        ValueError: Shapes or types do not fit, or `top` is below 1.
        ImportError: faiss is asked for and not installed.
    """
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"packed queries of shape {queries.shape} do not fit codes of shape {database.shape}: "
            "both must be (n, bits / 8)"
        )
    if queries.dtype != np.uint8 or database.dtype != np.uint8:
        raise ValueError(
            f"queries of {queries.dtype} and codes of {database.dtype} are not packed: both must "
            "be uint8, made by hashing.store.pack"
        )
    if not (top >= 1 and top % 1 == 0):
        raise ValueError(f"top={top}: must be a whole number of at least 1")
    if backend is None:
        backend = "faiss" if find_spec("faiss") else "numpy"
    top = min(int(top), len(database))
    queries = np.ascontiguousarray(queries)
    if backend == "numpy":
        return _nearest_numpy(queries, database, top)
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "backend=faiss needs the package faiss-cpu, of the extra hashing: pip install "
            "faiss-cpu -c constraints.txt; or choose backend=numpy, which finds the same"
        ) from error
    # The heap keeps, of equal distances, the lower rows: tests/hashing/test_search.py.
    distances, rows = faiss.knn_hamming(queries, np.ascontiguousarray(database), top, variant="hc")
    return Hits(rows, distances)


def _nearest_numpy(queries: Packed, database: Packed, top: int) -> Hits:
    """The rows pass in chunks; whoever comes later must be nearer than the last one kept."""
    words, columns = _words(queries), _words(database)
    width = database.shape[1]
    step = max(1, CHUNK_BYTES // max(1, width))
    count = len(queries)
    rows: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * count
    distances: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)] * count
    for start in range(0, len(database), step):
        part = columns[start : start + step]
        for query in range(count):
            differing = np.bitwise_count(part ^ words[query])
            found = differing[:, 0] if part.shape[1] == 1 else differing.sum(1, dtype=np.int32)
            kept = distances[query]
            bound = kept[-1] if len(kept) == top else np.iinfo(np.int32).max
            near = np.flatnonzero(found < bound)
            if not len(near):
                continue
            merged = np.concatenate([kept, found[near].astype(np.int32)])
            order = np.argsort(merged, kind="stable")[:top]  # stable: lower rows stay before
            distances[query] = merged[order]
            rows[query] = np.concatenate([rows[query], near + start])[order]
    shape = count, top
    found = np.array(distances, np.int32).reshape(shape)
    return Hits(np.array(rows, np.int64).reshape(shape), found)


def _words(packed: Packed) -> NDArray[Any]:
    """The same bits in the widest unsigned numbers that fill a row: fewer to count."""
    size = next(size for size in (8, 4, 2, 1) if packed.shape[1] % size == 0)
    return np.ascontiguousarray(packed).view(f"u{size}")
