"""What four models hold on each of several devices, and what these send each other.

`python -m benchmarks.memory [--devices 8]` prints a Markdown table, in minutes and without a GPU:
what `dry_run=true trainer=ddp` and `trainer=fsdp` count. Nothing is trained.
"""

import argparse
from collections.abc import Sequence

from runner.dry_run import Cost, size_in_words
from runner.parts import build
from runner.validate import checked

SIZES_13B = {
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13824,
}
"""Llama-2 13B, arXiv 2307.09288."""
MODELS: dict[str, tuple[str, Sequence[str]]] = {
    "GPT2": ("est_gpt2_paper", ()),
    "TinyLlama": ("est_tinyllama_paper", ()),
    "Llama-2 7B": ("sat_cpt_llama2_paper", ()),
    "Llama-2 13B": (
        "sat_cpt_llama2_paper",
        [f"module.architecture.{key}={value}" for key, value in SIZES_13B.items()],
    ),
}
"""Each with the experiment whose batch and context it has, and what differs from that."""


def cost(name: str, way: str, devices: int) -> Cost:
    """Return what a model costs in bf16-mixed.

    Args:
        name: A key of MODELS.
        way: `ddp` or `fsdp`.
        devices: How many share the training.
    """
    experiment, sizes = MODELS[name]
    shared = [f"trainer={way}", f"trainer.devices={devices}", "trainer.precision=bf16-mixed"]
    settings = checked([f"experiment={experiment}", *sizes, *shared])
    return Cost.of(build("module", {**settings["module"], "pretrained": None}), settings)


def row(name: str, devices: int) -> str:
    """Return a model's line of the table."""
    cells = [name]
    for way in ("ddp", "fsdp"):
        each = cost(name, way, devices)
        assert each.step is not None, "all of them are language models"
        if way == "ddp":
            cells += [f"{each.parameters / 1e9:.2f}B", f"{each.batch[0]} x {each.batch[1]:,}"]
        kept, peak = sum(each.kept), each.step.peak
        sent = each.sent / (each.micro_batches if each.split else 1)
        cells += [size_in_words(count) for count in (kept, peak - kept, peak, sent)]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    args = parser.parse_args(arguments)
    heads = ["model", "parameters", "sequences x tokens"]
    for way, unit in (("DDP", "step"), ("FSDP2", "micro-batch")):
        heads += [f"{way}: {what}" for what in ("kept", "besides", "peak", f"sent in a {unit}")]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in MODELS:
        print(row(name, args.devices), flush=True)


if __name__ == "__main__":
    main()
