"""Utterance rewriting: from the dialogue so far and a short question to one that stands alone.

The first half of DELTA (arXiv 2106.02282), and its dual: the simplifier, which makes of a complete
question what a person would say at that point of the dialogue. Both are the same networks
(`text2sql.rewriter_networks`) on other layouts. Here stands what all of them share.

Shapes: B sources, K hypotheses for each, N = B x K, S positions of a source, T of a target,
V word pieces, H width.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from device import send
from text2sql.decoding import beam_search, draw_samples, evaluating
from text2sql.dialogue import Example
from text2sql.encoder import Vocabulary
from text2sql.words import WORD, unaccented

TURNS = 4  # of a dialogue that are read before the current one
TEXT, HINTS = 0, TURNS + 1  # roles of positions; between them, how many turns ago a position is

# --- what is read and written --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """What a network reads.

    Args:
        context: Turns before, oldest first.
        text: What is to be written anew.
        hints: Further words that may be of use: names of the database's tables and columns.
    """

    context: tuple[str, ...]
    text: str
    hints: str = ""


def to_rewrite(example: Example, schema_words: bool = False) -> Source:
    """Lay a turn out for the rewriter: history and utterance, in go; the complete question out."""
    return Source(example.history[-TURNS:], example.utterance, _hints(example, schema_words))


def to_simplify(example: Example, question: str, schema_words: bool = False) -> Source:
    """Lay a turn out for the simplifier: history and complete question; the utterance out."""
    return Source(example.history[-TURNS:], question, _hints(example, schema_words))


def _hints(example: Example, schema_words: bool) -> str:
    if not schema_words or example.schema is None:
        return ""
    schema = example.schema
    return "; ".join(
        ", ".join([table.words, *(schema.columns[column].words for column in table.columns)])
        for table in schema.tables
    )


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text that a network wrote.

    Args:
        text: In words.
        score: Its log-probability; of a beam search divided by its length.
        tokens: Word pieces with the end, without the beginning.
    """

    text: str
    score: float
    tokens: tuple[int, ...]


# --- what all networks share ---------------------------------------------------------------------


class Features(NamedTuple):
    """A batch of sources as numbers, all (B, S)."""

    ids: Tensor
    mask: Tensor
    """1 where there is a token."""
    roles: Tensor
    """TEXT, how many turns ago, or HINTS."""
    content: Tensor
    """Where a word piece stands that is no special token."""


@dataclass
class Memory:
    """What a decoder reads, a row for each text that is written, and what it has written.

    Args:
        states: The encoder's output, (N, S, H).
        features: Of the sources.
        keys: Of the copying attention, (N, S, H); None for a decoder that does not copy.
        past: Cached keys and values: of what was written, or of a language model also of what it
            has read.
        written: Tokens so far, (N, T); only where copying goes on from them.
    """

    states: Tensor
    features: Features
    keys: Tensor | None = None
    past: Any = None
    written: Tensor | None = None

    def repeated(self, copies: int) -> Memory:
        """K rows for each one."""
        features = Features(*(f.repeat_interleave(copies, 0) for f in self.features))
        keys = None if self.keys is None else self.keys.repeat_interleave(copies, 0)
        if self.past is not None:
            self.past.batch_repeat_interleave(copies)
        return Memory(self.states.repeat_interleave(copies, 0), features, keys, self.past)

    def reorder(self, rows: Tensor) -> None:
        """Let what was written come from these rows; sources stay, rows only move within one."""
        if self.past is not None:
            getattr(self.past, "self_attention_cache", self.past).reorder_cache(rows)
        if self.written is not None:
            self.written = self.written[rows]


class Rewriter(nn.Module, ABC):
    """What reads a source and writes a text, token by token, with its log-probability.

    A subclass says how sources are encoded, and what the log-probabilities of tokens are.

    Args:
        tokenizer: Of Hugging Face.
        source_tokens: Longest source; hints give way first, then the oldest words.
        target_tokens: Longest text, its end included.
    """

    begin: int
    end: int

    def __init__(self, tokenizer: Any, source_tokens: int, target_tokens: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.source_tokens, self.target_tokens = source_tokens, target_tokens
        self.uncased = tokenizer.tokenize("A") == tokenizer.tokenize("a")
        self.separator: int = (
            tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        )
        self.vocabulary = Vocabulary(tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def ids(self, text: str) -> list[int]:
        """Word pieces of a text, without special tokens; see `Vocabulary.ids`."""
        return self.vocabulary.ids(text)

    def names(self, source: Source, renamed: bool = False) -> dict[int, int]:
        """Placeholders of a source's unknown words; see `Vocabulary.names`."""
        return self.vocabulary.names((i for i, *_ in self._row(source)), renamed)

    def features(
        self, sources: Sequence[Source], names: Sequence[Mapping[int, int]] | None = None
    ) -> Features:
        """Tokenise B sources as `[CLS] oldest turn [SEP] ... [SEP] text [SEP] hints [SEP]`.

        Placeholders are those of `names`, where none are given.
        """
        rows = [self._row(source) for source in sources]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        table = torch.tensor([[*row, *[(pad, 0, TEXT, 0)] * (longest - len(row))] for row in rows])
        if self.vocabulary.placeholders:
            given = [self.names(source) for source in sources] if names is None else names
            pairs = zip(table[..., 0].tolist(), given, strict=True)
            table[..., 0] = torch.tensor([self.vocabulary.read(ids, by) for ids, by in pairs])
        ids, mask, roles, content = send(table, self.device).unbind(-1)
        return Features(ids, mask, roles, content.bool())

    def _row(self, source: Source) -> list[tuple[int, int, int, int]]:
        """(id, 1, role, whether it is content) of every position."""
        first = self.tokenizer.cls_token_id
        head = [] if first is None else [(first, 1, TEXT, 0)]
        left = self.source_tokens - len(head)

        def segment(ids: Sequence[int], role: int) -> list[tuple[int, int, int, int]]:
            return [*((i, 1, role, 1) for i in ids), (self.separator, 1, role, 0)]

        middle = segment(self.ids(source.text)[: left - 1], TEXT)
        left -= len(middle)
        for ago, turn in enumerate(reversed(source.context), start=1):
            if left < 2:
                break
            ids = self.ids(turn)[-(left - 1) :]
            middle = segment(ids, min(ago, TURNS)) + middle
            left -= len(ids) + 1
        tail = []
        if source.hints and left > 1:
            tail = segment(self.ids(source.hints)[: left - 1], HINTS)
        return head + middle + tail

    def turns_read(self, source: Source) -> int:
        """Return how many turns before the text are read, the last ones, in whole or their ends."""
        roles = (role for *_, role, _ in self._row(source))
        return max((role for role in roles if TEXT < role < HINTS), default=0)

    def words(self, tokens: Sequence[int], source: Source) -> str:
        """Turn word pieces into text, spelled as the source spells it."""
        text = self.vocabulary.text(tokens, self.names(source))
        return spelled(text, (*source.context, source.text, source.hints)) if self.uncased else text

    # --- what is written

    @abstractmethod
    def _encode(self, features: Features) -> Memory:
        """Read the sources."""

    @abstractmethod
    def _scored(self, memory: Memory, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Log-probabilities of the targets, each after the inputs up to its place, (B, T)."""

    @abstractmethod
    def _next(self, memory: Memory, tokens_N: Tensor) -> Tensor:
        """Log-probabilities of what follows, (N, V); the memory keeps what it has read so far."""

    def target(self, text: str, names: Mapping[int, int]) -> list[int]:
        """Word pieces of a text to be written, with its end and a source's placeholders."""
        pieces = self.vocabulary.written(self.ids(text), names)
        return [*pieces[: self.target_tokens - 1], self.end]

    def counted_loss(
        self, sources: Sequence[Source], targets: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood of the targets, in nats per token, and their tokens.

        See `Vocabulary`.
        """
        names = [self.names(source, renamed=self.training) for source in sources]
        log_probs, mask = self._token_log_probs(sources, targets, names)
        count = mask.sum()
        return -log_probs.sum() / count, count

    def loss(self, sources: Sequence[Source], targets: Sequence[str]) -> Tensor:
        """The mean alone."""
        return self.counted_loss(sources, targets)[0]

    def log_prob(
        self, sources: Sequence[Source], targets: Sequence[str | Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Score texts; a source that has several is read once.

        Args:
            sources: B.
            targets: Texts, or the tokens of hypotheses: N = B x K, K for each source in turn.

        Returns:
            Log-probabilities in nats, (N,), and lengths in tokens, (N,).
        """
        names = [self.names(source) for source in sources]
        log_probs, mask = self._token_log_probs(sources, targets, names)
        return log_probs.sum(1), mask.sum(1)

    def _token_log_probs(
        self,
        sources: Sequence[Source],
        targets: Sequence[str | Sequence[int]],
        names: Sequence[Mapping[int, int]],
    ) -> tuple[Tensor, Tensor]:
        copies, rest = divmod(len(targets), len(sources))
        assert not rest, "every source has as many targets as the others"
        rows = [
            self.target(each, names[place // copies]) if isinstance(each, str) else each
            for place, each in enumerate(targets)
        ]
        longest = max(map(len, rows))
        filled = [[*ids, *[self.end] * (longest - len(ids))] for ids in rows]
        padded = send(torch.tensor(filled), self.device)
        lengths = send(torch.tensor([len(ids) for ids in rows]), self.device)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        begin = torch.full_like(padded[:, :1], self.begin)
        inputs = torch.cat((begin, padded[:, :-1]), dim=1)
        memory = self._encode(self.features(sources, names))
        scored = self._scored(memory.repeated(copies) if copies > 1 else memory, inputs, padded)
        return scored.masked_fill(~mask, 0.0), mask

    def generate(self, sources: Sequence[Source], beam: int = 1) -> list[list[Hypothesis]]:
        """Write K texts for each of B sources by beam search, best first; dropout off."""
        return self._written(sources, beam, partial(beam_search, batch=len(sources), beam=beam))

    def sample(
        self, sources: Sequence[Source], samples: int, generator: torch.Generator | None = None
    ) -> list[list[Hypothesis]]:
        """Draw K texts for each of B sources, see `draw_samples`; dropout off."""
        draw = partial(draw_samples, rows=len(sources) * samples, generator=generator)
        return self._written(sources, samples, draw)

    @torch.no_grad()
    def _written(
        self, sources: Sequence[Source], copies: int, search: Callable[..., tuple[Tensor, Tensor]]
    ) -> list[list[Hypothesis]]:
        """What a search finds, `copies` texts for each source."""
        with evaluating(self):
            memory = self._encode(self.features(sources)).repeated(copies)

            def advance(tokens: Tensor, rows: Tensor) -> Tensor:
                memory.reorder(rows)
                return self._next(memory, tokens)

            tokens, scores = search(
                advance,
                begin=self.begin,
                end=self.end,
                max_tokens=self.target_tokens,
                device=self.device,
            )
        found: list[list[Hypothesis]] = [[] for _ in sources]
        rows = zip(tokens.flatten(0, -2).tolist(), scores.flatten().tolist(), strict=True)
        for number, (row, score) in enumerate(rows):
            place = number // copies
            ended = row[: row.index(self.end) + 1 if self.end in row else None]
            found[place].append(Hypothesis(self.words(ended, sources[place]), score, tuple(ended)))
        return found


_CHINESE = re.compile("[\u3400-\u9fff\uf900-\ufaff]")  # these signs are tokens, each by itself
_CLOSING, _OPENING = re.compile(r" ([.,;:?!%)\]}])"), re.compile(r"([(\[{$]) ")


def spelled(text: str, sources: Sequence[str]) -> str:
    """Undo what an uncased tokenizer did to a text: its words are spelled as the sources do.

    Words with inner punctuation (2.5, O'Brien, name@mail.com) or of Chinese signs are put together
    again, names get their capitals and accents, and the sentence its capital.

    Args:
        text: Lower-case words and punctuation, parted by spaces.
        sources: What it was made from; the last one to hold a word counts.
    """
    forms: dict[tuple[str, ...], str] = {}
    for source in sources:
        for position, word in enumerate(source.split()):
            for form in (word, word.strip(".,;:?!\"'()")):
                pieces = tuple(WORD.findall(_CHINESE.sub(r" \g<0> ", unaccented(form.lower()))))
                # The capital of a sentence's first word says nothing about the word.
                plain = position == 0 and form[1:].islower()
                if pieces:
                    forms[pieces] = form.lower() if plain else form
    longest = max(map(len, forms), default=1)
    written = WORD.findall(text)
    folded = [unaccented(piece.lower()) for piece in written]
    words: list[str] = []
    at = 0
    while at < len(written):
        for length in range(min(longest, len(written) - at), 0, -1):
            found = forms.get(tuple(folded[at : at + length]))
            if found is not None or length == 1:
                words.append(found or written[at])
                at += length
                break
    joined = _OPENING.sub(r"\1", _CLOSING.sub(r"\1", " ".join(words)))
    joined = re.sub(r"(\w) (['\u2019]) ?(s|t|re|ve|ll|d|m)\b", r"\1\2\3", joined)
    return joined[:1].upper() + joined[1:]
