"""What stays of a run: its folder, run.json, the resolved config, metrics.csv, its id."""

from __future__ import annotations

import csv
import io
import logging
import shutil
import sys
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
from runner import machine, output
from runner.errors import ConfigError
from runner.folder import CHECKPOINT_KEY, Start, open_folder, run_folder
from runner.job import Origin
from runner.run_record import RunRecord, read_record, without_secrets, write_record


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Record:
    """A run's folder and its run.json, from before the first step until the run has ended.

    Args:
        start: Where the run lies and what it goes on from.
        settings: The resolved config.
        digest: Its hash.
        arm: That of the arm it belongs to.
        origin: Who asked for it.

    Raises:
        ConfigError: Another process is at work in the folder, or it cannot be written to.
    """

    def __init__(
        self, start: Start, settings: dict[str, Any], digest: str, arm: str, origin: Origin
    ) -> None:
        self.folder = start.folder
        with _refused_by_the_disk(start):
            self._lock: TextIO = open_folder(self.folder, start.resumed)
        before = read_record(self.folder) if start.resumed else None
        self.content = RunRecord(
            id=start.run_id,
            task=settings["task"],
            status="running",
            name=start.folder.parent.name,
            experiment=origin.experiment or experiment_of(settings["ckpt_path"]),
            started=before.started if before else now(),
            seed=settings["seed"],
            command=origin.command,
            overrides=list(origin.overrides),
            sweep=origin.job,
            config_hash=digest,
            arm=arm,
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


def experiment_of(checkpoint: str | None) -> str | None:
    """Return the experiment of the run that a checkpoint is of, None if nothing tells."""
    folder = run_folder(Path(checkpoint)) if checkpoint else None
    return read_record(folder).experiment if folder else None


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
    """Writes the run's id into its checkpoints, and the tokenizer beside them.

    Args:
        folder: The run folder.
        identity: The run's id and experiment.
    """

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.folder = folder
        self.identity = identity

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Be quiet, and heard by nobody if need be, in a process that was spawned as well."""
        quiet()
        output.outlive()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the id into the checkpoint."""
        checkpoint[CHECKPOINT_KEY] = self.identity

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the tokenizer: the text it was trained on may be gone when the model is exported."""
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(self.folder / "tokenizer")


class MetricsFile(Logger):
    """metrics.csv in the run folder: a row for each step at which something was logged.

    Each row is on disk as soon as it is logged. Lightning's CSVLogger keeps rows in memory and
    deletes the file of a run that is resumed.

    Args:
        folder: The run folder.
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
        """Drop rows after a step: a resumed run writes them anew.

        Args:
            step: The optimizer steps that the checkpoint holds.
        """
        self._rewrite(self._header(), [row for row in self.rows() if _step(row) <= step])

    def rows(self) -> list[dict[str, str]]:
        """Return what the file holds, cells as text; nothing before the first row.

        A row that is not whole, which a process that was killed may leave, is left out.

        Raises:
            ConfigError: The file is damaged.
        """
        try:
            with self._opened() as file:
                text = file.read()
            found = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
            return [row for row in found if None not in row and None not in row.values()]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{self.path}: {error}; take it away to go on") from error

    def _header(self) -> list[str]:
        """Return the columns: read each time, for a spawned process may have added some."""
        with self._opened() as file:
            return next(csv.reader(file), [])

    def _opened(self) -> TextIO:
        if not self.path.exists():
            return io.StringIO()
        return self.path.open(newline="", encoding="utf-8")

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
