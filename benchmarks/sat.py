"""SAT against dense training: time, FLOPs, memory and the losses of both domains, in one run.

`python -m benchmarks.sat [--quick] [--json PATH]`. Timings alternate dense and SAT steps (A B A B)
and report medians; everything is included: choosing, gathering, gradients, clipping, optimizer, LM
head. `throughput_gain` is of the whole default ladder of `experiment=sat_cpt`, `sft_time_saved` of
that of `experiment=sat_sft`; `realised` is time saved / counted FLOPs saved of the same steps.
"""

import argparse
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from benchmarks.est_quality import settings_of
from benchmarks.stepper import Stepper, resident_bytes, versions
from runner.life import build
from runner.pretrained import resolve
from subnetworks.anatomy import dimensions_of
from subnetworks.importance import UnitChooser
from subnetworks.ladder import Importance, stages_of
from subnetworks.schedule import Rates, Schedule
from subnetworks.spec import SubnetworkSpec, planned_subnetwork

# Hidden size 512, the size from which the realised ratio is promised; a Llama of 8 heads.
_LLAMA: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "max_position_embeddings": 256,
    "vocab_size": 2048,
}
TIMED = {
    "default": _LLAMA | {"num_hidden_layers": 6},
    "quick": _LLAMA | {"num_hidden_layers": 2},
    # For a GPU: TinyLlama-1.1B, random weights.
    "tinyllama": {
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "vocab_size": 32000,
    },
}
OMISSIONS = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Arm:
    """One way to go on training a model: an experiment and what differs from it."""

    experiment: str
    overrides: tuple[str, ...] = ()


def _sat(*overrides: str) -> Arm:
    return Arm("sat_cpt", tuple(f"callbacks.sat.{override}" for override in overrides))


ARMS = {
    "dense": Arm("sat_cpt_dense"),
    "dense, equal time": Arm("sat_cpt_dense_equal_time"),
    "SAT maxip, top k, falling": Arm("sat_cpt"),
    "SAT uniform, falling": _sat("importance=uniform"),
    "SAT wanda, top k, falling": _sat("importance=wanda"),
    "SAT magnitude, top k, falling": _sat("importance=magnitude"),
    "SAT activation, top k, falling": _sat("importance=activation", "refresh_every=20"),
    "SAT taylor, top k, falling": _sat("importance=taylor", "refresh_every=20"),
    "SAT maxip, sample, falling": _sat("selection=sample"),
    "SAT wanda, sample, falling": _sat("importance=wanda", "selection=sample"),
    "SAT maxip, top k, constant": _sat("ladder.hold=1.0"),
    "SAT uniform, constant": _sat("importance=uniform", "ladder.hold=1.0"),
    "SAT maxip, top k, rising": _sat("ladder.direction=rising"),
    "SAT maxip, refreshed every 20": _sat("refresh_every=20"),
    **{
        f"SAT maxip, omission {rate}": _sat(f"omission.heads={rate}", f"omission.neurons={rate}")
        for rate in (0.25, 0.75)
    },
}
MAIN_ARMS = tuple(ARMS)[:4]


def ladder_of(experiment: str) -> list[tuple[float, float]]:
    """Share of all steps and omission rate of each rung of an experiment's ladder."""
    node = settings_of(experiment)["callbacks"]["sat"]
    schedule, first = Schedule(stages_of(node)), 0.0
    rungs = []
    for stage in schedule.stages:
        assert stage.start == stage.end, "a ladder's rates are constant on each rung"
        assert stage.start.heads == stage.start.neurons, "timed with one rate for both"
        rungs.append((stage.until - first, 1 - stage.start.heads))
        first = stage.until
    return rungs


def spec_of(config: PretrainedConfig, omission: float) -> SubnetworkSpec:
    """A sub-network's size at an omission rate of heads and neurons."""
    rates = Rates(heads=1 - omission, neurons=1 - omission)
    few = dimensions_of(config).n_kv_heads < 8
    grouped: Any = "within_groups" if few else "groups"
    return planned_subnetwork(dimensions_of(config), rates, grouped_queries=grouped)


def timing(
    config: PretrainedConfig, args: argparse.Namespace, bf16: bool, importance: Importance
) -> dict[str, Any]:
    """Time and counted FLOPs by omission rate against dense steps taken in turn with them."""
    model = AutoModelForCausalLM.from_pretrained(args.model) if args.model else None
    stepper = Stepper(config, args, bf16, model, args.context_length)
    grouped: Any = "within_groups" if dimensions_of(config).n_kv_heads < 8 else "groups"
    probes = importance in ("activation", "taylor")
    chooser = UnitChooser(
        stepper.sliced.anatomy,
        importance,
        grouped_queries=grouped,
        refresh_every=20 if probes else 1,
    )
    ladders = {name: ladder_of(name) for name in ("sat_cpt", "sat_sft")}
    rates = sorted({*OMISSIONS, *(rate for rungs in ladders.values() for _, rate in rungs)})
    specs = {rate: spec_of(config, rate) for rate in rates}
    flops = {rate: stepper.flops(specs[rate], chooser) for rate in rates}
    seconds: dict[float, list[float]] = {rate: [] for rate in rates}
    choosing: dict[float, list[float]] = {rate: [] for rate in rates}
    for _ in range(args.rounds):
        for rate in rates:
            before = chooser.seconds
            seconds[rate].append(stepper.step(specs[rate], chooser))
            choosing[rate].append(chooser.seconds - before)
    medians = {rate: median(values) for rate, values in seconds.items()}
    rows = [
        {
            "omission": rate,
            "tokens_per_second": stepper.ids.numel() / medians[rate],
            "time_saved": 1 - medians[rate] / medians[0.0],
            "flops_saved_blocks": 1 - flops[rate].blocks / flops[0.0].blocks,
            "flops_saved_all": 1 - flops[rate].total / flops[0.0].total,
            "choosing_share": median(choosing[rate]) / medians[rate],
        }
        for rate in rates
    ]
    result: dict[str, Any] = {"rates": rows, "tokens_per_step": stepper.ids.numel()}
    for name, rungs in ladders.items():
        time = sum(share * medians[rate] for share, rate in rungs) / medians[0.0]
        counted = sum(share * flops[rate].total for share, rate in rungs) / flops[0.0].total
        choice = sum(share * median(choosing[rate]) for share, rate in rungs) / medians[0.0]
        result[name] = {
            "time_saved": 1 - time,
            "throughput_gain": 1 / time - 1,
            "flops_saved_all": 1 - counted,
            "realised": (1 - time) / (1 - counted),
            "choosing_share": choice / time,
        }
    return result


def peak_memory(arm: str, config: PretrainedConfig, args: argparse.Namespace) -> float:
    """Peak memory in bytes that a training of one arm adds, in this process."""
    before = resident_bytes("VmRSS")
    stepper = Stepper(config, args, bf16=False)
    chooser = UnitChooser(stepper.sliced.anatomy, "maxip")
    for omission in (0.0, 0.0) if arm == "dense" else (0.5, 0.25, 0.0, 0.5):
        stepper.step(spec_of(config, omission), chooser)
    if torch.device(args.device).type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resident_bytes("VmHWM") - before


def peak_memory_ratio(args: argparse.Namespace) -> float:
    """Peak memory of SAT over dense, each in a process of its own."""
    peaks = []
    for arm in ("dense", "sat"):
        command = [sys.executable, "-m", "benchmarks.sat", "--peak-memory", arm]
        command += ["--device", args.device, "--shape", args.shape, "--micro-batches", "2"]
        command += ["--batch-size", str(args.batch_size)] + (["--quick"] if args.quick else [])
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(float(output.splitlines()[-1]))
    return peaks[1] / peaks[0]


def train(arm: Arm, seed: int, steps: float = 1.0) -> dict[str, float]:
    """Continue the base model's training in one arm; losses of both domains, and seconds.

    Args:
        arm: What to train.
        seed: Of the data order and the draws.
        steps: Factor on the experiment's steps.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    settings = settings_of(arm.experiment, (*arm.overrides, f"seed={seed}"))
    settings = resolve(settings)
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule = build("datamodule", settings["datamodule"])
    module = build("module", settings["module"])
    node = (settings["callbacks"] or {}).get("sat")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=round(settings["trainer"]["max_steps"] * steps),
        gradient_clip_val=settings["trainer"]["gradient_clip_val"],
        callbacks=[] if node is None else [build("callbacks.sat", node)],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = perf_counter()
    trainer.fit(module, datamodule)
    seconds = perf_counter() - start
    evaluator = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    metrics: dict[str, float] = {}
    for found in evaluator.validate(module, datamodule, verbose=False):
        metrics |= found
    return {
        "new": metrics["val/loss"],
        "old": metrics.get("old/loss", float("nan")),
        "seconds": seconds,
    }


def quality(arms: Sequence[str], seeds: Sequence[int], steps: float, console: Console) -> Any:
    """Losses of every arm by seed; arms of a seed follow each other."""
    results: dict[str, dict[str, list[float]]] = {
        arm: {"new": [], "old": [], "seconds": []} for arm in arms
    }
    for seed in seeds:
        for arm in arms:
            for key, value in train(ARMS[arm], seed, steps).items():
                results[arm][key].append(value)
            last = {key: round(values[-1], 4) for key, values in results[arm].items()}
            console.print(f"seed {seed}, {arm}: {last}", highlight=False)
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sat", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller, within 5 minutes")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="default", choices=sorted(TIMED), help="timed model")
    parser.add_argument("--model", help="time this pretrained model (a folder or hub id) instead")
    parser.add_argument("--context-length", type=int, help="tokens of a timed sequence")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of a timed step")
    parser.add_argument("--micro-batches", type=int, help="of a timed step (4; quick: 2)")
    parser.add_argument("--rounds", type=int, help="timed steps of each kind (3)", default=3)
    parser.add_argument("--seeds", type=int, nargs="+", help="of the trainings (1 2 3; quick: 1)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="trainings (quick: four)")
    parser.add_argument("--no-quality", action="store_true", help="leave the trainings out")
    parser.add_argument("--peak-memory", choices=("dense", "sat"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.quick and args.shape == "default":
        args.shape = "quick"
    args.micro_batches = args.micro_batches or (2 if args.quick else 4)
    args.seeds = args.seeds or ([1] if args.quick else [1, 2, 3])
    args.arms = args.arms or (MAIN_ARMS if args.quick else tuple(ARMS))
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns what it writes."""
    args = parse(arguments)
    config = (
        AutoConfig.from_pretrained(args.model)
        if args.model
        else AutoConfig.for_model("llama", **TIMED[args.shape])
    )
    if args.peak_memory:
        print(peak_memory(args.peak_memory, config, args))
        return {}
    console = Console()
    timings = {
        name: timing(config, args, bf16, "maxip")
        for name, bf16 in (("fp32", False), ("bf16", True))
    }
    main_run = timings["fp32" if args.device == "cpu" else "bf16"]
    result: dict[str, Any] = {
        "throughput_gain": main_run["sat_cpt"]["throughput_gain"],
        "sft_time_saved": main_run["sat_sft"]["time_saved"],
        "realised": timings["fp32"]["sat_cpt"]["realised"],
        "realised_bf16": timings["bf16"]["sat_cpt"]["realised"],
        "choosing_share": main_run["sat_cpt"]["choosing_share"],
        "peak_memory_ratio": None if args.model else peak_memory_ratio(args),
        "timed_model": config.to_diff_dict(),
        "timings": timings,
        "new_domain_loss": {},
        "old_domain_loss": {},
        "seeds": args.seeds,
        "versions": versions(),
    }
    console.print(cost_table(result))
    if not args.no_quality:
        trained = quality(args.arms, args.seeds, 0.25 if args.quick else 1.0, console)
        result["new_domain_loss"] = {arm: found["new"] for arm, found in trained.items()}
        result["old_domain_loss"] = {arm: found["old"] for arm, found in trained.items()}
        result["training_seconds"] = {arm: found["seconds"] for arm, found in trained.items()}
        console.print(quality_table(trained))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


def cost_table(result: dict[str, Any]) -> Table:
    """What each omission rate, and the default ladders as a whole, save."""
    model = result["timed_model"]
    title = f"SAT against dense training, {model.get('num_hidden_layers')} layers"
    table = Table(title=f"{title} of {model.get('hidden_size')}")
    for heading in ("precision", "omission", "tokens/s", "time saved", "FLOPs saved", "choosing"):
        table.add_column(heading, justify="right")
    for precision, timed in result["timings"].items():
        for row in timed["rates"]:
            table.add_row(
                precision,
                f"{row['omission']:.3f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['time_saved']:.1%}",
                f"{row['flops_saved_all']:.1%}",
                f"{row['choosing_share']:.2%}",
            )
        for name in ("sat_cpt", "sat_sft"):
            whole = timed[name]
            table.add_row(
                precision,
                name,
                f"{whole['throughput_gain']:+.1%}",
                f"{whole['time_saved']:.1%}",
                f"{whole['flops_saved_all']:.1%}",
                f"{whole['choosing_share']:.2%}",
            )
        table.add_section()
    table.caption = (
        f"realised {result['realised']:.3f} fp32, {result['realised_bf16']:.3f} bf16; "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    )
    return table


def quality_table(trained: dict[str, dict[str, list[float]]]) -> Table:
    """Validation losses of each arm in both domains."""
    table = Table(title="Validation loss, nats per token, mean over seeds (by seed)")
    for heading in ("arm", "new domain", "old domain", "seconds"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, found in trained.items():
        cells = []
        for key in ("new", "old"):
            values = ", ".join(f"{loss:.3f}" for loss in found[key])
            cells.append(f"{mean(found[key]):.4f} ({values})")
        table.add_row(arm, *cells, f"{mean(found['seconds']):.1f}")
    return table


if __name__ == "__main__":
    main()
