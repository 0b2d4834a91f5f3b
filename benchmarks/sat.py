"""SAT against dense training: time, FLOPs, memory and the losses of both domains, in one run.

`python -m benchmarks.sat [--quick] [--experiment NAME] [--json PATH]`. Timings alternate dense and
SAT steps (A B A B) and report medians; everything is included: choosing, gathering, gradients,
clipping, optimizer, LM head. `throughput_gain` is of the whole ladder of the experiment that is
measured (`sat_cpt`), `sft_time_saved` of that of `sat_sft`; `realised` is time saved / counted
FLOPs saved of the same steps. Trainings compare arms of the experiment; the arm of equal time has
as many dense steps as the measured time allows.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
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
from transformers import AutoConfig, PretrainedConfig

from benchmarks.est_quality import settings_of
from benchmarks.stepper import Stepper, resident_bytes, versions
from callbacks.sat import SIZES
from lightning_modules.causal_lm import CausalLM
from runner.life import build
from runner.pretrained import resolve
from subnetworks.anatomy import dimensions_of
from subnetworks.chooser import UnitChooser
from subnetworks.importance import PROBING, SCORES
from subnetworks.ladder import stages_of
from subnetworks.schedule import GroupedQueries, Rates, Schedule
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
    # Twice as wide: what no sub-network makes smaller (norms, residual additions) weighs half.
    "wide": _LLAMA
    | {
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_size": 1024,
        "intermediate_size": 2816,
    },
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
    """One way to go on training a model: what differs from the experiment, and for how long.

    Args:
        overrides: Of the experiment.
        equal_time: Take only as many steps as dense training has in SAT's time.
        steps: Factor on the steps; the learning rate decays to the last of them.
    """

    overrides: tuple[str, ...] = ()
    equal_time: bool = False
    steps: float = 1.0


def _sat(*overrides: str) -> Arm:
    return Arm(tuple(f"callbacks.sat.{override}" for override in overrides))


_DENSE = ("callbacks.sat=null",)
ARMS = {
    "dense": Arm(_DENSE),
    "dense, equal time": Arm(_DENSE, equal_time=True),
    "SAT wanda, top k, falling": _sat("importance=wanda"),
    "SAT uniform, falling": _sat("importance=uniform"),
    "SAT maxip, top k, falling": _sat("importance=maxip"),
    "SAT magnitude, top k, falling": _sat("importance=magnitude"),
    "SAT activation, top k, falling": _sat("importance=activation", "refresh_every=20"),
    "SAT taylor, top k, falling": _sat("importance=taylor", "refresh_every=20"),
    "SAT wanda, sample, falling": _sat("importance=wanda", "selection=sample"),
    "SAT maxip, sample, falling": _sat("importance=maxip", "selection=sample"),
    "SAT magnitude, sample, falling": _sat("importance=magnitude", "selection=sample"),
    "SAT wanda, top k, constant": _sat("importance=wanda", "ladder.hold=1.0"),
    "SAT uniform, constant": _sat("importance=uniform", "ladder.hold=1.0"),
    "SAT wanda, top k, rising": _sat("importance=wanda", "ladder.direction=rising"),
    "SAT wanda, refreshed every 20": _sat("importance=wanda", "refresh_every=20"),
    "SAT wanda, units frozen": _sat("importance=wanda", "freeze_unsampled=true"),
    "SAT as the experiment has it": Arm(),
    "all units, context forward only": _sat(
        "context_forward_only=true", "omission.heads=0.0", "omission.neurons=0.0"
    ),
    # Time of the default ladder, without the forward pass of the units left out being saved.
    **{
        f"SAT {name}, forward only": _sat(
            *options, "forward_only=1.0", "ladder.hold=1.0", "omission.neurons=0.6"
        )
        for name, options in (
            ("wanda, top k", ("importance=wanda",)),
            ("taylor, top k", ("importance=taylor", "refresh_every=20")),
            (
                "taylor, sample",
                ("importance=taylor", "refresh_every=20", "selection=sample"),
            ),
            ("uniform", ("importance=uniform",)),
        )
    },
    **{
        f"SAT wanda, omission {rate}": _sat(
            "importance=wanda", f"omission.heads={rate}", f"omission.neurons={rate}"
        )
        for rate in (0.25, 0.75)
    },
    # The curve against which every arm's time can be held.
    **{f"dense, {share:.0%} of the steps": Arm(_DENSE, steps=share) for share in (0.5, 0.65, 0.8)},
}
MAIN_ARMS = tuple(ARMS)[:4]


def grouped_queries_of(config: PretrainedConfig) -> GroupedQueries:
    """How heads are chosen on a timed model: of fewer than eight groups none is left out."""
    return "within_groups" if dimensions_of(config).n_kv_heads < 8 else "groups"


def ladder_of(experiment: str, config: PretrainedConfig) -> list[tuple[float, SubnetworkSpec]]:
    """Share of all steps and sub-network of each rung of an experiment's ladder, on a model."""
    node = settings_of(experiment)["callbacks"]["sat"]
    rungs, first = [], 0.0
    for stage in Schedule(stages_of(node)).stages:
        assert stage.start == stage.end, "a ladder's rates are constant on each rung"
        spec = planned_subnetwork(
            dimensions_of(config),
            stage.start,
            grouped_queries=grouped_queries_of(config),
            **{key: node[key] for key in SIZES if key != "grouped_queries"},
        )
        rungs.append((stage.until - first, spec))
        first = stage.until
    return rungs


def spec_of(config: PretrainedConfig, omission: float) -> SubnetworkSpec:
    """A sub-network's size at an omission rate of heads and neurons."""
    rates = Rates(heads=1 - omission, neurons=1 - omission)
    grouped = grouped_queries_of(config)
    return planned_subnetwork(dimensions_of(config), rates, grouped_queries=grouped)


def timing(config: PretrainedConfig, args: argparse.Namespace, bf16: bool) -> dict[str, Any]:
    """Time and counted FLOPs by omission rate against dense steps taken in turn with them."""
    torch.manual_seed(0)
    module = CausalLM(
        architecture=None if args.model else config.to_diff_dict(),
        pretrained=args.model,
        lora={"rank": args.lora} if args.lora else None,
    )
    module.configure_model()
    stepper = Stepper(config, args, bf16, module, args.context_length, args.prompt_share)
    chooser = UnitChooser(
        stepper.sliced.anatomy,
        args.importance,
        grouped_queries=grouped_queries_of(config),
        refresh_every=20 if args.importance in PROBING else 1,
    )
    dense = spec_of(config, 0.0)
    by_rate = {rate: spec_of(config, rate) for rate in args.omissions}
    ladders = {name: ladder_of(name, config) for name in args.ladders}
    rungs_of_all = [spec for rungs in ladders.values() for _, spec in rungs]
    specs = list(dict.fromkeys([dense, *by_rate.values(), *rungs_of_all]))
    # The first probe has nothing to go on from: it is not of the usual step.
    stepper.step(min(specs, key=lambda spec: spec.count("neurons")), chooser)
    flops = {spec: stepper.flops(spec, chooser) for spec in specs}
    seconds: dict[SubnetworkSpec, list[float]] = {spec: [] for spec in specs}
    choosing: dict[SubnetworkSpec, list[float]] = {spec: [] for spec in specs}
    for _ in range(args.rounds):
        for spec in specs:
            before = chooser.seconds
            seconds[spec].append(stepper.step(spec, chooser))
            choosing[spec].append(chooser.seconds - before)
    medians = {spec: median(values) for spec, values in seconds.items()}
    # The mean: of the importances that probe, one step in 20 bears the cost for all.
    chosen = {spec: mean(values) for spec, values in choosing.items()}
    rows = [
        {
            "omission": rate,
            "tokens_per_second": stepper.ids.numel() / medians[spec],
            "time_saved": 1 - medians[spec] / medians[dense],
            "flops_saved_blocks": 1 - flops[spec].blocks / flops[dense].blocks,
            "flops_saved_all": 1 - flops[spec].total / flops[dense].total,
            "choosing_share": chosen[spec] / medians[spec],
        }
        for rate, spec in by_rate.items()
    ]
    result: dict[str, Any] = {"rates": rows, "tokens_per_step": stepper.ids.numel()}
    for name, rungs in ladders.items():
        time = sum(share * medians[spec] for share, spec in rungs) / medians[dense]
        counted = sum(share * flops[spec].total for share, spec in rungs) / flops[dense].total
        choice = sum(share * chosen[spec] for share, spec in rungs) / medians[dense]
        result[name] = {
            "rungs": [(share, str(spec)) for share, spec in rungs],
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
    chooser = UnitChooser(stepper.sliced.anatomy, args.importance)
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


def train(
    experiment: str, arm: Arm, seed: int, steps: float, further: Sequence[str] = ()
) -> dict[str, float | None]:
    """Continue the base model's training in one arm.

    Args:
        experiment: What the arm is of.
        arm: What to train.
        seed: Of the data order and the draws.
        steps: Factor on the experiment's steps.
        further: Overrides for all arms.

    Returns:
        Losses of both domains, the exact match, each `None` if the experiment has none, and seconds
        of training.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    settings = resolve(settings_of(experiment, (*further, *arm.overrides, f"seed={seed}")))
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule = build("datamodule", settings["datamodule"])
    module = build("module", settings["module"])
    callbacks = settings["callbacks"] or {}
    node, trainer = callbacks.get("sat"), settings["trainer"]
    common: dict[str, Any] = {
        "accelerator": trainer["accelerator"],
        "precision": "32-true" if trainer["precision"] == "auto" else trainer["precision"],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    fitting = pl.Trainer(
        **common,
        max_steps=round(trainer["max_steps"] * steps),
        gradient_clip_val=trainer["gradient_clip_val"],
        accumulate_grad_batches=trainer["accumulate_grad_batches"],
        callbacks=[] if node is None else [build("callbacks.sat", node)],
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    start = perf_counter()
    fitting.fit(module, datamodule)
    seconds = perf_counter() - start
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        samples = callbacks.get("samples") or {}
        asks = samples.get("answer_pattern") is not None
        evaluator = pl.Trainer(
            **common,
            limit_val_batches=trainer["limit_val_batches"],
            callbacks=[build("callbacks.samples", {**samples, "folder": folder})] if asks else [],
        )
        for found in evaluator.validate(module, datamodule, verbose=False):
            metrics |= found
    return {
        "new": metrics["val/loss"],
        "old": metrics.get("old/loss"),
        "exact_match": metrics.get("val/exact_match"),
        "seconds": seconds,
    }


def quality(args: argparse.Namespace, time_left: float, console: Console) -> Any:
    """Losses of every arm by seed; arms of a seed follow each other."""
    keys = ("new", "old", "exact_match", "seconds")
    results: dict[str, dict[str, list[Any]]] = {arm: {k: [] for k in keys} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            steps = args.steps * (time_left if ARMS[arm].equal_time else ARMS[arm].steps)
            found = train(args.experiment, ARMS[arm], seed, steps, args.overrides)
            for key in keys:
                results[arm][key].append(found[key])
            last = {key: round(value, 4) for key, value in found.items() if value is not None}
            console.print(f"seed {seed}, {arm}: {last}", highlight=False)
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sat", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller, within 5 minutes")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    parser.add_argument("--experiment", default="sat_cpt", help="what is trained, and whose ladder")
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="of the experiment, for all arms"
    )
    parser.add_argument("--steps", type=float, help="factor on its steps (1; quick: 0.25)")
    parser.add_argument("--time-left", type=float, help="SAT's share of dense time, if not timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="default", choices=sorted(TIMED), help="timed model")
    parser.add_argument("--model", help="time this pretrained model (a folder or hub id) instead")
    parser.add_argument("--context-length", type=int, help="tokens of a timed sequence")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of a timed step")
    parser.add_argument(
        "--prompt-share", type=float, default=0.0, help="of a timed sequence, without labels"
    )
    parser.add_argument("--micro-batches", type=int, help="of a timed step (4; quick: 2)")
    parser.add_argument("--omissions", type=float, nargs="*", default=OMISSIONS, help="timed rates")
    parser.add_argument("--ladders", nargs="+", help="experiments whose whole ladders are timed")
    parser.add_argument(
        "--precisions", nargs="+", default=("fp32", "bf16"), choices=("fp32", "bf16")
    )
    parser.add_argument("--importance", default="wanda", choices=list(SCORES), help="timed")
    parser.add_argument("--lora", type=int, help="time steps on adapters of this rank")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="timed steps of each kind (3); activation and taylor probe in one of 20",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="of the trainings (1 2 3; quick: 1)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="trainings (quick: four)")
    parser.add_argument("--no-timing", action="store_true", help="leave the timings out")
    parser.add_argument("--no-quality", action="store_true", help="leave the trainings out")
    parser.add_argument("--peak-memory", choices=("dense", "sat"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.quick and args.shape == "default":
        args.shape = "quick"
    args.micro_batches = args.micro_batches or (2 if args.quick else 4)
    args.ladders = list(dict.fromkeys([args.experiment, *(args.ladders or ["sat_sft"])]))
    args.steps = args.steps or (0.25 if args.quick else 1.0)
    if (
        args.no_timing
        and args.time_left is None
        and any(ARMS[a].equal_time for a in args.arms or ARMS)
    ):
        parser.error("--no-timing: the arm of equal time needs --time-left, or other --arms")
    if not 0 <= args.prompt_share < 1:
        parser.error(f"--prompt-share {args.prompt_share}: a share in [0, 1) of the tokens")
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
    result: dict[str, Any] = {
        "experiment": args.experiment,
        "seeds": args.seeds,
        "versions": versions(),
        "new_domain_loss": {},
        "old_domain_loss": {},
    }
    time_left = args.time_left
    if not args.no_timing:
        result |= cost(config, args)
        console.print(cost_table(result))
        time_left = time_left or 1 / (1 + result["throughput_gain"])
    if not args.no_quality:
        trained = quality(args, time_left, console)
        result["new_domain_loss"] = {arm: found["new"] for arm, found in trained.items()}
        result["old_domain_loss"] = {arm: found["old"] for arm, found in trained.items()}
        result["exact_match"] = {arm: found["exact_match"] for arm, found in trained.items()}
        result["training_seconds"] = {arm: found["seconds"] for arm, found in trained.items()}
        console.print(quality_table(trained))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


def cost(config: PretrainedConfig, args: argparse.Namespace) -> dict[str, Any]:
    """What SAT costs and saves on the timed model."""
    timings = {name: timing(config, args, name == "bf16") for name in args.precisions}
    usual = "fp32" if args.device == "cpu" else "bf16"
    main_run = timings.get(usual) or next(iter(timings.values()))
    own = main_run[args.experiment]
    return {
        "throughput_gain": own["throughput_gain"],
        "sft_time_saved": main_run[args.ladders[-1]]["time_saved"],
        "realised": own["realised"],
        "realised_bf16": timings["bf16"][args.experiment]["realised"]
        if "bf16" in timings
        else None,
        "choosing_share": own["choosing_share"],
        "peak_memory_ratio": None if args.model or args.lora else peak_memory_ratio(args),
        "timed_model": config.to_diff_dict(),
        "timings": timings,
    }


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
        for name, whole in timed.items():
            if not isinstance(whole, dict):
                continue
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
        "realised: "
        + ", ".join(
            f"{k} {v[result['experiment']]['realised']:.3f}" for k, v in result["timings"].items()
        )
        + "; "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    )
    return table


def quality_table(trained: dict[str, dict[str, list[Any]]]) -> Table:
    """Validation losses of each arm in both domains."""
    table = Table(title="Validation loss, nats per token, mean over seeds (by seed)")
    for heading in ("arm", "new domain", "old domain", "exact match", "seconds"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, found in trained.items():
        cells = []
        for key in ("new", "old", "exact_match"):
            if None in found[key]:
                cells.append("")
                continue
            values = ", ".join(f"{loss:.3f}" for loss in found[key])
            cells.append(f"{mean(found[key]):.4f} ({values})")
        table.add_row(arm, *cells, f"{mean(found['seconds']):.1f}")
    return table


if __name__ == "__main__":
    main()
