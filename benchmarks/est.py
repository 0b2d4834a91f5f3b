"""EST against dense training: FLOPs of the default schedules, time, memory and quality, in one run.

`python -m benchmarks.est [--quick] [--json PATH]`. Timings alternate dense and EST steps (A B A B)
and report medians; `realised` is time saved / counted FLOPs saved of the same steps, everything
included: gathering, gradients, clipping, optimizer, LM head.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from benchmarks.est_quality import settings_of, train_arms
from benchmarks.stepper import Stepper, resident_bytes, versions
from subnetworks.anatomy import dimensions_of
from subnetworks.flops import FlopCount, StepFlops
from subnetworks.schedule import Rates, Schedule
from subnetworks.slicing import activate
from subnetworks.spec import SubnetworkSpec, sample_subnetwork

TIMED = {
    # Hidden size 512, the size from which the realised ratio is promised.
    "default": {"n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 256, "vocab_size": 2048},
    "quick": {"n_embd": 512, "n_layer": 2, "n_head": 8, "n_positions": 256, "vocab_size": 2048},
}


@dataclass(frozen=True)
class Plan:
    """An experiment's model and schedule.

    Args:
        config: Config of the model.
        schedule: The stages.
        max_steps: Optimizer steps.
        context_length: Tokens of a sequence.
    """

    config: PretrainedConfig
    schedule: Schedule
    max_steps: int
    context_length: int

    @classmethod
    def of(cls, experiment: str) -> "Plan":
        """Read an experiment's plan from its composed config."""
        cfg = settings_of(experiment)
        est, architecture = cfg["callbacks"]["est"], dict(cfg["module"]["architecture"])
        return cls(
            AutoConfig.for_model(architecture.pop("model_type"), **architecture),
            Schedule(est["stages"], est["rates"]),
            cfg["trainer"]["max_steps"],
            cfg["datamodule"]["context_length"],
        )

    def stages(self) -> Iterator[tuple[float, Rates]]:
        """Share of all steps and rates of each stage; the rates must be constant within it."""
        ends = (0, *self.schedule.ends(self.max_steps))
        for stage, first, last in zip(self.schedule.stages, ends, ends[1:], strict=False):
            assert stage.start == stage.end, "the default schedules are constant by stage"
            yield (last - first) / self.max_steps, stage.start


def draw(config: PretrainedConfig, rates: Rates, seed: int) -> SubnetworkSpec:
    """A sub-network of a model."""
    generator = torch.Generator().manual_seed(seed)
    return sample_subnetwork(dimensions_of(config), rates, generator)


def executed_flops(config: PretrainedConfig, rates: Rates, context_length: int) -> StepFlops:
    """FLOPs of one sequence's forward and backward pass: the real code runs, on fake tensors."""
    spec = draw(config, rates, 0)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config).train()
        ids = torch.zeros(1, context_length, dtype=torch.long)
        with activate(model, spec), FlopCount(config) as count:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return count.flops


def schedule_savings(plan: Plan, tokens_per_step: int) -> dict[str, Any]:
    """Share of the FLOPs that a whole schedule saves, counted, by stage and in all."""
    sequences = tokens_per_step / plan.context_length
    n_parameters = _parameters(plan.config)

    def step(rates: Rates) -> StepFlops:
        flops = executed_flops(plan.config, rates, plan.context_length) * sequences
        return flops.with_optimizer(n_parameters)

    dense = step(Rates())
    stages, blocks, total = [], 0.0, 0.0
    for share, rates in plan.stages():
        flops = step(rates)
        saved_blocks, saved_all = 1 - flops.blocks / dense.blocks, 1 - flops.total / dense.total
        blocks, total = blocks + share * saved_blocks, total + share * saved_all
        stages.append(
            {"share": share, "flops_saved_blocks": saved_blocks, "flops_saved_all": saved_all}
        )
    return {"flops_saved_blocks": blocks, "flops_saved_all": total, "stages": stages}


def _parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def timing(plan: Plan, config: PretrainedConfig, args: argparse.Namespace, bf16: bool) -> Any:
    """Time and counted FLOPs of each stage against dense steps taken in turn with them."""
    stepper = Stepper(config, args, bf16)
    stages = list(plan.stages())
    # A stage on the full model runs the dense step itself: one arm serves both.
    arms = dict.fromkeys([Rates()] + [rates for _, rates in stages])
    seeds = count()

    def drawn(rates: Rates) -> SubnetworkSpec:
        return draw(config, rates, next(seeds))

    flops = {rates: stepper.flops(drawn(rates)) for rates in arms}
    seconds: dict[Rates, list[float]] = {rates: [] for rates in arms}
    for _ in range(args.rounds):
        for rates in arms:
            seconds[rates].append(stepper.step(drawn(rates)))
    dense_seconds, dense_flops = median(seconds[Rates()]), flops[Rates()].total
    rows, time_saved, flops_saved = [], 0.0, 0.0
    for share, rates in stages:
        time = 1 - median(seconds[rates]) / dense_seconds
        counted = 1 - flops[rates].total / dense_flops
        time_saved, flops_saved = time_saved + share * time, flops_saved + share * counted
        rows.append(
            {
                "share": share,
                "time_saved": time,
                "flops_saved_all": counted,
                "realised": time / counted if counted else None,
            }
        )
    return {
        "dense_seconds_per_step": dense_seconds,
        "tokens_per_step": stepper.ids.numel(),
        "time_saved": time_saved,
        "flops_saved_all": flops_saved,
        "realised": time_saved / flops_saved,
        "stages": rows,
    }


def peak_memory(arm: str, config: PretrainedConfig, args: argparse.Namespace) -> float:
    """Peak memory in bytes that a training of one arm adds, in this process."""
    plan = Plan.of("est_gpt2")
    device = torch.device(args.device)
    arms = [Rates()] if arm == "dense" else [rates for _, rates in plan.stages()]
    before = resident_bytes("VmRSS")
    stepper = Stepper(config, args, bf16=False)
    for seed in range(2):
        for rates in arms:
            stepper.step(draw(config, rates, seed))
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resident_bytes("VmHWM") - before


def peak_memory_ratio(args: argparse.Namespace) -> float:
    """Peak memory of EST over dense, each in a process of its own."""
    peaks = []
    for arm in ("dense", "est"):
        command = [sys.executable, "-m", "benchmarks.est", "--peak-memory", arm]
        # Peaks do not depend on how many micro-batches follow each other.
        command += ["--device", args.device, "--micro-batches", "2"]
        command += ["--batch-size", str(args.batch_size)]
        command += ["--quick"] if args.quick else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(float(output.splitlines()[-1]))
    return peaks[1] / peaks[0]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.est", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller, within 5 minutes")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of a timed step")
    parser.add_argument("--micro-batches", type=int, help="of a timed step (8; quick: 2)")
    parser.add_argument("--rounds", type=int, help="timed steps of each kind (3; quick: 5)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the trainings (1 2 3; quick: 1 2)")
    parser.add_argument("--no-quality", action="store_true", help="leave the trainings out")
    parser.add_argument("--peak-memory", choices=("dense", "est"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.micro_batches = args.micro_batches or (2 if args.quick else 8)
    args.rounds = args.rounds or (5 if args.quick else 3)
    args.seeds = args.seeds or ([1, 2] if args.quick else [1, 2, 3])
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns what it writes."""
    args = parse(arguments)
    config = AutoConfig.for_model(
        "gpt2",
        **TIMED["quick" if args.quick else "default"],
        activation_function="gelu_pytorch_tanh",
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
    )
    if args.peak_memory:
        print(peak_memory(args.peak_memory, config, args))
        return {}

    console = Console()
    gpt2, tinyllama = Plan.of("est_gpt2_paper"), Plan.of("est_tinyllama_paper")
    flops = schedule_savings(gpt2, tokens_per_step=491_520)
    llama = schedule_savings(tinyllama, tokens_per_step=2_097_152)
    timings = {
        name: timing(gpt2, config, args, bf16) for name, bf16 in (("fp32", False), ("bf16", True))
    }
    result: dict[str, Any] = {
        "flops_saved_blocks": flops["flops_saved_blocks"],
        "flops_saved_all": flops["flops_saved_all"],
        "tinyllama_flops_saved_blocks": llama["flops_saved_blocks"],
        "tinyllama_flops_saved_all": llama["flops_saved_all"],
        "time_saved": timings["fp32"]["time_saved"],
        "realised": timings["fp32"]["realised"],
        "realised_bf16": timings["bf16"]["realised"],
        "stages": [
            {**of_flops, **of_time}
            for of_time, of_flops in zip(timings["fp32"]["stages"], flops["stages"], strict=True)
        ],
        "peak_memory_ratio": peak_memory_ratio(args),
        "timed_model": config.to_diff_dict(),
        "timings": timings,
        "quality": {},
        "seeds": args.seeds,
        "versions": versions(),
    }
    console.print(cost_table(result))
    if not args.no_quality:
        result["quality"] = train_arms(args.seeds, quick=args.quick)
        console.print(quality_table(result["quality"]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


def cost_table(result: dict[str, Any]) -> Table:
    """What a whole default schedule saves."""
    table = Table(title="EST against dense training, whole default schedule")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for label, key in (
        ("FLOPs saved, GPT2-base, blocks", "flops_saved_blocks"),
        ("FLOPs saved, GPT2-base, all", "flops_saved_all"),
        ("FLOPs saved, TinyLlama-1.1B, blocks", "tinyllama_flops_saved_blocks"),
        ("FLOPs saved, TinyLlama-1.1B, all", "tinyllama_flops_saved_all"),
    ):
        table.add_row(label, f"{result[key]:.2%}")
    table.add_section()
    model = result["timed_model"]
    for precision, timed in result["timings"].items():
        name = f"{model['n_layer']} layers of {model['n_embd']}, {precision}"
        table.add_row(f"time saved, {name}", f"{timed['time_saved']:.2%}")
        table.add_row(f"FLOPs saved, all, {name}", f"{timed['flops_saved_all']:.2%}")
        table.add_row(f"realised, {name}", f"{timed['realised']:.3f}")
        for index, stage in enumerate(timed["stages"]):
            if stage["realised"] is not None:
                table.add_row(f"  realised in stage {index + 1}", f"{stage['realised']:.3f}")
    table.add_section()
    table.add_row("peak memory, EST / dense", f"{result['peak_memory_ratio']:.3f}")
    table.caption = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return table


def quality_table(quality: dict[str, list[float]]) -> Table:
    """Validation loss of each arm."""
    table = Table(title="Validation loss, nats per token")
    for heading in ("arm", "mean", "by seed"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, losses in quality.items():
        values = ", ".join(f"{loss:.4f}" for loss in losses)
        table.add_row(arm, f"{sum(losses) / len(losses):.4f}", values)
    return table


if __name__ == "__main__":
    main()
