"""Model, tokenizer, data and methods that do not fit each other are refused in words at once."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from datamodules.vocabulary import fits
from runner import fit, validate
from runner.errors import ConfigError
from subnetworks.families import ARCHITECTURES, sizes

LLAMA = {"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 64}


def model_folder(place: Path, config: dict[str, Any], merges: str = "ab") -> Path:
    """A pretrained model's folder without its weights; the first merge makes the tokenizer."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate(["<end>", *letters, merges])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(merges[0], merges[1])]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(place)
    return place


def refused(*overrides: str) -> str:
    """The words of a refusal, at once: a second, and a second more for the first of a process."""
    before = time.process_time()
    with pytest.raises(ConfigError) as error:
        validate.checked(list(overrides))
    assert time.process_time() - before < 3.0
    return str(error.value)


def continued(folder: Path, *overrides: str) -> list[str]:
    sizes = ["datamodule.context_length=64", "datamodule.vocab_size=300"]
    return ["experiment=sat_cpt", f"module.pretrained={folder}", *sizes, *overrides]


@pytest.mark.parametrize(("kind", "dry"), [("qwen3_moe", False), ("gemma4_text", True)])
def test_a_family_without_subnetworks_is_refused_by_name(
    tmp_path: Path, kind: str, dry: bool
) -> None:
    folder = model_folder(tmp_path / "model", {**LLAMA, "model_type": kind})
    words = refused(*continued(folder, f"dry_run={str(dry).lower()}"))
    assert f"callbacks.sat: sub-networks of model_type='{kind}' are not known" in words
    assert all(name in words for name in ARCHITECTURES)
    # Dense training of it is another matter.
    validate.checked(continued(folder, "callbacks=default"))


@pytest.mark.parametrize(
    ("kind", "attention", "words"),
    [
        ("gemma2", "sdpa", "module.attn_implementation=sdpa: gemma2 has no such attention"),
        ("gpt_oss", "sdpa", "gpt_oss has no such attention; take eager"),
        ("llama", "flash_attention_2", "needs the package flash-attn, which is not installed"),
        ("gemma2", "eager", None),
        ("gemma3_text", "sdpa", None),
    ],
)
def test_an_attention_that_a_model_has_not_is_refused(
    tmp_path: Path, kind: str, attention: str, words: str | None
) -> None:
    folder = model_folder(tmp_path / "model", {**LLAMA, "model_type": kind})
    command = continued(folder, f"module.attn_implementation={attention}", "callbacks=default")
    if words is None:
        validate.checked(command)
    else:
        assert words in refused(*command)


def test_a_scale_that_norms_undo_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {**LLAMA, "model_type": "gemma3_text"})
    words = refused(*continued(folder, "callbacks.sat.rescale_units=true"))
    assert "callbacks.sat.rescale_units=true: a gemma3_text norms" in words


def test_a_pretrained_model_brings_its_tokenizer(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", LLAMA)
    settings = validate.checked(continued(folder))
    assert settings["datamodule"]["tokenizer"]["pretrained"] == str(folder)
    assert (
        validate.checked(["experiment=est_gpt2"])["datamodule"]["tokenizer"]["pretrained"] is None
    )


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", LLAMA)
    other = model_folder(tmp_path / "other", LLAMA, merges="bc")
    same = model_folder(tmp_path / "same", LLAMA)
    key = "datamodule.tokenizer.pretrained"
    words = refused(*continued(folder, f"{key}=null"))
    assert f"{key}=null trains a tokenizer" in words
    assert f"set {key}={folder}" in words
    words = refused("experiment=sat_cpt", f"{key}={other}")
    assert "is not the tokenizer of experiment:base_llama" in words

    def check(model: Path, tokenizer: Path) -> None:
        config = SimpleNamespace(**LLAMA, name_or_path=str(model))
        settings = {"tokenizer": {"pretrained": str(tokenizer)}, "context_length": 64}
        fits({**settings, "vocab_size": 300}, config)

    with pytest.raises(ValueError, match=f"{key}={other} is not the tokenizer of {folder}"):
        check(folder, other)
    check(folder, same)
    # Tokens added beside the own ones do not change how text is split; own ones must stay.
    definition = json.loads((same / "tokenizer.json").read_text())
    definition["added_tokens"].append({"id": 290, "content": "<turn>"})
    (same / "tokenizer.json").write_text(json.dumps(definition))
    check(folder, same)
    with pytest.raises(ValueError, match="is not the tokenizer of"):
        check(same, folder)
    # A folder that brings none takes the one that is named.
    (folder / "tokenizer.json").unlink()
    check(folder, other)


@pytest.mark.parametrize("vocab_size", [200, 257])
def test_more_token_ids_than_rows_are_refused(tmp_path: Path, vocab_size: int) -> None:
    folder = model_folder(tmp_path / "model", {**LLAMA, "vocab_size": vocab_size})
    assert f"has 258 token ids, the model rows for {vocab_size}" in refused(*continued(folder))
    words = refused(*continued(folder, "datamodule.vocab_size=257"))
    assert "datamodule.vocab_size=257 is too small" in words
    assert "set it to 258 or more" in words


def test_a_model_from_scratch_has_rows_for_all_tokens() -> None:
    words = refused("experiment=est_gpt2", "module.architecture.vocab_size=100")
    assert "datamodule.vocab_size=512: the model has 100 rows for tokens" in words


def test_nothing_is_longer_than_the_models_context(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", LLAMA)
    words = refused(*continued(folder, "datamodule.context_length=65"))
    assert "datamodule.context_length=65: the model's context is 64 tokens long" in words
    words = refused("experiment=est_gpt2", "module.architecture.n_positions=8")
    assert "the model's context is 8 tokens long (n_positions)" in words


@pytest.mark.parametrize("limit", [None, -1, 64])
def test_a_config_may_state_no_limit(limit: int | None) -> None:
    config = SimpleNamespace(max_position_embeddings=limit, vocab_size=300, name_or_path="")
    fits({"context_length": 64, "vocab_size": 300}, config)
    if limit == 64:
        with pytest.raises(ValueError, match="context is 64 tokens"):
            fits({"context_length": 65, "vocab_size": 300}, config)
    else:
        fits({"context_length": 10**6, "vocab_size": 300}, config)


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "gpt_neox", "opt"])
def test_what_is_read_without_transformers_is_what_transformers_reads(kind: str) -> None:
    module = {"_target_": "lightning_modules.causal_lm.CausalLM"}
    read = fit.model_config({**module, "architecture": {"model_type": kind}})
    config = AutoConfig.for_model(kind)
    for name in ("vocab_size", "max_position_embeddings", "num_hidden_layers", "hidden_size"):
        # Of Mistral's 4096 * 32 the source tells no literal.
        assert getattr(read, name) in (None, getattr(config, name)), name
    assert sizes(read) == sizes(config)


def test_a_key_may_be_stated_by_either_of_its_names() -> None:
    module = {"_target_": "lightning_modules.causal_lm.CausalLM"}
    for names in (("n_positions", "n_head"), ("max_position_embeddings", "num_attention_heads")):
        stated = {"model_type": "gpt2", **dict(zip(names, (8, 3), strict=True))}
        read = fit.model_config({**module, "architecture": stated})
        assert (read.max_position_embeddings, read.n_positions) == (8, 8)
        assert (read.num_attention_heads, read.n_head) == (3, 3)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "is no config of a model" in refused(*continued(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert f"module.pretrained={tmp_path}: " in refused(*continued(tmp_path))


def test_what_is_known_only_once_the_module_is_built_is_asked_then() -> None:
    settings = validate.checked(["experiment=est_gpt2"])
    config = AutoConfig.for_model("gpt2", n_positions=32, vocab_size=2048)
    with pytest.raises(ConfigError, match="context is 32 tokens"):
        validate.refuse_misfits(settings, config)
