"""What is exported is what was trained: equal logits, and the tokenizer's special tokens."""

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.conversations import DEFAULT_TEMPLATE
from lightning_modules.causal_lm import CausalLM
from tests.language.test_chat_rendering import CHATML
from tests.runner.test_fit import model_folder
from tests.subnetworks.models import FAMILIES, batch

HEADS = {"gpt2": "lm_head", "llama": "lm_head", "phi": "lm_head"}
EMBEDDINGS = {"gpt2": "wte", "llama": "embed_tokens", "phi": "embed_tokens"}
ATTENTION = {"gpt2": ["c_attn"], "llama": ["q_proj", "o_proj"], "phi": ["q_proj", "dense"]}


def module(name: str, tied: bool = False, **further: Any) -> CausalLM:
    config = copy.deepcopy(FAMILIES[name])
    config.tie_word_embeddings = tied
    architecture = {"model_type": config.model_type, **config.to_diff_dict()}
    return CausalLM(architecture=architecture, **further)


@pytest.mark.parametrize(
    ("name", "tied", "kind", "dtype"),
    [
        *product(HEADS, (False, True), (None, "all", "attention"), (torch.float32,)),
        *product(HEADS, (False,), ("head", "embeddings", "both"), (torch.float32,)),
        *product(HEADS, (False,), (None, "both"), (torch.bfloat16,)),
    ],
)
def test_the_exported_folder_is_the_trained_model(
    tmp_path: Path, name: str, tied: bool, kind: str | None, dtype: torch.dtype
) -> None:
    targets = {
        "attention": ATTENTION[name],
        "head": [HEADS[name]],
        "embeddings": [EMBEDDINGS[name]],
        "both": [HEADS[name], EMBEDDINGS[name], *ATTENTION[name]],
    }
    lora: Any = None
    if kind is not None:
        lora = {"rank": 4, "alpha": 8} | ({} if kind == "all" else {"targets": targets[kind]})
    torch.manual_seed(0)
    trained = module(name, tied, lora=lora)
    trained.configure_model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained.to(dtype)
    expected = copy.deepcopy(trained).float().eval().model(input_ids=batch()).logits
    trained.export(tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(exported(input_ids=batch()).logits, expected, atol=1e-4, rtol=0)
    head, embeddings = exported.get_output_embeddings(), exported.get_input_embeddings()
    assert (head.weight is embeddings.weight) == tied


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("part", [HEADS, EMBEDDINGS])
def test_one_of_two_tied_parts_takes_no_adapter(name: str, part: dict[str, str]) -> None:
    lora: Any = {"rank": 4, "targets": [*ATTENTION[name], part[name]]}
    with pytest.raises(ValueError, match=f"lora.targets: {part[name]} is the embedding and the LM"):
        module(name, tied=True, lora=lora)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"targets": ["q_proj", "w_qkv"]}, "a llama has no w_qkv; there are: down_proj"),
        ({"rank": 0}, "module.lora: .*positive integer"),
        ({"targets": ["norm"]}, "module.lora: .*not supported"),
    ],
)
def test_adapters_that_cannot_be_are_refused(lora: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        module("llama", lora=lora)


@pytest.mark.parametrize(
    "further",
    [{"attn_pdrop": -1}, {"n_embd": 30, "n_head": 4}, {"n_positions": -3}],
)
def test_a_model_that_cannot_be_built_is_refused(further: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"module\.architecture: a gpt2 cannot be built"):
        CausalLM(architecture={"model_type": "gpt2", **further})
    CausalLM(architecture={"model_type": "gpt2", "n_layer": 1})
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    ("stated", "template", "expected", "written"),
    [
        (7, None, 0, 0),
        (None, None, 0, 0),
        ([7, 0], None, [7, 0], [7, 0]),
        ([7, 8], None, 0, 0),
        (7, DEFAULT_TEMPLATE, 0, 0),
        (7, CHATML, 0, [0, 258]),
        ([7, 0], CHATML, [7, 0], [7, 0, 258]),
        (7, "{{ raise_exception('of other roles') }}", 0, 0),
    ],
)
def test_special_tokens_are_the_tokenizers(
    tmp_path: Path, pretrained: bool, stated: Any, template: str | None, expected: Any, written: Any
) -> None:
    """A chat model may end at several tokens: its tokenizer names one, its template another one."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(tmp_path / "words", {}))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template, tokenizer.pad_token = template, "<end>"
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, None)
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    architecture = {"model_type": "llama", **sizes, "intermediate_size": 8, "vocab_size": 300}
    ends = {"bos_token_id": 9, "eos_token_id": stated}
    trained = CausalLM(architecture={**architecture, **ends})
    trained.configure_model()
    if pretrained:
        trained.export(tmp_path / "first")
        trained = CausalLM(pretrained=str(tmp_path / "first"))
        trained.configure_model()
    trained.export(tmp_path / "last", [tokenizer])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "last")
    assert (again.config.eos_token_id, again.generation_config.eos_token_id) == (expected, written)
    assert (again.config.bos_token_id, again.generation_config.bos_token_id) == (None, None)
    # A row of padding would take no gradient, and this one pads with the end.
    assert (again.config.pad_token_id, again.generation_config.pad_token_id) == (None, 0)


def test_a_base_whose_advice_on_generation_contradicts_itself_is_exported(tmp_path: Path) -> None:
    """As Llama 2's does, which Hugging Face reads and does not write."""
    made = module("llama")
    made.configure_model()
    made.export(tmp_path / "base")
    advice = {"temperature": 0.9, "top_p": 0.6, "do_sample": False, "eos_token_id": [2, 5]}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(advice))
    trained = CausalLM(pretrained=str(tmp_path / "base"))
    trained.configure_model()
    trained.export(tmp_path / "last")
    written = json.loads((tmp_path / "last" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 5]
    assert "temperature" not in written
