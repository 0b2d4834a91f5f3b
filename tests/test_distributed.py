"""Two gloo processes against one at the same global batch: losses, drawn units, checkpoints.

The sequences' prompts carry no labels and are of unequal lengths, so that the processes count
unequal numbers of tokens in every step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from tests.settings import _GPT2, _LLAMA, SETTINGS, Setting
from tests.subnetworks.models import subnetwork_of
from tests.test_methods import Fit, Forked, _checkpoint, fit, replicated, text

__all__ = ["fit", "text"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The dirpath has changed")]

STEPS = 50
TOLERANCE = 1e-5  # nats, of losses around 5; float32 adds the processes' sums in another order
STRATEGIES: dict[str, Any] = {
    "ddp": replicated,
    "fsdp": Forked,
}


class _None(Callback):
    """In place of a method."""


TRAINED = {
    "dense": Setting(_LLAMA, _None),
    "est": SETTINGS["est llama"],
    "sat": SETTINGS["sat llama maxip"],
    "sat, probed by taylor": SETTINGS["sat llama taylor, within groups"],
    "sat, probed by activation": SETTINGS["sat gpt2 activation, rescaled"],
    "lora": Setting(
        _GPT2, _None, module_options=(("lora", {"rank": 2, "alpha": 4, "dropout": 0.0}),)
    ),
}


class Diary(Callback):
    """Keeps each step's loss, its drawn units and how many tokens this process has counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[float] = []
        self.units: list[str] = []
        self.tokens: list[int] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        methods = [each for each in cast(Any, trainer).callbacks if hasattr(each, "_sliced")]
        self.units += [repr(subnetwork_of(each._sliced)) for each in methods]

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.tokens.append(int((batch["labels"][:, 1:] != -100).sum()))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        content = {"losses": self.losses, "units": self.units, "tokens": self.tokens}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(content))


def read(folder: Path, rank: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads((folder / f"{rank}.json").read_text())
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_are_one(name: str, strategy: str, fit: Fit, tmp_path: Path) -> None:
    setting = TRAINED[name].without_dropout()
    if name == "lora":
        pytest.importorskip("peft")
        if strategy == "fsdp":
            pytest.skip("trainer=fsdp with module.lora is refused, see tests/runner")
    diaries = {each: tmp_path / each for each in ("one", "two", "back", "forth")}
    for folder in diaries.values():
        folder.mkdir()

    def train(diary: str, processes: int, resume: Path | None = None) -> Any:
        options: dict[str, Any] = {}
        if processes == 2:
            options = {"devices": 2, "strategy": STRATEGIES[strategy]()}
        _, trainer = fit(
            setting,
            extra=(Diary(diaries[diary]),),
            batch_size=8 // processes,
            max_steps=STEPS,
            save_every=10,
            resume=resume,
            **options,
        )
        return trainer

    one, two = train("one", 1), train("two", 2)
    alone, first, second = read(diaries["one"], 0), read(diaries["two"], 0), read(diaries["two"], 1)
    assert len(alone["losses"]) == STEPS
    assert sum(a != b for a, b in zip(first["tokens"], second["tokens"], strict=True)) > STEPS / 2
    assert first["losses"] == second["losses"]
    assert first["units"] == second["units"] == alone["units"]
    assert len(alone["units"]) == (0 if setting.method is _None else STEPS)
    gaps = [abs(a - b) for a, b in zip(alone["losses"], first["losses"], strict=True)]
    sys.stderr.write(f"{name}, {strategy}: largest gap {max(gaps):.2g} nats in {STEPS} steps\n")
    assert max(gaps) < TOLERANCE
    # Each goes on from the other's checkpoint.
    step = 20
    train("back", 1, _checkpoint(two, step))
    train("forth", 2, _checkpoint(one, step))
    for diary in ("back", "forth"):
        losses = read(diaries[diary], 0)["losses"]
        assert len(losses) == STEPS - step
        gaps = [abs(a - b) for a, b in zip(losses, alone["losses"][step:], strict=True)]
        assert max(gaps) < TOLERANCE
    ended = [torch.load(_checkpoint(each, STEPS), weights_only=True) for each in (one, two)]
    assert ended[0]["state_dict"].keys() == ended[1]["state_dict"].keys()
