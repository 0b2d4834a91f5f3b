"""What the parser's network reads: questions and schemas as wordpieces, nodes, links and values.

Shapes: B examples, N nodes (words, columns, tables), V values, S symbols of the grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from device import send
from text2sql.encoder import Vocabulary
from text2sql.grammar import SYMBOLS, Choice, Kind, Slot, linearise, replay
from text2sql.linking import Links, link
from text2sql.schema import KINDS, Schema
from text2sql.sql import parse

SLOT_KINDS: tuple[Kind, ...] = get_args(Kind)
ROW = 192
"""Wordpieces that the encoder reads at once. Longer schemas are read in several rows: attention
costs the square of a row, and the relational layers see all of them."""
_QUESTION = 128  # wordpieces of a question; what follows is not read
# Pairs of nodes that are related together, padding included: what fits a CPU's caches, and what
# keeps a GPU busy.
_AREA = {"cpu": 200_000, "cuda": 4_000_000}


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """An example as the network reads it.

    Args:
        links: Words, values and relations.
        schema: The database's.
        rows: Wordpieces of the encoder's rows.
        nodes: For each wordpiece the node it belongs to, or -1.
        choices: The gold query's derivation; None stands for a value that is not on offer.
        slots: What the grammar allowed at each choice.
    """

    links: Links
    schema: Schema
    rows: tuple[tuple[int, ...], ...]
    nodes: tuple[tuple[int, ...], ...]
    choices: tuple[Choice | None, ...] = ()
    slots: tuple[Slot, ...] = ()

    def option(self, kind: Kind, index: int, nodes: int) -> int:
        """Return where a choice stands in the row of options, of a batch with so many nodes.

        That row has S symbols, then N nodes (of which words are never chosen), then V values.
        """
        words, columns = len(self.links.words), len(self.schema.columns)
        starts = {"symbol": 0, "column": words, "table": words + columns, "value": nodes}
        return starts[kind] + index + (len(SYMBOLS) if kind != "symbol" else 0)


class Featuriser:
    """Turns questions and schemas into what the network reads, by the encoder's tokenizer.

    Raises:
        ValueError: The tokenizer is not of an encoder.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise ValueError("pretrained: its tokenizer has no [CLS] and [SEP] or their like")
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer)
        self.separator = int(cast(int, tokenizer.sep_token_id))
        self.start = int(cast(int, tokenizer.cls_token_id))

    def __call__(
        self, question: str, schema: Schema, database: Path | None = None, query: str | None = None
    ) -> Features:
        """Return the features of a question; with a gold query those to train on.

        Args:
            question: What is asked.
            schema: Of the database.
            database: The SQLite file whose cells are looked up, or None.
            query: The gold SQL.

        Raises:
            SqlError: The grammar does not derive the gold query.
        """
        links = link(question, schema, database)
        written, nodes = self._rows(links, schema)
        rows = self._read(written)
        if query is None:
            return Features(links, schema, rows, nodes)
        choices = linearise(parse(query, schema, standard=True), schema, links.values)
        _, slots = replay(choices, schema, links.values)
        return Features(links, schema, rows, nodes, tuple(choices), tuple(slots))

    def _rows(
        self, links: Links, schema: Schema, shuffled: bool = False
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        """Write [CLS] question [SEP] table, column, column [SEP] table ...

        Every row that a long schema needs has the question again. Tables, and columns in each,
        stand in the schema's order, or shuffled by torch's own generator.
        """
        head, head_nodes = [self.start], [-1]
        for node, word in enumerate(links.words):
            pieces = self._pieces(word)
            if len(head) + len(pieces) > _QUESTION:
                break
            head += pieces
            head_nodes += [node] * len(pieces)
        rows, nodes = [[*head, self.separator]], [[*head_nodes, -1]]

        def write(words: str, node: int, after: int) -> None:
            pieces = self._pieces(words)[: ROW - len(head) - 3]
            if len(rows[-1]) + len(pieces) + 1 > ROW:
                rows.append([*head, self.separator])
                nodes.append([*head_nodes, -1])
            rows[-1].extend((*pieces, after))
            nodes[-1].extend([node] * len(pieces) + [-1])

        first = len(links.words)
        comma = self._pieces(",")[0]
        write(schema.columns[0].words, first, self.separator)
        order = _shuffle if shuffled else list
        for index in order(range(len(schema.tables))):
            table = schema.tables[index]
            write(table.words, first + len(schema.columns) + index, comma)
            columns = order(table.columns)
            for column in columns:
                is_last = column == columns[-1]
                write(
                    schema.columns[column].words,
                    first + column,
                    self.separator if is_last else comma,
                )
        return tuple(map(tuple, rows)), tuple(map(tuple, nodes))

    def _read(
        self, rows: tuple[tuple[int, ...], ...], renamed: bool = False
    ) -> tuple[tuple[int, ...], ...]:
        """Put placeholders for words that the tokenizer does not know; see `Vocabulary.names`."""
        names = self.vocabulary.names(chain.from_iterable(rows), renamed)
        return tuple(tuple(self.vocabulary.read(row, names)) for row in rows)

    def redrawn(self, features: Features, shuffle: bool) -> Features:
        """Return features as training reads them this time: the same choices, other placeholders.

        With `shuffle`, tables and columns are read in another order, which means nothing.
        """
        rows, nodes = features.rows, features.nodes
        if shuffle:
            rows, nodes = self._rows(features.links, features.schema, shuffled=True)
        return replace(features, rows=self._read(rows, renamed=True), nodes=nodes)

    def _pieces(self, words: str) -> list[int]:
        return self.vocabulary.ids(words) or [self.separator]


def _shuffle(items: Sequence[int]) -> list[int]:
    return [items[place] for place in torch.randperm(len(items)).tolist()]


@dataclass(frozen=True, slots=True)
class Batch:
    """Features of several examples, padded.

    Args:
        features: The examples.
        relations: uint8 (B, N, N), 0 where padded.
        is_node: bool (B, N).
        node_kind: Word, table, or a column's kind: int64 (B, N).
        span: First and last node of each value: int64 (B, V, 2); -1: not from the question.
        value_kind: 0 the constant, 1 text, 2 number, 3 cell: int64 (B, V).
        is_value: bool (B, V).
    """

    features: Sequence[Features]
    relations: Tensor
    is_node: Tensor
    node_kind: Tensor
    span: Tensor
    value_kind: Tensor
    is_value: Tensor

    @property
    def is_empty(self) -> Tensor:
        """Where nodes and values are padding, (B, N + V)."""
        return ~torch.cat([self.is_node, self.is_value], 1)

    @property
    def option_kind(self) -> Tensor:
        """For each option its place in SLOT_KINDS, -1 for words and padding: (B, S + N + V)."""
        symbol, column, table, value = range(len(SLOT_KINDS))
        symbols = torch.full((len(self.features), len(SYMBOLS)), symbol, device=self.span.device)
        nodes = torch.where(self.node_kind == 1, table, -1).where(self.node_kind < 2, column)
        values = torch.where(self.is_value, value, -1)
        return torch.cat([symbols, nodes.where(self.is_node, -1), values], 1)


def collate(features: Sequence[Features], device: torch.device | str = "cpu") -> Batch:
    """Pad features to a batch."""
    size, nodes = len(features), max(len(f.links.relations) for f in features)
    values = max(len(f.links.candidates) for f in features)
    relations = np.zeros((size, nodes, nodes), dtype=np.uint8)
    node_kind = np.zeros((size, nodes), dtype=np.int64)
    is_node = np.zeros((size, nodes), dtype=bool)
    span = np.full((size, values, 2), -1, dtype=np.int64)
    value_kind = np.zeros((size, values), dtype=np.int64)
    is_value = np.zeros((size, values), dtype=bool)
    for b, f in enumerate(features):
        count = len(f.links.relations)
        relations[b, :count, :count] = f.links.relations
        is_node[b, :count] = True
        words, columns = len(f.links.words), len(f.schema.columns)
        node_kind[b, words : words + columns] = [2 + KINDS.index(c.kind) for c in f.schema.columns]
        node_kind[b, words + columns : count] = 1
        for v, candidate in enumerate(f.links.candidates):
            span[b, v] = candidate.first, candidate.last
            kind = 2 if isinstance(candidate.value, float) else 1
            value_kind[b, v] = 3 if candidate.columns else kind if candidate.first >= 0 else 0
            is_value[b, v] = True
    arrays = (relations, is_node, node_kind, span, value_kind, is_value)
    here = torch.device(device)
    return Batch(features, *(send(torch.from_numpy(array), here) for array in arrays))


def batches(
    features: Sequence[Features], device: torch.device | str = "cpu"
) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of examples of like size, small ones first, with their examples' positions.

    Relations cost the square of the largest number of nodes; a GPU takes larger batches.
    """
    area = _AREA.get(torch.device(device).type, _AREA["cuda"])
    sizes = [len(each.links.relations) for each in features]
    for group in alike(sizes, lambda size, count: count * size**2 <= area):
        yield group, collate([features[index] for index in group], device)


def alike(sizes: Sequence[int], fit: Callable[[int, int], bool]) -> list[list[int]]:
    """Positions of like sizes together, small ones first, as many as fit: (largest, how many)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        if not groups or not fit(sizes[index], len(groups[-1]) + 1):
            groups.append([])
        groups[-1].append(index)
    return groups


def pad(rows: Sequence[Sequence[int]], value: int) -> np.ndarray:
    """Rows of different lengths as one int64 array, filled up with a value."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
