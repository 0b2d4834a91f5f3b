"""Rows say how many tokens and FLOPs a training had spent: all processes', as far as known."""

from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl

from runner.axes import cost_of_step, spent


class Planning:
    """A module whose step costs 10 FLOPs for each token of a process."""

    def flops_of_step(self, sequences: int, context_length: int) -> float | None:
        return 10.0 * sequences * context_length


class Counting(pl.Callback):
    """A method that has spent 700 FLOPs."""

    def flops(self) -> float:
        return 700.0


def after_three(module: Any, *callbacks: pl.Callback, **described: int) -> dict[str, float]:
    """What two processes of two micro-batches each have spent in three steps."""
    trainer: Any = SimpleNamespace(
        datamodule=SimpleNamespace(describe=lambda: described),
        accumulate_grad_batches=2,
        world_size=2,
        lightning_module=module,
        callbacks=callbacks,
    )
    return spent(3, cost_of_step(trainer), trainer)


def test_a_step_costs_what_the_module_plans_or_the_method_counts() -> None:
    data = {"tokens_per_batch": 64, "context_length": 16}  # of both processes
    assert after_three(Planning(), **data) == {"tokens": 384, "FLOPs": 3840}
    assert after_three(Planning(), Counting(), **data) == {"tokens": 384, "FLOPs": 1400}


def test_what_nobody_knows_is_left_out() -> None:
    data = {"tokens_per_batch": 64, "context_length": 16}
    assert after_three(object(), **data) == {"tokens": 384}
    assert after_three(Planning(), conversations=9) == {}
