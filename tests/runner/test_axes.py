"""Rows say how many tokens and FLOPs a training had spent: all processes', as far as known."""

from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl

from runner.axes import shape_of_batch, spent


class Planning:
    """A module whose token costs a process 10 FLOPs, and a step 7."""

    def flops_of(self, sequences: int, context_length: int, steps: int) -> float | None:
        return 10.0 * sequences * context_length + 7 * steps


class Counting(pl.Callback):
    """A method that has spent 700 FLOPs."""

    def flops(self) -> float:
        return 700.0


def after_three(module: Any, *callbacks: pl.Callback, **described: int) -> dict[str, float]:
    """What two processes have spent in three steps, of two, two and, an epoch's last, one batch."""
    progress = SimpleNamespace(state_dict=lambda: {"total": {"processed": 5}})
    trainer: Any = SimpleNamespace(
        datamodule=SimpleNamespace(describe=lambda: described),
        accumulate_grad_batches=2,
        world_size=2,
        global_step=3,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        lightning_module=module,
        callbacks=callbacks,
    )
    return spent(trainer, shape_of_batch(trainer))


def test_a_step_costs_what_the_module_plans_or_the_method_counts() -> None:
    data = {"tokens_per_batch": 64, "context_length": 16}  # of both processes
    assert after_three(Planning(), **data) == {"tokens": 320, "FLOPs": 3200 + 2 * 3 * 7}
    assert after_three(Planning(), Counting(), **data) == {"tokens": 320, "FLOPs": 1400}


def test_what_nobody_knows_is_left_out() -> None:
    data = {"tokens_per_batch": 64, "context_length": 16}
    assert after_three(object(), **data) == {"tokens": 320}
    assert after_three(Planning(), conversations=9) == {}
