"""What is seen while a run goes on is what was trained on."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.progress import Progress


@pytest.mark.parametrize(
    ("mask", "tokens"), [(None, 16), (torch.tensor([[1] * 8, [1, 0] * 4]), 12)]
)
def test_tokens_a_second_are_of_text_on_all_devices(
    mask: torch.Tensor | None, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is none; the clock here ticks once each time that it is looked at."""
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}))
    trainer: Any = SimpleNamespace(global_step=0, world_size=3, log_every_n_steps=1)
    progress = Progress()
    progress.disable()
    batch = {"input_ids": torch.zeros(2, 8), **({} if mask is None else {"attention_mask": mask})}
    progress.on_train_batch_start(trainer, module, batch, 0)
    trainer.global_step = 1
    progress.on_train_batch_end(trainer, module, None, batch, 0)
    assert logged == {"perf/tokens_per_second": 3 * tokens}
