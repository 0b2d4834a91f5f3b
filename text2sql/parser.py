"""A single-turn parser: pretrained encoder, relation-aware layers, decoder over the grammar.

Question and schema are read together by the encoder; relation-aware self-attention (RAT-SQL, arXiv
1911.04942) then sees words, columns and tables as nodes with the links of `linking`; a transformer
decoder chooses among what `grammar` allows, pointing at columns, tables and values.

Shapes: B examples, N nodes (words, columns, tables), V values, T choices, D width, S symbols.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from text2sql.encoder import Vocabulary
from text2sql.grammar import SYMBOLS, Choice, Kind, Slot, derive, linearise, replay
from text2sql.linking import RELATIONS, Links, link
from text2sql.schema import KINDS, Schema
from text2sql.sql import Query, parse

_KINDS: tuple[Kind, ...] = ("symbol", "column", "table", "value")
# Wordpieces that the encoder reads at once. Longer schemas are read in several rows: attention
# costs the square of a row, and the relational layers see all of them.
_ROW = 192
_QUESTION = 128  # wordpieces of a question; what follows is not read
# Choices, more than any question needs (Spider's longest gold query has 64, one in a thousand 48):
# a derivation that is longer is ended. An untrained parser goes on to the end of this.
_LONGEST = 80
_PLACES = 160  # of choices that the decoder tells apart; those beyond are one
_END = SYMBOLS.index("end")
# Wordpieces that are encoded together, of rows of like length, and pairs of nodes that are related
# together, padding included: what fits a CPU's caches, and what keeps a GPU busy.
_GROUP = {"cpu": 1024, "cuda": 32_768}
_AREA = {"cpu": 200_000, "cuda": 4_000_000}


# --- features ------------------------------------------------------------------------------------


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


class Featuriser:
    """Turns questions and schemas into what the network reads, by the encoder's tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
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
        choices = linearise(parse(query, schema, scoped=True), schema, links.values)
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
            pieces = self._pieces(words)[: _ROW - len(head) - 3]
            if len(rows[-1]) + len(pieces) + 1 > _ROW:
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
    return Batch(features, *(torch.from_numpy(array).to(device) for array in arrays))


# --- network -------------------------------------------------------------------------------------


class RelationalLayer(nn.Module):
    """Self-attention over nodes whose scores also know the relation of the two (arXiv 1803.02155).

    Relations act on the keys; which relations a node takes part in is added to its input instead of
    to the values, which costs no (B, heads, N, N, width) product.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.relation_keys = nn.Parameter(torch.randn(len(RELATIONS), width // heads) * 0.02)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = dropout

    def forward(self, x: Tensor, relations: Tensor, is_node: Tensor) -> Tensor:
        """Nodes (B, N, D), relations int64 (B, N, N) and mask (B, N) to nodes."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        by_relation = q @ self.relation_keys.T.to(q.dtype)  # (B, heads, N, relations)
        bias = by_relation.gather(3, relations[:, None].expand(b, self.heads, n, n))
        bias = bias / q.shape[-1] ** 0.5
        bias = bias.masked_fill(~is_node[:, None, None, :], torch.finfo(bias.dtype).min)
        # Written out: on a CPU the fused function's backward pass in bf16 takes five times as long.
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias).softmax(-1).to(v.dtype)
        mixed = self.out((weights @ v).transpose(1, 2).reshape(b, n, d))
        x = x + F.dropout(mixed, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm_after(x)), self.dropout, self.training)


class ParserNetwork(nn.Module):
    """Scores derivations of SQL.

    All that a choice can be made from stands in one row of options: S symbols, then N nodes
    (columns and tables are chosen, words never), then V values.

    Args:
        encoder: A transformers encoder.
        width: D of the relational layers and the decoder; divisible by `heads`.
        layers: Relational layers.
        decoder_layers: Layers of the decoder.
        heads: Attention heads of both.
        dropout: In both, on states; not on attention, which on a CPU costs a third of the time.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        width: int = 256,
        layers: int = 3,
        decoder_layers: int = 3,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.width, self.dropout = width, dropout
        self.project = nn.Linear(int(encoder.config.hidden_size), width)
        self.node_kinds = nn.Embedding(2 + len(KINDS), width)
        self.takes_part = nn.Linear(len(RELATIONS), width, bias=False)
        self.layers = nn.ModuleList(RelationalLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.value_kinds = nn.Embedding(4, width)
        self.value = nn.Linear(2 * width, width)
        self.symbols = nn.Embedding(len(SYMBOLS), width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.chosen = nn.Linear(width, width)  # a node or value as the decoder's input
        self.slots = nn.Embedding(len(_KINDS), width)
        self.positions = nn.Embedding(_PLACES + 1, width)
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        layer.self_attn.dropout = layer.multihead_attn.dropout = 0.0
        self.decoder = nn.TransformerDecoder(layer, decoder_layers, norm=nn.LayerNorm(width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)  # a node or value as an option
        self.symbol_keys = nn.Embedding(len(SYMBOLS), width)
        for table in (self.node_kinds, self.value_kinds, self.symbols, self.slots, self.positions,
                      self.symbol_keys):  # fmt: skip
            nn.init.normal_(table.weight, std=0.02)

    # -- encoding

    def encode(self, batch: Batch) -> Tensor:
        """Return nodes and values, (B, N + V, D)."""
        nodes = self._pool(batch)
        relations = batch.relations.long()
        b, n = batch.is_node.shape
        there = torch.zeros(b, n, len(RELATIONS), device=relations.device)
        there.scatter_(2, relations, 1.0)
        x = self.project(nodes) + self.node_kinds(batch.node_kind) + self.takes_part(there)
        x = F.dropout(x, self.dropout, self.training)
        for layer in self.layers:
            x = layer(x, relations, batch.is_node)
        x = self.norm(x)
        ends = batch.span.clamp_min(0).flatten(1)[..., None].expand(-1, -1, self.width)
        spans = x.gather(1, ends).view(b, -1, 2 * self.width)
        spans = spans * (batch.span[..., :1] >= 0)
        values = self.value(spans) + self.value_kinds(batch.value_kind)
        return torch.cat([x, values.to(x.dtype)], 1)

    def _pool(self, batch: Batch) -> Tensor:
        """Means of the encoder's states over the wordpieces of each node, (B, N, width)."""
        size, nodes = batch.is_node.shape
        device = batch.is_node.device
        rows = [
            (row, [b * nodes + node if node >= 0 else -1 for node in places])
            for b, f in enumerate(batch.features)
            for row, places in zip(f.rows, f.nodes, strict=True)
        ]
        sums = torch.zeros(size * nodes, int(self.encoder.config.hidden_size), device=device)
        counts = torch.zeros(size * nodes, 1, device=device)
        most = _GROUP.get(device.type, _GROUP["cuda"])
        lengths = [len(row) for row, _ in rows]
        alike = _alike(lengths, lambda length, count: count * length <= most)
        groups = [[rows[index] for index in group] for group in alike]
        padded = [_pad([row for row, _ in group], 0) for group in groups]
        # Looked up for all groups at once: the gradient of a lookup is as large as the vocabulary.
        flat = torch.from_numpy(np.concatenate([ids.ravel() for ids in padded])).to(device)
        words = self.encoder.get_input_embeddings()(flat).split([ids.size for ids in padded])
        for group, ids, embedded in zip(groups, padded, words, strict=True):
            mask = _pad([[1] * len(row) for row, _ in group], 0)
            places = _pad([targets for _, targets in group], -1)
            states = self.encoder(
                inputs_embeds=embedded.view(*ids.shape, -1),
                attention_mask=torch.from_numpy(mask).to(device),
            ).last_hidden_state
            # Found here: on a GPU a mask of which nobody knows how much it holds is waited for.
            used = np.flatnonzero(places.ravel() >= 0)
            index = torch.from_numpy(places.ravel()[used]).to(device)
            read = states.flatten(0, 1)[torch.from_numpy(used).to(device)]
            sums = sums.index_add(0, index, read.to(sums.dtype))
            counts.index_add_(0, index, torch.ones(len(index), 1, device=device))
        return (sums / counts.clamp_min(1)).view(size, nodes, -1)

    # -- decoding

    def log_likelihood(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of the gold derivations in nats, and their numbers of choices, (B,)."""
        device, nodes = batch.is_node.device, batch.is_node.shape[1]
        memory = self.encode(batch)
        length = max(len(f.choices) for f in batch.features)
        size = (len(batch.features), length)
        kinds, chosen = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        targets = np.full(size, -100)
        symbols = np.zeros((*size, len(SYMBOLS)), dtype=bool)
        for b, f in enumerate(batch.features):
            for t, (choice, slot) in enumerate(zip(f.choices, f.slots, strict=True)):
                option = _option(f, slot.kind, choice.index if choice else 0, nodes)
                kinds[b, t] = _KINDS.index(slot.kind)
                chosen[b, t] = option
                if choice is not None:
                    targets[b, t] = option
                if slot.kind == "symbol":
                    symbols[b, t, list(slot.allowed)] = True
            # Padding has all symbols to choose from, so that no row is without an option.
            symbols[b, len(f.choices) :] = True
        kind, before, target, narrow = (
            torch.from_numpy(array).to(device)
            for array in (kinds, chosen[:, :-1], targets, symbols)
        )
        hidden = self._decode(_empty(batch), memory, before, kind)
        allowed = _of_kind(batch)[:, None].expand(-1, length, -1) == kind[..., None]
        allowed[..., : len(SYMBOLS)] &= narrow
        scores = self._scores(memory, hidden).masked_fill(~allowed, -torch.inf)
        found = F.cross_entropy(
            scores.flatten(0, 1).float(), target.flatten(), ignore_index=-100, reduction="none"
        )
        return -found.view(target.shape).sum(1), (target != -100).sum(1)

    def _decode(self, empty: Tensor, memory: Tensor, chosen: Tensor, kinds: Tensor) -> Tensor:
        """States (B, T, D) for slots of kinds (B, T), behind the options chosen, (B, T - 1).

        The memory is that of `encode`; `empty` says where it is padding, (B, N + V).
        """
        b, t = kinds.shape
        options = torch.cat(
            [self.symbols.weight.expand(b, -1, -1).to(memory.dtype), self.chosen(memory)], 1
        )
        before = options.gather(1, chosen[..., None].expand(-1, -1, self.width))
        before = torch.cat([self.start.expand(b, 1, -1).to(before.dtype), before], 1)
        x = (
            before
            + self.slots(kinds)
            + self.positions(torch.arange(t, device=kinds.device).clamp_max(_PLACES))
        )
        ahead = torch.ones(t, t, dtype=torch.bool, device=kinds.device).triu(1)
        return self.decoder(
            x, memory, tgt_mask=ahead, tgt_is_causal=False, memory_key_padding_mask=empty
        )

    def _scores(self, memory: Tensor, hidden: Tensor) -> Tensor:
        """Logits of all options, (B, T, S + N + V)."""
        keys = torch.cat(
            [self.symbol_keys.weight.expand(len(memory), -1, -1).to(memory.dtype),
             self.key(memory)], 1
        )  # fmt: skip
        return self.query(hidden) @ keys.transpose(1, 2) / self.width**0.5

    def _next(self, steps: _Steps, *rows: Tensor) -> Tensor:
        """See `_Steps.take`; what of decoding is the network's."""
        return steps.take(*rows)

    @torch.no_grad()
    def parse(self, batch: Batch, beam: int = 1) -> list[list[Parse]]:
        """Return the best derivations of each example, best first; gold queries are not looked at.

        Args:
            batch: The examples.
            beam: Derivations that are kept at every step; 1 is greedy.
        """
        memory = self.encode(batch)
        steps, kind_of = _Steps(self, memory, _empty(batch)), _of_kind(batch)
        nodes = batch.is_node.shape[1]
        alive = [[_Path(f)] for f in batch.features]
        done: list[list[_Path]] = [[] for _ in batch.features]
        while any(alive):
            rows = [(b, path) for b, paths in enumerate(alive) for path in paths]
            at, before, chosen, kinds = torch.tensor(
                [(b, p.row, p.option(nodes), _KINDS.index(p.slot.kind)) for b, p in rows],
                device=memory.device,
            ).unbind(1)
            # Marked on the host and brought over at once, not row by row.
            starts = [_option(path.features, path.slot.kind, 0, nodes) for _, path in rows]
            narrow = np.zeros((len(rows), kind_of.shape[1]), dtype=bool)
            for i, (_, path) in enumerate(rows):
                narrow[i, [starts[i] + index for index in path.allowed]] = True
            allowed = kind_of[at] == kinds[:, None]
            allowed &= torch.from_numpy(narrow).to(allowed.device)
            logits = self._next(steps, at, before, chosen, kinds)
            scores = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
            values, options = (t.tolist() for t in scores.topk(min(beam, scores.shape[1])))
            found: list[list[tuple[float, int, int]]] = [[] for _ in alive]
            for i, (b, path) in enumerate(rows):
                for score, option in zip(values[i], options[i], strict=True):
                    if score > -torch.inf:
                        found[b].append((path.score + score, i, option - starts[i]))
            for b, ways in enumerate(found):
                ways.sort(key=lambda way: -way[0])
                left = Counter(i for _, i, _ in ways[:beam])
                paths = []
                for score, i, index in ways[:beam]:
                    left[i] -= 1
                    paths.append(rows[i][1].then(index, score, i, is_last=not left[i]))
                done[b] += [path for path in paths if path.query is not None]
                alive[b] = [path for path in paths if path.query is None]
                # No open derivation can overtake a finished one: scores only fall.
                finished = sorted((p.score for p in done[b]), reverse=True)[:beam]
                if len(finished) == beam and alive[b] and alive[b][0].score <= finished[-1]:
                    alive[b] = []
        return [
            [path.parse() for path in sorted(paths, key=lambda path: -path.score)[:beam]]
            for paths in done
        ]


@dataclass(frozen=True, slots=True)
class Parse:
    """A query that was decoded, its log-likelihood in nats, and the choices that lead to it."""

    query: Query
    score: float
    choices: tuple[Choice, ...]
    slots: tuple[Slot, ...]


class _Path:
    """A derivation under way: what was chosen, and what may come next."""

    def __init__(self, features: Features, chosen: Sequence[int] = ()) -> None:
        self.features = features
        self.score, self.row = 0.0, 0
        self.chosen: list[int] = []
        self.query: Query | None = None
        self._derivation = derive(features.schema, features.links.values)
        self.slots = [next(self._derivation)]
        for index in chosen:
            self._choose(index)

    def _choose(self, index: int) -> None:
        self.chosen.append(index)
        try:
            self.slots.append(self._derivation.send(index))
        except StopIteration as end:
            self.query = end.value

    @property
    def slot(self) -> Slot:
        return self.slots[-1]

    @property
    def allowed(self) -> tuple[int, ...]:
        """What may be chosen; of a derivation that is too long, only what leads to its end."""
        slot = self.slot
        if slot.kind != "symbol" or len(self.chosen) < _LONGEST:
            return slot.allowed
        return (_END,) if _END in slot.allowed else slot.allowed[:1]

    def parse(self) -> Parse:
        assert self.query is not None, "the derivation has ended"
        chosen = zip(self.slots, self.chosen, strict=True)
        choices = tuple(Choice(slot.kind, index) for slot, index in chosen)
        return Parse(self.query, self.score, choices, tuple(self.slots))

    def option(self, nodes: int) -> int:
        """Where the last choice stands in the row of options; before the first one, 0."""
        if not self.chosen:
            return 0
        return _option(self.features, self.slots[-2].kind, self.chosen[-1], nodes)

    def then(self, index: int, score: float, row: int, is_last: bool) -> _Path:
        """Choose; a derivation cannot be copied, so that only the last way on takes it over."""
        path = self if is_last else _Path(self.features, self.chosen)
        path._choose(index)
        path.score, path.row = score, row
        return path


class _Steps:
    """The decoder, a choice at a time (in evaluation mode): what it read and chose is kept."""

    def __init__(self, network: ParserNetwork, memory: Tensor, empty: Tensor) -> None:
        self.network, self.there = network, ~empty[:, None, None, :]
        symbols = (table.weight.expand(len(memory), -1, -1).to(memory.dtype)
                   for table in (network.symbols, network.symbol_keys))  # fmt: skip
        inputs, keys = symbols
        self.inputs = torch.cat([inputs, network.chosen(memory)], 1)
        self.keys = torch.cat([keys, network.key(memory)], 1)
        self.layers = [cast(nn.TransformerDecoderLayer, each) for each in network.decoder.layers]
        self.read = [_heads(layer.multihead_attn, memory)[1:] for layer in self.layers]
        self.past: list[tuple[Tensor, Tensor]] = []
        self.place = 0

    def take(self, at: Tensor, before: Tensor, chosen: Tensor, kinds: Tensor) -> Tensor:
        """Return the logits of all options, float (R, S + N + V), for R derivations.

        Args:
            at: Which example each is of, (R,).
            before: Its row in the call before, (R,).
            chosen: The option chosen there, (R,).
            kinds: Of the slot that is open, (R,).
        """
        network = self.network
        x = self.inputs[at, chosen] if self.place else network.start.expand(len(at), -1)
        place = torch.tensor(min(self.place, _PLACES), device=at.device)
        x = (x + network.slots(kinds) + network.positions(place))[:, None]
        there = self.there[at]
        kept = []
        for number, layer in enumerate(self.layers):
            q, k, v = _heads(layer.self_attn, layer.norm1(x))
            if self.place:
                k, v = (
                    torch.cat([past[before], new], 2)
                    for past, new in zip(self.past[number], (k, v), strict=True)
                )
            kept.append((k, v))
            x = x + _joined_heads(layer.self_attn, F.scaled_dot_product_attention(q, k, v))
            q = _heads(layer.multihead_attn, layer.norm2(x), queries_only=True)[0]
            k, v = (each[at] for each in self.read[number])
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
            x = x + _joined_heads(layer.multihead_attn, mixed)
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm3(x))))
        self.past, self.place = kept, self.place + 1
        hidden = network.query(cast(nn.LayerNorm, network.decoder.norm)(x))
        return (hidden @ self.keys[at].transpose(1, 2))[:, 0].float() / network.width**0.5


def _heads(
    attention: nn.MultiheadAttention, x: Tensor, queries_only: bool = False
) -> tuple[Tensor, ...]:
    """Queries, keys and values of states (B, T, D), each (B, heads, T, D / heads)."""
    b, t, d = x.shape
    rows = d if queries_only else 3 * d
    weight, bias = attention.in_proj_weight[:rows], attention.in_proj_bias[:rows]
    found = F.linear(x, weight, bias).view(b, t, -1, attention.num_heads, d // attention.num_heads)
    return found.permute(2, 0, 3, 1, 4).unbind(0)


def _joined_heads(attention: nn.MultiheadAttention, mixed: Tensor) -> Tensor:
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def _option(features: Features, kind: Kind, index: int, nodes: int) -> int:
    """Where a symbol, column, table or value stands in the row of options."""
    words, columns = len(features.links.words), len(features.schema.columns)
    starts = {
        "symbol": 0,
        "column": len(SYMBOLS) + words,
        "table": len(SYMBOLS) + words + columns,
        "value": len(SYMBOLS) + nodes,
    }
    return starts[kind] + index


def _empty(batch: Batch) -> Tensor:
    """Where nodes and values are padding, (B, N + V)."""
    return ~torch.cat([batch.is_node, batch.is_value], 1)


def _of_kind(batch: Batch) -> Tensor:
    """For each option the index of its kind, -1 for words and padding: (B, S + N + V)."""
    b = len(batch.features)
    device = batch.is_node.device
    symbols = torch.zeros(b, len(SYMBOLS), dtype=torch.long, device=device)
    nodes = torch.where(
        batch.node_kind >= 2,
        _KINDS.index("column"),
        torch.where(batch.node_kind == 1, _KINDS.index("table"), -1),
    )
    nodes = torch.where(batch.is_node, nodes, -1)
    values = torch.where(batch.is_value, _KINDS.index("value"), -1)
    return torch.cat([symbols, nodes, values], 1)


def batches(
    features: Sequence[Features], device: torch.device | str = "cpu"
) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of examples of like size, small ones first, with their examples' positions.

    Relations cost the square of the largest number of nodes; a GPU takes larger batches.
    """
    area = _AREA.get(torch.device(device).type, _AREA["cuda"])
    sizes = [len(each.links.relations) for each in features]
    for group in _alike(sizes, lambda size, count: count * size**2 <= area):
        yield group, collate([features[index] for index in group], device)


def _alike(sizes: Sequence[int], fit: Callable[[int, int], bool]) -> list[list[int]]:
    """Positions of like sizes together, small ones first, as many as fit: (largest, how many)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        if not groups or not fit(sizes[index], len(groups[-1]) + 1):
            groups.append([])
        groups[-1].append(index)
    return groups


def _pad(rows: Sequence[Sequence[int]], value: int) -> np.ndarray:
    """Rows of different lengths as one int64 array, filled up with a value."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
