"""How noisy the gradients of EST's sub-networks are: drawn in every step, or held.

`python -m benchmarks.gradient_noise NAME=RUN NAME=RUN ... [--batches 64] [--out noise.svg]`. RUN is
the folder of a language model's run. At the checkpoint that stands for it, its own draws of the
steps before run on batches of its training data. A step's gradient is that of all parameters, those
that do not run counting as zero. `noise / signal` is tr(covariance) / |mean|^2 of that gradient,
both unbiased.

Trainings in one stage show what their draws do, because a checkpoint lies at a training's end:
`experiment=est_gpt2 callbacks=est_paper trainer.max_steps=366` with
`callbacks.est.stages=[{until: 1.0, sample: [layers, heads, neurons]}]`.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import fmean, stdev

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.arena import versions, write
from lightning_modules.causal_lm import CausalLM
from reports.figures import COLOURS, panels_of, save, styled
from runner.folder import checkpoint_of, fill, stored_config
from runner.parts import build, prepare
from subnetworks.anatomy import dimensions_of
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import SubnetworkSpec


@dataclass(frozen=True)
class Noise:
    """What an arm's steps have shown.

    Args:
        noise: tr(covariance) of a step's gradient / |its mean|^2.
        loss: Mean over the steps, nats per token.
        loss_deviation: Standard deviation of a step's loss.
    """

    noise: float
    loss: float
    loss_deviation: float


def gradients(
    sliced: SlicedModel, batches: Iterable[Tensor], specs: Iterable[SubnetworkSpec]
) -> Iterator[tuple[float, Tensor]]:
    """Yield each step's loss and its gradient of all parameters, end to end, by batch and spec."""
    model = sliced.anatomy.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    for ids, spec in zip(batches, specs, strict=True):
        model.zero_grad()
        with activate(sliced, spec):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
        parts = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        yield loss.item(), torch.cat([part.flatten() for part in parts])


def measure(steps: Iterable[tuple[float, Tensor]]) -> Noise:
    """Return what losses and gradients of at least two steps show."""
    losses, total, squares = [], torch.zeros(()), 0.0
    for loss, gradient in steps:
        losses.append(loss)
        total = total + gradient
        squares += gradient.square().sum().item()
    count = len(losses)
    length = (total / count).square().sum().item()
    covariance = (squares - count * length) / (count - 1)
    signal = length - covariance / count
    noise = covariance / signal if signal > 0 else float("inf")
    return Noise(noise, fmean(losses), stdev(losses))


def of_run(run: Path, count: int) -> Noise:
    """Measure a run's draws of at least two steps before the checkpoint that stands for it.

    Raises:
        ValueError: The run has fewer steps, or no language model.
    """
    settings = stored_config(run)
    module, datamodule = (build(key, settings[key]) for key in ("module", "datamodule"))
    if not isinstance(module, CausalLM):
        raise ValueError(f"{run}: its module is no language model")
    prepare(datamodule)
    end = fill(module, checkpoint_of("run", run))["global_step"]
    config = module.hf_config
    if count > end:
        raise ValueError(f"{run}: its checkpoint has {end} steps, fewer than {count}")
    est = (settings["callbacks"] or {}).get("est")
    if est is None:
        specs = [SubnetworkSpec.full(dimensions_of(config))] * count
    else:
        callback = build("callbacks.est", est)
        planned = settings["trainer"]["max_steps"]  # stages are shares of these
        specs = [callback.draw(config, step, planned) for step in range(end - count, end)]
    batches = chain.from_iterable(repeat(datamodule.train_dataloader()))
    ids = [batch["input_ids"] for batch in islice(batches, count)]
    return measure(gradients(SlicedModel(module.backbone.train()), ids, specs))


def draw(found: Mapping[str, Noise], path: Path) -> None:
    """Draw each arm's noise and the deviation of its loss into an SVG or PNG file."""
    names = list(found)[::-1]
    with styled():
        figure, (noise, loss) = panels_of(2, 2, sharey=True)
        noise.barh(names, [found[name].noise for name in names], color=COLOURS[0])
        noise.set_xlabel("noise / signal of a step's gradient")
        loss.barh(names, [found[name].loss_deviation for name in names], color=COLOURS[1])
        loss.set_xlabel("standard deviation of a step's loss, nats")
    save(figure, path.with_suffix(""), (path.suffix[1:],))


def main(arguments: Sequence[str] | None = None) -> dict[str, Noise]:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_noise")
    parser.add_argument("arms", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--batches", type=int, default=64, help="at least 2 (default: 64)")
    parser.add_argument("--out", type=Path, help="an .svg or .png file")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    arms = [arm.partition("=") for arm in args.arms]
    if args.batches < 2 or not all(name and run for name, _, run in arms):
        parser.error("give NAME=RUN, and --batches of at least 2")
    try:
        found = {name: of_run(Path(run), args.batches) for name, _, run in arms}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    table = Table("arm", "noise / signal", "loss", "its deviation", title=f"{args.batches} steps")
    for name, n in found.items():
        figures = (n.noise, n.loss, n.loss_deviation)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    Console().print(table, versions())
    rows = {name: asdict(noise) for name, noise in found.items()}
    write(args.json, {"steps": args.batches, "versions": versions(), "arms": rows})
    if args.out:
        draw(found, args.out)
    return found


if __name__ == "__main__":
    main()
