"""Turns about concerts, and rewriters that are tiny enough to learn them in a test."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from text2sql.dialogue import Example
from text2sql.encoder import build_encoder, ready_mask, train_tokenizer
from text2sql.rewriter_networks import (
    PointerGenerator,
    PretrainedCausalLM,
    PretrainedSeq2Seq,
)
from text2sql.rewriting import Rewriter
from text2sql.schema import Schema

# History, utterance, and the question that stands alone.
TURNS = [
    (("Show all singers.",), "Which of them are from France?", "Which singers are from France?"),
    (("Show all stadiums.",), "What are their names?", "What are the names of all stadiums?"),
    (
        ("List concerts in 2014.", "How many are there?"),
        "What about 2015?",
        "How many concerts are there in 2015?",
    ),
    (("Who is the oldest singer?",), "And the youngest?", "Who is the youngest singer?"),
    ((), "What is the capacity of Park?", "What is the capacity of Park?"),
    (("Which singers are from Peru?",), "How old are they?", "How old are singers from Peru?"),
    (("Show the concert titles.",), "Of those in 2014.", "Show the concert titles of 2014."),
    (("Where is Ice?",), "What is its capacity?", "What is the capacity of where Ice is?"),
]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS = {"source_tokens": 48, "target_tokens": 16}


def turns(schema: Schema | None = None, database: Path | None = None) -> list[Example]:
    return [
        Example(number, len(history), history, utterance, rewrite, None, schema, database)
        for number, (history, utterance, rewrite) in enumerate(TURNS)
    ]


def texts() -> list[str]:
    return [
        text for history, utterance, rewrite in TURNS for text in (*history, utterance, rewrite)
    ]


def tokenizer() -> Any:
    return train_tokenizer({"": texts()}, 300)


def ready(network: Any, mask: Tensor, inputs: Tensor, read: Tensor | None = None) -> Any:
    """`encoder.attention_mask` as it is on a GPU."""
    return ready_mask(network.config, mask, inputs, read)


def pointer_generator(**changes: Any) -> PointerGenerator:
    torch.manual_seed(0)
    words = tokenizer()
    return PointerGenerator(build_encoder({**SIZES, **changes}, words), words, 2, **LENGTHS)


def seq2seq_folder(folder: Path, kind: str) -> Path:
    """A randomly built BART or T5 with a tokenizer, as `from_pretrained` loads it."""
    words = tokenizer()
    if kind == "bart":
        # BART begins with its end token, and texts are wrapped in [CLS] and [SEP].
        words.eos_token, words.bos_token = "[SEP]", "[CLS]"
        sizes: dict[str, Any] = {"d_model": 32, "max_position_embeddings": 64}
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 64}
        sizes |= {"dropout": 0.0, "decoder_start_token_id": words.sep_token_id}
        sizes |= {"forced_eos_token_id": None, "bos_token_id": words.cls_token_id}
    else:
        words.eos_token, words.cls_token, words.sep_token = "[SEP]", None, None
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        sizes |= {"dropout_rate": 0.0, "decoder_start_token_id": words.pad_token_id}
    ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(words), **sizes, **ends)
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def seq2seq(folder: Path, kind: str) -> PretrainedSeq2Seq:
    return PretrainedSeq2Seq.pretrained(str(seq2seq_folder(folder, kind)), **LENGTHS)


def causal_lm_folder(folder: Path, kind: str) -> Path:
    """A randomly built GPT2 or Llama with a tokenizer, as `from_pretrained` loads it."""
    words = tokenizer()
    words.eos_token, words.cls_token, words.sep_token = "[SEP]", None, None
    if kind == "gpt2":
        words.pad_token = None  # GPT2 has none
        sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        words.bos_token = "[CLS]"
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1, "intermediate_size": 64}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(words), **sizes, **ends)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def causal_lm(folder: Path, kind: str) -> PretrainedCausalLM:
    return PretrainedCausalLM.pretrained(str(causal_lm_folder(folder, kind)), **LENGTHS)


def generators(folder: Path) -> dict[str, Rewriter]:
    return {
        "pointer-generator": pointer_generator(),
        "bart": seq2seq(folder / "bart", "bart"),
        "t5": seq2seq(folder / "t5", "t5"),
        "gpt2": causal_lm(folder / "gpt2", "gpt2"),
        "llama": causal_lm(folder / "llama", "llama"),
    }


def fit(model: Rewriter, sources: Any, targets: list[str], steps: int, lr: float = 3e-3) -> float:
    """Train on all pairs at once; return the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        loss = model.loss(sources, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
