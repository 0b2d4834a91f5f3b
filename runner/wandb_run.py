"""A run in W&B: one config, three axes, and a summary that says what the run's own table says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb
from lightning_fabric.loggers.logger import rank_zero_experiment
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from runner.axes import AXES
from runner.errors import ConfigError, first_line


class WandbRun(WandbLogger):
    """Writes a run to W&B, with optimizer steps, tokens and FLOPs for its axes.

    The config is the job's, which the runner gives; Lightning would repeat the module's arguments
    beside it. Arguments are those of `WandbLogger`, and through it of `wandb.init`.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, opened when it is first asked for.

        Raises:
            ConfigError: The server cannot be reached, or does not take the run.
        """
        if self._experiment is None and wandb.run is None and not hasattr(self, "_attach_id"):
            # pytorch-lightning 2.6.6 hands on an argument that wandb 0.31 warns about.
            self._wandb_init.pop("anonymous", None)
            try:
                self._experiment = run = wandb.init(**self._wandb_init)
            except wandb.Error as error:
                raise ConfigError(
                    f"logger.wandb.mode={self._wandb_init.get('mode')}: {first_line(error)}. Take "
                    "offline, and `wandb sync` later, or logger=csv"
                ) from error
            for axis in AXES:
                run.define_metric(axis)
            run.define_metric("*", step_metric="step", step_sync=True)
        return super().experiment

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Open the run, so that the machine is watched from the beginning; its config is there."""
        assert self.experiment is not None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row; a row without a step belongs to the last one."""
        prefix = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        row = {name if name in AXES else f"{prefix}{name}": v for name, v in metrics.items()}
        self.experiment.log(row if step is None else {**row, "step": step})

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table, whose cells may be pictures."""
        rows = data and [
            [wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row]
            for row in data
        ]
        super().log_table(key, columns, rows, dataframe, step)

    @rank_zero_only
    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Leave what the run came to in the summary, and pictures and tables, and nothing else.

        A run that was never opened came to nothing.
        """
        if self._experiment is None:
            return
        summary = self._experiment.summary
        for name, value in dict(summary).items():
            is_media = hasattr(value, "keys")
            if name not in metrics and not name.startswith("_") and not is_media:
                del summary[name]
        summary.update(dict(metrics))
