"""A model and data small enough that a run takes a second: what is tested is the runner."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ledger import Ledger, Saving


class TinyModule(pl.LightningModule):
    """Next-token prediction with dropout, so that every step draws random numbers."""

    def __init__(self, width: int = 16, lr: float = 1e-2, fail_at: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width, self.lr, self.fail_at = width, lr, fail_at

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = nn.Sequential(
                nn.Embedding(32, self.width), nn.Dropout(0.3), nn.Linear(self.width, 32)
            )

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(batch["input_ids"][:, :-1])
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten()
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise RuntimeError("as the test wants it")
        loss = self._loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        torch.rand(3)  # a validation that draws must not change the training after it
        self.log("val/loss", self._loss(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, folder: Path, tokenizer: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), folder / "model.pt")


class Tokens(Dataset[dict[str, Tensor]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"input_ids": torch.randint(32, (9,), generator=generator)}


class Resumable(Sampler[int]):
    """An order from (seed, epoch) that a resumed run enters where the first one left it."""

    def __init__(self, count: int, batch_size: int, seed: int, module: TinyDataModule) -> None:
        self.count, self.batch_size, self.seed, self.module = count, batch_size, seed, module

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        trainer = self.module.trainer
        assert trainer is not None
        progress = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        per_epoch = self.count // self.batch_size
        epoch, skipped = divmod(progress, per_epoch)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        yield from order[skipped * self.batch_size :]


class TinyDataModule(pl.LightningDataModule):
    def __init__(
        self, seed: int = 0, batch_size: int = 4, count: int = 64, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.seed, self.batch_size, self.count = seed, batch_size, count
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = Resumable(self.count, self.batch_size, self.seed, self)
        return DataLoader(
            Tokens(self.count), self.batch_size, sampler=sampler, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Tokens(8), self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Tokens(8), self.batch_size)


class Method(pl.Callback):
    """Promises what a method promises and fills a ledger."""

    leaves_parameters_unused = True
    check = "tests.runner.method_check:check"

    def __init__(self, rate: float = 0.5, stage: str = "warm") -> None:
        self.rate, self.stage = rate, stage
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.steps += 1
        pl_module.log("method/rate", self.rate)

    def curves(self) -> tuple[str, ...]:
        return ("method/rate",)

    def ledger(self) -> Ledger:
        return Ledger("tiny", "dense", (Saving("steps", "steps", self.steps, 2 * self.steps),))

    def plan(self, module: Any, tokens_per_step: int, max_steps: int) -> Table:
        table = Table(title="plan")
        table.add_row("tokens", str(tokens_per_step * max_steps))
        return table


class Kill(pl.Callback):
    """Sends this process a signal when a step has ended, and lets the run be slow enough for it."""

    def __init__(self, at: int, name: str = "SIGKILL") -> None:
        self.at, self.name = at, name

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), getattr(signal, self.name))
            time.sleep(0.2)
