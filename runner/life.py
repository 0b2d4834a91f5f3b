"""The life of one run, from a checked config to its record. Importing this imports Lightning."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import rank_zero_only
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from rich.console import Console
from rich.table import Table
from rich.text import Text

from callbacks.checkpoint import AtomicCheckpointIO, Checkpointing, logged
from callbacks.interruption import Interruption, stop_behind
from callbacks.step_watch import StepWatch, not_finite_behind
from ledger import Ledger
from reports import registry, tables
from reports.figures import draw_run
from runner import machine, pretrained, report, resume, task_keys
from runner.card import card
from runner.errors import ConfigError, FailedRun
from runner.job import arm_hash, config_hash, origin, replaced
from runner.record import Identity, MetricsFile, Record, now, quiet
from runner.run_record import read_record, without_secrets
from runner.task_keys import TASKS
from runner.validate import (
    RUN_DIR,
    RUNNER_KEYS,
    plans_steps,
    refuse_misfits,
)


@runtime_checkable
class HasLedger(Protocol):
    """A callback or module that can say what it saved."""

    def ledger(self) -> Ledger | None:
        """Return what was saved, None if nothing was measured."""


@runtime_checkable
class HasPlan(Protocol):
    """A callback or module that can say before a run what it will cost."""

    def plan(self, module: Any, batch_shape: tuple[int, int], max_steps: int) -> Table:
        """Return the cost by stage; the shape is sequences and tokens of one in a step."""


@runtime_checkable
class HasCurves(Protocol):
    """A callback or module whose logged metrics are worth a plot."""

    def curves(self) -> tuple[str, ...]:
        """Return the metrics' names."""


@runtime_checkable
class HasFigures(Protocol):
    """A callback or module that draws what its run has reached."""

    def figures(self, folder: Path) -> dict[str, Path]:
        """Draw PNG files in a folder; return them by name."""


@runtime_checkable
class HasPlaces(Protocol):
    """A callback or module that writes files of its own."""

    def places(self) -> dict[str, Path]:
        """Return them by name."""


@runtime_checkable
class ChecksFiles(Protocol):
    """A datamodule that reads the user's own files."""

    def check_files(self) -> None:
        """Read them, cheaply and before all else; ValueError says what is wrong in them."""


@runtime_checkable
class DescribesItself(Protocol):
    """A datamodule that can say what its data is."""

    def describe(self) -> dict[str, Any]:
        """Return what the data is and how large, as JSON data."""


@runtime_checkable
class HasSchedule(Protocol):
    """A module whose learning rate follows `lightning_modules.causal_lm.learning_rate_factor`."""

    schedule_settings: dict[str, Any]


@runtime_checkable
class BelongsToData(Protocol):
    """A module whose checkpoints are of use with the data of their training only."""

    def check_data(self, datamodule: Any, checkpoint: Mapping[str, Any]) -> None:
        """Raise ValueError if a checkpoint is of other data; the datamodule is set up."""


@runtime_checkable
class Exports(Protocol):
    """A module that can be written for other programs."""

    def export(self, folder: Path, files: list[Any]) -> None:
        """Write the model into a folder, and beside it what has a `save_pretrained`."""


def live(settings: dict[str, Any], start: resume.Start | None) -> dict[str, float]:
    """Do what a checked config asks for.

    Args:
        settings: The resolved config; plain, as everything built from it will see it.
        start: Where the run lies and what it goes on from; None if it leaves no folder.

    Returns:
        The run's last metrics.

    Raises:
        ConfigError: Something cannot be built as it was asked for.
        Interrupted: A signal stopped the run.
        FailedRun: The training came to numbers that are not finite.
    """
    quiet()
    if settings["dry_run"]:
        return _dry_run(settings)
    if settings["task"] == "export":
        return _export(settings)
    if settings["task"] not in TASKS:
        return _own_task(settings)
    assert start is not None
    rehearse(settings)
    return _Run(settings, start).live()


def rehearse(settings: dict[str, Any]) -> None:
    """Build a run's parts without their data, weights and folder.

    What cannot be built is thereby refused before a base model is trained, before anything is left
    behind, and before the first job of a sweep.

    Args:
        settings: The checked config.

    Raises:
        ConfigError: A part cannot be built as it was asked for.
    """
    chosen = ("_target_", "accelerator", "devices", "num_nodes", "strategy")
    trainer = {key: value for key, value in settings["trainer"].items() if key in chosen}
    accelerator = trainer.get("accelerator", "auto")
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        build("trainer", trainer, enable_model_summary=False, **silent)
    except ConfigError as error:
        mend = "trainer=cpu, or trainer.accelerator=auto, which takes what there is"
        raise ConfigError(f"{error}. trainer.accelerator={accelerator}; take {mend}") from error
    datamodule = build("datamodule", settings["datamodule"])
    if isinstance(datamodule, ChecksFiles):
        with refusing():
            datamodule.check_files()
    module = _without_weights(settings)
    if not pretrained.names(module):
        build("module", module)
    for name, node in (settings["callbacks"] or {}).items():
        build(f"callbacks.{name}", node)


def _without_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """The module's node before anything is trained, converted or downloaded for it.

    Where it says which model it is, or the experiment does that makes the model, nothing
    pretrained is loaded.
    """
    module = {**settings["module"]}
    if (base := pretrained.check(settings)) is not None:
        module["architecture"] = base["module"]["architecture"]
    known = bool(module.get("architecture")) and "pretrained" in module
    return {**module, "pretrained": None} if known else module


def build(key: str, node: Any, **further: Any) -> Any:
    """Build what a node's `_target_` names, inner nodes first: the one place where it happens.

    Args:
        key: The node's config key, for errors.
        node: Plain containers, checked by runner.validate.
        further: Arguments that no config can hold, handed on as they are.

    Raises:
        ConfigError: The target refuses its arguments.
    """
    if isinstance(node, list):
        return [build(f"{key}[{position}]", item) for position, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {name: build(f"{key}.{name}", value) for name, value in node.items()}
    if "_target_" not in arguments:
        return arguments
    module, _, name = arguments.pop("_target_").rpartition(".")
    target = getattr(importlib.import_module(module), name)
    for extra in RUNNER_KEYS.get(key, ()):
        arguments.pop(extra, None)
    try:
        return target(**arguments, **further)
    except (ValueError, ImportError, MisconfigurationException) as error:
        words = str(error)
        raise ConfigError(words if words.startswith(key) else f"{key}: {words}") from error


class _CountsStepsTaken(_LoggerConnector):
    """Logs under the number of optimizer steps taken, as checkpoints, samples and the terminal do.

    Lightning numbers a step from 0 while it logs what the step and its validation reached, and from
    1 afterwards.
    """

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row, at a step if one is given."""
        if step is None and metrics:
            metrics = {"epoch": self.trainer.current_epoch, **metrics}
        super().log_metrics(metrics, self.trainer.global_step if step is None else step)


class _Run:
    """A run that leaves a folder: train, validate or test.

    Args:
        settings: The resolved config, with RUN_DIR for the run folder.
        start: Where the run lies and what it goes on from.
    """

    def __init__(self, settings: dict[str, Any], start: resume.Start) -> None:
        self.began = time.perf_counter()
        machine.forget_peak()
        self.origin = origin()
        self.hashes = config_hash(settings), arm_hash(settings)
        self.recorded = replaced(settings, RUN_DIR, str(start.folder))
        self.settings = pretrained.resolve(self.recorded)
        self.start = start
        self.task: str = settings["task"]
        self.first = getattr(rank_zero_only, "rank", 0) == 0
        self.console = Console(quiet=not self.first)
        pl.seed_everything(settings["seed"], workers=True, verbose=False)
        self.datamodule = build("datamodule", self.settings["datamodule"])
        self.module = build("module", self.settings["module"])
        refuse_misfits(self.settings, getattr(self.module, "hf_config", None))
        identity = {"id": start.run_id, "experiment": settings["name"]}
        self.named = {
            name: build(f"callbacks.{name}", node)
            for name, node in (self.settings["callbacks"] or {}).items()
            if node is not None
        }
        # Last, as checkpoints are by Lightning: what is saved at a stop has seen the whole step.
        self.callbacks = sorted(self.named.values(), key=lambda cb: isinstance(cb, Interruption))
        self.callbacks = [Identity(start.folder, identity), *self.callbacks, StepWatch()]
        self.loggers = self._loggers()
        self.trainer = self._trainer()
        if self.first and self.datamodule is not None:
            # Before there is a run folder. Of several processes each opens its share by itself.
            prepare(self.datamodule, opened=self.trainer.world_size == 1)
        given = settings["ckpt_path"]  # None where the module's parts bring their own
        self.checkpoint = start.checkpoint if given is None else checkpoint_of(Path(given))
        if self.checkpoint is not None:
            _check_data(self.module, self.datamodule, self.checkpoint)
        self.phases: dict[str, float] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.places: dict[str, Path | None] = {"run folder": start.folder}

    def live(self) -> dict[str, float]:
        """Run the task between the run folder's first and last record."""
        listening = [cb for cb in self.callbacks if isinstance(cb, Interruption)]
        interruption = listening[0] if listening else Interruption()
        with interruption.listen(self.trainer), _told_to_children(self.start):
            arguments = self.start, self.recorded, *self.hashes, self.origin
            self.record = Record(*arguments) if self.first else None
            began = time.perf_counter()
            self.phases["preparation"] = began - self.began
            if (words := self.origin.words(self.settings["seed"])) is not None:
                self._say(words)
            self.console.print(
                Text.assemble((str(self.start.folder), "bold"), f" ({self.task})"), soft_wrap=True
            )
            for line in self.start.words:
                self._say(line)
            code = 1
            try:
                metrics = self._train() if self.task == "train" else self._evaluate()
                self._note("finished", seconds=time.perf_counter() - began)
                code = 0
            except BaseException as error:
                stop = stop_behind(error)
                if stop is None:
                    words = not_finite_behind(error)
                    self._failed(error, words)
                    if words is not None:
                        raise FailedRun(words) from error
                    raise
                code = int(stop.code or 1)
                self._note("interrupted", reason=stop.words, metrics=logged(self.trainer))
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
            shown = tables.without_constants(metrics, registry.read(self.start.folder))
            title, ledgers = self._title(), self.ledgers.values()
            tables.reached(self.console, title, shown, ledgers, self.places)
        return metrics

    def _train(self) -> dict[str, float]:
        checkpoint = self.checkpoint
        if checkpoint is not None:
            step = _load(checkpoint)["global_step"]
            if self.first:
                resume.retire_newer(self.start.folder, checkpoint)
            for logger in self.loggers:
                if isinstance(logger, MetricsFile):
                    logger.keep_to(step)
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
        metrics["seconds"] = self.phases["training"]
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
        checkpoint = _load(last)
        for callback in self.callbacks:
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
        return int(checkpoint["global_step"])

    def _report(self, metrics: dict[str, float], saving: list[Checkpointing], step: int) -> None:
        assert self.record is not None
        folder = self.start.folder
        curves: list[str] = []
        figures: dict[str, Path] = {}
        for name, source in {**self.named, "module": self.module}.items():
            if isinstance(source, HasLedger) and (ledger := source.ledger()) is not None:
                self.ledgers[name] = ledger
            if isinstance(source, HasCurves):
                curves += source.curves()
            if isinstance(source, HasFigures):
                figures |= source.figures(folder / "plots")
            if isinstance(source, HasPlaces):
                self.places |= source.places()
        flat: dict[str, float] = {}
        for name, ledger in self.ledgers.items():
            flat |= ledger.metrics(name)
        for logger in self.loggers if flat or figures else ():
            logger.log_metrics(flat, step=step)
            for path in figures.values() if hasattr(logger, "log_image") else ():
                logger.log_image(f"plots/{path.stem}", [str(path)], step=step)
            logger.save()
        last, best = (next((getattr(cb, w) for cb in saving), None) for w in ("last", "best"))
        self.record.update(
            metrics=metrics,
            ledgers={name: ledger.to_dict() for name, ledger in self.ledgers.items()},
            checkpoint=None if last is None else str(last.relative_to(folder)),
            best_checkpoint=None if best is None else str(best.relative_to(folder)),
            data=self._data(),
        )
        png = draw_run(folder, curves, Path(self.settings["paths"]["output_dir"]))
        self.places |= {"checkpoint": last, "best checkpoint": best, "plots": png, **figures}

    def _data(self) -> dict[str, Any]:
        """What the datamodule says of itself; nothing where only spawned processes know it."""
        spawned = isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher)
        knows = isinstance(self.datamodule, DescribesItself) and not spawned
        return self.datamodule.describe() if knows else {}

    def _failed(self, error: BaseException, words: str | None) -> None:
        reason = words or f"{type(error).__name__}: {error}"
        self._note("failed", reason=reason, metrics=logged(self.trainer))
        if self.record is not None:
            (self.start.folder / "traceback.txt").write_text(traceback.format_exc())
        self._say(f"Failed: {reason.strip().splitlines()[0]}")

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _note(self, status: str, **fields: Any) -> None:
        if self.record is not None:
            self.record.update(
                status=status,
                ended=now(),
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

    def _title(self) -> str:
        return f"{self.settings['name']} {self.start.run_id}, {self.task}"

    def _loggers(self) -> list[Any]:
        found = []
        for name, node in (self.settings["logger"] or {}).items():
            if node is None:
                continue
            further = self._wandb(node) if name == "wandb" else {}
            kept = {key: value for key, value in node.items() if key not in further}
            found.append(build(f"logger.{name}", kept, **further))
            if name == "wandb":
                # pytorch-lightning 2.6.6 hands on an argument that wandb 0.31 warns about.
                getattr(found[-1], "_wandb_init", {}).pop("anonymous", None)
        return found

    def _wandb(self, node: dict[str, Any]) -> dict[str, Any]:
        if node.get("mode") != "online":
            # What W&B prints about an offline run says nothing that the run's own table does not.
            os.environ.setdefault("WANDB_SILENT", "true")
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        return {
            "id": self.start.run_id,
            "name": node.get("name") or self.start.folder.name,
            "group": self.settings["name"],
            "job_type": self.task,
            "config": without_secrets(self.recorded),
        }

    def _trainer(self) -> pl.Trainer:
        node = {**self.settings["trainer"]}
        if self.task == "train" and plans_steps(self.settings):
            node["max_steps"] = _planned_steps(self.module, self.datamodule, node["max_steps"])
        if node.get("precision") == "auto":
            node["precision"] = _best_precision(str(node.get("accelerator", "auto")))
        trainer = build(
            "trainer",
            node,
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


def prepare(datamodule: Any, opened: bool = True) -> None:
    """Have the data made, so that what is wrong with it is refused before anything starts.

    Args:
        datamodule: The data.
        opened: Whether it is to be opened as well.

    Raises:
        ConfigError: The data cannot be used.
    """
    with refusing():
        datamodule.prepare_data()
        if opened:
            datamodule.setup("fit")


@contextmanager
def refusing() -> Iterator[None]:
    """Let what data or module refuse be a refusal of the config that names them.

    Raises:
        ConfigError: In place of a ValueError or ImportError.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error


def _planned_steps(module: Any, datamodule: Any, limit: int) -> int:
    """Ask a module that plans its steps how many there are; `limit` at most, unless it is -1.

    Raises:
        ConfigError: The data cannot be used, or do not fit the module.
    """
    prepare(datamodule)
    with refusing():
        steps: int = module.max_steps(datamodule, None if limit == -1 else limit)
    return steps


def _check_data(module: Any, datamodule: Any, checkpoint: Path) -> None:
    """Compare the data with a checkpoint's, where a module says that it belongs to them.

    Raises:
        ConfigError: They are others, or cannot be used.
    """
    if isinstance(module, BelongsToData):
        prepare(datamodule)
        with refusing():
            module.check_data(datamodule, _load(checkpoint))


def checkpoint_of(path: Path) -> Path:
    """Return the checkpoint that a path means: itself, or a run folder's newest whole one.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    if path.is_dir():
        found, words = resume.newest_whole(path)
        print(*words, sep="\n", end="\n" if words else "")
        if found is None:
            raise ConfigError(f"ckpt_path={path}: no whole checkpoint in {path}/checkpoints")
        return found
    if fault := resume.fault_of(path):
        raise ConfigError(f"ckpt_path={path}: the file {fault}")
    return path


def _dry_run(settings: dict[str, Any]) -> dict[str, float]:
    """Build the module without data, print what it is and what it will cost."""
    console = Console()
    known = _without_weights(settings)
    if pretrained.names(known):
        settings = pretrained.resolve(settings)
        known = settings["module"]
    datamodule = build("datamodule", settings["datamodule"])
    if isinstance(datamodule, ChecksFiles):
        with refusing():
            datamodule.check_files()
    module = build("module", known)
    if not known.get("architecture"):
        refuse_misfits(settings, getattr(module, "hf_config", None))
    trainer = {**settings["trainer"]}
    if plans_steps(settings):
        trainer["max_steps"] = _planned_steps(module, datamodule, trainer["max_steps"])
    # Without weights, at once and at any size; what is pretrained, or has such parts, is loaded.
    with torch.device("meta" if known.get("architecture") else "cpu"):
        module.configure_model()
    parameters = sum(p.numel() for p in module.parameters())
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    data = settings["datamodule"]
    sequences = data.get("batch_size", 1) * trainer.get("accumulate_grad_batches", 1)
    shape = (sequences * resume.device_count(trainer), data.get("context_length", 1))
    tokens, unit = shape[0] * shape[1], "tokens" if "context_length" in data else "examples"
    title = Text(f"{settings['name']}, dry run")
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("parameters", f"{parameters:,}")
    table.add_row("of these trained", f"{trainable:,}")
    table.add_row(f"{unit} per optimizer step", f"{tokens:,}")
    table.add_row("optimizer steps", f"{trainer['max_steps']:,}")
    table.add_row(f"{unit} in all", f"{tokens * trainer['max_steps']:,}")
    console.print(table)
    precision = trainer.get("precision") or "32-true"
    if precision == "auto":
        precision = _best_precision(str(trainer.get("accelerator", "auto")))
    console.print(report.memory(parameters, trainable, precision))
    for name, node in (settings["callbacks"] or {}).items():
        callback = build(f"callbacks.{name}", node)
        if isinstance(callback, HasPlan):
            console.print(callback.plan(module, shape, trainer["max_steps"]))
    if isinstance(module, HasSchedule):
        from lightning_modules.optimization import remarks

        for line in remarks(module.schedule_settings, trainer["max_steps"]):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("Dry run: nothing was trained and nothing was written.")
    return {"parameters": float(parameters), "tokens_per_step": float(tokens)}


def _export(settings: dict[str, Any]) -> dict[str, float]:
    """Write a checkpoint as a folder for `from_pretrained`, with its tokenizer and a card."""
    checkpoint = checkpoint_of(Path(settings["ckpt_path"]))
    folder = resume.run_folder(checkpoint)
    if folder is None:
        raise ConfigError(
            f"ckpt_path={checkpoint}: not in a run folder, so its tokenizer is unknown"
        )
    module = build("module", pretrained.resolve(settings)["module"])
    exports = isinstance(module, Exports)
    if not exports:
        raise ConfigError(
            f"task=export: {type(module).__name__} writes nothing that other programs read. Its "
            "checkpoint is the model: see the tasks in its card in docs/methods"
        )
    module.configure_model()
    content = _load(checkpoint)
    module.load_state_dict(content["state_dict"])
    files: list[Any] = []
    if (folder / "tokenizer").exists():
        from transformers import AutoTokenizer

        files.append(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    target = folder / "export" / checkpoint.stem
    module.export(target, files)
    config, record = getattr(module, "hf_config", None), read_record(folder)
    text = card(record, resume.stored_config(folder), checkpoint, content, config)
    (target / "README.md").write_text(text, encoding="utf-8")
    Console().print(Text(f"exported: {target}"), soft_wrap=True)
    return {}


def _own_task(settings: dict[str, Any]) -> dict[str, float]:
    """Have a task's function do it: the module's, from a checkpoint if one is given, or a free one.

    Raises:
        ConfigError: The function refuses what it was given, by a ValueError that names key or file.
    """
    task = settings["task"]
    names = task_keys.arguments(task, settings["module"])
    given = {name: settings[name] for name in names if name in settings}
    if task in task_keys.FREE_TASKS:
        module, _, name = task_keys.FREE_TASKS[task].rpartition(".")
        with refusing():
            metrics: dict[str, float] = getattr(importlib.import_module(module), name)(
                settings, **given
            )
        return metrics
    settings = pretrained.resolve(settings)
    pl.seed_everything(settings["seed"], workers=True, verbose=False)
    module = build("module", settings["module"])
    datamodule = build("datamodule", settings["datamodule"])
    if settings["ckpt_path"] is not None:
        checkpoint = checkpoint_of(Path(settings["ckpt_path"]))
        _check_data(module, datamodule, checkpoint)
        content = _load(checkpoint)
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
    module.eval()
    with refusing():
        metrics = getattr(module, task)(datamodule, **given)
    return metrics


def _load(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's content; tensors stay on disk until they are read."""
    content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    assert isinstance(content, dict)
    return content


def _best_precision(accelerator: str) -> str:
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


@contextmanager
def _told_to_children(start: resume.Start) -> Iterator[None]:
    """Tell processes that Lightning starts with the same command which run they belong to."""
    before = os.environ.get(resume.CHILD)
    os.environ[resume.CHILD] = resume.to_json(start)
    try:
        yield
    finally:
        if before is None:
            del os.environ[resume.CHILD]
        else:
            os.environ[resume.CHILD] = before


def _finish_wandb(code: int) -> None:
    """End the W&B run, if there is one: the next logger in this process would go on with it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=code)
