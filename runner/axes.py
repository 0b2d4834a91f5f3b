"""On what a training can be drawn: optimizer steps, tokens, FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

AXES = ("step", "tokens", "FLOPs")


class Axes:
    """What a run has spent by a step, as far as it is known.

    A callback may say by `flops()` what the steps of its process have cost so far, the module by
    `flops_of_step(sequences, context_length)` what a step costs where no method makes it cheaper.
    """

    def __init__(self, callbacks: Sequence[pl.Callback]) -> None:
        self._counting: Any = next((cb for cb in callbacks if hasattr(cb, "flops")), None)
        self._of_step: dict[str, float] | None = None

    def at(self, step: int, trainer: pl.Trainer) -> dict[str, float]:
        """Return the `tokens` and `FLOPs` of so many optimizer steps; without what nobody knows."""
        if self._of_step is None:
            self._of_step = _of_step(trainer)
        found = {axis: step * cost for axis, cost in self._of_step.items()}
        if self._counting is not None and "FLOPs" in found:
            found["FLOPs"] = trainer.world_size * self._counting.flops()
        return found


def _of_step(trainer: pl.Trainer) -> dict[str, float]:
    """Return what one optimizer step takes."""
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
