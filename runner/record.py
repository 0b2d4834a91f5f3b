"""What stays of a run: its folder, run.json, the resolved config, metrics.csv, its id."""

from __future__ import annotations

import csv
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from atomic import replacing
from reports.configs import RUN_DIR, arm_hash, config_hash, replaced
from reports.registry import read_rows
from reports.run_record import RunRecord, run_folder, without_secrets, write_record
from runner import machine, output
from runner.errors import ConfigError
from runner.folder import CHECKPOINT_KEY, Start, open_folder, read_record
from runner.job import Job
from runner.parts import answer


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Record:
    """A run's folder and its run.json, from before the first step until the run has ended.

    Raises:
        ConfigError: Another process is at work in the folder, or it cannot be written to.
    """

    def __init__(self, start: Start, job: Job) -> None:
        self.folder = start.folder
        settings = replaced(job.recorded, RUN_DIR, str(start.folder))
        with _refused_by_the_disk(start):
            self._lock: TextIO = open_folder(self.folder, start.resumed)
        before = read_record(self.folder) if start.resumed else None
        self.content = RunRecord(
            id=start.run_id,
            task=settings["task"],
            status="running",
            name=start.folder.parent.name,
            experiment=experiment_of(job),
            started=before.started if before else now(),
            seed=settings["seed"],
            command=job.origin.command,
            overrides=list(job.origin.overrides),
            sweep=job.origin.job,
            config_hash=config_hash(job.recorded),
            arm=arm_hash(job.recorded),
            git=machine.git(),
            versions=machine.versions(),
            hardware=machine.hardware(),
            resumed=before.resumed if before else [],
        )
        if start.checkpoint is not None:
            self.content.resumed.append({"at": now(), "checkpoint": start.checkpoint.name})
        text = OmegaConf.to_yaml(OmegaConf.create(without_secrets(settings)))
        with _refused_by_the_disk(start):
            with replacing(self.folder / "config.yaml") as file:
                file.write(text)
            self.update()

    def update(self, **fields: Any) -> None:
        """Set fields of run.json and write it."""
        self.content = replace(self.content, **fields)
        write_record(self.folder, self.content)

    def close(self) -> None:
        """Let other processes into the folder."""
        self._lock.close()


@contextmanager
def _refused_by_the_disk(start: Start) -> Iterator[None]:
    """Refuse a run whose folder cannot be written; what was made of a new one is removed.

    Raises:
        ConfigError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        if not start.resumed:
            shutil.rmtree(start.folder, ignore_errors=True)
        raise ConfigError(f"paths.output_dir: {start.folder} cannot be written: {error}") from error


def experiment_of(job: Job) -> str | None:
    """Return the experiment of a job or of the run that it looks at, None if nothing tells."""
    checkpoint = job.recorded["ckpt_path"]
    if job.origin.experiment is not None or checkpoint is None:
        return job.origin.experiment
    folder = run_folder(Path(checkpoint))
    return None if folder is None else read_record(folder).experiment


def quiet() -> None:
    """Silence what says nothing about this run."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        # Advice on speed: tokenised blocks are read from memory, workers would only cost.
        ".*does not have many workers which may be a bottleneck",
        # pytorch-lightning 2.6.6 asks torch 2.13 for a tree type by its old name.
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        # peft 0.21 asks transformers 5 for activation checkpointing by its old name.
        "`is_gradient_checkpointing` is deprecated",
        # Modules that read examples keep Lightning from moving them to a device.
        "You have overridden `transfer_batch_to_device` in `LightningModule`",
    ):
        warnings.filterwarnings("ignore", message=message)


class Identity(pl.Callback):
    """Writes what the run is into its checkpoints; tokenizer and base's config into its folder."""

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.folder = folder
        self.identity = identity
        self.seconds_before = 0.0
        """Of training, up to the checkpoint gone on from."""
        self._began = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Be quiet, and heard by nobody if need be, in a process that was spawned as well."""
        quiet()
        output.outlive()
        self._began = time.perf_counter()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the id into the checkpoint, and the seconds of training that lead to it."""
        seconds = self.seconds_before + time.perf_counter() - self._began
        checkpoint[CHECKPOINT_KEY] = {**self.identity, "seconds": seconds}

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what a checkpoint lacks: the text, or the base, may be gone when it is exported."""
        answer(getattr(trainer, "datamodule", None), "keep_tokenizer", self.folder / "tokenizer")
        answer(pl_module, "keep_base", self.folder / "model")


class MetricsFile(Logger):
    """metrics.csv in the run folder: a row for each step at which something was logged.

    Each row is on disk as soon as it is logged. Lightning's CSVLogger keeps rows in memory and
    deletes the file of a run that is resumed.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """Nothing: a run has one file."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row; a metric never seen before rewrites the file with one more column."""
        row = {"step": step, **metrics}
        header = self._header()
        if new := [name for name in row if name not in header]:
            header += new
            self._rewrite(header, self.rows())
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, header).writerow(row)

    @rank_zero_only
    def keep_to(self, step: int) -> None:
        """Drop rows after an optimizer step: a resumed run writes them anew."""
        self._rewrite(self._header(), [row for row in self.rows() if _step(row) <= step])

    def rows(self) -> list[dict[str, str]]:
        """Return what the file holds, see `registry.read_rows`; nothing before the first row.

        Raises:
            ConfigError: The file is damaged.
        """
        try:
            return read_rows(self.path) if self.path.exists() else []
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{self.path}: {error}; take it away to go on") from error

    def _header(self) -> list[str]:
        """Return the columns: read each time, for a spawned process may have added some."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])

    def _rewrite(self, header: list[str], rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path, newline="") as file:
            writer = csv.DictWriter(file, header)
            writer.writeheader()
            writer.writerows(rows)


def _step(row: Mapping[str, str]) -> int:
    """Return a row's step; one that has none is of no step that is kept."""
    step = row.get("step", "")
    return int(step) if step.isdecimal() else sys.maxsize
