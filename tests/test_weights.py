"""A pretrained model is loaded whole or refused, through every door that one comes in by."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from datamodules.encoders import TransformersImages, TransformersTexts
from runner.errors import ConfigError
from runner.pretrained import _convert
from tests.text2sql.rewriters import tokenizer
from text2sql.encoder import load_encoder
from weights import POOLER, load_whole

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 160,
}
MADE: dict[str, Any] = {
    "bert": lambda: BertModel(BertConfig(**TINY)),
    "bert with a head, without a pooler": lambda: BertForMaskedLM(BertConfig(**TINY)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "llama without a head": lambda: LlamaModel(LlamaConfig(**TINY)),
    "llama without a head, tied": lambda: LlamaModel(LlamaConfig(tie_word_embeddings=True, **TINY)),
}


def drop(folder: Path, name: str) -> None:
    """Take one weight out of a folder, by a part of its name."""
    file = folder / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if name not in key}
    save_file(kept, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("made", "loader", "layers", "words"),
    [
        ("bert", AutoModel, 2, None),
        ("bert", AutoModel, 1, r"^encoder\.layer\.1\.\S* is of a layer that its config\.json"),
        ("bert", AutoModel, 3, r"^16 of its weights are missing, encoder\.layer\.2\."),
        ("bert with a head, without a pooler", AutoModel, 2, None),
        ("bert with a head, without a pooler", AutoModel, 1, r"^bert\.encoder\.layer\.1\."),
        ("llama", AutoModelForCausalLM, 2, None),
        ("llama", AutoModel, 2, None),
        ("llama", AutoModelForCausalLM, 1, r"^model\.layers\.1\.\S* is of a layer"),
        ("llama", AutoModel, 1, r"^model\.layers\.1\.\S* is of a layer"),
        ("llama without a head", AutoModelForCausalLM, 2, r"1 of its .* missing, lm_head\.weight"),
        ("llama without a head, tied", AutoModelForCausalLM, 2, None),
        ("llama without a head, tied", AutoModelForCausalLM, 1, r"^layers\.1\.\S* is of a layer"),
    ],
)
def test_heads_may_be_new_or_left_behind_and_layers_not(
    made: str, loader: Any, layers: int, words: str | None, tmp_path: Path
) -> None:
    MADE[made]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    if words is None:
        _, drawn = load_whole(loader, tmp_path, unread=POOLER)
        poolers = ["pooler.dense.bias", "pooler.dense.weight"]
        assert drawn == (poolers if "pooler" in made else [])
    else:
        with pytest.raises(ValueError, match=words):
            load_whole(loader, tmp_path, unread=POOLER)


def test_an_encoder_of_texts_is_refused_without_a_weight_of_its_layers(tmp_path: Path) -> None:
    MADE["bert with a head, without a pooler"]().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    load_encoder(str(tmp_path))
    TransformersTexts(str(tmp_path))
    drop(tmp_path, "layer.1.output.dense.weight")
    words = r"cannot be loaded.*1 of its weights are missing, encoder\.layer\.1\.output\.dense"
    with pytest.raises(ValueError, match=f"^pretrained=.*{words}"):
        load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match=f"^datamodule.options.text_encoder=.*{words}"):
        TransformersTexts(str(tmp_path))


def test_pictures_are_not_pooled_by_a_pooler_that_was_drawn(tmp_path: Path) -> None:
    sizes = {key: value for key, value in TINY.items() if key != "vocab_size"}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **sizes)).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    picture = Image.new("RGB", (32, 32), (200, 0, 0))
    encoder = TransformersImages(str(tmp_path))
    pixels = encoder.processor(images=[picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.vit(pixel_values=pixels).last_hidden_state.mean(1)
    torch.testing.assert_close(torch.from_numpy(encoder.encode([picture])), expected)
    assert encoder.identity.endswith(" image, means")
    drop(tmp_path, "layernorm.bias")
    with pytest.raises(ValueError, match=r"image_encoder=.*1 of its weights are missing"):
        TransformersImages(str(tmp_path))


def test_a_gguf_file_that_lacks_weights_is_not_converted(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for name in ("block_count", "head_count", "head_count_kv"):
        getattr(writer, f"add_{name}")(2)
    for name in ("embedding_length", "feed_forward_length"):
        getattr(writer, f"add_{name}")(16)
    writer.add_context_length(32)
    writer.add_vocab_size(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", torch.zeros(8, 16).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"module\.pretrained=.*\d+ of its weights are missing"):
        _convert("module.pretrained", str(file), tmp_path / "models")
    assert list((tmp_path / "models").glob("small-*[!k]")) == []
