"""Every method in small: one run of seconds each, on data that is written beside it.

The overrides go after `experiment=NAME debug=fast`, in a folder that `write_data` has filled.
"""

import random
from pathlib import Path

import numpy as np

# An encoder that is tiny, for the parts of DELTA.
ENCODER = (
    "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 32, max_position_embeddings: 192}"
)
TEXT = ["datamodule=text", "datamodule.files=text.txt", "datamodule.vocab_size=300"]
TEXT += ["datamodule.context_length=16", "datamodule.batch_size=4"]
SIZES = ["hidden_size=32", "intermediate_size=48", "max_position_embeddings=136"]
BASE = ["debug=fast", "logger=csv", *TEXT, *(f"module.architecture.{size}" for size in SIZES)]
SAT = [
    f"module.pretrained='experiment:base_llama {' '.join(BASE)}'",
    "callbacks.samples.max_new_tokens=4",
]
DIALOGUES = ["datamodule.dialogues=90", "datamodule.test_dialogues=6", "datamodule.batch_size=4"]
DIALOGUES += ["trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.limit_val_batches=1"]


def parser(key: str) -> list[str]:
    """Overrides that give the parser under a key a tiny encoder."""
    sizes = ("width=16", "heads=2", "layers=1", "decoder_layers=1", f"architecture={ENCODER}")
    return [f"{key}.{size}" for size in sizes]


def rewriter(key: str) -> list[str]:
    """Overrides that give the rewriter under a key a tiny encoder."""
    sizes = (f"network.architecture={ENCODER}", "network.decoder_layers=1", "beam=2")
    return [f"{key}.{size}" for size in sizes]


RUNS = {
    "est_gpt2": [*TEXT, "module.architecture.n_embd=32"],
    "est_tinyllama": [*TEXT, "module.architecture.hidden_size=32"],
    "sat_cpt": [
        *SAT,
        *TEXT,
        "datamodule.old_domain.source=text",
        "datamodule.old_domain.files=text.txt",
    ],
    "sat_sft": [
        *SAT,
        "callbacks.samples.prompts=4",
        "datamodule=instruction",
        "datamodule.chat_template=default",
        "datamodule.count=100",
        "datamodule.val_fraction=0.2",
        "datamodule.context_length=128",
        "datamodule.vocab_size=300",
        "datamodule.batch_size=4",
    ],
    "dlch": [
        "datamodule=features",
        "datamodule.path=features.npz",
        "datamodule.classes_per_session=[16,4,4]",
        "datamodule.queries=0.2",
        "datamodule.validation=0.2",
        "module.text_width=16",
    ],
    "delta": [*DIALOGUES, *parser("module.parser"), *rewriter("module.rewriter")],
    "delta_rewriter": [*DIALOGUES, *rewriter("module"), "module.scored_rewrites=4"],
    "end_to_end_sparc": [
        "datamodule=generated_dialogues",
        "module.pretrained=null",
        *DIALOGUES,
        *parser("module"),
    ],
}


def write_data() -> None:
    """Write a text of 2,000 sentences and features of 24 classes into the current folder."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulmnrst", k=draw.randint(2, 7))) for _ in range(300)]
    lines = [" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(2000)]
    Path("text.txt").write_text("\n".join(lines), encoding="utf-8")
    normal = np.random.default_rng(0).normal(size=(2, 24, 8)).astype(np.float32)
    labels = np.eye(24, dtype=np.uint8)[np.arange(480) % 24]
    np.savez("features.npz", image=labels @ normal[0], text=labels @ normal[1], labels=labels)
