"""A single-turn parser: pretrained encoder, relation-aware layers, decoder over the grammar.

Question and schema are read together by the encoder; relation-aware self-attention (RAT-SQL, arXiv
1911.04942) then sees words, columns and tables as nodes with the links of `linking`; a transformer
decoder chooses among what `grammar` allows, pointing at columns, tables and values.

Shapes: B examples, N nodes (words, columns, tables), V values, T choices, D width, S symbols.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from device import send
from text2sql.encoder import attention_mask
from text2sql.grammar import SYMBOLS
from text2sql.linking import RELATIONS
from text2sql.parser_features import ROW, SLOT_KINDS, Batch, alike, pad
from text2sql.schema import KINDS

_PLACES = 160  # of choices that the decoder tells apart; those beyond are one
# Wordpieces that are encoded together, of rows of like length, padding included.
_GROUP = {"cpu": 1024, "cuda": 32_768}


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

    All that a choice can be made from stands in one row of options, see `Features.option`.

    Args:
        encoder: A transformers encoder.
        width: D of the relational layers and the decoder; divisible by `heads`.
        layers: Relational layers.
        decoder_layers: Layers of the decoder.
        heads: Attention heads of both.
        dropout: In both, on states; not on attention, which on a CPU costs a third of the time.

    Raises:
        ValueError: The encoder reads too little at once.
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
        limit = getattr(encoder.config, "max_position_embeddings", ROW)
        if limit < ROW:
            raise ValueError(
                f"pretrained or architecture: the encoder reads {limit} wordpieces at once, by its "
                f"max_position_embeddings; must be at least {ROW}"
            )
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
        self.slots = nn.Embedding(len(SLOT_KINDS), width)
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
        near = alike(lengths, lambda length, count: count * length <= most)
        groups = [[rows[index] for index in group] for group in near]
        padded = [pad([row for row, _ in group], 0) for group in groups]
        # Looked up for all groups at once: the gradient of a lookup is as large as the vocabulary.
        flat = send(torch.from_numpy(np.concatenate([ids.ravel() for ids in padded])), device)
        words = self.encoder.get_input_embeddings()(flat).split([ids.size for ids in padded])
        for group, ids, embedded in zip(groups, padded, words, strict=True):
            mask = send(torch.from_numpy(pad([[1] * len(row) for row, _ in group], 0)), device)
            places = pad([targets for _, targets in group], -1).ravel()
            inputs = embedded.view(*ids.shape, -1)
            states = self.encoder(
                inputs_embeds=inputs, attention_mask=attention_mask(self.encoder, mask, inputs)
            ).last_hidden_state
            # Found here: on a GPU a mask of which nobody knows how much it holds is waited for.
            used = np.flatnonzero(places >= 0)
            used_here, index = send(torch.from_numpy(np.stack([used, places[used]])), device)
            read = states.flatten(0, 1)[used_here]
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
        rows = np.zeros((3, *size), dtype=np.int64)
        kinds, chosen, targets = rows
        targets[:] = -100
        symbols = np.zeros((*size, len(SYMBOLS)), dtype=bool)
        for b, f in enumerate(batch.features):
            for t, (choice, slot) in enumerate(zip(f.choices, f.slots, strict=True)):
                option = f.option(slot.kind, choice.index if choice else 0, nodes)
                kinds[b, t] = SLOT_KINDS.index(slot.kind)
                chosen[b, t] = option
                if choice is not None:
                    targets[b, t] = option
                if slot.kind == "symbol":
                    symbols[b, t, list(slot.allowed)] = True
            # Padding has all symbols to choose from, so that no row is without an option.
            symbols[b, len(f.choices) :] = True
        kind, taken, target = send(torch.from_numpy(rows), device)
        narrow = send(torch.from_numpy(symbols), device)
        hidden = self._decode(batch.is_empty, memory, taken[:, :-1], kind)
        allowed = batch.option_kind[:, None] == kind[..., None]
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
        options = _options(self.symbols, self.chosen, memory)
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
        keys = _options(self.symbol_keys, self.key, memory)
        return self.query(hidden) @ keys.transpose(1, 2) / self.width**0.5

    # -- decoding, a choice at a time (in evaluation mode)

    def begin(self, batch: Batch) -> Steps:
        """Read examples, to score what they derive by `advance`."""
        memory = self.encode(batch)
        return Steps(
            _options(self.symbols, self.chosen, memory),
            _options(self.symbol_keys, self.key, memory),
            ~batch.is_empty[:, None, None, :],
            [_heads(layer.multihead_attn, memory)[1:] for layer in self._decoder_layers],
        )

    def advance(
        self, steps: Steps, at: Tensor, before: Tensor, chosen: Tensor, kinds: Tensor
    ) -> Tensor:
        """Return the logits of all options, float (R, S + N + V), for R derivations.

        Args:
            steps: Of `begin`; keeps what was read and chosen.
            at: Which example each is of, (R,).
            before: Its row in the call before, (R,).
            chosen: The option chosen there, (R,).
            kinds: Of the slot that is open, (R,).
        """
        x = steps.inputs[at, chosen] if steps.place else self.start.expand(len(at), -1)
        place = torch.full((), min(steps.place, _PLACES), device=at.device)
        x = (x + self.slots(kinds) + self.positions(place))[:, None]
        there = steps.there[at]
        past = []
        for number, layer in enumerate(self._decoder_layers):
            q, k, v = _heads(layer.self_attn, layer.norm1(x))
            if steps.place:
                k, v = (
                    torch.cat([kept[before], new], 2)
                    for kept, new in zip(steps.past[number], (k, v), strict=True)
                )
            past.append((k, v))
            x = x + _joined_heads(layer.self_attn, F.scaled_dot_product_attention(q, k, v))
            q = _heads(layer.multihead_attn, layer.norm2(x), queries_only=True)[0]
            k, v = (each[at] for each in steps.read[number])
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
            x = x + _joined_heads(layer.multihead_attn, mixed)
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm3(x))))
        steps.past, steps.place = past, steps.place + 1
        hidden = self.query(cast(nn.LayerNorm, self.decoder.norm)(x))
        return (hidden @ steps.keys[at].transpose(1, 2))[:, 0].float() / self.width**0.5

    @property
    def _decoder_layers(self) -> list[nn.TransformerDecoderLayer]:
        return [cast(nn.TransformerDecoderLayer, each) for each in self.decoder.layers]


@dataclass
class Steps:
    """What decoding has read and chosen so far.

    Args:
        inputs: Options as the decoder's inputs, (B, S + N + V, D).
        keys: Options as what is scored, (B, S + N + V, D).
        there: Which of nodes and values are no padding, (B, 1, 1, N + V).
        read: Keys and values of these in each layer, (B, heads, N + V, D / heads).
        past: Keys and values of the choices in each layer, (R, heads, T, D / heads).
        place: T.
    """

    inputs: Tensor
    keys: Tensor
    there: Tensor
    read: list[tuple[Tensor, ...]]
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    place: int = 0


def _options(symbols: nn.Embedding, layer: nn.Linear, memory: Tensor) -> Tensor:
    """The row of options, (B, S + N + V, D): symbols, and what a layer makes of the memory."""
    first = symbols.weight.expand(len(memory), -1, -1).to(memory.dtype)
    return torch.cat([first, layer(memory)], 1)


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
