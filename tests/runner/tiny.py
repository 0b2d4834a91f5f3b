"""A model and data small enough that a run takes a second: what is tested is the runner."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytorch_lightning as pl
import torch
from annotated_types import Ge
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from ledger import Ledger, Saving


class TinyModule(pl.LightningModule):
    """Next-token prediction with dropout, so that every step draws random numbers."""

    tasks: ClassVar[dict[str, bool]] = {"count": True, "greet": False}
    measures: ClassVar[tuple[str, ...]] = ("count",)

    def __init__(
        self,
        width: int = 16,
        lr: float = 1e-2,
        fail_at: int | None = None,
        seed: int = 0,
        fail_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width, self.lr = width, lr
        self.fail_at = 3 if seed == fail_seed else fail_at

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.configure_model()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def count(self, datamodule: Any) -> dict[str, float]:
        return {"sum": sum(float(p.detach().sum()) for p in self.parameters())}

    def greet(
        self, datamodule: Any, *, query: str | None = None, times: Annotated[int, Ge(1)] = 1
    ) -> dict[str, float]:
        """Say it.

        Args:
            datamodule: Any.
            query: What is
                said.
            times: How often.
        """
        print(*[f"greetings: {query}, {type(datamodule).__name__}"] * times, sep="\n")
        return {}

    def export(self, folder: Path, files: list[Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), folder / "model.pt")


class Loader:
    """Batches in an order from (seed, epoch) that a resumed run enters where the first left it.

    Seed 0: always the same order, from the beginning, as a validation needs it.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.served = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch, first = divmod(self.served, len(self)) if self.seed else (0, 0)
        order = torch.randperm(
            self.count, generator=torch.Generator().manual_seed(self.seed + epoch)
        ).tolist()
        for number in range(first, len(self)):
            self.served += 1
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            generators = [torch.Generator().manual_seed(index) for index in chosen]
            rows = [torch.randint(32, (9,), generator=generator) for generator in generators]
            yield {"input_ids": torch.stack(rows)}

    def state_dict(self) -> dict[str, int]:
        return {"served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.served = state["served"]


class TinyDataModule(pl.LightningDataModule):
    def __init__(self, seed: int = 0, batch_size: int = 4, count: int = 64) -> None:
        super().__init__()
        self.seed, self.batch_size, self.count = seed, batch_size, count

    def prepare_data(self) -> None:
        torch.rand(5)  # data that has to be built first must not change the model

    def train_dataloader(self) -> Loader:
        return Loader(self.count, self.batch_size, self.seed)

    def val_dataloader(self) -> Loader:
        return Loader(8, self.batch_size, 0)

    def test_dataloader(self) -> Loader:
        return Loader(8, self.batch_size, 0)


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

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.steps = state_dict["steps"]

    def curves(self) -> tuple[str, ...]:
        return ("method/rate",)

    def figures(self, folder: Path) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / "square.png")
        return {"square": folder / "square.png"}

    def ledger(self) -> Ledger:
        return Ledger("tiny", "dense", (Saving("steps", "steps", self.steps, 2 * self.steps),))

    def plan(self, module: Any, tokens_per_step: int, max_steps: int) -> Table:
        table = Table(title="plan")
        table.add_row("tokens", str(tokens_per_step * max_steps))
        return table


class Pictures(pl.Callback):
    """Shows what a run has seen: a table with a picture."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        table = {
            "columns": ["step", "picture"],
            "data": [[trainer.global_step, Image.new("L", (4, 4))]],
        }
        for logger in trainer.loggers if trainer.global_step == 40 else ():
            if hasattr(logger, "log_table"):
                logger.log_table("val/samples", **table, step=trainer.global_step)


class Kill(pl.Callback):
    """Sends this process a signal in the middle of a step; of several, the one of a rank."""

    def __init__(
        self, at: int, name: str = "SIGKILL", times: int = 1, rank: int | None = None
    ) -> None:
        self.at, self.name, self.times, self.rank = at, name, times, rank

    def on_before_optimizer_step(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.at and self.rank in (None, trainer.global_rank):
            for _ in range(self.times):
                os.kill(os.getpid(), getattr(signal, self.name))
                time.sleep(0.1)


class Deserted(pl.Callback):
    """Meets what a process does whose peer is gone, and torchrun's signal while it handles that."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("Connection closed by peer [127.0.0.1]:29500")

    def on_exception(self, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
