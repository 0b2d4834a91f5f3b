"""What EST's and SAT's steps save against dense ones: counted FLOPs, time, memory.

`python -m benchmarks.steps [EXPERIMENT ...] [--quick] [--json PATH]`. Each experiment's whole
schedule or ladder is timed on a model of a given shape, not its own; dense and method take turns
(A B A B), medians count, and everything is included: choosing, gathering, gradients, clipping,
optimizer, LM head. `realised` is time saved / counted FLOPs saved of the same steps. Schedules at
the papers' scale are counted while the real code runs on fake tensors. What a training loses or
gains is another command: `python -m benchmarks.reproduce`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch._subclasses import FakeTensorMode
from transformers import AutoModelForCausalLM

from benchmarks.arena import (
    Course,
    Stepper,
    compare,
    process_of_its_own,
    resident_bytes,
    versions,
    write,
)
from callbacks.subnetwork import SubnetworkTraining
from lightning_modules.causal_lm import CausalLM
from lightning_modules.hugging_face import model_config
from runner.job import methods
from runner.parts import build
from runner.validate import checked
from subnetworks.flops import FlopCount, StepFlops
from subnetworks.slicing import activate
from subnetworks.spec import SubnetworkSpec

SHAPES: dict[str, dict[str, Any]] = {
    name: shape
    for name, shape in yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text()).items()
    if not name.startswith("_")
}
EXPERIMENTS = ("est_gpt2", "est_gpt2_paper", "sat_cpt", "sat_sft")


def method_of(
    experiment: str, overrides: Sequence[str] = ()
) -> tuple[SubnetworkTraining, dict[str, Any]]:
    """Return an experiment's method, and its config.

    Raises:
        ValueError: It has none.
    """
    settings = checked([f"experiment={experiment}", *overrides])
    for name, node in methods(settings).items():
        return cast(SubnetworkTraining, build(f"callbacks.{name}", node)), settings
    raise ValueError(f"experiment={experiment} trains no sub-networks: its steps are dense")


def counted_savings(experiment: str) -> dict[str, float]:
    """Share of the FLOPs that an experiment saves, counted while its own model runs, of no weight.

    Args:
        experiment: With an architecture of its own; what it draws must be of one size a stage.

    Returns:
        `flops_saved_blocks` and `flops_saved_all`, with LM head and optimizer.
    """
    method, settings = method_of(experiment)
    config = model_config(settings["module"]["architecture"], None)
    data, trainer = settings["datamodule"], settings["trainer"]
    length = data["context_length"]
    # Of one device; where a step has several, the optimizer's share is smaller.
    sequences = data["batch_size"] * trainer["accumulate_grad_batches"] * trainer["devices"]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())

    def executed(spec: SubnetworkSpec) -> StepFlops:
        with FakeTensorMode():
            model = AutoModelForCausalLM.from_config(config).train()
            ids = torch.zeros(1, length, dtype=torch.long)
            with activate(model, spec), FlopCount(config) as count:
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return (count.flops * sequences).with_optimizer(parameters)

    course = Course.of(method, config, trainer["max_steps"], None)
    steps = [(part.share, executed(part.draw())) for part in course.parts]
    dense = executed(SubnetworkSpec.full(course.parts[0].draw().dimensions))
    return {
        "flops_saved_blocks": 1 - sum(share * f.blocks for share, f in steps) / dense.blocks,
        "flops_saved_all": 1 - sum(share * f.total for share, f in steps) / dense.total,
    }


def shape_of(method: SubnetworkTraining, args: argparse.Namespace) -> str:
    """Return the model on which a method is timed: a key of SHAPES, or a folder or hub id."""
    family = "gpt2" if method.method == "est" else "llama"
    return args.model or args.shape or (f"{family}-quick" if args.quick else family)


def stepper_of(shape: str, bf16: bool, args: argparse.Namespace) -> Stepper:
    """Return what takes the steps on a model of `shape_of`."""
    known = SHAPES.get(shape)
    compiled = {"": False, "blocks": True, "branches": "branches"}[args.compile]
    pretrained = None if known else shape
    module = CausalLM(architecture=known, pretrained=pretrained, compile=cast(Any, compiled))
    length = args.context_length or module.hf_config.max_position_embeddings
    return Stepper(module, args.device, (args.micro_batches, args.batch_size, length), bf16)


def timings(args: argparse.Namespace, until: float | None = None) -> dict[str, Any]:
    """Time the experiments, those of one shape beside each other, in each precision."""
    by_shape: dict[str, dict[str, SubnetworkTraining]] = {}
    for name in args.experiments:
        method = method_of(name, args.set)[0]
        by_shape.setdefault(shape_of(method, args), {})[name] = method
    result: dict[str, Any] = {}
    for shape, of_shape in by_shape.items():
        for precision in args.precisions:
            place = f"{shape}, {precision}"
            print(f"{place}: timing {', '.join(of_shape)} beside dense steps ...", flush=True)
            stepper = stepper_of(shape, precision == "bf16", args)
            courses = {
                name: Course.of(method, stepper.config, 1000, stepper.sliced)
                for name, method in of_shape.items()
            }
            timed = result[place] = compare(stepper, courses, args.rounds, until)
            print(f"{place}: {timed['dense_seconds_per_step']:.2f} s a dense step", flush=True)
            for name, course in timed["courses"].items():
                print(f"{place}: {name} saves {course['time_saved']:.1%} of the time", flush=True)
    return result


def peak_memory(experiment: str, dense: bool, args: argparse.Namespace) -> float:
    """Return the bytes at most that two steps of each part add in this process."""
    method = method_of(experiment, args.set)[0]
    before = resident_bytes("VmRSS")
    stepper = stepper_of(shape_of(method, args), False, args)
    course = Course.of(method, stepper.config, 1000, stepper.sliced)
    for _ in range(2):
        for part in course.parts:
            stepper.step(None if dense else part.draw(), course.chooser)
    if stepper.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(stepper.device))
    return resident_bytes("VmHWM") - before


def peak_memory_ratios(args: argparse.Namespace) -> dict[str, float]:
    """Return peak memory over dense, each in a process of its own."""
    small = argparse.Namespace(**vars(args) | {"micro_batches": 2})

    def measured(experiment: str, dense: bool) -> float:
        print(f"memory of {experiment}{', dense' if dense else ''} ...", flush=True)
        with process_of_its_own() as call:
            return float(call(peak_memory, experiment, dense, small))

    return {name: measured(name, False) / measured(name, True) for name in args.experiments}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS, help="of EST or SAT")
    parser.add_argument("--quick", action="store_true", help="smaller, within minutes")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    parser.add_argument("--set", action="append", default=[], help="a setting of the experiments")
    parser.add_argument("--shape", choices=SHAPES, help="timed model (EST gpt2, SAT llama)")
    parser.add_argument("--model", help="time this pretrained model (a folder or hub id) instead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precisions", nargs="+", default=("fp32", "bf16"), choices=("fp32", "bf16")
    )
    parser.add_argument(
        "--compile", choices=("", "blocks", "branches"), default="", help="by torch.compile"
    )
    parser.add_argument("--context-length", type=int, help="tokens of a timed sequence")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of a micro-batch")
    parser.add_argument("--micro-batches", type=int, help="of a timed step (8; quick: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each kind")
    parser.add_argument("--no-count", action="store_true", help="leave the paper-scale count out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    args = parser.parse_args(arguments)
    args.micro_batches = args.micro_batches or (2 if args.quick else 8)
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return what it writes."""
    args = parse(arguments)
    result: dict[str, Any] = {"timings": timings(args), "versions": versions(args.device)}
    if not args.no_count:
        papers = ("est_gpt2_paper", "est_tinyllama_paper")
        result["counted"] = {name: counted_savings(name) for name in papers}
    if not args.no_memory and not args.model:
        result["peak_memory_ratio"] = peak_memory_ratios(args)
    Console().print(table(result))
    write(args.json, result)
    return result


def table(result: Mapping[str, Any]) -> Table:
    """Return what each whole training saves."""
    headings = ("blocks' FLOPs", "all FLOPs", "time", "realised", "choosing", "memory / dense")
    shown = Table(title="Saved against dense steps, whole schedules and ladders")
    for heading in ("experiment", "timed on", *headings):
        shown.add_column(heading, justify="right" if heading in headings else "left")
    memory = result.get("peak_memory_ratio", {})
    for name, counted in result.get("counted", {}).items():
        saved = (counted["flops_saved_blocks"], counted["flops_saved_all"])
        shown.add_row(name, "(its own model, counted)", *(f"{share:.2%}" for share in saved))
    for place, timed in result["timings"].items():
        for name, course in timed["courses"].items():
            shares = ("flops_saved_blocks", "flops_saved_all", "time_saved")
            cells = [f"{course[share]:.1%}" for share in shares]
            cells.append("" if course["realised"] is None else f"{course['realised']:.3f}")
            cells += [f"{course['choosing_share']:.2%}"]
            cells += [f"{memory[name]:.3f}" if name in memory else ""]
            shown.add_row(name, place, *cells)
    shown.caption = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    return shown


if __name__ == "__main__":
    main()
