"""Text as token ids, whatever it spells: control tokens are written by templates, never by users.

A tokenizer reads `<|endoftext|>` in somebody's text as the end of the text. It can be told not to
(`split_special_tokens`), for all of a text or none of it, and then a WordPiece or Unigram model may
still find the token among its words. So text is read here by a copy of the tokenizer whose control
tokens have names that nobody can write.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

# Letters without case, accents or another form, which normalisers leave as they are: hieroglyphs.
LETTERS = [chr(code) for code in range(0x13000, 0x13400)]


def saved_tokenizer(place: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer in a folder, or of a model by its name.

    Raises:
        ValueError: None can be read there, or it is not a fast one.
    """
    try:
        found = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # parsers of damaged files raise anything
        raise ValueError(f"{place}: no tokenizer can be read there: {error}") from error
    if not isinstance(found, PreTrainedTokenizerFast):
        raise ValueError(f"{place}: its tokenizer is of Python, and must be a fast one")
    return found


class TextEncoder:
    """Encodes text as a tokenizer does, except that text cannot spell a control token.

    Control tokens are the special ones, those in the tokenizer's `chat_control_tokens`, and those
    that a chat template writes (`<think>`): transformers' rule. Other additions to a vocabulary,
    such as words or runs of spaces, are found in text as before. Texts are neither cut nor padded.

    Args:
        tokenizer: A fast tokenizer, left as it is.
        templates: Chat templates beside the tokenizer's own.
    """

    names: Mapping[str, str]
    """What stands for each control token in a text to encode; drawn anew for each encoder."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, templates: Iterable[str] = ()) -> None:
        own = tokenizer.chat_template
        written = [*templates, *(own.values() if isinstance(own, dict) else [own or ""])]
        listed = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        added = tokenizer.added_tokens_decoder
        controls = [
            token
            for token in added.values()
            # A single character cannot be spelled in another way.
            if len(token.content) > 1 and not token.content.isspace()
            if token.special
            or token.content in listed
            or any(token.content in template for template in written)
        ]
        prefix = "".join(secrets.choice(LETTERS) for _ in range(12))
        self.names = {
            token.content: prefix + "".join(LETTERS[i] for i in divmod(number, len(LETTERS)))
            for number, token in enumerate(controls)
        }
        longest_first = sorted(controls, key=lambda token: -len(token.content))
        pattern = "|".join(
            rf"(?<!\w){re.escape(t.content)}(?!\w)" if t.single_word else re.escape(t.content)
            for t in longest_first
        )
        self.pattern = re.compile(pattern or "(?!)")
        """Matches the control tokens as they are spelled."""
        self._copy = Tokenizer.from_str(
            json.dumps(_renamed(json.loads(tokenizer.backend_tokenizer.to_str()), self.names))
        )
        assert all(
            self._copy.token_to_id(self.names.get(token.content, token.content)) == token_id
            for token_id, token in added.items()
        )

    def encode(self, texts: list[str]) -> list[NDArray[np.int64]]:
        """Return the token ids of each text."""
        encodings = self._copy.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def encode_with_offsets(
        self, texts: list[str]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the token ids of each text, and (begin, end) of each token in its characters."""
        return [
            (np.array(encoding.ids, dtype=np.int64), np.array(encoding.offsets, dtype=np.int64))
            for encoding in self._copy.encode_batch(texts, add_special_tokens=False)
        ]


def beginning(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return what the tokenizer puts before each text: Llama's its beginning, GPT-2's nothing."""
    return [i for i in tokenizer("").input_ids if i == tokenizer.bos_token_id]


def _renamed(content: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename tokens in a tokenizer's JSON, and let it encode only: nothing added, nothing cut."""
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    else:  # Unigram
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # a token that was declared special after its merges were learned
        model["merges"] = [
            pair for pair in model["merges"] if names.keys().isdisjoint({*pair, "".join(pair)})
        ]
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return {**content, "post_processor": None, "truncation": None, "padding": None}
