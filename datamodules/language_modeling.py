"""Language modelling data: any text, tokenised once, in blocks of equal length, in a known order.

From top to bottom: token files are read as blocks of equal length; a keyed permutation, computed
for the blocks at hand, says which ones the n-th batch of a run holds; a loader serves these batches
from any n on, and so goes on exactly where a run stopped; the datamodule ties them to a text.
"""

import functools
import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.text_sources import (
    ContextLength,
    TokenizerSettings,
    Vocabulary,
    Workers,
    check,
    check_old_domain,
    digest_file,
    files_under,
    open_source,
)
from datamodules.token_cache import (
    build_once,
    count_token_ids,
    load_tokenizer,
    read_record,
    train_tokenizer,
    write_tokens,
)

log = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Prompt:
    """Tokens for a model to go on from, and what should come in words."""

    ids: list[int]
    reference: str


FORMAT = 1  # of the cache: raise it when the same text and settings are to give other tokens
FEISTEL_ROUNDS = 6  # an even number


# --- blocks and their order --------------------------------------------------------------------


class Blocks(Dataset[Batch]):
    """A token file as blocks of equal length, read through a memory map; the rest is left out.

    Args:
        file: Tokens end to end.
        dtype: Their type, "uint16" or "uint32".
        context_length: Tokens in a block.
    """

    def __init__(self, file: Path, dtype: str, context_length: int) -> None:
        self.file, self.dtype, self.context_length = file, np.dtype(dtype), context_length
        self.count = file.stat().st_size // self.dtype.itemsize // context_length
        self._rows: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch:
        """Return the blocks of these numbers as {"input_ids": int64[len(indices), T]}."""
        if self._rows is None:  # mapped where it is read: a worker process maps for itself
            shape = (self.count, self.context_length)
            self._rows = np.memmap(self.file, self.dtype, mode="r", shape=shape)
        return {"input_ids": torch.from_numpy(self._rows[indices].astype(np.int64))}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}


def permute(positions: NDArray[np.int64], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the blocks at some positions of an epoch's order, which is never built as a whole.

    A Feistel network on pairs (position // b, position % b) permutes all a * b of them, as a
    function of (seed, epoch) alone; a and b are near the root of count, so that hardly any number
    falls outside of count, and one that does is sent through again (cycle walking). Memory and time
    are those of `positions`, whatever the count.

    Args:
        positions: Numbers in [0, count).
        count: The number of blocks, from 1 to 2^62.
        seed: At least 0.
        epoch: At least 0.
    """
    b = np.uint64(math.isqrt(count - 1) + 1)
    a = np.uint64(-(-count // int(b)))
    keys = np.random.SeedSequence([seed, epoch]).generate_state(FEISTEL_ROUNDS, np.uint64)

    def shuffle(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high, low = numbers // b, numbers % b
        for even_key, odd_key in keys.reshape(-1, 2):
            high = (high + _mix(low ^ even_key) % a) % a
            low = (low + _mix(high ^ odd_key) % b) % b
        return high * b + low

    numbers = shuffle(positions.astype(np.uint64))
    while (outside := numbers >= count).any():
        numbers[outside] = shuffle(numbers[outside])
    return numbers.astype(np.int64)


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The output function of the SplitMix64 generator (Steele, Lea and Flood 2014).
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def train_batch(
    number: int, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> NDArray[np.int64]:
    """Return the blocks that one rank reads for the `number`-th batch of a run, counted from 0.

    Each epoch is another permutation; what does not fill a batch on all ranks at its end is left
    out. The ranks' shares, one after the other, are the batch that one process of batch size
    `batch_size * world_size` would read.

    Args:
        number: At least 0; runs on over the epochs.
        count: The number of blocks, at least batch_size * world_size.
        batch_size: Blocks on each rank.
        seed: At least 0.
        rank: In [0, world_size).
        world_size: The number of processes that train together.
    """
    epoch, batch = divmod(number, count // (batch_size * world_size))
    start = (batch * world_size + rank) * batch_size
    return permute(np.arange(start, start + batch_size), count, seed, epoch)


class BlockLoader:
    """Serves a numbered sequence of batches, the same whenever it is asked.

    Not a DataLoader, but built on one: Lightning would give that another sampler under DDP.

    Args:
        blocks: Where batches are read, by the numbers of what they hold.
        batch: Returns the blocks of the batch with a given number.
        length: The number of batches.
        num_workers: Processes that read ahead; 0 reads in this one.
    """

    def __init__(
        self,
        blocks: Dataset[Any],
        batch: Callable[[int], NDArray[np.int64]],
        length: int,
        num_workers: int,
    ) -> None:
        self.blocks, self.batch, self.length = blocks, batch, length
        self.num_workers = num_workers

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self._serve(range(self.length))

    def _serve(self, numbers: range) -> Iterator[Any]:
        yield from DataLoader(
            self.blocks,
            batch_size=None,
            sampler=map(self.batch, numbers),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each iterator draws from the global one
        )


class TrainLoader(BlockLoader):
    """Serves a run's batches one after the other: each pass goes on where the last one stopped.

    Args:
        blocks: See `BlockLoader`.
        batch: See `BlockLoader`; numbers run on over the epochs.
        length: Batches in an epoch.
        num_workers: See `BlockLoader`.
        trainer: Knows how many batches the run has trained on; None starts with the first one.
        order: What the order depends on; a checkpoint made under another one is refused.
    """

    def __init__(
        self,
        blocks: Dataset[Any],
        batch: Callable[[int], NDArray[np.int64]],
        length: int,
        num_workers: int,
        trainer: pl.Trainer | None,
        order: dict[str, Any],
    ) -> None:
        super().__init__(blocks, batch, length, num_workers)
        self.position, self.order = 0, order
        if trainer is None:
            return
        # Lightning restores this counter before it asks for the loader; it counts, over all
        # epochs, the batches that were trained on, and is never reset.
        progress = trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        self.position = progress["total"]["processed"]
        overfit = getattr(trainer, "overfit_batches", 0)
        if overfit > 0:  # the same few batches again and again
            cycle = max(1, overfit if isinstance(overfit, int) else int(overfit * length))
            self.batch = lambda number: batch(number % cycle)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._serve(range(self.position, self.position + self.length)):
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the order; the position stands in Lightning's own progress counters.

        Lightning's count, not ours: after an exception inside a step the batch that this loader has
        handed out was not trained on, and must come again.
        """
        return self.order

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare a checkpoint's order with this one.

        Raises:
            ValueError: They differ, so that going on exactly where the run stopped is impossible.
        """
        differences = [
            f"{key}: {was} then, {self.order.get(key)} now"
            for key, was in state.items()
            if was != self.order.get(key)
        ]
        if differences:
            raise ValueError(
                "datamodule: the checkpoint was trained on other batches ("
                + "; ".join(differences)
                + "); restore these settings, or start a new run with resume=never"
            )


# --- the datamodule ----------------------------------------------------------------------------


class LanguageModelingDataModule(pl.LightningDataModule):
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

    check: ClassVar[str] = "datamodules.text_sources:check"
    fits: ClassVar[str] = "datamodules.vocabulary:fits"
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "val_fraction": ("val_files", False),
        "tokenizer.sample_chars": ("tokenizer.pretrained", False),
    }

    def __init__(
        self,
        source: str = "docstrings",
        files: str | list[str] | None = None,
        val_files: str | list[str] | None = None,
        text_column: str = "text",
        datasets: dict[str, dict[str, Any]] | None = None,
        streaming: bool = True,
        val_fraction: float = 0.02,
        val_batches: int | None = None,
        old_domain: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        tokenizer: TokenizerSettings | None = None,
        vocab_size: Vocabulary = 2048,
        context_length: ContextLength = 256,
        batch_size: int = 16,
        seed: int = 0,
        num_workers: Workers = 0,
        cache_dir: str = ".cache",
    ) -> None:
        self.settings = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        check(self.settings)
        super().__init__()
        self.pretrained: str | None = (tokenizer or {}).get("pretrained")
        self.sample_chars: int = (tokenizer or {}).get("sample_chars", 10_000_000)
        self.vocab_size = vocab_size
        self.context_length, self.batch_size = context_length, batch_size
        self.seed, self.num_workers = seed, num_workers
        self.folder: Path | None = None
        self._opened_at: tuple[int, int] | None = None
        self._restored: dict[str, Any] | None = None
        self._train_loader: TrainLoader | None = None
        self.old_domain: LanguageModelingDataModule | None = None
        if (chosen := check_old_domain(self.settings)) is not None:
            shared = ("tokenizer", "vocab_size", "context_length", "batch_size", "cache_dir")
            self.old_domain = LanguageModelingDataModule(
                **{**chosen, **{key: self.settings[key] for key in shared}}
            )

    def prepare_data(self) -> None:
        """Tokenise the text into the cache unless that was done before, by any process."""
        if self.folder is not None:
            return
        if self.old_domain is not None:
            self.old_domain.prepare_data()
        source = self._open_source()
        tokenizer: dict[str, Any] = {"vocab_size": self.vocab_size, "sample": self.sample_chars}
        if self.pretrained is not None:
            files = files_under(self.pretrained)
            tokenizer = {"pretrained": [digest_file(file) for file in files] or self.pretrained}
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
        self.folder = folder

    def _open_source(self) -> Any:
        return open_source(self.settings)

    def _further_identity(self) -> dict[str, Any]:
        """What the cache depends on beside text and tokenizer."""
        limit = self.settings["max_tokens"]
        # Caches with a limit that cut held-out text as well stand under max_tokens.
        return {"max_tokens": None} if limit is None else {"max_train_tokens": limit}

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

        Args:
            stage: "fit", "validate" or "test"; each needs the same.
        """
        rank, world_size = self._place()
        if self.old_domain is not None:
            self.old_domain.trainer = self.trainer
            self.old_domain.setup(stage)
        if self._opened_at == (rank, world_size):
            return
        if rank == 0:
            self.prepare_data()
        if world_size > 1:  # the other ranks need not read the text to know its key
            assert self.trainer is not None
            self.folder = self.trainer.strategy.broadcast(self.folder)
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
        self._refuse_too_little({part: len(blocks) for part, blocks in self.blocks.items()})
        self._opened_at = rank, world_size

    def _refuse_too_little(self, held: Mapping[str, int], of: str = "") -> None:
        """Refuse text that does not fill one batch of each part.

        Args:
            held: Blocks of `train` and `val`.
            of: What is known of the text beside, for the message; empty: the cache's record.
        """
        _, world_size = self._place()
        limit = self.settings.get("max_tokens")
        for part, needed, mend in (
            ("train", self.batch_size * world_size, "datamodule.batch_size (down)"),
            ("val", world_size, "datamodule.val_fraction (up)"),
        ):
            if held[part] >= needed:
                continue
            there = of or self._amount(part)
            if part == "train" and limit is not None:
                mend += f" or datamodule.max_tokens={limit} (up)"
            raise ValueError(
                f"the {part} part has {there}, too few for {needed} blocks of "
                f"datamodule.context_length={self.context_length} tokens "
                f"({needed * self.context_length} in all); give more text, or change "
                f"datamodule.context_length (down) or {mend}"
            )

    def _amount(self, part: str) -> str:
        return f"{self.record[part]['tokens']} tokens"

    def check_files(self) -> None:
        """Read the user's own files once, to refuse what is wrong in them; needs no tokenizer.

        For whoever has long work to do before `prepare_data`, such as making the tokenizer.

        Raises:
            ValueError: A file cannot be read, or there is less text than one batch takes.
        """
        if self.old_domain is not None:
            self.old_domain.check_files()
        if self.settings["files"] is None:
            return
        held = Counter({"train": 0, "val": 0})
        for piece in open_source(self.settings).pieces():
            # Tokens at most: one for each byte, a space before and an end behind.
            held["val" if piece.held_out else "train"] += len(piece.text.encode()) + 2
        blocks = {part: count // self.context_length for part, count in held.items()}
        self._refuse_too_little(blocks, f"{held['train']} bytes, and {held['val']} are held out")

    def _open_blocks(self, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
        return {
            part: Blocks(folder / f"{part}.bin", record["dtype"], self.context_length)
            for part in ("train", "val")
        }

    def _train_batch(self, number: int) -> NDArray[np.int64]:
        """Return what this rank reads for the `number`-th batch of the run."""
        count = len(self.blocks["train"])
        return train_batch(number, count, self.batch_size, self.seed, *self._place())

    def _place(self) -> tuple[int, int]:
        """Return rank and number of the processes that train together."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer in the cache, after `prepare_data`."""
        assert self.folder is not None, "prepare_data comes first"
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        return tokenizer

    def describe(self) -> dict[str, Any]:
        """Return, after `setup`, what the data is and how large, for reports and run.json."""
        train_blocks, val_blocks = len(self.blocks["train"]), len(self.blocks["val"])
        _, world_size = self._place()
        per_batch = self.batch_size * world_size
        return {
            "source": self.settings["source"],
            "old_domain": None if self.old_domain is None else self.old_domain.describe(),
            "cache": str(self.folder),
            "tokenizer": self.pretrained
            or f"byte-level BPE, {self.vocab_size} tokens, trained here",
            "vocab_size": self.vocab_size,
            "documents": self.record["train"]["documents"] + self.record["val"]["documents"],
            "characters": self.record["train"]["characters"] + self.record["val"]["characters"],
            "train_tokens": self.record["train"]["tokens"],
            "val_tokens": self.record["val"]["tokens"],
            "context_length": self.context_length,
            "train_blocks": train_blocks,
            "val_blocks": val_blocks,
            "tokens_per_batch": per_batch * self.context_length,
            "batches_per_epoch": train_blocks // per_batch,
            "tokens_per_epoch": train_blocks // per_batch * per_batch * self.context_length,
        }

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the training batches, standing where the run stopped."""
        _, world_size = self._place()
        blocks = self.blocks["train"]
        length = len(blocks) // (self.batch_size * world_size)
        assert self.folder is not None
        order = {
            "text and tokenizer": self.folder.name,
            "datamodule.context_length": self.context_length,
            "datamodule.seed": self.seed,
            "datamodule.batch_size x devices": self.batch_size * world_size,
        }
        loader = TrainLoader(
            blocks, self._train_batch, length, self.num_workers, self.trainer, order
        )
        if self._restored is not None:
            loader.load_state_dict(self._restored)
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> Any:
        """Return the loader of the validation blocks, of the first `val_batches` batches if set.

        With an old domain a list of both loaders.
        """
        loader = self._held_out(self.settings["val_batches"])
        return loader if self.old_domain is None else [loader, self.old_domain.val_dataloader()]

    def test_dataloader(self) -> BlockLoader:
        """Return the loader of the whole held-out part."""
        return self._held_out(None)

    def _held_out(self, limit: int | None, part: str = "val") -> BlockLoader:
        rank, world_size = self._place()
        # Equal shares, up to world_size - 1 blocks short of all: ranks that take unequal numbers of
        # batches wait for each other for ever under sharded strategies.
        share = len(self.blocks[part]) // world_size
        if limit is not None:
            share = min(share, limit * self.batch_size)

        def batch(number: int) -> NDArray[np.int64]:
            start = number * self.batch_size
            return np.arange(start, min(start + self.batch_size, share)) * world_size + rank

        return BlockLoader(self.blocks[part], batch, -(-share // self.batch_size), self.num_workers)

    def prompts(self, count: int, test: bool = False) -> list[Prompt]:
        """Beginnings of held-out blocks, and how they go on, for samples of what a model writes.

        Args:
            count: How many at most.
            test: Of the test part, where there is one of its own.
        """
        blocks = self.blocks["val"]
        numbers = np.arange(min(count, len(blocks)))
        half = self.context_length // 2
        return [
            Prompt(ids[:half].tolist(), str(self.tokenizer.decode(ids[half:])))
            for ids in blocks[numbers]["input_ids"]
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return, for a checkpoint, what the order of the batches depends on."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's order, to be compared when training goes on (not for validation)."""
        self._restored = state_dict
