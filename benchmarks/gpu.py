"""The first minutes on a GPU: the most important figures first, and the end in time.

`python -m benchmarks.gpu --minutes 8 --json PATH`. In this order: tokens per second and MFU of a
dense step of GPT2-base in bf16 beside two plain loops, around transformers' model and around one
written as nanoGPT's is; what EST realises of its saved FLOPs at that size, drawn in every step
(`hold` 1, the paper) and held for a stage; what SAT realises at TinyLlama's size; all of these
once more, compiled (nanoGPT as a whole, this repository's models by blocks or branches); the row
of EST's study at width 256. A part is begun only if there is time for it, and what was left out is
said. `--device cpu --shape tiny` is a dry check.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import steps
from benchmarks.arena import Stepper, interleaved, versions, write
from subnetworks.anatomy import dimensions_of
from subnetworks.spec import SubnetworkSpec

PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
}
"""Dense bf16 FLOPs per second by NVIDIA's data sheets, by a part of the device's name."""
SHAPES = {
    # Model and sequences of a step, of the dense steps and EST's, and of SAT's. 60 are what one
    # device has in a step of EST's paper: 12 x 5.
    "full": (("gpt2-base", 60), ("tinyllama", 16)),
    "tiny": (("tiny-gpt2", 2), ("tiny-llama", 2)),
}
STUDY = {"full": ("gpu",), "tiny": ("demo", "--tokens-per-parameter", "0.2")}


class NanoBlock(nn.Module):
    """A block of GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of (batch, context, width) to the same."""
        batch, context, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, context, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, context, width))
        return x + self.down(F.gelu(self.up(self.before_mlp(x))))


class NanoGPT(nn.Module):
    """GPT-2 as https://github.com/karpathy/nanoGPT writes it: as little as a fast model needs.

    Args:
        config: Of Hugging Face's GPT-2, without dropout.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.n_positions, config.n_embd)
        blocks = [NanoBlock(config.n_embd, config.n_head) for _ in range(config.n_layer)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(config.n_embd)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=config.initializer_range)

    def forward(self, ids: Tensor) -> Tensor:
        """Mean loss of token ids of shape (batch, context), in nats per predicted token."""
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.norm(self.blocks(self.tokens(ids) + self.positions(places)))
        logits = F.linear(hidden[:, :-1], self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class TransformersLoss(nn.Module):
    """A model of transformers, called as its documentation does."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        settings = config.to_diff_dict()
        again = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.model = AutoModelForCausalLM.from_config(again)

    def forward(self, ids: Tensor) -> Tensor:
        """Mean loss of token ids of shape (batch, context), in nats per predicted token."""
        loss: Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss


class Plain:
    """A training loop as one writes it without this repository.

    Args:
        stepper: Whose batches and precision it has.
        model: Of token ids to their mean loss.
    """

    def __init__(self, stepper: Stepper, model: nn.Module) -> None:
        self.stepper = stepper
        self.model = model.train().to(stepper.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self) -> None:
        """Take one optimizer step."""
        for ids in self.stepper.ids:
            with self.stepper.precision():
                loss = self.model(ids)
            (loss / len(self.stepper.ids)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()


def dense(args: argparse.Namespace, until: float, compiled: str = "") -> dict[str, Any]:
    """Time the dense step beside plain loops."""
    shape, batch = SHAPES[args.shape][0]
    stepper = steps.stepper_of(shape, True, _options(args, batch, compiled))
    whole = SubnetworkSpec.full(dimensions_of(stepper.config))
    flops = stepper.flops(whole).total
    nano: Any = NanoGPT(stepper.config)
    models: dict[str, Any] = {"nanogpt": torch.compile(nano) if compiled else nano}
    if not compiled:
        models["transformers"] = TransformersLoss(stepper.config)
    arms: dict[str, Callable[[], None]] = {"frugal": stepper.step}
    arms |= {name: Plain(stepper, model).step for name, model in models.items()}
    turns = {name: partial(stepper.seconds, step) for name, step in arms.items()}
    for turn in turns.values():
        turn()  # allocations, and what is compiled
    seconds = interleaved(turns, args.rounds, until)
    name = versions(args.device)["device"]
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    result: dict[str, Any] = {"shape": shape, "tokens_per_step": stepper.ids.numel(), "peak": peak}
    for arm, times in seconds.items():
        second = median(times)
        result[arm] = {
            "tokens_per_second": stepper.ids.numel() / second,
            "mfu": None if peak is None else flops / second / peak,
        }
    return result


def realised(
    args: argparse.Namespace,
    until: float,
    size: tuple[str, int],
    experiments: Sequence[str],
    compiled: str = "",
) -> dict[str, Any]:
    """Time whole schedules against dense steps."""
    options = _options(args, size[1], compiled)
    options.experiments, options.shape, options.precisions = experiments, size[0], ("bf16",)
    if size[0] == "tinyllama":  # of fewer than eight groups none is left out
        options.set = ["callbacks.sat.grouped_queries=within_groups"]
    return steps.timings(options, until)


def study(args: argparse.Namespace, until: float) -> dict[str, Any]:
    """Train the row of EST's study at width 256, as far as there is time; a later call goes on."""
    command = [sys.executable, "-m", "benchmarks.reproduce", "est", "--scale"]
    command += [*STUDY[args.shape], "--seeds", "1", "--arms", "dense", "EST"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code: int | None = process.wait(timeout=max(1.0, until - perf_counter()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # the training too, which then saves its state
        process.wait()
        code = None
    return {"command": " ".join(command[1:]), "finished": code == 0}


def parts(args: argparse.Namespace) -> dict[str, tuple[float, Callable[[float], Any]]]:
    """Return the parts in order: the share of the whole time that each needs, and what it does."""
    gpt2, llama = SHAPES[args.shape]
    est, sat = ("est_gpt2_paper", "est_gpt2"), ("sat_cpt", "sat_sft")
    return {
        "dense": (0.1, lambda until: dense(args, until)),
        "est": (0.15, lambda until: realised(args, until, gpt2, est)),
        "sat": (0.2, lambda until: realised(args, until, llama, sat)),
        "dense compiled": (0.1, lambda until: dense(args, until, "blocks")),
        "est compiled": (0.15, lambda until: realised(args, until, gpt2, est, "blocks")),
        "sat compiled": (0.2, lambda until: realised(args, until, llama, sat, "branches")),
        "study": (0.2, lambda until: study(args, until)),
    }


def _options(args: argparse.Namespace, batch_size: int, compiled: str) -> argparse.Namespace:
    options = ["--batch-size", str(batch_size), "--micro-batches", "1", "--device", args.device]
    return steps.parse([*options, "--rounds", str(args.rounds), "--compile", compiled])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts for which there is time; return what is written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="of the clock, all in all")
    parser.add_argument("--json", type=Path, help="written after each part")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--parts", nargs="+", help='only these, such as "est compiled"')
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each kind")
    args = parser.parse_args(arguments)
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --shape tiny is a dry check")
    every = parts(args)
    if unknown := set(args.parts or ()).difference(every):
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(every)}")
    console, start = Console(), perf_counter()
    end = start + 60 * args.minutes
    result: dict[str, Any] = {"versions": versions(args.device), "left_out": []}
    for name, (share, do) in every.items():
        if args.parts and name not in args.parts:
            continue
        needed = share * 60 * args.minutes
        if perf_counter() + needed > end:
            result["left_out"].append(name)
            console.print(f"{name}: left out, {needed:.0f} s are not left", highlight=False)
            continue
        begun = perf_counter()
        result[name] = do(min(end, begun + needed))
        result[f"{name}_seconds"] = perf_counter() - begun
        console.print({name: result[name]})
        write(args.json, result)
        torch.cuda.empty_cache()
    result["seconds"] = perf_counter() - start
    write(args.json, result)
    return result


if __name__ == "__main__":
    main()
