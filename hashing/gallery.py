"""The items that have arrived: found by their codes, shown as pictures or words, kept on disk.

A folder of codes holds two stores, `image` and `text`: of each item that has arrived the code of
its picture and of its text, in the order of their sessions, and behind them whatever was encoded
later. Codes of items that were learned from belong to their training, so that a folder's first
codes say which training it is of.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from hashing.networks import binarise
from hashing.pairs import DIRECTIONS, MODALITIES, PairData, Rows
from hashing.plots import Cell
from hashing.search import nearest
from hashing.store import CodeStore, pack
from terminal import literal

GRID_COLUMNS = 8  # items that a run's plot shows of what a query finds


@dataclass(frozen=True)
class Match:
    """One item that was found, of those in the data or in a folder of codes.

    Args:
        name: Of the item.
        row: In the data, -1 of one from elsewhere.
        distance: Bits in which its code differs from the query's.
    """

    name: str
    row: int
    distance: int


class Gallery:
    """The retrieval part's items that have arrived by a session, each with its codes.

    Args:
        data: After `setup`.
        codes: Of the whole retrieval part, int8 (n, bits), by modality.
        session: The last one that has arrived.
    """

    def __init__(self, data: PairData, codes: Mapping[str, Tensor], session: int) -> None:
        self.data, self.session = data, session
        groups = data.groups["retrieval"]
        arrived = np.flatnonzero(groups <= session)
        self.groups = groups[arrived]
        self.rows: Rows = data.parts["retrieval"].rows[arrived]
        self.codes = {m: codes[m].cpu()[torch.from_numpy(arrived)] for m in MODALITIES}

    def nearest(
        self, searched: str, code: Tensor, top: int, folder: str | Path | None = None
    ) -> list[Match]:
        """Rank the items by the distance of their codes from one code.

        Args:
            searched: The modality whose codes are searched.
            code: (bits,) or (1, bits).
            top: How many, at most.
            folder: Search what this holds, see `write`.

        Returns:
            The nearest items, first ones first: their names, and their rows in `data.items`, -1
            where the folder has an item from elsewhere.
        """
        store = None if folder is None else self._opened(folder, searched)
        packed = pack(self.codes[searched]) if store is None else store.packed
        hits = nearest(pack(code.reshape(1, -1)), packed, top)
        found = zip(hits.rows[0].tolist(), hits.distances[0].tolist(), strict=True)
        if store is None:
            rows = [(int(self.rows[place]), distance) for place, distance in found]
            return [Match(self.data.items.names[row], row, distance) for row, distance in rows]
        known = dict(zip(self.names, self.rows.tolist(), strict=True))
        named = [(store.names[place], distance) for place, distance in found]
        return [Match(name, known.get(name, -1), distance) for name, distance in named]

    # --- what is shown

    def shown(self, row: int, words: bool = False) -> NDArray[np.uint8] | str:
        """Return an item's picture, or its caption or name: without one, or for words."""
        items = self.data.items
        picture = None if words else self.data.picture(row)
        text = items.names[row] if items.captions is None else items.captions[row]
        return text if picture is None else picture

    def table(self, query: str, matches: Sequence[Match], bits: int) -> Table:
        """Return what was found, with its classes and captions, for the screen."""
        items, names = self.data.items, np.array(self.data.items.classes)
        table = Table(title=literal(f"Nearest to {query!r}"), title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column(f"distance of {bits}", justify="right")
        table.add_column("item", overflow="fold")
        table.add_column("labels")
        if items.captions is not None:
            table.add_column("text", overflow="fold")
        for rank, match in enumerate(matches, start=1):
            known = match.row >= 0
            labels = ", ".join(names[items.labels[match.row] > 0]) if known else ""
            cells = [str(rank), str(match.distance), match.name, labels]
            if items.captions is not None:
                cells.append(items.captions[match.row] if known else "")
            table.add_row(*map(literal, cells))
        return table

    def cells(self, matches: Sequence[Match]) -> list[Cell]:
        """Return what was found, for a grid, with the distances as titles."""
        return [Cell(self.shown(m.row) if m.row >= 0 else m.name, f"{m.distance}") for m in matches]

    def first_queries(
        self, part: str, outputs: Mapping[str, Tensor]
    ) -> tuple[list[Cell], list[list[Cell]]]:
        """Return the first query of each session in both directions, and what each finds.

        Args:
            part: Whose items ask.
            outputs: Of its networks, by modality.
        """
        labels, asking = self.data.items.labels, self.data.parts[part].rows
        queries, found = [], []
        for _, query, searched in DIRECTIONS:
            for number in range(self.session + 1):
                first = int(np.flatnonzero(self.data.groups[part] == number)[0])
                asked = int(asking[first])
                queries.append(Cell(self.shown(asked, words=query == "text")))
                code = binarise(outputs[query][first])
                found.append(
                    [
                        Cell(
                            self.shown(match.row, words=searched == "text"),
                            f"{match.distance}",
                            bool((labels[match.row] & labels[asked]).any()),
                        )
                        for match in self.nearest(searched, code, GRID_COLUMNS)
                    ]
                )
        return queries, found

    # --- what is kept on disk

    @cached_property
    def names(self) -> list[str]:
        """Names of the items in a folder of codes, with their rows where several have one.

        They are the same after each session, and wherever the data lies: paths begin at the folder
        that all items share.
        """
        rows: list[int] = self.data.parts["retrieval"].rows.tolist()
        places = {row: os.path.abspath(self.data.items.names[row]) for row in rows}
        count = Counter(places.values())
        shared = os.path.commonpath([os.path.dirname(place) for place in count])
        return [
            os.path.relpath(places[row], shared) + (f"#{row}" if count[places[row]] > 1 else "")
            for row in self.rows.tolist()
        ]

    def write(
        self, folder: str | Path, further: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, int]:
        """Keep codes on disk; those that are there already stay as they are.

        Args:
            folder: New, or written before from a training of these items and codes.
            further: By modality, codes (bits,) of items from elsewhere, by name.

        Returns:
            How many items each store has got, and how many it has, by `added/MODALITY` and
            `stored/MODALITY`.

        Raises:
            ValueError: The folder's codes are of another training, or damaged; nothing is written.
        """
        order = np.argsort(self.groups, kind="stable")
        stores: dict[str, CodeStore] = {}
        counts: dict[str, int] = {}
        for m in MODALITIES:
            codes = {self.names[place]: self.codes[m][place] for place in order}
            codes = {**codes, **{n: c for n, c in further[m].items() if n not in codes}}
            there = (Path(folder) / m / "store.json").exists()
            store = self._opened(folder, m) if there else None
            before = set(store.names) if store else set()
            new = [name for name in codes if name not in before]
            if new:
                signs = torch.stack([codes[name] for name in new])
                store = store.append(signs, new) if store else CodeStore(signs, new)
            assert store is not None, "the original items have codes"
            stores[m] = store
            counts |= {f"added/{m}": len(new), f"stored/{m}": len(store)}
        for m, store in stores.items():
            store.save(Path(folder) / m)
        return counts

    def _opened(self, folder: str | Path, modality: str) -> CodeStore:
        """A store of the folder, if it begins with the original items' codes and names."""
        store, original = CodeStore.load(Path(folder) / modality), self.groups == 0
        try:
            store.check_unchanged(self.codes[modality][torch.from_numpy(original)])
        except ValueError as error:
            raise ValueError(
                f"store={folder}: holds codes of another training than this checkpoint's: {error}"
            ) from error
        if list(store.names[: original.sum()]) != list(compress(self.names, original)):
            raise ValueError(
                f"store={folder}: holds these codes under other names; encode into another folder"
            )
        return store


def read_further(file: str | Path, data: PairData) -> Iterator[tuple[str, str, Tensor]]:
    """Yield each line of a file of items, and what a network reads of it.

    Args:
        file: Each line as `PairData.encode_query` takes it; empty lines say nothing.
        data: Whose networks read them.

    Yields:
        The line, `image` or `text`, and one row.

    Raises:
        ValueError: There is no such file, or a line cannot be encoded.
    """
    if not Path(file).is_file():
        raise ValueError(f"items={file}: is no file")
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"items={file}: is not UTF-8 at byte {error.start}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                modality, values = data.encode_query(line.strip())
            except ValueError as error:
                raise ValueError(f"items={file}, line {number}: {error}") from error
            yield line.strip(), modality, values
