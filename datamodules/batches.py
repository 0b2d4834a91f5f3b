"""Which rows the n-th batch of a run holds, and loaders that serve batches from any n on.

A keyed permutation, computed for the rows at hand, orders each epoch; a loader goes on exactly
where a run stopped; a data module keeps in its checkpoint what that order depends on.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import partial
from time import perf_counter
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, torch.Tensor]
Rows = NDArray[np.int64]

FEISTEL_ROUNDS = 6  # an even number


def permute(positions: Rows, count: int, seed: int, epoch: int) -> Rows:
    """Return the blocks at some positions of an epoch's order, which is never built as a whole.

    A Feistel network on pairs (position // b, position % b) permutes all a * b of them, as a
    function of (seed, epoch) alone; a and b are near the root of count, so that hardly any number
    falls outside of count, and one that does is sent through again (cycle walking). Memory and time
    are those of `positions`, whatever the count, from 1 to 2^62.
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
) -> Rows:
    """Return the blocks that one rank reads for the `number`-th batch of a run, counted from 0.

    Numbers run on over the epochs. Each epoch is another permutation of the `count` blocks, at
    least batch_size * world_size; what does not fill a batch on all ranks at its end is left out.
    The ranks' shares, one after the other, are the batch that one process of batch size `batch_size
    * world_size` would read.
    """
    epoch, batch = divmod(number, count // (batch_size * world_size))
    start = (batch * world_size + rank) * batch_size
    return permute(np.arange(start, start + batch_size), count, seed, epoch)


class BatchLoader:
    """Serves a numbered sequence of batches, the same whenever it is asked.

    Not a DataLoader, but built on one: Lightning would give that another sampler under DDP.

    Args:
        dataset: Where batches are read, by the numbers of the rows that they hold.
        batch: Returns the rows of the batch with a given number.
        length: The number of batches.
        num_workers: Processes that read ahead; 0 reads in this one.
        position: The batch that comes first.
        order: What the order depends on; a checkpoint made under another one is refused.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch: Callable[[int], Rows],
        length: int,
        num_workers: int = 0,
        position: int = 0,
        order: Mapping[str, Any] | None = None,
    ) -> None:
        self.dataset, self.batch, self.length = dataset, batch, length
        self.num_workers, self.position, self.order = num_workers, position, dict(order or {})
        self.seconds = 0.0
        """Time that was spent waiting for batches."""

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self._serve(range(self.position, self.length))

    def _serve(self, numbers: range) -> Iterator[Any]:
        rows, on_gpu = map(self.batch, numbers), torch.cuda.is_initialized()
        if self.num_workers == 0:  # a DataLoader would take half a millisecond for each batch
            batches: Iterator[Any] = map(self.dataset.__getitem__, rows)
        else:
            batches = iter(
                DataLoader(
                    self.dataset,
                    batch_size=None,
                    sampler=rows,
                    num_workers=self.num_workers,
                    pin_memory=on_gpu,
                    generator=torch.Generator(),  # else each iterator draws from the global one
                )
            )
        while True:
            began = perf_counter()
            batch = next(batches, None)
            self.seconds += perf_counter() - began
            if batch is None:
                return
            if on_gpu and self.num_workers == 0 and isinstance(batch, dict):
                batch = {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}
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


class EpochLoader(BatchLoader):
    """Serves a run's batches an epoch at a time: each pass goes on where the last one stopped.

    Numbers run on over the epochs; `length` is that of one.
    """

    def __iter__(self) -> Iterator[Any]:
        for batch in self._serve(range(self.position, self.position + self.length)):
            self.position += 1
            yield batch


def in_order(
    dataset: Dataset[Any], rows: Rows | range, batch_size: int, num_workers: int = 0
) -> BatchLoader:
    """Return a loader of these rows in their order; the last batch may be smaller."""

    def batch(number: int) -> Rows:
        return np.asarray(rows[number * batch_size : (number + 1) * batch_size])

    return BatchLoader(dataset, batch, -(-len(rows) // batch_size), num_workers)


def batches_trained(trainer: pl.Trainer | None) -> int:
    """Return how many batches a run has trained on, over all epochs.

    Lightning restores this counter before it asks for the loader, and never resets it.
    """
    if trainer is None:
        return 0
    progress: int = trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["processed"]
    return progress


class OrderedDataModule(pl.LightningDataModule):
    """A data module whose training batches are a function of their number.

    Its checkpoint holds what their order depends on; going on under another one is refused.

    Args:
        batch_size: Rows in a batch on each device.
        seed: Orders the training batches.
        num_workers: Processes that read ahead.
    """

    def __init__(self, batch_size: int, seed: int, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self._restored: dict[str, Any] | None = None
        self._train_loader: EpochLoader | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Rank and number of the processes that train together."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    @property
    def per_batch(self) -> int:
        """Rows in a batch of all processes."""
        return self.batch_size * self.place[1]

    def _say(self, words: str) -> None:
        """Print a line, in one of the processes."""
        if self.place[0] == 0:
            print(words, flush=True)

    def _rows(self, dataset: Dataset[Any], number: int) -> Rows:
        """Return what this rank reads for the `number`-th training batch of the run."""
        count = len(cast(Sized, dataset))
        return train_batch(number, count, self.batch_size, self.seed, *self.place)

    def _training_loader(self, dataset: Dataset[Any], order: Mapping[str, Any]) -> EpochLoader:
        """Return the loader of the training batches, standing where the run stopped.

        What their order depends on beside seed and batch size is `order`.
        """
        length = len(cast(Sized, dataset)) // self.per_batch
        batch: Callable[[int], Rows] = partial(self._rows, dataset)
        overfit = getattr(self.trainer, "overfit_batches", 0)
        if overfit > 0:  # the same few batches again and again
            cycle = max(1, overfit if isinstance(overfit, int) else int(overfit * length))
            every, batch = batch, lambda number: every(number % cycle)
        order = {
            **order,
            "datamodule.seed": self.seed,
            "datamodule.batch_size x devices": self.per_batch,
        }
        position = batches_trained(self.trainer)
        loader = EpochLoader(dataset, batch, length, self.num_workers, position, order)
        if self._restored is not None:
            loader.load_state_dict(self._restored)
        self._train_loader = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return, for a checkpoint, what the order of the batches depends on."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's order, to be compared when training goes on (not for validation)."""
        self._restored = state_dict
