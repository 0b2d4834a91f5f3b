"""A trained language model is used as it was trained, adapters included."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from language.generation import Sampling
from lightning_modules.causal_lm import CausalLM
from tests.language.test_chat_rendering import CHATML, byte_level, fast
from tests.subnetworks.models import FAMILIES


def module(lora: Any = None) -> CausalLM:
    config = copy.deepcopy(FAMILIES["llama"])
    config.vocab_size, config.max_position_embeddings = 450, 256
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    built = CausalLM(
        architecture={"model_type": "llama", **config.to_diff_dict()},
        lora=lora,
    )
    built.configure_model()
    return built


def test_a_lora_run_talks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the model does into which its adapters are merged, and not as the one without them."""
    fast(byte_level(), CHATML).save_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    trained = module({"rank": 4, "alpha": 8})
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    base, merged = module(), module()
    with trained.model.disable_adapter():
        weights = copy.deepcopy(trained.model).unload().state_dict()
        base.model.load_state_dict(weights)
    merged.model.load_state_dict(copy.deepcopy(trained.model).merge_and_unload().state_dict())

    def said(of: CausalLM) -> str:
        lines: Iterator[str] = iter(["The fox", "The dog", "/quit"])
        monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
        spoken = of.talk(
            None,
            ckpt_path=str(tmp_path),
            seed=0,
            max_new_tokens=12,
            sampling=Sampling(greedy=True),
        )
        assert spoken["turns"] == 2
        return capsys.readouterr().out

    answers = said(trained)
    assert answers == said(merged)
    assert answers != said(base)
