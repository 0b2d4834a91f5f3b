"""Text from a causal language model, handed on as it is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from language.text_encoder import TextEncoder, beginning

Show = Callable[[str], object]

_SEAM = 8  # tokens before a text's first that its decoding may depend on


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: What logits are divided by.
        top_k: Draw from so many of the likeliest tokens only.
        top_p: Draw from the likeliest tokens that have this probability together.
        greedy: Always take the likeliest token; the others then mean nothing.
    """

    temperature: Annotated[float, Gt(0)] = 0.8
    top_k: Annotated[int, Ge(1)] | None = None
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    greedy: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what `GenerationConfig` takes."""
        if self.greedy:  # transformers warns of values of sampling
            return {"do_sample": False}
        chosen = {"temperature": self.temperature, "top_k": self.top_k or 0, "top_p": self.top_p}
        return {"do_sample": True, **chosen}


def padding_token(tokenizer: Any) -> int | None:
    """Return the token that fills up shorter rows: the tokenizer's, else its end of text."""
    pad: int | None = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def end_tokens(model: Any, tokenizer: Any, further: Iterable[int] = ()) -> list[int]:
    """Return the tokens that end a text, ascending: the tokenizer's, others, and the model's.

    A model from scratch has none of its own but its class's default, which may be any letter.
    """
    own = model.generation_config.eos_token_id if model.config.name_or_path else None
    own = own if isinstance(own, list) else [own]
    return sorted({*further, *own, tokenizer.eos_token_id} - {None})


@contextmanager
def as_told(model: Any) -> Iterator[None]:
    """Have `generate` follow its arguments alone, without penalties and bans of the model's own.

    It runs uncompiled: the compiler would begin anew for each layer's keys and values.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.generation_config = own


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote.

    Args:
        ids: The tokens, without the one that ended them.
        text: The same, decoded without special tokens.
        stop: `end` (the model ended it), `length` (as many tokens as were asked for), `context`
            (as many as the model reads) or `interrupted`.
        first: Seconds to the first token; 0 if there is none.
        seconds: To the last one.
    """

    ids: list[int]
    text: str
    stop: Literal["end", "length", "context", "interrupted"]
    first: float
    seconds: float


class Decoder:
    """Decodes tokens one by one into whole characters.

    As text-generation-inference does it: `tokenizers.decoders.DecodeStream` gives up where a model
    writes bytes that are no text.

    Args:
        tokenizer: Of the tokens.
        before: The tokens that they follow: some decoders drop a space at a text's beginning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before[-_SEAM:])
        self._begin, self._read = 0, len(self._ids)

    def step(self, token: int) -> str:
        """Return the characters that are whole with one more token."""
        self._ids.append(token)
        whole = self._decode(self._begin, len(self._ids))
        return "" if whole.endswith("\N{REPLACEMENT CHARACTER}") else self._take(whole)

    def rest(self) -> str:
        """Return what is left, with a replacement character for bytes that are no character."""
        return self._take(self._decode(self._begin, len(self._ids)))

    def _take(self, whole: str) -> str:
        new = whole[len(self._decode(self._begin, self._read)) :]
        if new:  # special tokens give nothing to begin behind
            self._begin, self._read = self._read, len(self._ids)
        return new

    def _decode(self, begin: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[begin:end], skip_special_tokens=True))


class _Stream(BaseStreamer):
    """Takes tokens from transformers' `generate` and shows them as text."""

    def __init__(self, decoder: Decoder, show: Show, ends: Iterable[int]) -> None:
        self.decoder, self.show, self.ends = decoder, show, frozenset(ends)
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.ended = False
        self.start, self.first = time.perf_counter(), 0.0
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which comes first, or one more token."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self.first = self.first or time.perf_counter() - self.start
        for token in value.flatten().tolist():
            if token in self.ends:
                self.ended = True
            else:
                self.ids.append(token)
                self._hand_on(self.decoder.step(token))

    def end(self) -> None:
        """Show what is left."""
        self._hand_on(self.decoder.rest())

    def _hand_on(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            self.show(piece)


class Writer:
    """A model that goes on with token ids, and remembers the keys and values of what it has read.

    Args:
        model: A Hugging Face causal language model, in evaluation mode.
        tokenizer: Of the model.
        sampling: How it chooses tokens.
        max_new_tokens: Of one text, at least 1.
        context: Tokens that the model reads at once; None: any number.
        ends: Tokens that end a text, see `end_tokens`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        sampling: Sampling,
        max_new_tokens: int,
        context: int | None,
        ends: Iterable[int] = (),
    ) -> None:
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.max_new_tokens = max_new_tokens
        self.ends = end_tokens(model, tokenizer, ends)
        filler = padding_token(tokenizer)
        self._settings = {
            **sampling.settings(),
            "eos_token_id": self.ends or None,
            "pad_token_id": self.ends[0] if filler is None and self.ends else filler,
            "return_dict_in_generate": True,
        }
        self._read: list[int] = []
        self._cache: DynamicCache | None = None

    def write(self, ids: Sequence[int], show: Show = str) -> Written:
        """Go on with token ids until the model ends, there is no room, or Ctrl-C is pressed.

        Args:
            ids: At least one, and fewer than the context.
            show: Gets the text as it is written, in pieces of whole characters.
        """
        room = self.max_new_tokens
        if self.context is not None:
            room = min(room, self.context - len(ids))
        assert ids
        assert room > 0, "callers leave room"
        stream = _Stream(Decoder(self.tokenizer, ids), show, self.ends)
        cache, self._cache = self._shared(ids), None
        device = next(self.model.parameters()).device
        read = torch.tensor([list(ids)], device=device)
        stop: Literal["end", "length", "context", "interrupted"] | None = None
        try:
            with as_told(self.model):
                output = self.model.generate(
                    input_ids=read,
                    attention_mask=torch.ones_like(read),
                    generation_config=GenerationConfig(max_new_tokens=room, **self._settings),
                    streamer=stream,
                    past_key_values=cache,
                )
            self._keep(output)
        except KeyboardInterrupt:
            stream.end()
            stop = "interrupted"
        if stop is None:
            stop = "end" if stream.ended else "length" if room == self.max_new_tokens else "context"
        seconds = time.perf_counter() - stream.start
        return Written(stream.ids, "".join(stream.pieces), stop, stream.first, seconds)

    def _shared(self, ids: Sequence[int]) -> DynamicCache | None:
        """Return the cache, cut to what `ids` begins with."""
        if self._cache is None:
            return None
        same = 0
        for own, asked in zip(self._read, ids[:-1], strict=False):
            if own != asked:
                break
            same += 1
        if same == 0:
            return None
        if same < len(self._read):
            self._cache.crop(same - len(self._read))
        return self._cache

    def _keep(self, output: Any) -> None:
        """Keep the keys and values of a generation, if they can be cut."""
        cache = output.past_key_values
        plain = type(cache) is DynamicCache and all(type(x) is DynamicLayer for x in cache.layers)
        if plain:
            self._cache = cache
            self._read = output.sequences[0, : cache.get_seq_length()].tolist()


def text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the tokens of a text to go on with, control tokens in it read as text.

    They begin as the tokenizer lets texts begin. A text of no tokens begins with the beginning or
    the end of a text.

    Args:
        tokenizer: Of the model.
        text: The text.

    Raises:
        ValueError: The tokenizer knows no token to begin with.
    """
    (ids,) = TextEncoder(tokenizer).encode([text])
    return [*beginning(tokenizer), *ids.tolist()] or [prefix(tokenizer)]


def prefix(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the token before a text: the beginning of text, or the end of another one.

    Raises:
        ValueError: The tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer has neither a beginning nor an end of text: bos_token_id")
