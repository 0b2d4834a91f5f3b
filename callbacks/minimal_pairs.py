"""How often a language model finds the right one of two sentences likelier, while it trains."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from annotated_types import Ge
from pytorch_lightning.strategies import ModelParallelStrategy

from language.minimal_pairs import judge, read_pairs
from subnetworks.families import longest_context


class MinimalPairs(pl.Callback):
    """At each validation and test, judges minimal pairs by the full model: BLiMP's measure.

    Logs `val/minimal_pairs` or `test/minimal_pairs`, the mean over the files of the share of right
    pairs. Nothing random is drawn. Of several processes each judges a part, unless each has a part
    of the weights.

    Args:
        pairs: A folder of jsonl files whose lines have `sentence_good` and `sentence_bad`.
        limit: How many pairs of each file at a validation.
        test_limit: How many at a test; None for all.

    Raises:
        ValueError: There are no such files.
    """

    reads: ClassVar[str] = "tokens"
    # What a callback may monitor, by its `mode`: whether less or more of it is better.
    validated: ClassVar[dict[str, tuple[str, ...]]] = {"max": ("val/minimal_pairs",)}

    def __init__(
        self,
        pairs: str,
        limit: Annotated[int, Ge(1)] = 50,
        test_limit: Annotated[int, Ge(1)] | None = None,
    ) -> None:
        self.pairs, self.limit, self.test_limit = pairs, limit, test_limit
        read_pairs(pairs, limit)  # refused before anything starts

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge pairs for a validation."""
        if not trainer.sanity_checking:
            self._judge(trainer, pl_module, "val", self.limit)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge pairs for a test."""
        self._judge(trainer, pl_module, "test", self.test_limit)

    def _judge(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str, limit: int | None
    ) -> None:
        model, tokenizer = cast(Any, pl_module).model, cast(Any, trainer).datamodule.tokenizer
        together = isinstance(trainer.strategy, ModelParallelStrategy)
        rank, world = (0, 1) if together else (trainer.global_rank, trainer.world_size)
        counts = []
        for pairs in read_pairs(self.pairs, limit).values():
            mine = pairs[rank::world]
            with trainer.precision_plugin.forward_context():
                right = judge(model, tokenizer, mine, longest_context(model.config))
            counts.append([sum(right), len(right)])
        summed = torch.tensor(counts, dtype=torch.float, device=pl_module.device)
        summed = cast(torch.Tensor, trainer.strategy.reduce(summed, reduce_op="sum"))
        shares = summed[:, 0] / summed[:, 1]
        # Summed over the ranks already; `sync_dist` averages equal values.
        pl_module.log(f"{split}/minimal_pairs", shares.mean(), sync_dist=True)
