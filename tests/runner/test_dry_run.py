"""What a dry run says of memory and traffic, against sums by hand and against real steps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from lightning_modules.causal_lm import CausalLM
from runner.dry_run import Cost, memory
from runner.footprint import Footprint, Precision, footprint

GPT2 = 124_439_808
PLAIN, MIXED = Precision.of("32-true"), Precision.of("bf16-mixed")
ONE = Cost(GPT2, GPT2, (12, 1024), PLAIN, None)


def shown(cost: Cost) -> str:
    console = Console(width=120)
    with console.capture() as said:
        console.print(memory(cost))
    return said.get()


def test_one_device_keeps_all_and_sends_nothing() -> None:
    said = shown(ONE)
    assert "474.7 MiB" in said
    assert "1.9 GiB" in said
    assert "sent" not in said


def test_eight_devices_that_keep_all_send_the_gradients_twice() -> None:
    """Nearly: 7/8 of 474.7 MiB, once to add up and once to tell."""
    said = shown(replace(ONE, precision=MIXED, devices=8, micro_batches=4))
    assert "1.9 GiB" in said
    assert "8 devices in an optimizer step (DDP)" in said
    assert "830.7 MiB" in said


def test_eight_devices_that_split_keep_an_eighth_and_gather_for_every_micro_batch() -> None:
    step = Footprint(peak=20.0 * GPT2, collected=12.0 * GPT2)
    said = shown(replace(ONE, precision=MIXED, step=step, devices=8, split=True, micro_batches=2))
    assert "59.3 MiB" in said
    assert "2.3 GiB" in said  # at the peak
    assert "2.1 GiB" in said  # of these not kept
    assert "2.4 GiB" in said  # sent: 2 micro-batches x 7/8 x 12 bytes a parameter


def test_nothing_is_sent_alone() -> None:
    assert ONE.sent == 0
    assert ONE.kept == (4 * GPT2, 4 * GPT2, 8 * GPT2)


# --- a real step ---------------------------------------------------------------------------------

# Of the peak: what is left are scratch of kernels and the batch itself. Where activations are
# recomputed, the order in which they come and go is not quite that of the real tensors.
TOLERANCE, RECOMPUTED = 0.002, 0.08
SHAPE = (4, 96)
GPT2_SMALL: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
    "vocab_size": 600,
    "activation_function": "gelu_pytorch_tanh",
    **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
}
LLAMA_SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "vocab_size": 600,
}
MODULES: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": GPT2_SMALL},
    "llama": {"architecture": LLAMA_SMALL},
    "llama, eager": {"architecture": LLAMA_SMALL, "attn_implementation": "eager"},
    "llama, recomputed": {"architecture": LLAMA_SMALL, "gradient_checkpointing": True},
    "gpt2, lora": {"architecture": GPT2_SMALL, "lora": {"rank": 4}},
}


PRECISIONS = ("32-true", "bf16-mixed")


class Meter(Callback):
    """Measures the most bytes that the second step allocates beyond those held before it."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, at: int) -> None:
        if at == 1:
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, at: int
    ) -> None:
        if at != 1:
            return
        self.profile.__exit__(None, None, None)
        profiler: Any = self.profile.profiler
        events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
        held = self.most = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            self.most = max(self.most, held)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if at in (0, 3) else pytest.mark.slow)
        for at, (name, precision) in enumerate(itertools.product(MODULES, PRECISIONS))
    ],
)
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:.is_gradient_check")
def test_the_peak_is_that_of_a_real_step(name: str, precision: str) -> None:
    """Of Lightning's second step, in which gradients and moments are there from the start."""
    if "lora" in name:
        pytest.importorskip("peft")
    batches: Any = DataLoader([{"input_ids": torch.arange(SHAPE[1])}] * 12, batch_size=SHAPE[0])
    module, meter = CausalLM(**MODULES[name]), Meter()
    off = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        precision=precision,
        callbacks=[meter],
        **off,
    )
    trainer.fit(module, batches)
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    kept = sum(4 * count * (4 if trains else 1) for count, trains in counts)
    planned = footprint(CausalLM(**MODULES[name]), SHAPE, Precision.of(precision), 1, False).peak
    tolerance = RECOMPUTED if "recomputed" in name else TOLERANCE
    assert planned == pytest.approx(kept + meter.most, rel=tolerance)
    assert planned > 1.2 * kept  # the activations are what is tested


def test_devices_that_split_hold_less_and_send_blocks_three_times() -> None:
    """Gathered for the forward and the backward pass, gradients added up; the rest stays whole."""
    one, eight = (
        footprint(CausalLM(architecture=LLAMA_SMALL), SHAPE, PLAIN, devices, devices > 1)
        for devices in (1, 8)
    )
    module = CausalLM(architecture=LLAMA_SMALL)
    module.configure_model()
    parameters = sum(p.numel() for p in module.parameters())
    blocks = sum(p.numel() for p in module.model.model.layers.parameters())
    kept = 16 * parameters
    assert one.peak - kept < eight.peak - kept / 8 < one.peak - kept / 8
    padding = 8 * 16 * 30  # rows of 8 devices, at most, for each of the parameters
    assert eight.collected == pytest.approx(
        4 * (3 * blocks + 2 * (parameters - blocks)), abs=padding
    )
    assert one.collected == 0


def test_ddp_holds_the_gradients_once_more_unless_they_lie_in_its_buckets() -> None:
    one, apart, inside = (
        footprint(CausalLM(architecture=GPT2_SMALL), SHAPE, PLAIN, devices, apart=apart).peak
        for devices, apart in ((1, False), (2, True), (2, False))
    )
    module = CausalLM(architecture=GPT2_SMALL)
    module.configure_model()
    gradients = 4 * sum(p.numel() for p in module.parameters())
    assert apart - one == gradients
    assert one <= inside < one + gradients / 2
