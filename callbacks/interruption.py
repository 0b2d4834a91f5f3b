"""SIGTERM and Ctrl-C: finish the step, and the validation that is due at it; save, stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from torch.multiprocessing.spawn import ProcessExitedException

from callbacks.checkpoint import Checkpointing, validation_follows

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """The run was stopped by a signal; leaving it uncaught exits with 128 + the signal's number.

    Args:
        signum: The signal.
        words: What was going on, for the record.
    """

    def __init__(self, signum: int, words: str) -> None:
        super().__init__(128 + signum)
        self.words = f"{signal.Signals(signum).name} {words}"


def stop_behind(error: BaseException) -> Interrupted | None:
    """Return the interruption that an error is or stands for, None if it is another error.

    Args:
        error: What ended the run; where processes were spawned, that one of them has ended.
    """
    if isinstance(error, ProcessExitedException) and error.exit_code - 128 in SIGNALS:
        return Interrupted(error.exit_code - 128, "in the processes that were spawned")
    return error if isinstance(error, Interrupted) else None


class Interruption(pl.Callback):
    """Stops training at the end of the step in which a signal came, with a checkpoint of that step.

    A validation that is due at this step takes place before: Lightning does not make up for one
    that a resumed run has missed. Outside of training a signal stops at once, and so does a second
    Ctrl-C. All processes of a distributed run agree on the step; only the first process decides.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._deferring = False
        self._ending = False
        self._stops = False  # when the validation ends
        self._seen_step = -1
        self._trainer: pl.Trainer | None = None

    @contextmanager
    def listen(self, trainer: pl.Trainer) -> Iterator[None]:
        """Answer SIGTERM and SIGINT from here until the block ends; main thread only."""
        self._trainer = trainer
        before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def end(self) -> None:
        """From here on the run ends by itself, and a signal would break off its last words."""
        self._ending = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Know the trainer in a process that Lightning has spawned as well."""
        self._trainer = trainer

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning, in what may be its first stage.

        It puts a handler of its own in front, just before: that one saves nothing, and talks to the
        other processes in the middle of whatever they are doing.
        """
        for signum in SIGNALS:
            signal.signal(signum, self._receive)

    on_validation_start = on_test_start = on_sanity_check_start

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of a step."""
        self.on_sanity_check_start(trainer, pl_module)
        self._seen_step = trainer.global_step
        self._deferring, self._stops = True, False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and stop if a signal came and this micro-batch completed an optimizer step."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        # In a single process this is the flag itself: no synchronisation with the device.
        stop = self.signum is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop or trainer.global_step == trainer.max_steps:
            return
        if validation_follows(trainer):
            self._stops = True
        else:
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save and stop if a signal came in the step that was validated."""
        if not self._stops:
            return
        for callback in trainer.checkpoint_callbacks:  # which come last, and would not be called
            callback.on_validation_end(trainer, pl_module)
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        words = f"after step {trainer.global_step} of {trainer.max_steps}"
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpointing):
                words += f", saved as {callback.save(trainer).name}"
        raise Interrupted(self.signum or signal.SIGTERM, words)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training is over; several processes end together and do not stop here."""
        self._deferring = False
        if self.signum is not None and trainer.world_size == 1:
            raise Interrupted(self.signum, "after the last step")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Training is over."""
        self._deferring = False

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum is not None, signum
        if self._ending and not (again and signum == signal.SIGINT):
            return
        launcher = None if self._trainer is None else self._trainer.strategy.launcher
        if isinstance(launcher, _MultiProcessingLauncher) and launcher.procs:
            launcher.kill(signal.SIGTERM)  # the processes it spawned train, this one waits for them
            return
        if self._trainer is not None and not self._trainer.is_global_zero:
            return  # the first process decides; the others learn it at the step's end
        if self._deferring and not (again and signum == signal.SIGINT):
            name = signal.Signals(signum).name
            print(f"{name}: stopping after this step; Ctrl-C stops at once.", flush=True)
            return
        self._deferring = False
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)  # they may wait for this process for ever
        raise Interrupted(signum, "outside of training" if not again else "twice: not saved")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None}
