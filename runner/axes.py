"""On what a training can be drawn: optimizer steps, tokens, FLOPs.

A callback may say by `flops()` what the steps of its process have cost so far, the module by
`flops_of_step(sequences, context_length)` what a step costs where no method makes it cheaper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

AXES = ("step", "tokens", "FLOPs")


def spent(step: int, cost: Mapping[str, float], trainer: pl.Trainer) -> dict[str, float]:
    """Return the `tokens` and `FLOPs` of so many optimizer steps; without what nobody knows."""
    found = {axis: step * each for axis, each in cost.items()}
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    counting = next((cb for cb in callbacks if hasattr(cb, "flops")), None)
    if counting is not None and "FLOPs" in found:
        found["FLOPs"] = trainer.world_size * counting.flops()
    return found


def cost_of_step(trainer: pl.Trainer) -> dict[str, float]:
    """Return the `tokens` and `FLOPs` that one optimizer step takes, as far as they are known."""
    data: Any = getattr(trainer, "datamodule", None)
    described = data.describe() if hasattr(data, "describe") else {}
    batch, context = described.get("tokens_per_batch"), described.get("context_length")
    if not (batch and context):
        return {}
    tokens = batch * trainer.accumulate_grad_batches
    module: Any = trainer.lightning_module
    sequences = tokens // context // trainer.world_size
    flops = module.flops_of_step(sequences, context) if hasattr(module, "flops_of_step") else None
    cost = {} if flops is None else {"FLOPs": trainer.world_size * flops}
    return {"tokens": float(tokens), **cost}
