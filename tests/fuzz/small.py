"""Every experiment in small: a run of a second or two, whatever its own data and sizes are."""

from __future__ import annotations

import contextlib
from fnmatch import fnmatch
from pathlib import Path

from omegaconf import DictConfig

from tests.fuzz.configs import base
from tests.fuzz.judge import start
from tests.fuzz.warm import inputs
from tests.golden import runs

QUICK = ["debug=fast", "trainer=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1"]
QUICK += ["trainer.num_sanity_val_steps=0", "trainer.accumulate_grad_batches=1"]
QUICK += ["trainer.precision=32-true"]
GPT2 = {"n_layer": 4, "n_head": 4, "n_embd": 32}
LLAMA = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
}
# A model of few weights, which `write_base` makes, instead of the one that an experiment names.
SAT = ["module.pretrained=base", "callbacks.samples.max_new_tokens=4"]
FEW = ["callbacks.sat.multiple_of=8"]  # of 48 neurons
CHATS = [
    *("callbacks.samples.prompts=2", "datamodule=instruction", "datamodule.chat_template=default"),
    *("datamodule.count=100", "datamodule.val_fraction=0.2", "datamodule.context_length=128"),
    *("datamodule.vocab_size=300", "datamodule.batch_size=4"),
]
DIALOGUES = ["datamodule=generated_dialogues", "datamodule.dialogues=90"]
DIALOGUES += ["datamodule.test_dialogues=6", "datamodule.batch_size=4", "datamodule.keep=all"]


def _architecture(sizes: dict[str, int]) -> list[str]:
    own = [f"module.architecture.{name}={value}" for name, value in sizes.items()]
    return [*runs.TEXT, *own, "module.compile=false"]


def _parser(key: str) -> list[str]:
    return [*runs.parser(key), f"{key}.pretrained=null", f"{key}.frozen_layers=0"]


def _rewriter(key: str) -> list[str]:
    own = (f"{key}.network.pretrained=null", f"{key}.network.target_tokens=24")
    return [*runs.rewriter(key), *own]


# The first pattern that an experiment's name matches says what goes after `experiment=NAME`.
SMALL = {
    "est_gpt2*": _architecture(GPT2),
    "est_tinyllama*": _architecture(LLAMA),
    "base_llama": _architecture(LLAMA),
    "sat_sft_llama2_paper": [*SAT, *FEW, "module.architecture=null", *CHATS],
    "sat_sft*": [*SAT, *CHATS],
    "sat_cpt_llama2_paper": [*SAT, *FEW, "module.architecture=null", *runs.TEXT],
    "sat_cpt*": [
        *SAT,
        *runs.TEXT,
        "datamodule.old_domain.source=text",
        "datamodule.old_domain.files=text.txt",
    ],
    "dlch*": [
        *(*runs.RUNS["dlch"], "trainer.max_steps=3", "module.lengths.sample=100"),
        "trainer.val_check_interval=1.0",
    ],
    "delta_rewriter*": [*DIALOGUES, *_rewriter("module"), "module.scored_rewrites=4"],
    "delta_parser*": [*DIALOGUES, *_parser("module")],
    "end_to_end*": [*DIALOGUES, *_parser("module")],
    "delta_dual": [
        *(*DIALOGUES, *_rewriter("module.rewriter"), "module.rewriter.dual.samples=2"),
        *("module.rewriter.init=delta_rewriter", "module.parser_from=delta_parser"),
    ],
    "delta*": [*DIALOGUES, *_parser("module.parser"), *_rewriter("module.rewriter")],
}


def small(experiment: str, folder: Path) -> DictConfig:
    """Compose an experiment's small run on the data that `write_inputs` has put into a folder."""
    own = next(own for pattern, own in SMALL.items() if fnmatch(experiment, pattern))
    config = base(f"experiment={experiment}", *QUICK, *own)
    config.paths.cache_dir = str(folder / "cache")
    return config


def write_inputs(folder: Path) -> None:
    """Write the data of the small runs, and what some go on from: a model, runs of parts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from datamodules.language_modeling import LanguageModelingDataModule

    inputs(folder)
    with contextlib.chdir(folder):
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        sizes = {**LLAMA, "max_position_embeddings": 136, "vocab_size": 300}
        sizes |= {"num_attention_heads": 6, "hidden_size": 48}  # three heads a group
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **ends))
        model.save_pretrained("base")
        data = LanguageModelingDataModule(
            source="text", files="text.txt", vocab_size=300, cache_dir="cache"
        )
        data.prepare_data()
        data.tokenizer.save_pretrained("base")
    for part in ("delta_parser", "delta_rewriter"):
        config = small(part, folder)
        config.paths.output_dir = str(folder / "outputs")
        ended = start(config, folder)
        assert ended.code == 0, ended.said
        (run,) = (folder / "outputs").glob("*/*")
        run.rename(folder / part)
