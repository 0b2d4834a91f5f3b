"""Random states in the checkpoint, so that a resumed run draws what the first one would have."""

from __future__ import annotations

import random
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Interval

from callbacks.checkpoint import validation_follows


def capture(device: torch.device) -> dict[str, Any]:
    """Return the states of Python, NumPy, torch on the CPU and, for a GPU, on `device`.

    Only tensors, numbers and strings, which `torch.load(weights_only=True)` lets through.
    """
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": [
            int(numpy_state["state"]["pos"]),
            int(numpy_state["has_gauss"]),
            float(numpy_state["gauss"]),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Set the random states of this process, on this device, to what `capture` returned."""
    random.setstate(state["python"])
    position, has_gauss, gauss = state["numpy_rest"]
    key = state["numpy"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


class RngState(pl.Callback):
    """Puts the random states of every process into the checkpoint, and keeps training's own apart.

    What a validation or a new epoch's data iterator draws does not change what the next training
    step draws: a resumed run may have had fewer of both. Put it before callbacks that draw.

    Args:
        seed: Set anew when the fit is set up, after the data: whether the data had to be built, or
            was found in the cache, must not change the model's first weights.
    """

    def __init__(self, seed: Annotated[int, Interval(ge=0, lt=2**32)]) -> None:
        self.seed = seed
        self._state: dict[str, Any] | None = None  # to be set before the next training step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Seed; the model is built after this."""
        if stage == "fit":
            pl.seed_everything(self.seed, workers=True, verbose=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the states of a resumed run, or training's again, before a batch is fetched."""
        self._restore(trainer)

    on_validation_end = on_train_start

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the states that were kept over a validation, a new epoch or a resumption."""
        self._restore(trainer)
        self._state = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the states if a validation or a new epoch comes before the next step."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last or validation_follows(trainer):
            self._state = capture(trainer.strategy.root_device)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the states of all processes into the checkpoint."""
        state = self._state or capture(trainer.strategy.root_device)
        states: list[Any] = [state]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, state)
        checkpoint["rng_states"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take this process's states; they are set when training starts."""
        states = checkpoint.get("rng_states", [])
        if len(states) == trainer.world_size:
            self._state = states[trainer.global_rank]
        elif trainer.is_global_zero:
            print(
                f"Random states were not restored: the checkpoint holds those of {len(states)} "
                f"processes, now there are {trainer.world_size}."
            )

    def _restore(self, trainer: pl.Trainer) -> None:
        if self._state is not None:
            restore(self._state, trainer.strategy.root_device)
