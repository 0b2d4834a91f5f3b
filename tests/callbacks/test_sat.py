"""SAT refuses what compiled blocks cannot run, and accounts for tokens that run forward only."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from callbacks.sat import SparsityAcceleratedTraining
from lightning_modules.causal_lm import CausalLM
from subnetworks.anatomy import dimensions_of
from subnetworks.flops import planned_flops
from subnetworks.ladder import Omission
from subnetworks.spec import SubnetworkSpec
from tests.settings import SETTINGS

ARCHITECTURE = SETTINGS["sat llama maxip"].architecture
WHOLE: Omission = {"heads": 0.0, "neurons": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "wanda"}, "importance=wanda chooses inside the forward pass"),
        ({"importance": "magnitude", "frozen": 0.5}, "run a branch in parts"),
        ({"importance": "magnitude", "forward_only": 0.5}, "run a branch in parts"),
        ({"importance": "magnitude", "context_forward_only": True}, "run a branch in parts"),
    ],
)
def test_compiled_blocks_are_refused_before_training(options: dict[str, Any], message: str) -> None:
    module = CausalLM(architecture=ARCHITECTURE, compile=True)
    sat = SparsityAcceleratedTraining(omission={"heads": 0.5, "neurons": 0.5}, **options)
    with pytest.raises(ValueError, match=message):
        sat.refuse(vars(dimensions_of(module.hf_config)), module)


def conversations() -> list[dict[str, torch.Tensor]]:
    """Micro-batches of two sequences whose prompts differ in length."""
    ids = torch.randint(300, (4, 2, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    for index, prompt in enumerate((4, 8, 12, 6)):
        labels[index, :, :prompt] = -100
    return [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_prompts_that_run_forward_only_are_saved_in_plan_and_count() -> None:
    batches = conversations()
    sat = SparsityAcceleratedTraining(omission=WHOLE, context_forward_only=True)
    module = CausalLM(architecture=ARCHITECTURE)
    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[sat],
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    ledger = sat.ledger()
    assert ledger is not None
    saved = {saving.quantity: saving for saving in ledger.savings}
    planned, counted = saved["FLOPs planned, blocks"], saved["FLOPs counted, blocks"]
    assert planned.spent == counted.spent
    full = SubnetworkSpec.full(dimensions_of(module.hf_config))
    dense = planned_flops(module.hf_config, full, 2, 16).blocks
    assert planned.baseline == 4 * dense
    # In two sequences the prompt's tokens but the last, and the last of all, predict nothing.
    context = sum(2 * prompt for prompt in (4, 8, 12, 6))
    weights = sum(p.numel() for n, p in module.named_parameters() if "layers" in n and p.ndim == 2)
    assert planned.baseline - planned.spent == 4 * weights * context


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_dense_rung_logs_what_it_trains() -> None:
    """Two steps on half of the units, two dense ones, then again two on half of them."""
    rungs = ((1 / 3, 0.5), (2 / 3, 0.0), (1.0, 0.5))
    sat = SparsityAcceleratedTraining(
        ladder=[{"until": until, "heads": rate, "neurons": rate} for until, rate in rungs],
        importance="magnitude",
        grouped_queries="within_groups",
    )
    seen: dict[str, list[float]] = {}

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            for name in ("omission", "overlap", "coverage"):
                value = trainer.callback_metrics.get(f"sat/{name}_neurons", torch.tensor(-1.0))
                seen.setdefault(name, []).append(float(value))

    module = CausalLM(architecture=ARCHITECTURE, optimizer={"lr": 1e-9})
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[sat, Watch()],
    )
    trainer.fit(module, DataLoader(conversations() * 2, batch_size=None))
    assert seen["omission"] == [0.5, 0.5, 0, 0, 0.5, 0.5]
    assert seen["overlap"] == [-1, 1, 0.5, 1, 1, 1]
    assert seen["coverage"] == [0.5, 0.5, 1, 1, 1, 1]
