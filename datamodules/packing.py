"""Conversations in the token cache, read several in a block or one a row.

From top to bottom: one part of the cache; blocks of several conversations; padded rows, in batches
of similar length.
"""

import bisect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.batches import Batch, Rows, permute
from subnetworks.context import IGNORED

WINDOW = 32  # batches whose samples are sorted by length together


class Samples:
    """Conversations of one part of a cache folder, through memory maps; `dtype` is the tokens'."""

    def __init__(self, folder: Path, part: str, dtype: str) -> None:
        self.ends = np.fromfile(folder / f"{part}.ends.bin", dtype=np.int64)
        self.lengths = np.diff(self.ends, prepend=0)
        self._files = (folder / f"{part}.bin", folder / f"{part}.answers.bin")
        self._dtype = np.dtype(dtype)
        self._maps: tuple[NDArray[Any], NDArray[np.uint8]] | None = None

    def __getitem__(self, sample: int) -> tuple[Rows, Rows]:
        """Return a conversation's tokens, and its labels: `IGNORED` outside of answers."""
        if self._maps is None:  # mapped where it is read: a worker process maps for itself
            tokens, answers = self._files
            self._maps = (np.memmap(tokens, self._dtype, "r"), np.memmap(answers, np.uint8, "r"))
        end = int(self.ends[sample])
        span = slice(end - int(self.lengths[sample]), end)
        ids = self._maps[0][span].astype(np.int64)
        return ids, np.where(self._maps[1][span] == 1, ids, IGNORED)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}


def pack(lengths: Rows, capacity: int) -> list[Rows]:
    """Put samples of these lengths into as few blocks as best-fit decreasing finds.

    No length is above the capacity, the tokens of a block. Returns the samples of each block.
    """
    blocks: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # blocks by the room that is left
    rooms: list[int] = []  # its keys, ascending
    for sample in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sample])
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            block, room = len(blocks), capacity
            blocks.append([])
        else:
            room = rooms[place]
            block = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        blocks[block].append(sample)
        room -= length
        if room not in with_room:
            bisect.insort(rooms, room)
        with_room.setdefault(room, []).append(block)
    return [np.array(block) for block in blocks]


class PackedBlocks(Dataset[Batch]):
    """Blocks of several conversations each, none of which sees another.

    Positions begin anew with each conversation, by which transformers knows them apart. A filler
    token fills the room that is left.
    """

    def __init__(self, samples: Samples, kept: Rows, context_length: int, filler: int) -> None:
        self.samples, self.context_length, self.filler = samples, context_length, filler
        self.kept = kept
        packed = pack(samples.lengths[kept], context_length)
        self.members = [kept[block] for block in packed]

    def __len__(self) -> int:
        return len(self.members)

    def fill(self) -> float:
        """Return the share of the blocks' tokens that are of conversations."""
        lengths = self.samples.lengths[self.kept]
        return float(lengths.sum() / len(self) / self.context_length)

    def __getitem__(self, blocks: Rows) -> Batch:
        """Return {"input_ids", "labels", "position_ids"}, each int64[len(blocks), T]."""
        shape = (len(blocks), self.context_length)
        ids = np.full(shape, self.filler, dtype=np.int64)
        labels, positions = np.full_like(ids, IGNORED), np.zeros_like(ids)
        for row, block in enumerate(blocks):
            start = 0
            for sample in self.members[block]:
                tokens, targets = self.samples[sample]
                span = slice(start, start := start + len(tokens))
                ids[row, span], labels[row, span] = tokens, targets
                positions[row, span] = np.arange(len(tokens))
            positions[row, start:] = np.arange(self.context_length - start)
        arrays = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class PaddedSamples(Dataset[Batch]):
    """One conversation a row, in the order of `kept`, padded to the longest of its batch."""

    def __init__(self, samples: Samples, kept: Rows, filler: int) -> None:
        self.samples, self.kept, self.filler = samples, kept, filler

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, numbers: Rows) -> Batch:
        """Return {"input_ids", "labels", "attention_mask"}, each int64[len(numbers), longest]."""
        rows = [self.samples[sample] for sample in self.kept[numbers]]
        shape = (len(rows), max(len(tokens) for tokens, _ in rows))
        ids = np.full(shape, self.filler, dtype=np.int64)
        labels, mask = np.full_like(ids, IGNORED), np.zeros_like(ids)
        for row, (tokens, targets) in enumerate(rows):
            ids[row, : len(tokens)], labels[row, : len(tokens)] = tokens, targets
            mask[row, : len(tokens)] = 1
        arrays = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def grouped_batch(
    number: int, lengths: Rows, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> Rows:
    """Return the samples that one rank reads for the `number`-th batch of a run: of similar length.

    Each epoch is another permutation, cut into windows of `WINDOW` batches; a window's samples are
    sorted by length, and its batches come in random order. A function of (seed, number) alone; see
    `train_batch`.
    """
    step = batch_size * world_size
    per_epoch = len(lengths) // step
    epoch, batch = divmod(number, per_epoch)
    window, place = divmod(batch, WINDOW)
    first, last = window * WINDOW, min((window + 1) * WINDOW, per_epoch)
    samples = permute(np.arange(first * step, last * step), len(lengths), seed, epoch)
    samples = samples[np.argsort(lengths[samples], kind="stable")]
    order = np.random.default_rng([seed, epoch, window]).permutation(last - first)
    start = int(order[place]) * step
    return samples[start : start + step][rank::world_size]
