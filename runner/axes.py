"""On what a training can be drawn: optimizer steps, tokens, FLOPs.

FLOPs are those of the model's and the optimizer's arithmetic, in closed form, so that a method and
its baseline are drawn alike. A callback may say by `flops()` what its process has spent so far, the
module by `flops_of(sequences, context_length, steps)` what a training takes where no method makes
it cheaper.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from datamodules.batches import batches_trained

AXES = ("step", "tokens", "FLOPs")


def spent(trainer: pl.Trainer, batch: tuple[int, int] | None) -> dict[str, float]:
    """Return the `tokens` and `FLOPs` that a training has taken; without what nobody knows.

    Args:
        trainer: Of the training.
        batch: See `shape_of_batch`.
    """
    if batch is None:
        return {}
    module: Any = trainer.lightning_module
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    # At the end of an epoch a step may have fewer micro-batches than others.
    sequences, context = batches_trained(trainer) * batch[0], batch[1]
    flops = None
    if hasattr(module, "flops_of"):
        own = sequences // trainer.world_size, context, trainer.global_step
        counting = next((cb for cb in callbacks if hasattr(cb, "flops")), None)
        flops = module.flops_of(*own) if counting is None else counting.flops()
    tokens = {"tokens": float(sequences * context)}
    return tokens if flops is None else {**tokens, "FLOPs": trainer.world_size * flops}


def shape_of_batch(trainer: pl.Trainer) -> tuple[int, int] | None:
    """Return the sequences of a micro-batch of all processes, and the tokens of each.

    None where the data does not say it: batches differ.
    """
    data: Any = getattr(trainer, "datamodule", None)
    described = data.describe() if hasattr(data, "describe") else {}
    tokens, context = described.get("tokens_per_batch"), described.get("context_length")
    return (tokens // context, context) if tokens and context else None
