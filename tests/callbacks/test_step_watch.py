"""A training ends at numbers that are not finite: the step is named, the checkpoints are good."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader

from callbacks.checkpoint import Checkpointing
from callbacks.step_watch import NotFinite, StepWatch, _are_finite, not_finite_behind
from runner.errors import FailedRun
from tests.runner.tiny import TinyModule

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"
)


class Spoilt(TinyModule):
    """At a step of its choice a loss alone or a gradient is not finite."""

    def __init__(self, what: str, step: int, value: float = float("nan")) -> None:
        super().__init__()
        self.what, self.step, self.value = what, step, value

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        now = self.global_step + 1 == self.step
        return loss + self.value if now and self.what == "loss" else loss

    def on_after_backward(self) -> None:
        if self.global_step + 1 == self.step and self.what == "gradient":
            gradient = self.model[2].weight.grad
            gradient[3, 3] = self.value


def fit(folder: Path, module: pl.LightningModule, every_n_steps: int = 1) -> pl.Trainer:
    data: Any = DataLoader([{"input_ids": torch.arange(18).view(2, 9)}] * 8, batch_size=None)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=8,
        limit_val_batches=0,
        log_every_n_steps=4,
        callbacks=[Checkpointing(str(folder), every_n_steps, monitor=None), StepWatch()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer


def check_files(folder: Path, names: list[str]) -> None:
    files = sorted(folder.glob("*"))
    assert [file.name for file in files] == names
    for file in files:
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_step_is_named_and_the_last_good_checkpoint_kept(
    what: str, value: float, tmp_path: Path
) -> None:
    with pytest.raises(NotFinite, match=r"^step 4: "):
        fit(tmp_path, Spoilt(what, 4, value))
    check_files(tmp_path, ["step-00000002.ckpt", "step-00000003.ckpt"])


@pytest.mark.parametrize(("every", "kept"), [(1, ["step-00000001.ckpt"]), (9, [])])
def test_a_gpu_is_asked_at_logged_steps_and_before_a_checkpoint(
    every: int, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the processor plays one: its flag is not read at once."""
    monkeypatch.setattr(StepWatch, "_is_read_at_once", lambda self: False)
    module = Spoilt("gradient", 2)
    with pytest.raises(NotFinite, match=r"^step 2: "):
        fit(tmp_path, module, every)
    assert module.global_step == (2 if every == 1 else 4)
    check_files(tmp_path, kept)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Late(Spoilt):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            if self.global_step + 1 == self.step:
                self.model[2].weight.data[3, 3] = self.value

    with pytest.raises(NotFinite, match="step 3 left weights"):
        fit(tmp_path, Late("update", 3, float("inf")))
    check_files(tmp_path, ["step-00000001.ckpt", "step-00000002.ckpt"])


def test_a_rank_without_a_row_of_a_parameter_has_nothing_against_it() -> None:
    empty, good = torch.empty(0, 3), torch.ones(2, 3)
    assert _are_finite([empty, None, good])
    assert _are_finite([empty])
    assert not _are_finite([empty, good / 0])


def test_the_learning_rate_is_logged(tmp_path: Path) -> None:
    trainer = fit(tmp_path, TinyModule())
    assert float(trainer.callback_metrics["train/lr"]) == pytest.approx(1e-2 * 0.99**7)


def test_a_spawned_process_is_heard() -> None:
    words = "step 3: the loss or a gradient is NaN"
    error = ProcessRaisedException(f"Traceback\ncallbacks.step_watch.NotFinite: {words}\n", 0, 1)
    assert not_finite_behind(error) == words
    assert not_finite_behind(ProcessRaisedException("ValueError: x", 0, 1)) is None
    assert not_finite_behind(NotFinite(words)) == words
    assert not_finite_behind(FailedRun(words)) is None
