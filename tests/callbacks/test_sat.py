"""SAT refuses what compiled blocks cannot run, and accounts for tokens that run forward only."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch.utils.data import DataLoader

from callbacks.sat import SparsityAcceleratedTraining
from ledger import Saving
from lightning_modules.causal_lm import CausalLM
from runner.errors import ConfigError
from runner.parts import build_callbacks
from subnetworks.anatomy import dimensions_of
from subnetworks.flops import planned_flops
from subnetworks.ladder import Omission
from subnetworks.spec import SubnetworkSpec
from tests.settings import SETTINGS

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]
ARCHITECTURE = SETTINGS["sat llama maxip"].architecture
WHOLE: Omission = {"heads": 0.0, "neurons": 0.0}
HALF: Omission = {"heads": 0.5, "neurons": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "wanda"}, "importance=wanda chooses inside the forward pass"),
        ({"importance": "magnitude", "frozen": 0.5}, "run a branch in parts"),
        ({"importance": "magnitude", "forward_only": 0.5}, "run a branch in parts"),
        ({"importance": "magnitude", "context_forward_only": True}, "tokens apart from each other"),
    ],
)
def test_compiled_blocks_are_refused_before_training(options: dict[str, Any], message: str) -> None:
    module = CausalLM(architecture=ARCHITECTURE, compile=True)
    sat = SparsityAcceleratedTraining(omission={"heads": 0.5, "neurons": 0.5}, **options)
    with pytest.raises(ValueError, match=message):
        sat.refuse(module)
    node = {"_target_": "callbacks.sat.SparsityAcceleratedTraining", "omission": HALF, **options}
    with pytest.raises(ConfigError, match=f"callbacks.sat: .*{message}"):
        build_callbacks({"callbacks": {"sat": node}}, module)  # there is no run folder by then


def conversations() -> list[dict[str, torch.Tensor]]:
    """Micro-batches of two sequences whose prompts differ in length."""
    ids = torch.randint(300, (4, 2, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    for index, prompt in enumerate((4, 8, 12, 6)):
        labels[index, :, :prompt] = -100
    return [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)]


def fit(module: CausalLM, *callbacks: pl.Callback, steps: int = 4) -> None:
    """Train on conversations."""
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    trainer.fit(module, DataLoader(conversations() * 2, batch_size=None))


def savings(
    module: CausalLM, sat: SparsityAcceleratedTraining, *further: pl.Callback
) -> dict[str, Saving]:
    """What a training of four steps saved, by quantity."""
    fit(module, sat, *further)
    ledger = sat.ledger()
    assert ledger is not None
    return {saving.quantity: saving for saving in ledger.savings}


def test_prompts_that_run_forward_only_are_saved_in_plan_and_count() -> None:
    sat = SparsityAcceleratedTraining(omission=WHOLE, context_forward_only=True)
    module = CausalLM(architecture=ARCHITECTURE)
    saved = savings(module, sat)
    planned, counted = saved["FLOPs planned, blocks"], saved["FLOPs counted, blocks"]
    assert planned.spent == counted.spent
    full = SubnetworkSpec.full(dimensions_of(module.hf_config))
    dense = planned_flops(module.hf_config, full, 2, 16).blocks
    assert planned.baseline == 4 * dense
    # In two sequences the prompt's tokens but the last, and the last of all, predict nothing.
    context = sum(2 * prompt for prompt in (4, 8, 12, 6))
    weights = sum(p.numel() for n, p in module.named_parameters() if "layers" in n and p.ndim == 2)
    assert planned.baseline - planned.spent == 4 * weights * context


@pytest.mark.parametrize(
    ("rates", "overlap", "coverage"),
    [
        ((0.5, 0.0, 0.5), [-1, 1, 0.5, 1, 1, 1], [0.5, 0.5, 1, 1, 1, 1]),
        ((0.0, 0.5, 0.0), [-1, -1, 1, 1, 0.5, 1], [-1, -1, 1, 1, 1, 1]),
    ],
)
def test_a_dense_rung_logs_what_it_trains(
    rates: Sequence[float], overlap: list[float], coverage: list[float]
) -> None:
    """Three rungs of two steps each; before a layer was cut nothing is said of it."""
    sat = SparsityAcceleratedTraining(
        ladder=[
            {"until": (n + 1) / 3, "heads": rate, "neurons": rate} for n, rate in enumerate(rates)
        ],
        importance="magnitude",
        grouped_queries="within_groups",
    )
    seen: dict[str, list[float]] = {}

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            for name in ("omission", "overlap", "coverage"):
                value = trainer.callback_metrics.get(f"sat/{name}_neurons", torch.tensor(-1.0))
                seen.setdefault(name, []).append(float(value))

    fit(CausalLM(architecture=ARCHITECTURE, optimizer={"lr": 1e-9}), sat, Watch(), steps=6)
    assert seen["omission"] == [rate for rate in rates for _ in range(2)]
    assert seen["overlap"] == overlap
    assert seen["coverage"] == coverage


def test_recomputed_activations_cost_dense_training_as_much_more() -> None:
    """Where no dense step has run, too."""
    sat = SparsityAcceleratedTraining(HALF, {"hold": 1.0}, importance="magnitude")
    saved = savings(CausalLM(architecture=ARCHITECTURE, gradient_checkpointing=True), sat)
    planned, counted = saved["FLOPs planned, blocks"], saved["FLOPs counted, blocks"]
    assert counted.spent > 1.2 * planned.spent
    assert counted.saved == pytest.approx(planned.saved)


def test_the_time_of_checkpoints_is_none_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("callbacks.subnetwork.perf_counter", lambda: float(next(clock)))

    class Saves(Checkpoint):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "last.ckpt")

        def on_save_checkpoint(self, *_: Any) -> None:
            next(itertools.islice(clock, 1000, None))

    sat = SparsityAcceleratedTraining(HALF, {"hold": 1.0}, importance="magnitude")
    saved = savings(CausalLM(architecture=ARCHITECTURE), sat, Saves())
    assert 0 < saved["time of the steps"].spent < 100


def test_no_time_is_stated_where_no_step_was_timed() -> None:
    """The first step of each kind is counted, which takes time of its own."""
    sat = SparsityAcceleratedTraining(HALF, {"hold": 1.0}, importance="magnitude")
    fit(CausalLM(architecture=ARCHITECTURE), sat, steps=1)
    ledger = sat.ledger()
    assert ledger is not None
    assert "time of the steps" not in {row.quantity for row in ledger.savings}


def test_a_plan_of_adapters_leaves_out_what_the_frozen_weights_are_spared() -> None:
    module = CausalLM(architecture=ARCHITECTURE, lora={"rank": 2})
    shown = SparsityAcceleratedTraining(WHOLE).plan(module, (2, 16), 4)
    full = SubnetworkSpec.full(dimensions_of(module.hf_config))
    planned = planned_flops(module.hf_config, full, 2, 16, frozen_weights=True)
    assert next(iter(shown.columns[3].cells)) == f"{planned.blocks:.4g}"


def test_steps_that_compute_scores_are_timed_apart() -> None:
    """A median over all steps would not see a probe in every second one."""
    sat = SparsityAcceleratedTraining(
        omission=HALF, ladder={"hold": 1.0}, importance="taylor", refresh_every=2
    )
    fit(CausalLM(architecture=ARCHITECTURE), sat, steps=6)
    kinds = sat.state_dict()["spent"]["kinds"]
    assert {key.partition("; ")[2]: kind["steps"] for key, kind in kinds.items()} == {
        "scores": 3,
        "": 3,
    }
    assert all(len(kind["seconds"]) == 2 for kind in kinds.values()), "the first is counted"


def test_whole_steps_cost_what_those_of_a_dense_training_do() -> None:
    """Both are drawn on one axis."""
    module, sat = CausalLM(architecture=ARCHITECTURE), SparsityAcceleratedTraining(omission=WHOLE)
    fit(module, sat)
    assert sat.flops() == module.flops_of(sequences=8, context_length=16, steps=4)
