"""What one sees while a run goes on: loss, tokens per second, the method's stage."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

import pytorch_lightning as pl
import torch
from annotated_types import Ge
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(ProgressBar):
    """A bar on a terminal, a line now and then elsewhere; logs `perf/tokens_per_second`.

    The time is that of the training batches, without validation and checkpoints, over the steps
    since the last row in the logs. Nothing is read from the device in between, so that a GPU is not
    held up: its queue is drained where the loss is read, which is at the same steps.

    Args:
        seconds_between_lines: Least time between two lines where the output is not a terminal.
    """

    # What a callback may monitor, by its `mode`: whether less or more of it is better.
    validated: ClassVar[dict[str, tuple[str, ...]]] = {"max": ("perf/tokens_per_second",)}

    def __init__(self, seconds_between_lines: Annotated[float, Ge(0)] = 30.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._enabled = True
        self._bar: RichProgress | None = None
        self._step = 0
        self._tokens: int | torch.Tensor = 0
        self._seconds = 0.0  # of training since the last row, up to `_started`
        self._started: float | None = None  # when the clock was started, None while it stands
        self._rate: float | None = None
        self._loss: float | None = None
        self._last_line = float("-inf")

    def disable(self) -> None:
        """Show nothing: what Lightning asks of all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._step, self._tokens, self._seconds, self._started = trainer.global_step, 0, 0.0, None
        if self._enabled and (console := Console()).is_terminal:
            self._bar = RichProgress(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[words]}"),
                console=console,
                transient=True,
            )
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar.add_task("train", total=total, words="", completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, unless it runs."""
        if self._started is None:
            self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count tokens; show and log when an optimizer step at which a row is due completed."""
        ids = batch.get("input_ids") if isinstance(batch, dict) else None
        if isinstance(ids, torch.Tensor):
            mask = batch.get("attention_mask")  # padding is no text
            self._tokens += (ids.numel() if mask is None else mask.sum()) * trainer.world_size
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        due = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and self._tokens:
            seconds = self._seconds + self._running()
            self._rate = float(self._tokens) / seconds
            pl_module.log("perf/tokens_per_second", self._rate, batch_size=1)
        if self._enabled:
            self._show(trainer, due or step == trainer.max_steps)
        if due:
            self._tokens, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def on_validation_start(self, *_: Any, **__: Any) -> None:
        """Stop the clock, for a validation or a checkpoint."""
        self._seconds, self._started = self._seconds + self._running(), None

    on_save_checkpoint = on_validation_start

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the bar, at the end or before an error is printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    on_exception = on_train_end

    def _running(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def _show(self, trainer: pl.Trainer, due: bool) -> None:
        if due and (loss := trainer.callback_metrics.get("train/loss")) is not None:
            self._loss = float(loss)
        words = [f"loss {self._loss:.4f}"] if self._loss is not None else []
        words += [f"{self._rate:,.0f} tokens/s"] if self._rate is not None else []
        stages = (getattr(callback, "stage", "") for callback in trainer.callbacks)  # type: ignore[attr-defined]
        words += [f"stage {stage}" for stage in stages if stage]
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._step, words=", ".join(words))
        elif due and (
            self._step == trainer.max_steps
            or time.perf_counter() - self._last_line >= self.seconds_between_lines
        ):
            self._last_line = time.perf_counter()
            print(f"step {self._step}/{trainer.max_steps}: {', '.join(words)}", flush=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bar": None, "_trainer": None}
