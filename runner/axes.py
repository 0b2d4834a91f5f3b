"""On what a training can be drawn: optimizer steps, tokens, FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl

AXES = ("step", "tokens", "FLOPs")


@runtime_checkable
class CountsFlops(Protocol):
    """A callback that counts what the training has cost so far."""

    def flops(self) -> float:
        """Return the FLOPs of the steps that this process has taken."""


@runtime_checkable
class PlansFlops(Protocol):
    """A module that knows what a step of it costs where no method makes it cheaper."""

    def flops_of_step(self, sequences: int, context_length: int) -> float | None:
        """Return a process's FLOPs of an optimizer step, None where they are not known."""


class Axes:
    """What a run has spent by a step, as far as it is known.

    Args:
        callbacks: Of the run.
    """

    def __init__(self, callbacks: Sequence[pl.Callback]) -> None:
        self._counting = next((cb for cb in callbacks if isinstance(cb, CountsFlops)), None)
        self._of_step: dict[str, float] | None = None

    def at(self, step: int, trainer: pl.Trainer) -> dict[str, float]:
        """Return `tokens` and `FLOPs` by a step; without what nobody knows.

        Args:
            step: Optimizer steps taken.
            trainer: Whose data is set up.
        """
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
    module, processes = trainer.lightning_module, trainer.world_size
    flops = None
    if isinstance(module, PlansFlops):
        flops = module.flops_of_step(tokens // context // processes, context)
    return {"tokens": float(tokens)} | ({} if flops is None else {"FLOPs": processes * flops})
