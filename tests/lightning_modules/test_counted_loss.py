"""A step's loss is the mean over all that it counts, however the step is split."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_modules.causal_lm import CausalLM
from lightning_modules.counted_loss import CountedLoss
from lightning_modules.optimization import Optimizer, Schedule
from tests.settings import SETTINGS
from tests.test_methods import Forked

# Of Lightning: there is no validation here, and there are few batches.
pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"
)

Batch = dict[str, Tensor]
CONTEXT = 12
# So slow that the weights stay what they are: every step is a case of its own.
OPTIMIZER: Optimizer = {"lr": 1e-30, "weight_decay": 0.0}
SCHEDULE: Schedule = {"warmup": 0, "decay": "constant"}


class Seen(Callback):
    """Keeps the gradients, and what was logged, of every optimizer step."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.gradients: list[list[Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.losses):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self.gradients.append(
                [g.full_tensor() if isinstance(g, DTensor) else g.clone() for g in gradients]
            )
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.file is not None and trainer.is_global_zero:
            torch.save((self.gradients, self.losses), self.file)


class Split(pl.LightningDataModule):
    """Micro-batches that the ranks take in turn."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        trainer: Any = self.trainer
        mine = self.batches[trainer.global_rank :: trainer.world_size]
        return DataLoader(mine, batch_size=None)


def batch(labels: list[int], seed: int) -> Batch:
    """Sequences of which so many of the last tokens are predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(300, (len(labels), CONTEXT), generator=generator)
    ignored = torch.arange(CONTEXT) < CONTEXT - torch.tensor(labels)[:, None]
    return {"input_ids": ids, "labels": ids.masked_fill(ignored, -100)}


@pytest.fixture(scope="module")
def module() -> CausalLM:
    torch.manual_seed(0)
    module = CausalLM(
        architecture=SETTINGS["est llama"].architecture,
        optimizer=OPTIMIZER,
        schedule=SCHEDULE,
    )
    module.configure_model()
    return module


def trained(module: CausalLM, batches: list[Batch], accumulate: int, **options: Any) -> Seen:
    seen = Seen(options.pop("file", None))
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=[seen, *options.pop("callbacks", ())],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    ).fit(module, Split(batches))
    return seen


def expected(module: CausalLM, batches: list[Batch]) -> tuple[list[Tensor], float]:
    """The mean over all labels of a step by PyTorch's own loss, and its gradients."""
    logits = [module.model(input_ids=each["input_ids"]).logits[:, :-1] for each in batches]
    labels = [each["labels"][:, 1:].flatten() for each in batches]
    loss = F.cross_entropy(
        torch.cat([each.flatten(0, 1) for each in logits]), torch.cat(labels), reduction="sum"
    ) / max(1, int((torch.cat(labels) != -100).sum()))
    return list(torch.autograd.grad(loss, list(module.parameters()))), loss.item()


def check(module: CausalLM, batches: list[Batch], in_step: int, seen: Seen) -> None:
    steps = [batches[first : first + in_step] for first in range(0, len(batches), in_step)]
    assert len(seen.losses) == len(steps)
    for step, gradients, logged in zip(steps, seen.gradients, seen.losses, strict=True):
        right, loss = expected(module, step)
        assert logged == pytest.approx(loss, abs=1e-5)
        for found, wanted in zip(gradients, right, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


COUNTS = st.lists(st.integers(0, CONTEXT - 1), min_size=1, max_size=3)  # labels of each sequence


@given(st.lists(COUNTS, min_size=1, max_size=5), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_gradients_do_not_depend_on_how_a_step_is_split(
    module: CausalLM, counts: list[list[int]], accumulate: int
) -> None:
    """Micro-batches of any size, some without a label; the last step of the epoch is short."""
    batches = [batch(labels, seed) for seed, labels in enumerate(counts)]
    check(module, batches, accumulate, trained(module, batches, accumulate))


@pytest.mark.parametrize(("strategy", "accumulate"), [("ddp", 1), ("ddp", 2), ("fsdp", 2)])
def test_gradients_do_not_depend_on_the_number_of_processes(
    module: CausalLM, strategy: str, accumulate: int, tmp_path: Path
) -> None:
    """Two processes, now one of them without a label and now both; a short last step."""
    draw = torch.Generator().manual_seed(1)
    batches = [
        batch(torch.randint(CONTEXT, (2,), generator=draw).tolist(), seed) for seed in range(14)
    ]
    batches[3] = batch([0, 0], 3)
    batches[4:8] = [batch([0], seed) for seed in range(4, 8)]
    file = tmp_path / "seen.pt"
    module.export(tmp_path)  # FSDP splits a model when it is built
    again = CausalLM(pretrained=str(tmp_path), optimizer=OPTIMIZER, schedule=SCHEDULE)
    processes: Any = {"ddp": "ddp_fork", "fsdp": Forked()}[strategy]
    trained(again, batches, accumulate, devices=2, strategy=processes, file=file)
    seen = Seen()
    seen.gradients, seen.losses = torch.load(file)
    check(module, batches, 2 * accumulate, seen)


def test_a_model_with_another_head_counts_alike() -> None:
    """Gemma 2 keeps Hugging Face's own loss, whose mean over nothing is NaN."""
    torch.manual_seed(0)
    made = CausalLM(
        architecture={
            **SETTINGS["est llama"].architecture,
            "model_type": "gemma2",
            "head_dim": 8,
            "attn_implementation": "eager",
        },
        optimizer=OPTIMIZER,
        attn_implementation="eager",
    )
    made.configure_model()
    batches = [batch(labels, seed) for seed, labels in enumerate([[3], [0], [9, 1], [0, 0]])]
    check(made, batches, 2, trained(made, batches, 2))


class TwoParts(CountedLoss):
    """Two networks, each with a mean over a count of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def parts(self) -> dict[str, nn.Module]:
        return {"train/left": self.left, "train/right": self.right}

    def training_step(self, batch: dict[str, list[float]], batch_idx: int) -> Tensor:
        losses = {}
        for name, part in (("left", self.left), ("right", self.right)):
            if values := batch[name]:
                mean = part(torch.tensor(values)[:, None]).mean()
                losses[f"train/{name}"] = (mean, len(values))
        figures: dict[str, tuple[float, int]] = {"seen": (sum(map(len, batch.values())), 1)}
        if batch["left"]:
            figures["left"] = (sum(batch["left"]) / len(batch["left"]), len(batch["left"]))
        return self.counted(losses, figures)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-30)


def test_each_part_of_a_loss_is_a_mean_of_its_own() -> None:
    made: Any = TwoParts()
    nn.init.ones_(made.left.weight)
    nn.init.ones_(made.right.weight)
    batches: Any = [
        {"left": [1.0, 2.0, 3.0], "right": [5.0]},
        {"left": [10.0], "right": []},
        {"left": [], "right": [8.0]},
    ]
    logged = []

    class Log(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            logged.append({key: float(v) for key, v in trainer.callback_metrics.items()})

    seen = trained(made, batches, 2, callbacks=[Log()])
    (first, second), (third, fourth) = seen.gradients
    assert [float(g) for g in (first, second, third, fourth)] == pytest.approx([4, 5, 0, 8])
    assert seen.losses == pytest.approx([9, 8])
    assert (logged[1]["seen"], logged[1]["left"]) == (2.5, 4.0)
    assert logged[2]["seen"] == 1.0


def test_what_was_left_of_a_broken_off_training_is_forgotten(module: CausalLM) -> None:
    class Break(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("pulled the plug")

    batches = [batch([5], 0), batch([2], 1)]
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=2, callbacks=[Break()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="pulled the plug"):
        trainer.fit(module, Split(batches))
    module.zero_grad()
    check(module, batches, 2, trained(module, batches, 2))
