"""The likeliest queries of a parser: beam search over the derivations that the grammar allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from device import send
from text2sql.grammar import SYMBOLS, Choice, Slot, derive
from text2sql.parser import ParserNetwork
from text2sql.parser_features import SLOT_KINDS, Batch, Features
from text2sql.sql import Query

# Choices, more than any question needs (Spider's longest gold query has 64, one in a thousand 48):
# a derivation that is longer is ended. An untrained parser goes on to the end of this.
_LONGEST = 80
_END = SYMBOLS.index("end")


@torch.no_grad()
def search(network: ParserNetwork, batch: Batch, beam: int = 1) -> list[list[Parse]]:
    """Return the best derivations of each example, best first; gold queries are not looked at.

    Args:
        network: In evaluation mode.
        batch: The examples.
        beam: Derivations that are kept at every step; 1 is greedy.
    """
    steps, nodes = network.begin(batch), batch.is_node.shape[1]
    options = steps.keys.shape[1]
    alive = [[_Path(f)] for f in batch.features]
    done: list[list[_Path]] = [[] for _ in batch.features]
    while any(alive):
        rows = [(b, path) for b, paths in enumerate(alive) for path in paths]
        asked = [(b, p.row, p.option(nodes), SLOT_KINDS.index(p.slot.kind)) for b, p in rows]
        at, before, chosen, kinds = send(torch.tensor(asked), steps.keys.device).unbind(1)
        # Marked on the host and brought over at once, not row by row.
        starts = [path.features.option(path.slot.kind, 0, nodes) for _, path in rows]
        forbidden = np.ones((len(rows), options), dtype=bool)
        for i, (_, path) in enumerate(rows):
            forbidden[i, [starts[i] + index for index in path.allowed]] = False
        logits = network.advance(steps, at, before, chosen, kinds)
        logits = logits.masked_fill(send(torch.from_numpy(forbidden), logits.device), -torch.inf)
        values, places = (t.tolist() for t in logits.log_softmax(-1).topk(min(beam, options)))
        found: list[list[tuple[float, int, int]]] = [[] for _ in alive]
        for i, (b, path) in enumerate(rows):
            for score, place in zip(values[i], places[i], strict=True):
                if score > -torch.inf:
                    found[b].append((path.score + score, i, place - starts[i]))
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
        return self.features.option(self.slots[-2].kind, self.chosen[-1], nodes)

    def then(self, index: int, score: float, row: int, is_last: bool) -> _Path:
        """Choose; a derivation cannot be copied, so that only the last way on takes it over."""
        path = self if is_last else _Path(self.features, self.chosen)
        path._choose(index)
        path.score, path.row = score, row
        return path
