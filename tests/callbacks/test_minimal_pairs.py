"""Minimal pairs are judged where a model is validated and tested, as many as were asked for."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from callbacks.minimal_pairs import MinimalPairs
from language.minimal_pairs import accuracies, judge, read_pairs
from lightning_modules.causal_lm import CausalLM
from tests.language.test_chat_rendering import byte_level, fast
from tests.language.test_generation import model
from tests.language.test_minimal_pairs import written
from tests.lightning_modules.test_causal_lm import batch, quiet


class Data(pl.LightningDataModule):
    tokenizer = fast(byte_level())

    def val_dataloader(self) -> Any:
        return DataLoader([batch()], batch_size=None)

    test_dataloader = val_dataloader


def test_shares_are_logged_at_validation_and_test(tmp_path: Path) -> None:
    folder = written(tmp_path / "pairs")
    built = model(context=128)
    module = CausalLM(architecture={"model_type": "llama", **built.config.to_diff_dict()})
    module.configure_model()
    module.model.load_state_dict(built.state_dict())
    trainer = quiet(callbacks=[MinimalPairs(str(folder), limit=7)])
    val = trainer.validate(module, Data(), verbose=False)[0]["val/minimal_pairs"]
    test = trainer.test(module, Data(), verbose=False)[0]["test/minimal_pairs"]
    for found, limit in ((val, 7), (test, None)):
        pairs = read_pairs(folder, limit)
        right = {name: judge(built, Data.tokenizer, each) for name, each in pairs.items()}
        assert found == pytest.approx(accuracies(right)["mean"])
    assert val != test


def test_missing_pairs_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder with jsonl files"):
        MinimalPairs(str(tmp_path))
