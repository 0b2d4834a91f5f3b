"""When checkpoints are written, which are kept, and how a file is written so that it is whole."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from annotated_types import Ge
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from atomic import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it: a name always holds a whole file.

    Lightning's own way builds the file in memory and moves it over from the system's temporary
    folder, which is a copy, and not atomic, where that folder is on another disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save to `path`; after a crash at any moment the old file or the new one is there.

        Raises:
            ValueError: Storage options were given.
        """
        if storage_options is not None:
            raise ValueError("checkpoints are written to local disks only: no storage_options")
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place, "wb") as file:
            torch.save(checkpoint, file)


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the micro-batch that has just been trained on."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def logged(trainer: pl.Trainer) -> dict[str, float]:
    """The last value of everything that was logged."""
    return {str(key): float(value) for key, value in trainer.callback_metrics.items()}


class Checkpointing(Checkpoint):
    """Saves the run every few optimizer steps, keeps the newest, and the best by a metric.

    A checkpoint is written when a step's last micro-batch ends, or after the validation that is due
    at that step: Lightning does not make up for a validation that a resumed run has missed.
    `best.ckpt` is written when a validation ends, also that of a finished training. What was logged
    by then stands in each of them.

    Args:
        folder: Where to; made when the first checkpoint is written.
        every_n_steps: Optimizer steps between two checkpoints, at least 1. The last step is saved
            in any case.
        keep_last: How many of the newest to keep, at least 2: if the newest is damaged, there is
            one to fall back on.
        monitor: The logged metric that decides which is the best; None: no `best.ckpt`.
        mode: "min" if lower is better, "max" if higher is.
    """

    read_where: ClassVar[dict[str, tuple[str, Any]]] = {"mode": ("monitor", True)}

    def __init__(
        self,
        folder: str,
        every_n_steps: Annotated[int, Ge(1)] = 100,
        keep_last: Annotated[int, Ge(2)] = 2,  # one is the spare
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.best_value = math.inf
        self.best_step = -1
        self.validated_step = -1
        self.metrics: dict[str, float] = {}
        """What had been logged when the newest checkpoint was written."""
        self._first_step = self._seen_step = -1
        self._saved_step = -1
        self._due = False  # a checkpoint waits for the end of a validation

    @property
    def last(self) -> Path | None:
        """The newest checkpoint of this run, None before the first."""
        steps = sorted(self.folder.glob("step-*.ckpt"))
        return steps[-1] if steps else None

    @property
    def best(self) -> Path | None:
        """The best checkpoint, None before the first validation."""
        return path if (path := self.folder / "best.ckpt").exists() else None

    def save(self, trainer: pl.Trainer) -> Path:
        """Save the run as it is at this step, unless that is done, and drop the oldest files.

        Args:
            trainer: The trainer of the run; every process must call this.
        """
        path = self._path(trainer.global_step)
        if self._saved_step != trainer.global_step:
            self.metrics = logged(trainer)
            trainer.save_checkpoint(path)
            self._saved_step = trainer.global_step
            self._due = False
            for logger in trainer.loggers:
                logger.save()
            if trainer.is_global_zero:
                for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep_last]:
                    old.unlink()
        return path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agree on one folder: only the first process knows the name of the run."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the best checkpoint, if a kill came between the two names of its file.

        Where it is gone, say with another future of the run, the next validation's is the best.
        """
        if trainer.is_global_zero and self._path(self.best_step).exists():
            self._name_best(self.best_step)
        if not trainer.strategy.broadcast(self.best is not None):
            self.best_value, self.best_step = math.inf, -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the step that was resumed from, which is saved already if its file is there."""
        self.on_fit_start(trainer, pl_module)  # with FSDP a checkpoint is read after it
        self._first_step = self._seen_step = trainer.global_step
        saved: bool = trainer.strategy.broadcast(self._path(trainer.global_step).exists())
        self._saved_step = trainer.global_step if saved else -1
        loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
        ended = batches.restarted_on_train_batch_end and batches.batch_progress.is_last_batch
        if loop.restarted_mid_epoch and ended:
            # Lightning 2.6 has counted this epoch as done and would still take the next one for
            # its rest: without its start, and one short in its counters.
            loop.reset_restart_stage()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if this micro-batch completed an optimizer step at which a checkpoint is due."""
        step = trainer.global_step
        if step != self._seen_step and (
            step % self.every_n_steps == 0 or step == trainer.max_steps
        ):
            self._due = True
            if not validation_follows(trainer):
                # Lightning writes the step's row after this: a kill in between would lose it.
                trainer._logger_connector.update_train_step_metrics()
                self.save(trainer)
        self._seen_step = step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best checkpoint if the model has just become better."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.validated_step = trainer.global_step
        better = self._improved(trainer, trainer.global_step)
        if self._due:
            self.save(trainer)
        if better:
            self._save_best(trainer)

    def judge_last(self, trainer: pl.Trainer, step: int) -> None:
        """Name the last checkpoint the best if the validation that has followed it says so.

        Args:
            trainer: The trainer of the run; every process must call this.
            step: Of the checkpoint.
        """
        known = self.monitor in trainer.callback_metrics
        if known and self._improved(trainer, step) and trainer.is_global_zero:
            self._name_best(step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of a run that ended otherwise than by reaching max_steps."""
        self.save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its step, that of the last validation, and what was logged."""
        return {
            "watched": [self.monitor, self.sign],
            "best_value": self.best_value,
            "best_step": self.best_step,
            "validated_step": self.validated_step,
            "metrics": self.metrics,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back; the best by another metric is none."""
        watched = [self.monitor, self.sign]
        if state_dict.get("watched", watched) == watched:  # older files have none
            self.best_value = state_dict["best_value"]
            self.best_step = state_dict.get("best_step", -1)
        self.validated_step = state_dict["validated_step"]
        self.metrics = dict(state_dict["metrics"])

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.ckpt"

    def _improved(self, trainer: pl.Trainer, step: int) -> bool:
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            if step == self._first_step:  # a metric of training has no value yet
                return False
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(
                f"callbacks.checkpoint.monitor={self.monitor}: no such metric was logged. "
                f"Name one of these, or null for no best.ckpt: {known}"
            )
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        # The processes need not agree to the last bit, and all of them must save or none.
        better: bool = trainer.strategy.broadcast(value < self.best_value)
        if better:
            self.best_value, self.best_step = value, step
        return better

    def _save_best(self, trainer: pl.Trainer) -> None:
        if self._saved_step != trainer.global_step:
            self.metrics = logged(trainer)
            trainer.save_checkpoint(self.folder / "best.ckpt")
        elif trainer.is_global_zero:
            self._name_best(trainer.global_step)

    def _name_best(self, step: int) -> None:
        path, beside = self.folder / "best.ckpt", self.folder / "best.ckpt.tmp"
        beside.unlink(missing_ok=True)
        if path.exists() and path.samefile(self._path(step)):
            return  # and a rename of one name to the other would do nothing
        os.link(self._path(step), beside)
        os.replace(beside, path)
