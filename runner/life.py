"""The life of one run, from a checked config to its record. Importing this imports Lightning."""

from __future__ import annotations

import dis
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities import rank_zero_only
from lightning_fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from rich.console import Console
from rich.text import Text
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from callbacks.checkpoint import AtomicCheckpointIO, Checkpointing, logged
from callbacks.interruption import Interruption, stop_behind
from callbacks.samples import log_rows
from callbacks.step_watch import StepWatch, not_finite_behind
from ledger import Ledger
from reports import registry
from reports.configs import RUN_DIR, arm_hash, replaced
from reports.figures import draw_run
from reports.run_record import without_secrets
from reports.tables import reached, without_constants
from runner import machine
from runner.axes import shape_of_batch, spent
from runner.errors import ConfigError, FailedRun, machine_behind, refusing
from runner.folder import CHECKPOINT_KEY, Start, checkpoint_of, load, retire_newer, to_json
from runner.job import Job
from runner.parts import (
    answer,
    build,
    build_callbacks,
    build_data,
    check_data,
    check_devices,
    prepare,
    trainer_node,
)
from runner.record import Identity, MetricsFile, Record, experiment_of, now
from runner.resume import CHILD
from runner.validate import refuse_misfits


def run(job: Job, start: Start) -> dict[str, float]:
    """Train, validate or test, and leave a run folder; return the last metrics.

    Raises:
        ConfigError: Something cannot be built as it was asked for.
        Interrupted: A signal stopped the run.
        FailedRun: The training came to numbers that are not finite.
    """
    return _Run(job, start).run()


# Where a ValueError is raised in words: our packages.
ROOMS = (
    *("callbacks", "datamodules", "hashing", "language", "lightning_modules", "subnetworks"),
    "text2sql",
)

# What gloo and nccl say in a process whose partner is gone.
GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Socket closed")


class _CountsStepsTaken(_LoggerConnector):
    """Logs under the number of optimizer steps taken, as checkpoints, samples and the terminal do.

    Lightning numbers a step from 0 while it logs what the step and its validation reached, and from
    1 afterwards. Each row says as well how many tokens and FLOPs that were. Loggers get it once: a
    checkpoint has its step's row written before Lightning writes it.
    """

    row: tuple[int, dict[str, Any]] | None = None
    """The last one."""

    @cached_property
    def batch(self) -> tuple[int, int] | None:
        """Sequences and tokens of a micro-batch; asked once, for it may read data."""
        return shape_of_batch(self.trainer)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row, at a step if one is given."""
        if step is None and metrics:
            metrics = {"epoch": self.trainer.current_epoch, **metrics}
        step = self.trainer.global_step if step is None else step
        if metrics and step:
            metrics = {**metrics, **spent(self.trainer, self.batch)}
        row = (step, convert_tensors_to_scalars(metrics))
        if row != self.row:
            self.row = row
            super().log_metrics(row[1], step)


class _Run:
    """A run that leaves a folder: train, validate or test."""

    def __init__(self, job: Job, start: Start) -> None:
        self.began = time.perf_counter()
        machine.forget_peak()
        self.job = job
        self.settings = settings = replaced(job.settings, RUN_DIR, str(start.folder))
        self.start = start
        self.task = job.task
        self.first = getattr(rank_zero_only, "rank", 0) == 0
        self.console = Console(quiet=not self.first)
        pl.seed_everything(settings["seed"], workers=True, verbose=False)
        check_devices(settings["trainer"])
        self.datamodule = build_data(settings)
        self.module = build("module", self.settings["module"])
        refuse_misfits(self.settings, getattr(self.module, "hf_config", None))
        self.identity = Identity(start.folder, {"id": start.run_id, "experiment": settings["name"]})
        self.named = build_callbacks(settings, self.module)
        # Last, as checkpoints are by Lightning: what is saved at a stop has seen the whole step.
        self.callbacks = sorted(self.named.values(), key=lambda cb: isinstance(cb, Interruption))
        self.callbacks = [self.identity, *self.callbacks, StepWatch()]
        self.loggers = self._loggers()
        self.trainer = self._trainer()
        if self.first and self.datamodule is not None:
            # Before there is a run folder. Of several processes each opens its share by itself.
            prepare(self.datamodule, opened=self.trainer.world_size == 1)
        given = settings["ckpt_path"]  # None where the module's parts bring their own
        self.checkpoint = start.checkpoint if given is None else checkpoint_of("ckpt_path", given)
        if self.checkpoint is not None:
            check_data(self.module, self.datamodule, self.checkpoint)
            with refusing():
                answer(self.module, "await_checkpoint", load(self.checkpoint))
        self.phases: dict[str, float] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.places: dict[str, Path | None] = {"run folder": start.folder}

    def run(self) -> dict[str, float]:
        """Run the task between the run folder's first and last record."""
        listening = [cb for cb in self.callbacks if isinstance(cb, Interruption)]
        interruption = listening[0] if listening else Interruption()
        with interruption.listen(self.trainer), _told_to_children(self.start):
            self.record = Record(self.start, self.job) if self.first else None
            self.recorded = time.perf_counter()
            self.phases["preparation"] = self.recorded - self.began
            if (words := self.job.origin.words(self.settings["seed"])) is not None:
                self._say(words)
            self.console.print(
                Text.assemble((str(self.start.folder), "bold"), f" ({self.task})"), soft_wrap=True
            )
            for line in self.start.words:
                self._say(line)
            code = 1
            try:
                _start_wandb(self.loggers)
                metrics = self._train() if self.task == "train" else self._evaluate()
                self._note("finished")
                shown = self._sum_up(metrics)
                code = 0
            except BaseException as caught:
                interruption.end()
                # torchrun sends SIGTERM to the others where one process has ended.
                error = _others_behind(caught) or caught
                stop = stop_behind(error)
                if stop is None:
                    words = _words_behind(error)
                    self._failed(error, words)
                    if words is not None:
                        raise FailedRun(words) from error
                    raise
                code = int(stop.code or 1)
                self._note("interrupted", reason=stop.words, metrics=logged(self.trainer))
                self._sum_up(logged(self.trainer))
                self._say(f"Interrupted: {stop.words}.")
                if not self.first:  # Lightning kills the first process where another one fails
                    raise SystemExit(0) from None
                raise stop from None
            finally:
                _finish_wandb(code)
                if self.record is not None:
                    self.record.close()
        # Last of all: a terminal that is gone by now must not fail a run that is done.
        if self.first:
            title = f"{self.settings['name']} {self.start.run_id}, {self.task}"
            reached(self.console, title, shown, self.ledgers.values(), self.places)
        return metrics

    def _train(self) -> dict[str, float]:
        checkpoint = self.checkpoint
        if checkpoint is not None:
            content = load(checkpoint)
            # Files of older versions do not say it.
            self.identity.seconds_before = content.get(CHECKPOINT_KEY, {}).get("seconds", 0.0)
            if self.first:
                retire_newer(self.start.folder, content["global_step"])
            for logger in self.loggers:
                if isinstance(logger, MetricsFile):
                    logger.keep_to(content["global_step"])
        with self._timed("training"):
            self.trainer.fit(self.module, datamodule=self.datamodule, ckpt_path=checkpoint)
        saving = [cb for cb in self.callbacks if isinstance(cb, Checkpointing)]
        step = self.trainer.global_step
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            step = self._fetch_states(saving)
        # A run that was stopped after its last step has logged nothing in this process.
        metrics = {name: value for cb in saving for name, value in cb.metrics.items()}
        metrics |= logged(self.trainer)
        validated = any(cb.validated_step == step for cb in saving)
        if self.trainer.enable_validation and not validated:
            with self._timed("validation"):
                self.trainer.validate(self.module, datamodule=self.datamodule, verbose=False)
            metrics |= logged(self.trainer)
            for callback in saving:
                callback.judge_last(self.trainer, step)
        metrics["seconds"] = self.identity.seconds_before + self.phases["training"]
        if self.first:
            self._report(metrics, saving, step)
        return metrics

    def _evaluate(self) -> dict[str, float]:
        checkpoint = self.checkpoint
        self._say(f"checkpoint: {checkpoint}")
        do = self.trainer.validate if self.task == "validate" else self.trainer.test
        with warnings.catch_warnings():
            # The checkpoint holds states of callbacks that only matter to training.
            message = ".*callbacks used to create the checkpoint need to be provided"
            warnings.filterwarnings("ignore", message=message)
            with self._timed({"validate": "validation"}.get(self.task, self.task)):
                do(self.module, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False)
        metrics = logged(self.trainer)
        if self.record is not None:
            self.record.update(metrics=metrics, checkpoint=checkpoint and str(checkpoint))
        return metrics

    def _fetch_states(self, saving: list[Checkpointing]) -> int:
        """Take over what spawned processes know, from their last checkpoint; return its step."""
        last = next((cb.last for cb in saving if cb.last is not None), None)
        if last is None:
            return 0
        checkpoint = load(last)
        for callback in self.callbacks:
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
        return int(checkpoint["global_step"])

    def _report(self, metrics: dict[str, float], saving: list[Checkpointing], step: int) -> None:
        assert self.record is not None
        folder = self.start.folder
        curves: list[str] = []
        figures: dict[str, Path] = {}
        tables: dict[str, list[dict[str, Any]]] = {}
        for name, source in {**self.named, "module": self.module}.items():
            if (ledger := answer(source, "ledger")) is not None:
                self.ledgers[name] = ledger
            curves += answer(source, "curves") or ()
            figures |= answer(source, "figures", folder / "plots") or {}
            tables |= answer(source, "tables") or {}
            self.places |= answer(source, "places") or {}
        for logger in self.loggers if self.ledgers or figures else ():
            logger.log_metrics(self._saved(), step=step)
            for path in figures.values() if hasattr(logger, "log_image") else ():
                logger.log_image(f"plots/{path.stem}", [str(path)], step=step)
            for name, each in tables.items():
                log_rows(logger, f"tables/{name}", each, step)
            logger.save()
        last, best = (next((getattr(cb, w) for cb in saving), None) for w in ("last", "best"))
        self.record.update(
            metrics=metrics,
            ledgers=self.ledgers,
            checkpoint=None if last is None else str(last.relative_to(folder)),
            best_checkpoint=None if best is None else str(best.relative_to(folder)),
            data=self._data(),
        )
        png = draw_run(folder, curves, Path(self.settings["paths"]["output_dir"]))
        self.places |= {"checkpoint": last, "best checkpoint": best, "plots": png, **figures}

    def _data(self) -> dict[str, Any]:
        """What the datamodule says of itself; nothing where only spawned processes know it."""
        spawned = isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher)
        return {} if spawned else answer(self.datamodule, "describe") or {}

    def _failed(self, error: BaseException, words: str | None) -> None:
        reason = words or f"{type(error).__name__}: {error}"
        try:
            self._note("failed", reason=reason, metrics=logged(self.trainer))
            self._sum_up(logged(self.trainer))
            if self.record is not None:
                trace = without_secrets(traceback.format_exc())
                (self.start.folder / "traceback.txt").write_text(trace, encoding="utf-8")
        except OSError as second:  # the disk is full: the record stays as it was
            self._say(f"The record does not say so: {second}")
        line = without_secrets(f"Failed: {reason.strip().splitlines()[0]}")
        self._say(line)
        if not self.first and _of_others(error) is not None:  # the first may be the one
            print(f"Process {self.trainer.global_rank}: {line}", file=sys.stderr, flush=True)

    def _sum_up(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return what the run's table shows; loggers with a summary get it, and what was saved."""
        if not self.first:
            return metrics
        shown = without_constants(metrics, registry.read(self.start.folder))
        for logger in self.loggers:
            if hasattr(logger, "log_summary"):
                logger.log_summary({**shown, **self._saved()})
        return shown

    def _saved(self) -> dict[str, float]:
        """Return the ledgers as flat metrics."""
        each = (ledger.metrics(name) for name, ledger in self.ledgers.items())
        return {name: value for metrics in each for name, value in metrics.items()}

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _note(self, status: str, **fields: Any) -> None:
        if self.record is not None:
            since = time.perf_counter() - self.recorded
            self.record.update(
                status=status,
                ended=now(),
                seconds=self.identity.seconds_before + since,
                phases=self.phases,
                peak_memory=machine.peak_memory(),
                **fields,
            )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Keep the seconds that a part of the run takes, also where it ends in an error."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[phase] = time.perf_counter() - began

    def _loggers(self) -> list[Any]:
        found = []
        for name, node in (self.settings["logger"] or {}).items():
            if node is None:
                continue
            further = self._wandb(node) if name == "wandb" else {}
            kept = {key: value for key, value in node.items() if key not in further}
            found.append(build(f"logger.{name}", kept, **further))
        return found

    def _wandb(self, node: dict[str, Any]) -> dict[str, Any]:
        if node.get("mode") != "online":
            # What W&B prints about an offline run says nothing that the run's own table does not.
            os.environ.setdefault("WANDB_SILENT", "true")
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Tables wait there until they are sent; W&B's own choice is the home folder.
        data = Path(node.get("save_dir") or ".", "wandb", ".data").resolve()
        os.environ.setdefault("WANDB_DATA_DIR", str(data))
        return {
            "id": self.start.run_id,
            "name": node.get("name") or self.start.folder.name,
            "group": self.settings["name"],
            "job_type": self.task,
            "config": {
                **without_secrets(replaced(self.job.recorded, RUN_DIR, str(self.start.folder))),
                "experiment": experiment_of(self.job),
                "arm": arm_hash(self.job.recorded),
            },
        }

    def _trainer(self) -> pl.Trainer:
        trainer = build(
            "trainer",
            trainer_node(self.settings, self.module, self.datamodule),
            callbacks=self.callbacks,
            logger=self.loggers or False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(self.start.folder),
            enable_model_summary=False,
            # Without this Lightning adds a callback of its own where the config leaves ours out.
            enable_checkpointing=any(isinstance(cb, Checkpoint) for cb in self.callbacks),
            enable_progress_bar=any(isinstance(cb, ProgressBar) for cb in self.callbacks),
        )
        assert isinstance(trainer, pl.Trainer)
        trainer._logger_connector.__class__ = _CountsStepsTaken
        return trainer


@contextmanager
def _told_to_children(start: Start) -> Iterator[None]:
    """Tell processes that Lightning starts with the same command which run they belong to."""
    os.environ[CHILD] = to_json(start)
    try:
        yield
    finally:
        del os.environ[CHILD]


def _words_behind(error: BaseException) -> str | None:
    """Say what ended a run, None if that needs a traceback."""
    return not_finite_behind(error) or machine_behind(error) or _of_others(error) or _refusal(error)


def _refusal(error: BaseException) -> str | None:
    """Return the words of what a user can mend, which only a started run meets; None of a fault.

    Such is a ValueError that our own code raises in words, say where a part's checkpoint is of
    another network, and what Lightning refuses once it has the loaders.
    """
    if isinstance(error, ConfigError):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, ValueError | MisconfigurationException):
        return None
    code = trace.tb_frame.f_code
    room = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
    if room in ("pytorch_lightning", "lightning_fabric"):
        return f"trainer: {' '.join(str(error).split())}"
    # Not what Python itself raises in our code: an unpacking that does not fit, an empty maximum.
    in_words = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return str(error) if in_words and room in ROOMS else None


def _of_others(error: BaseException) -> str | None:
    """Say that another process of the run has ended, None if that is not what ended this one."""
    gone = isinstance(error, ProcessExitedException) or (
        isinstance(error, RuntimeError | ProcessRaisedException)
        and any(sign in str(error) for sign in GONE)
    )
    if not gone:
        return None
    return "another process of this run has ended; resume=auto goes on from the last checkpoint"


def _others_behind(error: BaseException) -> BaseException | None:
    """Return what says that another process has ended, where a signal came while it was handled."""
    behind: BaseException | None = error
    while behind is not None and _of_others(behind) is None:
        behind = behind.__context__
    return behind


def _start_wandb(loggers: list[Any]) -> None:
    """Start W&B here if the command line, which it keeps as it finds it, holds secrets."""
    given = sys.argv
    if (masked := without_secrets(given)) == given:
        return  # it starts when something is logged, in whichever process that is
    sys.argv = masked
    try:
        for logger in loggers:
            if hasattr(logger, "log_summary"):  # of W&B
                _ = logger.experiment
    finally:
        sys.argv = given


def _finish_wandb(code: int) -> None:
    """End the W&B run, if there is one: the next logger in this process would go on with it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=code)
