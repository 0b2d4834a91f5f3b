"""Random states in checkpoints."""

from types import SimpleNamespace
from typing import Any

import torch

from callbacks.rng_state import RngState, restore


def test_a_checkpoint_before_the_first_step_keeps_the_states_that_were_loaded() -> None:
    """What a resumed run draws before it trains, say in a validation, is not training's."""
    device = torch.device("cpu")
    strategy = SimpleNamespace(root_device=device)
    trainer: Any = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)
    module: Any = None
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    RngState(seed=1).on_save_checkpoint(trainer, module, first)
    expected = torch.rand(3)
    resumed = RngState(seed=1)
    resumed.on_load_checkpoint(trainer, module, first)
    torch.rand(5)
    resumed.on_save_checkpoint(trainer, module, second)
    restore(second["rng_states"][0], device)
    assert torch.equal(torch.rand(3), expected)
