"""A trained language model is used as it was trained, adapters included."""

import copy
import json
import shutil
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


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_a_checkpoint_is_read_without_the_base(tmp_path: Path, lora: Any) -> None:
    """All weights are in it; what else a base says is kept beside it."""
    base, kept = tmp_path / "base", tmp_path / "model"
    module().export(base)
    advice = {"eos_token_id": [3, 4], "temperature": 0.9}  # as Hugging Face does not write it
    (base / "generation_config.json").write_text(json.dumps(advice))
    trained = CausalLM(pretrained=str(base), lora=lora)
    trained.configure_model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trained.keep_base(kept)
    shutil.rmtree(base)
    again = CausalLM(pretrained=str(kept), lora=lora)
    again.on_load_checkpoint({})
    again.load_state_dict(trained.state_dict())
    ids = torch.arange(20, 40)[None]
    logits = [each.eval().model(input_ids=ids).logits for each in (trained, again)]
    assert torch.equal(*logits)
    assert again.backbone.generation_config.eos_token_id == [3, 4]
    with pytest.raises(ValueError, match="cannot be loaded"):
        CausalLM(pretrained=str(kept)).configure_model()
