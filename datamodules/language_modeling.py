"""Language modelling data: any text, tokenised once, in blocks of equal length, in a known order.

From top to bottom: token files are read as blocks of equal length; the datamodule ties them to a
text, its cache, and the order of its batches.
"""

import functools
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from atomic import replacing_folder
from datamodules.batches import Batch, BatchLoader, EpochLoader, OrderedDataModule, Rows, in_order
from datamodules.cache import build_once, read_record
from datamodules.hub import TextDataSet
from datamodules.settings import (
    ContextLength,
    Seed,
    TokenizerSettings,
    Vocabulary,
    Whole,
    Workers,
    arguments,
)
from datamodules.text_sources import (
    OldDomain,
    Source,
    check,
    old_domain_errors,
    old_domain_of,
    open_source,
)
from datamodules.token_cache import count_token_ids, load_tokenizer, train_tokenizer, write_tokens
from datamodules.vocabulary import ORIGINAL, name_and_identity
from language.text_encoder import saved_tokenizer

log = logging.getLogger(__name__)

REPETITIONS = 4
"""Beyond so many, text that is read again teaches much less (arXiv 2305.16264)."""


@dataclass(frozen=True)
class Prompt:
    """Tokens for a model to go on from, and what should come in words."""

    ids: list[int]
    reference: str


FORMAT = 1  # of the cache: raise it when the same text and settings are to give other tokens


class Blocks(Dataset[Batch]):
    """A file of tokens, end to end, as blocks of equal length, through a memory map.

    What does not fill a block is left out.
    """

    def __init__(self, file: Path, dtype: str, context_length: int) -> None:
        self.file, self.dtype, self.context_length = file, np.dtype(dtype), context_length
        self.count = file.stat().st_size // self.dtype.itemsize // context_length
        self._rows: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Rows) -> Batch:
        """Return the blocks of these numbers as {"input_ids": int64[len(indices), T]}."""
        if self._rows is None:  # mapped where it is read: a worker process maps for itself
            shape = (self.count, self.context_length)
            self._rows = np.memmap(self.file, self.dtype, mode="r", shape=shape)
        return {"input_ids": torch.from_numpy(self._rows[indices].astype(np.int64))}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}


# --- the datamodule ----------------------------------------------------------------------------


class LanguageModelingDataModule(OrderedDataModule):
    """Batches {"input_ids": int64[B, T]} of packed text for a causal language model.

    `prepare_data` tokenises into a folder of `cache_dir` whose name depends on the text and on the
    settings that the tokens depend on (not on batch_size, context_length or seed); later runs find
    it there. Training batches are a function of (seed, number of the batch) and resume within an
    epoch. Validation reads the same blocks in the same order each time; `test` reads the same part
    without the limit of `val_batches`.

    Args:
        source: "docstrings" (English found in the Python environment), "code" (Python found there),
            "text", "jsonl", "parquet" or "hub".
        files: For text, jsonl and parquet: paths or glob patterns, read in the order of the paths.
        val_files: Validation files, likewise; a file that `files` matches too is not trained on.
        text_column: For jsonl and parquet: the field that holds the text.
        datasets: For hub: {name: {path, name, data_dir, split, revision, text_column, weight}}. All
            but path may be left out. Several are mixed document by document, in proportion to their
            weights, until one ends.
        streaming: For hub: read over the network while tokenising instead of downloading first.
        val_fraction: In (0, 1): the share held out where there are no `val_files`. Of a text file
            its last lines; of the other sources documents, by content hash.
        val_batches: Validate on the first so many batches (of each rank); None for all.
        old_domain: Settings of another text (source, files, val_files, ..., val_batches,
            max_tokens), whose held-out part is validated beside this one's as `old/loss`. Tokenizer
            and sizes are this one's.
        max_tokens: Train on the first so many tokens; None for all of the text. Held-out text is
            read whole, except from a hub's stream, which ends with the last training token.
        tokenizer: {pretrained: folder or hub name, None to train one; sample_chars: characters that
            a tokenizer is trained on at most}.
        vocab_size: The number of token ids, which is the model's vocabulary: of a trained tokenizer
            its size, at least 257; for a pretrained one at least its own.
        context_length: T, tokens in a block, at least 2.
        batch_size: B, blocks in a batch on each device.
        seed: Orders the training blocks, at least 0.
        num_workers: Processes that read ahead; 0, reading in the training process, is fast enough
            for blocks in a memory map.
        cache_dir: Where tokens are kept.

    Raises:
        ValueError: Settings that cannot work; names the config key. So do `prepare_data`, where
            text cannot be read, and `setup`, where it does not fill one batch.
    """

    serves: ClassVar[str] = "tokens"
    check: ClassVar[str] = "datamodules.text_sources:check"
    fits: ClassVar[str] = "datamodules.vocabulary:fits"
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "val_fraction": ("val_files", False),
        "text_column": ("source", ("jsonl", "parquet")),
        "streaming": ("source", ("hub",)),
        "tokenizer.sample_chars": ("tokenizer.pretrained", False),
    }

    def __init__(
        self,
        source: Source = "docstrings",
        files: str | list[str] | None = None,
        val_files: str | list[str] | None = None,
        text_column: str = "text",
        datasets: dict[str, TextDataSet | None] | None = None,
        streaming: bool = True,
        val_fraction: float = 0.02,
        val_batches: Whole | None = None,
        old_domain: OldDomain | None = None,
        max_tokens: Whole | None = None,
        tokenizer: TokenizerSettings | None = None,
        vocab_size: Vocabulary = 2048,
        context_length: ContextLength = 256,
        batch_size: Whole = 16,
        seed: Seed = 0,
        num_workers: Workers = 0,
        cache_dir: str = ".cache",
    ) -> None:
        self.settings = arguments(LanguageModelingDataModule, locals())
        check(self.settings)
        super().__init__(batch_size, seed, num_workers)
        self.pretrained: str | None = (tokenizer or {}).get("pretrained")
        self.sample_chars: int = (tokenizer or {}).get("sample_chars", 10_000_000)
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.folder: Path | None = None
        self._opened_at: tuple[int, int] | None = None
        self.old_domain: LanguageModelingDataModule | None = None
        if (chosen := old_domain_of(self.settings)) is not None:
            shared = ("tokenizer", "vocab_size", "context_length", "batch_size", "cache_dir")
            self.old_domain = LanguageModelingDataModule(
                **{**chosen, **{key: self.settings[key] for key in shared}}
            )

    def prepare_data(self) -> None:
        """Tokenise the text into the cache unless that was done before, by any process."""
        if self.folder is not None:
            return
        source = self._open_source()
        tokenizer: dict[str, Any] = {"vocab_size": self.vocab_size, "sample": self.sample_chars}
        if self.pretrained is not None:
            tokenizer = {"pretrained": self._original["identity"]}
        identity = {
            "format": FORMAT,
            "text": source.identity,
            "tokenizer": tokenizer,
            **self._further_identity(),
        }
        key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8)
        folder = Path(self.settings["cache_dir"]) / f"{self.settings['source']}-{key.hexdigest()}"
        build_once(
            folder, lambda unfinished: {"identity": identity, **self._build(source, unfinished)}
        )
        if self.old_domain is not None:
            # Of this text's tokens: a tokenizer that was trained on the other one has others.
            self.old_domain.pretrained = self.pretrained or str(folder / "tokenizer")
            with old_domain_errors():
                self.old_domain.prepare_data()
        self.folder = folder

    def _open_source(self) -> Any:
        return open_source(self.settings)

    def _further_identity(self) -> dict[str, Any]:
        """What the cache depends on beside text and tokenizer."""
        limit = self.settings["max_tokens"]
        # Caches with a limit that cut held-out text as well stand under max_tokens.
        limited = {"max_tokens": None} if limit is None else {"max_train_tokens": limit}
        # Caches of pretrained tokenizers without it have no beginnings of texts.
        return limited if self.pretrained is None else {**limited, "beginnings": True}

    def _make_tokenizer(self, source: Any) -> PreTrainedTokenizerFast:
        if self.pretrained is None:
            return train_tokenizer(source, self.vocab_size, self.sample_chars)
        tokenizer = load_tokenizer(self.pretrained)
        self._check_vocabulary(count_token_ids(tokenizer))
        return tokenizer

    def _build(self, source: Any, folder: Path) -> dict[str, Any]:
        started = time.monotonic()
        log.info("Tokenising %s into %s", self.settings["source"], folder)
        tokenizer = self._make_tokenizer(source)
        tokenizer.save_pretrained(folder / "tokenizer")
        record = write_tokens(source, tokenizer, folder, self.settings["max_tokens"])
        # The encoder's threads are idle now, and a reading worker that is forked from here never
        # tokenises; without this setting tokenizers warns in each of them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        log.info(
            "Tokenised %d documents into %d tokens for training and %d for validation in %.1f s",
            record["train"]["documents"] + record["val"]["documents"],
            record["train"]["tokens"],
            record["val"]["tokens"],
            time.monotonic() - started,
        )
        return {"token_ids": count_token_ids(tokenizer), **record}

    def _check_vocabulary(self, token_ids: int) -> None:
        if token_ids > self.vocab_size:
            raise ValueError(
                f"datamodule.vocab_size={self.vocab_size} is too small for the tokenizer "
                f"{self.pretrained}: set it to {token_ids} or more"
            )

    def setup(self, stage: str) -> None:
        """Open the cache, and refuse text that does not fill one batch of each part.

        Each stage needs the same.
        """
        rank, world_size = self.place
        if self._opened_at == (rank, world_size):
            return
        if rank == 0:
            self.prepare_data()
        if world_size > 1:  # the other ranks need not read the text to know its key
            assert self.trainer is not None
            self.folder = self.trainer.strategy.broadcast(self.folder)
        if self.old_domain is not None:
            self.old_domain.trainer = self.trainer
            with old_domain_errors():
                self.old_domain.setup(stage)
        assert self.folder is not None
        record = read_record(self.folder)
        if record is None:
            raise ValueError(
                f"datamodule.cache_dir: rank 0 has {self.folder}, this machine has not; set a "
                "folder that all machines share"
            )
        self._check_vocabulary(record["token_ids"])
        self.record = record
        self.blocks = self._open_blocks(self.folder, record)
        held = {part: len(blocks) for part, blocks in self.blocks.items()}
        self._refuse_too_little(held, {part: self._amount(part) for part in held})
        self._opened_at = rank, world_size

    def _refuse_too_little(self, held: Mapping[str, int], there: Mapping[str, str]) -> None:
        """Refuse parts whose blocks fill no batch.

        Args:
            held: Blocks of each part.
            there: The same in words.
        """
        _, world_size = self.place
        for part, needed in (("train", self.batch_size * world_size), ("val", world_size)):
            if held[part] < needed:
                mends = " or ".join(self._mends(part))
                raise ValueError(
                    f"the {part} part has {there[part]}, too few for {self._blocks(needed)}; give "
                    f"more text{mends and f', or change {mends}'}"
                )

    def _blocks(self, count: int) -> str:
        return (
            f"{count} blocks of datamodule.context_length={self.context_length} tokens "
            f"({count * self.context_length} in all)"
        )

    def _mends(self, part: str) -> list[str]:
        """The settings under which less text is enough, each with its direction."""
        mends = ["datamodule.context_length (down)"]
        if part == "train":
            mends.append("datamodule.batch_size (down)")
            if (limit := self.settings.get("max_tokens")) is not None:
                mends.append(f"datamodule.max_tokens={limit} (up)")
        elif self.settings["val_files"] is None:  # else nothing reads it
            mends.append("datamodule.val_fraction (up)")
            if self.settings["files"] is not None:
                mends[-1] += ", or name datamodule.val_files"
        return mends

    def _amount(self, part: str) -> str:
        return f"{self.record[part]['tokens']} tokens"

    def check_files(self) -> None:
        """Read the user's own files once, to refuse what is wrong in them; needs no tokenizer.

        For whoever has long work to do before `prepare_data`, such as making the tokenizer.

        Raises:
            ValueError: A file cannot be read, or there is less text than one batch takes.
        """
        if self.old_domain is not None:
            with old_domain_errors():
                self.old_domain.check_files()
        if self.settings["files"] is not None:
            self._check_own_files()

    def _check_own_files(self) -> None:
        held = Counter({"train": 0, "val": 0})
        for piece in open_source(self.settings).pieces():
            # Tokens at most: one for each byte, a beginning and a space before, an end behind.
            held["val" if piece.held_out else "train"] += len(piece.text.encode()) + 3
        blocks = {part: count // self.context_length for part, count in held.items()}
        self._refuse_too_little(blocks, {part: f"{count} bytes" for part, count in held.items()})

    def _open_blocks(self, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
        return {
            part: Blocks(folder / f"{part}.bin", record["dtype"], self.context_length)
            for part in ("train", "val")
        }

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer in the cache, after `prepare_data`."""
        assert self.folder is not None, "prepare_data comes first"
        return saved_tokenizer(self.folder / "tokenizer")

    def keep_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, and what it is a copy of, so that runs are read without the base.

        Args:
            folder: Where to; made.
        """
        with replacing_folder(folder) as unfinished:
            self.tokenizer.save_pretrained(unfinished)
            if self.pretrained is not None:
                original = json.dumps(self._original, indent=1)
                (unfinished / ORIGINAL).write_text(original, encoding="utf-8")

    @functools.cached_property
    def _original(self) -> dict[str, Any]:
        """The pretrained tokenizer's name and identity; a base's weights are read for it."""
        assert self.pretrained is not None
        return name_and_identity(self.pretrained)

    @property
    def _batches_per_epoch(self) -> int:
        return len(self.blocks["train"]) // self.per_batch

    def describe(self) -> dict[str, Any]:
        """Return, after `setup`, what the data is and how large, for reports and run.json."""
        train, val = self.record["train"], self.record["val"]
        batches = self._batches_per_epoch
        per_batch = self.per_batch * self.context_length
        return {
            "source": self.settings["source"],
            "old_domain": None if self.old_domain is None else self.old_domain.describe(),
            "cache": str(self.folder),
            "tokenizer": f"byte-level BPE, {self.vocab_size} tokens, trained here"
            if self.pretrained is None
            else self._original["name"],
            "vocab_size": self.vocab_size,
            "documents": train["documents"] + val["documents"],
            "characters": train["characters"] + val["characters"],
            "train_tokens": train["tokens"],
            "val_tokens": val["tokens"],
            "context_length": self.context_length,
            "train_blocks": len(self.blocks["train"]),
            "val_blocks": len(self.blocks["val"]),
            "tokens_per_batch": per_batch,
            "batches_per_epoch": batches,
            "tokens_per_epoch": batches * per_batch,
        }

    def train_dataloader(self) -> EpochLoader:
        """Return the loader of the training batches, standing where the run stopped."""
        assert self.folder is not None
        self._say_repetition()
        order = {
            "text and tokenizer": self.folder.name,
            "datamodule.context_length": self.context_length,
        }
        return self._training_loader(self.blocks["train"], order)

    def _say_repetition(self) -> None:
        """Say how often a training reads its text, if it reads it very often."""
        if self.trainer is None:
            return
        # A step does not reach over the end of an epoch.
        per_epoch = -(-self._batches_per_epoch // self.trainer.accumulate_grad_batches)
        limits = self.trainer.max_steps / per_epoch, self.trainer.max_epochs or -1
        times = min((limit for limit in limits if limit > 0), default=0)
        if times > REPETITIONS:
            self._say(
                f"The training reads its text {times:.0f} times. Its validation loss may rise "
                "after a while: the best checkpoint is of the step where it was lowest. "
                f"trainer.max_steps={REPETITIONS * per_epoch} reads it {REPETITIONS} times."
            )

    def val_dataloader(self) -> Any:
        """Return the loader of the validation blocks, of the first `val_batches` batches if set.

        With an old domain a list of both loaders.
        """
        loader = self._held_out(self.settings["val_batches"])
        return loader if self.old_domain is None else [loader, self.old_domain.val_dataloader()]

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of the whole held-out part."""
        return self._held_out(None)

    def _held_out(self, limit: int | None, part: str = "val") -> BatchLoader:
        rank, world_size = self.place
        # Equal shares, up to world_size - 1 blocks short of all: ranks that take unequal numbers of
        # batches wait for each other for ever under sharded strategies.
        share = len(self.blocks[part]) // world_size
        if limit is not None:
            share = min(share, limit * self.batch_size)
        rows = range(rank, rank + share * world_size, world_size)
        return in_order(self.blocks[part], rows, self.batch_size, self.num_workers)

    def prompts(self, count: int, test: bool = False) -> list[Prompt]:
        """Beginnings of held-out blocks, and how they go on, for samples of what a model writes.

        They are of the test part, if asked for, where there is one of its own.
        """
        blocks = self.blocks["val"]
        numbers = np.arange(min(count, len(blocks)))
        half = self.context_length // 2
        return [
            Prompt(ids[:half].tolist(), str(self.tokenizer.decode(ids[half:])))
            for ids in blocks[numbers]["input_ids"]
        ]
