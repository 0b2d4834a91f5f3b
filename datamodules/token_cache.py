"""The token cache: text is tokenised once, by one process, and found whole or not at all.

A cache folder holds `train.bin` and `val.bin` (token ids end to end, to be memory-mapped), the
tokenizer as transformers loads it, and `finished.json`, which is written last and knows the size of
every other file.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.hub import probe_hub
from datamodules.text_sources import Piece, TextSource
from language.text_encoder import TextEncoder, beginning

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
BATCH_CHARS = 1_000_000  # tokenised at once: about 100 bytes of memory for each token


def train_tokenizer(
    source: TextSource, vocab_size: int, sample_chars: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on pieces spread evenly over the training text.

    It has 256 bytes and the end-of-text token among its tokens, and reads `sample_chars` at most.
    """
    share = sample_chars / source.size if source.size else 1.0

    def sample() -> Iterator[str]:
        chars = 0
        train = (piece.text for piece in source.pieces() if not piece.held_out)
        for number, text in enumerate(train):
            if share >= 1 or int((number + 1) * share) > int(number * share):
                chars += len(text)
                yield text
            if chars >= sample_chars:
                return

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def load_tokenizer(pretrained: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or, by name, from the hub or the hub's cache on this machine.

    Raises:
        ValueError: It cannot be found, is not a fast tokenizer, or has no end-of-text token.
    """
    key = f"datamodule.tokenizer.pretrained={pretrained}"
    folder = Path(pretrained).expanduser()
    unreachable = None
    if not folder.exists():
        try:
            probe_hub("model", pretrained)
        except Exception as error:  # noqa: BLE001 - the client's network errors share no base
            unreachable = error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder if folder.exists() else pretrained, local_files_only=unreachable is not None
        )
    except Exception as error:
        if folder.exists():
            raise ValueError(f"{key}: holds no tokenizer that can be read: {error}") from error
        raise ValueError(
            f"{key}: no such folder, and not to be had from the hub ({unreachable or error}); give "
            "a folder or a hub name, or null to train a tokenizer"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{key} is not a fast tokenizer; choose one with a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{key} has no end-of-text token (eos_token) to set between documents")
    return tokenizer


def write_tokens(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, folder: Path, max_tokens: int | None
) -> dict[str, Any]:
    """Tokenise everything into `folder`: `train.bin` and `val.bin`, tokens end to end.

    Nothing is dropped. Added are the end-of-text token after each document and, before it, what the
    tokenizer lets texts begin with; the name of a control token in the text is tokenised as text.

    Args:
        source: The text.
        tokenizer: A fast tokenizer with an end-of-text token.
        folder: An empty folder.
        max_tokens: So many training tokens at most; None for all. All held-out text is tokenised,
            except where the source is streamed: there reading ends with the last training token.

    Returns:
        `dtype`, and documents, characters and tokens of both parts.
    """
    dtype = np.uint16 if count_token_ids(tokenizer) <= 1 << 16 else np.uint32
    parts = {part: {"documents": 0, "characters": 0, "tokens": 0} for part in ("train", "val")}
    encoder = TextEncoder(tokenizer)
    begin = np.array(beginning(tokenizer), dtype=np.int64)
    begins_document = {"train": True, "val": True}

    def is_wanted(piece: Piece) -> bool:
        return piece.held_out or parts["train"]["tokens"] != max_tokens

    reported = time.monotonic()
    with (folder / "train.bin").open("wb") as train, (folder / "val.bin").open("wb") as val:
        for pieces in _in_batches(filter(is_wanted, source.pieces())):
            encoded = encoder.encode([piece.text for piece in pieces])
            for piece, ids in zip(pieces, encoded, strict=True):
                if not is_wanted(piece):
                    continue
                part, stream = ("val", val) if piece.held_out else ("train", train)
                if begins_document[part]:
                    ids = np.append(begin, ids)
                if piece.ends_document:
                    ids = np.append(ids, tokenizer.eos_token_id)
                begins_document[part] = piece.ends_document
                if part == "train" and max_tokens is not None:
                    ids = ids[: max_tokens - parts[part]["tokens"]]
                ids.astype(dtype).tofile(stream)
                parts[part]["documents"] += piece.ends_document
                parts[part]["characters"] += len(piece.text)
                parts[part]["tokens"] += len(ids)
            if source.streamed and parts["train"]["tokens"] == max_tokens:
                break
            if time.monotonic() > reported + 10:
                reported = time.monotonic()
                log.info("Tokenised %.0f million tokens", parts["train"]["tokens"] / 1e6)
    return {"dtype": np.dtype(dtype).name, **parts}


def count_token_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return how many rows a model's embedding needs: one more than the largest token id."""
    return max(tokenizer.get_vocab().values()) + 1


def _in_batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch, chars = [], 0
    for piece in pieces:
        batch.append(piece)
        chars += len(piece.text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
