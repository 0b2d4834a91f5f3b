"""The one table from which every training method gets the same tests (tests/test_methods.py)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

from callbacks.est import EvolvingSubnetworkTraining
from callbacks.sat import SparsityAcceleratedTraining
from datamodules.language_modeling import LanguageModelingDataModule
from lightning_modules.causal_lm import CausalLM

MAX_STEPS = 12
_GPT2 = {
    "model_type": "gpt2",
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 16,
    "n_positions": 16,
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# Stages of 3, 4 and 5 steps; a dropout of 0.1 (GPT-2's default) makes the global RNG matter.
_STAGES = [
    {"until": 0.25, "sample": ["layers", "heads", "neurons"]},
    {"until": 0.6, "sample": ["heads", "neurons"]},
    {"until": 1.0},
]


def _est(**options: Any) -> Callback:
    rates = {"layers": 0.5, "heads": 0.5, "neurons": 0.5}
    return EvolvingSubnetworkTraining(rates=rates, stages=_STAGES, seed=5, **options)


def _sat(**options: Any) -> Callback:
    # Half of the steps at 0.5, then 0.25 and, for the last quarter, dense.
    half, ladder = {"heads": 0.5, "neurons": 0.5}, {"hold": 0.5, "rungs": 2}
    return SparsityAcceleratedTraining(omission=half, ladder=ladder, seed=5, **options)


@dataclass(frozen=True)
class Setting:
    """A method on a model that is tiny enough to be tested in seconds.

    Args:
        architecture: Of the model.
        method: Makes the method's callback.
        module_options: Further arguments of the LightningModule.
        reads_batch: Whether the first micro-batch of a step decides on its sub-network.
    """

    architecture: dict[str, Any]
    method: Callable[[], Callback]
    module_options: tuple[tuple[str, Any], ...] = ()
    reads_batch: bool = False

    def without_dropout(self) -> "Setting":
        """The same without GPT-2's default dropout."""
        if self.architecture["model_type"] != "gpt2":
            return self
        quiet = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        return replace(self, architecture=self.architecture | quiet)

    def module(self) -> CausalLM:
        """A fresh LightningModule."""
        return CausalLM(
            architecture=self.architecture, optimizer={"lr": 3e-3}, **dict(self.module_options)
        )

    def datamodule(self, text: Path, cache: Path, batch_size: int) -> LanguageModelingDataModule:
        """A fresh data module on a text file."""
        return LanguageModelingDataModule(
            source="text",
            files=str(text),
            val_fraction=0.2,
            vocab_size=300,
            context_length=16,
            batch_size=batch_size,
            seed=1,
            cache_dir=str(cache),
        )


SETTINGS: dict[str, Setting] = {
    "est gpt2": Setting(_GPT2, _est),
    "est gpt2 frozen, rescaled": Setting(
        _GPT2, lambda: _est(freeze_unsampled=True, layer_rescale="inverse", exempt_layers=[0])
    ),
    "est gpt2 checkpointed": Setting(
        _GPT2, _est, module_options=(("gradient_checkpointing", True),)
    ),
    "est gpt2 held": Setting(_GPT2, lambda: _est(hold=2)),
    "est llama": Setting(_LLAMA, _est),
    "est llama nested, held": Setting(
        _LLAMA, lambda: _est(hold="stage", units="nested", rescale_units=False)
    ),
    "est gpt2 layers copied": Setting(
        _GPT2,
        lambda: _est(hold="stage", units="nested", rescale_units=False, entering_layers="copied"),
    ),
    "est llama within groups, shared": Setting(
        _LLAMA, lambda: _est(grouped_queries="within_groups", shared_indices=True)
    ),
    "sat llama maxip": Setting(_LLAMA, _sat, reads_batch=True),
    "sat llama wanda, sampled, checkpointed": Setting(
        _LLAMA,
        lambda: _sat(importance="wanda", selection="sample", freeze_unsampled=True),
        module_options=(("gradient_checkpointing", True),),
        reads_batch=True,
    ),
    "sat llama taylor, within groups": Setting(
        _LLAMA,
        lambda: _sat(
            importance="taylor",
            refresh_every=3,
            probe_sequences=3,
            grouped_queries="within_groups",
            layer_factors={0: 0.5},
        ),
        reads_batch=True,
    ),
    "sat gpt2 magnitude": Setting(_GPT2, lambda: _sat(importance="magnitude", refresh_every=4)),
    "sat gpt2 activation, rescaled": Setting(
        _GPT2,
        lambda: _sat(
            importance="activation", rescale_units=True, refresh_every=5, probe_sequences=3
        ),
        reads_batch=True,
    ),
    "sat llama forward only": Setting(
        _LLAMA,
        lambda: _sat(forward_only=0.5, grouped_queries="within_groups", freeze_unsampled=True),
        reads_batch=True,
    ),
    "sat llama wanda, context forward only": Setting(
        _LLAMA, lambda: _sat(forward_only=0.5, context_forward_only=True), reads_batch=True
    ),
    "sat gpt2 frozen and forward only": Setting(
        _GPT2,
        lambda: _sat(
            importance="taylor", frozen=0.5, forward_only=0.5, refresh_every=4, probe_sequences=8
        ),
        reads_batch=True,
    ),
    "sat gpt2 uniform": Setting(_GPT2, lambda: _sat(importance="uniform")),
}
