"""Layers that enter a stage: which ones, what they start from, and when."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader
from transformers import GPT2Config

from callbacks.est import EvolvingSubnetworkTraining, sources
from lightning_modules.causal_lm import CausalLM
from subnetworks.families import fits

SHAPE = {"n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 16}
STAGES = [
    {"until": 0.25, "layers": 1 / 6},
    {"until": 0.5, "layers": 0.5},
    {"until": 0.75, "layers": 1 / 6},
    {"until": 1.0},
]


def method(**options: Any) -> EvolvingSubnetworkTraining:
    settings: dict[str, Any] = {"hold": "stage", "units": "nested", "rescale_units": False}
    return EvolvingSubnetworkTraining(
        rates={}, stages=STAGES, **(settings | {"entering_layers": "copied"} | options)
    )


def test_a_layer_enters_once_beside_the_nearest_trained_one() -> None:
    """Six layers, one in stages 1 and 3, three in stage 2, all in stage 4; five steps each."""
    config = GPT2Config(n_layer=6, **SHAPE)
    est = method()
    active = [est.draw(config, step, 20).active_layers for step in (0, 5, 10, 15)]
    assert active == [(0,), (0, 2, 5), (0,), (0, 1, 2, 3, 4, 5)]
    trained: set[int] = set()
    entering = []
    for layers in active:
        entering.append(sources(layers, trained))
        trained |= set(layers)
    assert entering == [{}, {2: 0, 5: 0}, {}, {1: 0, 3: 2, 4: 5}]
    before = [est.trained_before(config, step, 20) for step in (0, 5, 6)]
    assert before == [set(), {0}, {0, 2, 5}]


class Copies(Callback):
    """Says before each step whether layer 1 equals layer 0, and 2 equals 3."""

    def __init__(self) -> None:
        self.equal: list[list[bool]] = []

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        blocks = module.backbone.get_submodule("transformer.h")
        self.layers = [list(block.parameters()) for block in blocks]

    def on_train_batch_start(self, *_: Any) -> None:
        pairs = ((1, 0), (2, 3))
        self.equal.append([all(map(torch.equal, self.layers[a], self.layers[b])) for a, b in pairs])


def copies_while_training(state: dict[str, Any] | None = None, **options: Any) -> list[list[bool]]:
    pl.seed_everything(1, workers=True, verbose=False)
    module = CausalLM(
        architecture={"model_type": "gpt2", "n_layer": 4, **SHAPE}, optimizer={"lr": 0.01}
    )
    est = EvolvingSubnetworkTraining(
        rates={"layers": 0.5},
        stages=[{"until": 0.5, "sample": ["layers"]}, {"until": 1.0}],
        hold="stage",
        units="nested",
        rescale_units=False,
        **options,
    )
    est.load_state_dict({**est.state_dict(), **(state or {})})
    watch = Copies()
    rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        limit_val_batches=0,
        callbacks=[est, watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data: DataLoader[Any] = DataLoader(rows, batch_size=2)
    trainer.fit(module, data, data)
    return watch.equal


def test_entering_layers_start_from_trained_weights_in_the_first_step_of_their_stage() -> None:
    """Layers 0 and 3 train for two steps, then 1 and 2 join them as their copies."""
    assert copies_while_training(entering_layers="copied") == [
        [False, False],
        [False, False],
        [True, True],
        [False, False],
    ]
    assert not any(any(pair) for pair in copies_while_training(entering_layers="initial"))


def test_a_layer_that_was_trained_is_never_overwritten() -> None:
    """A training that is stretched goes back to a stage of fewer layers, and comes out of it."""
    trained: dict[str, Any] = {"entering_layers": "copied", "state": {"trained": [0, 1, 2, 3]}}
    assert not any(any(pair) for pair in copies_while_training(**trained))


def test_layers_of_a_pretrained_model_are_not_copied() -> None:
    config = GPT2Config(n_layer=4, **SHAPE)
    fits({"entering_layers": "copied"}, config)
    config.name_or_path = "a model"
    with pytest.raises(ValueError, match=r"would lose what module\.pretrained=a model"):
        fits({"entering_layers": "copied"}, config)
    fits({"entering_layers": "initial"}, config)
