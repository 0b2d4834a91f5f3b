"""Search finds exactly the nearest codes, ties by the lower row, with faiss and without."""

import builtins
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hashing import search as search_module
from hashing.gallery import Gallery, Match
from hashing.search import nearest
from hashing.store import CodeStore, Packed, pack

BACKENDS: tuple[Any, ...] = ("faiss", "numpy")


def brute_force(queries: Packed, database: Packed, top: int) -> tuple[Any, Any]:
    differing = np.unpackbits(queries[:, None] ^ database[None], axis=2).sum(2, dtype=np.int32)
    rows = np.argsort(differing, axis=1, kind="stable")[:, :top]
    return rows, np.take_along_axis(differing, rows, axis=1)


@settings(deadline=None, max_examples=60)
@given(
    width=st.sampled_from([1, 2, 3, 4, 8, 16, 24, 40]),
    items=st.integers(1, 400),
    distinct=st.integers(1, 400),
    top=st.integers(1, 500),
    asked=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_both_backends_find_what_brute_force_finds_also_among_ties(
    width: int, items: int, distinct: int, top: int, asked: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    pool = draw.integers(0, 256, (distinct, width), dtype=np.uint8)
    database = pool[draw.integers(0, distinct, items)]  # few distinct codes: many ties
    queries = draw.integers(0, 256, (asked, width), dtype=np.uint8)
    rows, distances = brute_force(queries, database, top)
    for backend in BACKENDS:
        hits = nearest(queries, database, top, backend)
        assert np.array_equal(hits.rows, rows)
        assert np.array_equal(hits.distances, distances)
        assert hits.rows.dtype == np.int64
        assert hits.distances.dtype == np.int32


@pytest.mark.parametrize("width", [1, 2, 8])
def test_ties_across_chunks_and_threads(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    monkeypatch.setattr(search_module, "CHUNK_BYTES", 1000)
    draw = np.random.default_rng(0)
    database = draw.integers(0, 256, (70_000, width), dtype=np.uint8)
    queries = draw.integers(0, 256, (9, width), dtype=np.uint8)
    rows, distances = brute_force(queries, database, 300)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        for backend in BACKENDS:
            hits = nearest(queries, database, 300, backend)
            assert np.array_equal(hits.rows, rows)
            assert np.array_equal(hits.distances, distances)
    finally:
        faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(8 * width)
    index.add(database)
    flat_distances, flat_rows = index.search(queries, 300)
    assert np.array_equal(flat_rows, rows)
    assert np.array_equal(flat_distances, distances)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_store_on_disk_is_searched(tmp_path: Path, backend: Any) -> None:
    codes = torch.ones(5, 16)
    codes[1, :3] = -1
    codes[3, 0] = -1
    CodeStore(codes, list("abcde")).save(tmp_path)
    database, query = CodeStore.load(tmp_path).packed, pack(codes[3:4])
    hits = nearest(query, database, 4, backend)
    assert (hits.rows.tolist(), hits.distances.tolist()) == ([[3, 0, 2, 4]], [[0, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"do not fit"):
        nearest(query[:, :1], database, 4, backend)
    for top in (0, 2.5):
        with pytest.raises(ValueError, match=rf"top={top}: must be a whole number"):
            nearest(query, database, top, backend)
    with pytest.raises(ValueError, match="queries of int8 and codes of uint8 are not packed"):
        nearest(np.ones((1, 2), dtype=np.int8), database, 4, backend)


def test_without_faiss_the_default_still_searches_and_asking_for_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return real(name, *args, **kwargs)

    codes = pack(2 * torch.eye(8) - 1)
    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr(search_module, "find_spec", lambda name: None)
    assert nearest(codes[2:3], codes, 1).rows.tolist() == [[2]]
    with pytest.raises(ImportError, match="of the extra hashing"):
        nearest(codes[2:3], codes, 1, "faiss")


def test_the_table_shows_names_as_they_are() -> None:
    labels, captions = np.eye(2, dtype=np.uint8), ["[a] bird", "-"]
    items = SimpleNamespace(classes=["x", "y"], labels=labels, captions=captions)
    part = SimpleNamespace(rows=np.arange(2))
    data: Any = SimpleNamespace(
        items=items, parts={"retrieval": part}, groups={"retrieval": np.zeros(2, dtype=np.int64)}
    )
    gallery = Gallery(data, dict.fromkeys(("image", "text"), torch.ones(2, 32)), 0)
    matches = [Match("[red]a.png", 0, 2), Match("elsewhere", -1, 3)]
    shown = io.StringIO()
    Console(file=shown, width=100).print(gallery.table("bird", matches, 32))
    for text in ("Nearest to 'bird'", "[red]a.png", "[a] bird", "elsewhere", "distance of 32"):
        assert text in shown.getvalue()


def test_searching_imports_neither_lightning_nor_faiss_before_it_needs_it() -> None:
    code = (
        "import sys, hashing.search; assert not {'faiss', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
