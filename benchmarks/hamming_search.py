"""Codes in a store beside faiss alone, and mAP at the size of MIRFlickr-25K: time and memory.

`python -m benchmarks.hamming_search [--quick] [--json PATH]`. Ten million random codes of 64 bits,
1,000 queries, the nearest 100. Searches take turns (A B C A B C) and medians are reported; every
arm starts from what it saved on disk, in a process of its own, and must find the same.
`search_ratio_to_faiss` is our time over that of the faster way to use faiss alone: its
`IndexBinaryFlat`, or `knn_hamming`, the kernel below it, on codes in memory.

`map` in the JSON is mAP over the whole ranking, 2,000 queries against 20,015 items of 24 labels, in
a process of its own: `seconds` for both directions (median of the rounds), `peak_bytes` of the
whole process, torch included, and the mAP itself, `i2t` and `t2i`.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.arena import (
    interleaved,
    process_of_its_own,
    resident_bytes,
    timed,
    versions,
    write,
)
from hashing.metrics import mean_average_precision
from hashing.networks import binarise
from hashing.search import Hits, nearest
from hashing.store import CodeStore, pack

ARMS = {"store": "our store", "flat": "IndexBinaryFlat", "kernel": "knn_hamming"}


def build(items: int, bits: int, queries: int, folder: Path) -> dict[str, Any]:
    """Draw sign codes, pack them, and save them as a store and as an index of faiss.

    Half of the queries are near to an item. The folder gets `store/`, `faiss.index`, `codes.npy`
    and `queries.npy`. Returns seconds and bytes of each.
    """
    draw = np.random.default_rng(0)
    signs = np.empty((items, bits), dtype=np.int8)
    for start in range(0, items, 1 << 20):
        part = signs[start : start + (1 << 20)]
        part[:] = draw.integers(0, 2, part.shape, dtype=np.int8) * 2 - 1
    asked = signs[draw.integers(0, items, queries)]
    flips = draw.random(asked.shape) < np.where(np.arange(queries) % 2, 0.1, 0.5)[:, None]
    np.save(folder / "queries.npy", pack(np.where(flips, -asked, asked)))

    store, built = timed(CodeStore, signs)
    _, saved = timed(store.save, folder / "store")
    index = faiss.IndexBinaryFlat(bits)
    _, faiss_built = timed(lambda: index.add(np.packbits(signs > 0, axis=1, bitorder="little")))
    _, faiss_saved = timed(faiss.write_index_binary, index, str(folder / "faiss.index"))
    np.save(folder / "codes.npy", store.packed)
    size = sum(file.stat().st_size for file in (folder / "store").iterdir())
    faiss_size = (folder / "faiss.index").stat().st_size
    return {
        "store": {"build_s": built, "save_s": saved, "bytes": size},
        "flat": {"build_s": faiss_built, "save_s": faiss_saved, "bytes": faiss_size},
    }


@cache
def open_arm(arm: str, folder: Path) -> Callable[[Any, int], Hits]:
    """Load what one of `ARMS` searches, once in a process; returns its search."""
    if arm == "store":
        store = CodeStore.load(folder / "store")
        return lambda queries, top: nearest(queries, store.packed, top, "faiss")
    if arm == "flat":
        index = faiss.read_index_binary(str(folder / "faiss.index"))
        return lambda queries, top: Hits(*index.search(queries, top)[::-1])
    codes = np.load(folder / "codes.npy")
    return lambda queries, top: Hits(*faiss.knn_hamming(queries, codes, top)[::-1])


@cache
def queries_in(folder: Path) -> NDArray[np.uint8]:
    """Load the queries, once in a process."""
    found: NDArray[np.uint8] = np.load(folder / "queries.npy")
    return found


def resident() -> dict[str, float]:
    """The memory of this process."""
    return {field: resident_bytes(field) for field in ("VmRSS", "VmHWM", "RssAnon")}


def load_seconds(arm: str, folder: Path) -> float:
    """Open an arm; return its seconds."""
    return timed(open_arm, arm, folder)[1]


def search_seconds(arm: str, folder: Path, top: int) -> float:
    """Search once, and keep what was found in `folder`; return the search's seconds."""
    hits, seconds = timed(open_arm(arm, folder), queries_in(folder), top)
    np.savez(folder / f"{arm}.npz", rows=hits.rows, distances=hits.distances)
    return seconds


def run_arms(folder: Path, top: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Let the arms search in turn, each in a process of its own; return seconds and memory."""
    with ExitStack() as stack:
        calls = {arm: stack.enter_context(process_of_its_own()) for arm in ARMS}
        before, loaded = {}, {}
        for arm, call in calls.items():
            call(queries_in, folder)
            before[arm] = call(resident)
            loaded[arm] = call(load_seconds, arm, folder)
        turns = {
            arm: partial(call, search_seconds, arm, folder, top) for arm, call in calls.items()
        }
        seconds = interleaved(turns, rounds)
        after = {arm: call(resident) for arm, call in calls.items()}
    return {
        arm: {
            "load_s": loaded[arm],
            "search_s": median(seconds[arm]),
            "searches_s": seconds[arm],
            "peak_bytes": after[arm]["VmHWM"] - before[arm]["VmRSS"],
            "own_bytes": after[arm]["RssAnon"] - before[arm]["RssAnon"],
        }
        for arm in ARMS
    }


def measure(items: int, bits: int, queries: int, top: int, rounds: int) -> dict[str, Any]:
    """Build, save, load and search so many codes, our store and faiss in turn.

    Returns `search_ratio_to_faiss`, `memory_ratio_to_faiss` and the figures of each arm.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = build(items, bits, queries, folder)
        arms = {arm: built.get(arm, {}) | row for arm, row in run_arms(folder, top, rounds).items()}
        found = {arm: np.load(folder / f"{arm}.npz") for arm in ARMS}
        few = np.load(folder / "queries.npy")[: max(1, queries // 50)]
        packed = CodeStore.load(folder / "store", verify=False).packed
        plain, numpy_s = timed(nearest, few, packed, top, "numpy")
        same = np.array_equal(plain.rows, found["store"]["rows"][: len(few)]) and all(
            np.array_equal(found[arm][key], found["store"][key])
            for arm in ARMS
            for key in ("rows", "distances")
        )
    faiss_s = min(arms[arm]["search_s"] for arm in ("flat", "kernel"))
    faiss_bytes = min(arms[arm]["peak_bytes"] for arm in ("flat", "kernel"))
    return {
        "search_ratio_to_faiss": arms["store"]["search_s"] / faiss_s,
        "search_ratio_to_flat": arms["store"]["search_s"] / arms["flat"]["search_s"],
        "memory_ratio_to_faiss": arms["store"]["peak_bytes"] / faiss_bytes,
        "same_results": same,
        "numpy_ms_per_query": 1000 * numpy_s / len(few),
        "items": items,
        "bits": bits,
        "queries": queries,
        "top": top,
        "arms": arms,
    }


def mean_average_precisions(
    items: int, queries: int, bits: int, classes: int, rounds: int
) -> dict[str, Any]:
    """Score codes that say something of their labels, both directions in turn.

    An item has each label with probability 0.15, and one at least. Returns the median `seconds` of
    both directions, `peak_bytes` of this process, and mAP as `i2t` and `t2i`.
    """
    draw = torch.Generator().manual_seed(0)
    labels = (torch.rand(items + queries, classes, generator=draw) < 0.15).to(torch.uint8)
    labels[torch.arange(len(labels)), torch.randint(classes, (len(labels),), generator=draw)] = 1
    directions = torch.randn(classes, bits, generator=draw)
    codes = [
        binarise(labels.float() @ directions + 4 * torch.randn(len(labels), bits, generator=draw))
        for _ in ("image", "text")
    ]

    def score() -> list[float]:
        return [
            mean_average_precision(asking[items:], labels[items:], searched[:items], labels[:items])
            for asking, searched in (codes, codes[::-1])
        ]

    turns = [timed(score) for _ in range(rounds)]
    found = turns[0][0]
    return {
        "items": items,
        "queries": queries,
        "bits": bits,
        "classes": classes,
        "seconds": median(seconds for _, seconds in turns),
        "peak_bytes": resident_bytes("VmHWM"),
        "i2t": found[0],
        "t2i": found[1],
    }


def table(result: dict[str, Any]) -> Table:
    """The figures of each arm."""
    shown = Table(
        title=f"{result['items']:,} codes of {result['bits']} bits, {result['queries']:,} queries, "
        f"top {result['top']}"
    )
    headings = ("build s", "save s", "on disk MB", "load s", "search s", "ms a query")
    shown.add_column("", no_wrap=True)
    for heading in (*headings, "peak MB", "own MB"):
        shown.add_column(heading, justify="right")
    for arm, name in ARMS.items():
        row = result["arms"][arm]
        cells = [f"{row[key]:.2f}" if key in row else "" for key in ("build_s", "save_s")]
        cells += [f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "", f"{row['load_s']:.2f}"]
        cells += [f"{row['search_s']:.2f}", f"{1000 * row['search_s'] / result['queries']:.2f}"]
        cells += [f"{row[key] / 1e6:.0f}" for key in ("peak_bytes", "own_bytes")]
        shown.add_row(name, *cells)
    shown.caption = (
        f"search: {result['search_ratio_to_faiss']:.2f}x of the faster faiss, "
        f"{result['search_ratio_to_flat']:.2f}x of IndexBinaryFlat; peak memory: "
        f"{result['memory_ratio_to_faiss']:.2f}x; same results: {result['same_results']}; without "
        f"faiss {result['numpy_ms_per_query']:.0f} ms a query on one core. Peak counts mapped "
        "pages of the file, which the system may drop; own does not."
    )
    if "map" in result:
        scored = result["map"]
        shown.caption += (
            f"\nmAP of {scored['queries']:,} queries against {scored['items']:,} items, "
            f"{scored['bits']} bits, both directions: {scored['seconds']:.2f} s, peak of the "
            f"process {scored['peak_bytes'] / 1e6:.0f} MB"
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns what it writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hamming_search", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the codes and queries")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    parser.add_argument("--rounds", type=int, default=3, help="searches of each arm")
    args = parser.parse_args(arguments)
    part = 10 if args.quick else 1
    result = measure(10_000_000 // part, 64, 1_000 // part, 100, args.rounds)
    with process_of_its_own() as call:  # whose memory is its own
        result["map"] = call(mean_average_precisions, 20_015, 2_000, 64, 24, args.rounds)
    result["versions"] = versions() | {"faiss": faiss.__version__}
    Console().print(table(result))
    write(args.json, result)
    return result


if __name__ == "__main__":
    main()
