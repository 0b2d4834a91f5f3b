"""Validation loss of EST and its controls against tokens per parameter: what does saving cost?

`python -m benchmarks.est_quality --width 64 --budgets 30 100 --seeds 1 2 3 --results PATH.jsonl`.
Every arm is an experiment of the repository at a size where two cores reach tens or hundreds of
tokens per parameter; arms of one seed see the same data in the same order. Each training appends
one line to the results, and one that is there already is not repeated. `--figure PATH` draws loss
over block FLOPs.
"""

import argparse
import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any, cast

import pytorch_lightning as pl
import torch
import transformers
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.table import Table

from callbacks.est import EvolvingSubnetworkTraining
from datamodules.language_modeling import LanguageModelingDataModule
from lightning_modules.causal_lm import CausalLM
from runner.life import build
from runner.validate import checked
from subnetworks.anatomy import dimensions_of
from subnetworks.flops import planned_flops
from subnetworks.spec import SubnetworkSpec


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        experiment: The experiment it is.
        steps: Its share of the dense training's steps.
        overrides: What is different from the experiment.
    """

    experiment: str
    steps: float = 1.0
    overrides: tuple[str, ...] = ()


_DRAWN = ("callbacks=est_paper",)
ARMS = {
    "dense": Arm("est_gpt2_dense"),
    "EST": Arm("est_gpt2"),
    "EST, drawn and held for a stage": Arm("est_gpt2", overrides=("callbacks.est.units=random",)),
    "EST, drawn every 100 steps": Arm(
        "est_gpt2", overrides=("callbacks.est.units=random", "callbacks.est.hold=100")
    ),
    "dense, equal FLOPs": Arm("est_gpt2_dense", steps=11 / 15),
    # More saved: 0.75 * 4/15 + 0.5 * 6/15 = 40 %, and dense training of as many FLOPs.
    "EST, 40 %": Arm(
        "est_gpt2",
        overrides=(
            "callbacks.est.stages=[{until: 0.26666666666666666, sample: [layers, heads, neurons]},"
            "{until: 0.6666666666666666, sample: [heads, neurons]}, {until: 1.0, sample: []}]",
        ),
    ),
    "dense, 60 % of the FLOPs": Arm("est_gpt2_dense", steps=0.6),
    "EST, paper": Arm("est_gpt2", overrides=_DRAWN),
    "depth only": Arm("est_gpt2_depth_only"),
    "LayerDrop": Arm("est_gpt2_layerdrop"),
    "EST, paper, layers rescaled": Arm(
        "est_gpt2", overrides=(*_DRAWN, "callbacks.est.layer_rescale=inverse")
    ),
    "EST, paper, units not rescaled": Arm(
        "est_gpt2", overrides=(*_DRAWN, "callbacks.est.rescale_units=false")
    ),
    "EST, paper, ends exempt": Arm(
        "est_gpt2", overrides=(*_DRAWN, "callbacks.est.exempt_layers=[0,-1]")
    ),
    "EST, paper, shared indices": Arm(
        "est_gpt2", overrides=(*_DRAWN, "callbacks.est.shared_indices=true")
    ),
    "EST, paper, rows frozen": Arm(
        "est_gpt2", overrides=(*_DRAWN, "callbacks.est.freeze_unsampled=true")
    ),
    # Other boundaries for the same FLOPs: no stage without all layers.
    "EST, paper, all layers": Arm(
        "est_gpt2",
        overrides=(
            *_DRAWN,
            "callbacks.est.stages=[{until: 0.5333333333333333, sample: [heads, neurons]},"
            "{until: 1.0, sample: []}]",
        ),
    ),
}

# Peak learning rates by width, for the dense arm; every other arm has the same.
RATES = {32: 6e-3, 64: 4e-3, 128: 3e-3}
_SMALL = (
    "datamodule.context_length=64",
    "datamodule.batch_size=64",
    "datamodule.vocab_size=512",
    "module.schedule.warmup=0.1",
)
REGIMES = {
    # 8.2 million tokens of text: at width 32 seen twice at 300 tokens per parameter.
    "abundant": _SMALL,
    # 60,000 tokens of text, at width 32 seen 85 times at 100 tokens per parameter: dense overfits.
    "limited": (*_SMALL, "datamodule.max_tokens=60000"),
}
VALIDATIONS = 20
"""Of a training on limited text, evenly spaced: the best of them is what early stopping keeps."""


class BestLoss(Callback):
    """Keeps the lowest validation loss of a training."""

    def __init__(self) -> None:
        self.value = math.inf

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare."""
        self.value = min(self.value, float(trainer.callback_metrics["val/loss"]))


def settings_of(experiment: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The checked config of an experiment, as `run.py` would see it."""
    # As in a sweep, whose arms share a command line: some of it is read by some arms only.
    return checked([f"experiment={experiment}", "hydra.mode=MULTIRUN", *overrides])


def train(
    arm: str,
    regime: str,
    tokens_per_parameter: float,
    seed: int,
    overrides: Sequence[str] = (),
    width: int = 32,
) -> dict[str, Any]:
    """Train one arm to the end of its budget.

    Args:
        arm: A key of `ARMS`.
        regime: A key of `REGIMES`.
        tokens_per_parameter: Training tokens of the dense arm per non-embedding parameter.
        seed: Of the initial weights, the data order and the draws.
        overrides: Further settings, e.g. `module.optimizer.lr=0.02`.
        width: Hidden size, a key of `RATES`.

    Returns:
        A row of the results.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    size = (f"module.architecture.n_embd={width}", f"module.optimizer.lr={RATES[width]}")
    chosen = (*REGIMES[regime], *size, *ARMS[arm].overrides, f"seed={seed}", *overrides)
    settings = settings_of(ARMS[arm].experiment, chosen)
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule = cast(LanguageModelingDataModule, build("datamodule", settings["datamodule"]))
    module = cast(CausalLM, build("module", settings["module"]))
    node = (settings["callbacks"] or {}).get("est")
    best = BestLoss()
    callbacks = [best, *([] if node is None else [build("callbacks.est", node)])]
    module.configure_model()
    assert module.model is not None
    blocks = module.model.get_submodule("transformer.h")
    n_parameters: int = sum(p.numel() for p in blocks.parameters())
    data = settings["datamodule"]
    tokens_per_step = data["batch_size"] * data["context_length"]
    steps = round(tokens_per_parameter * n_parameters / tokens_per_step * ARMS[arm].steps)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=settings["trainer"]["gradient_clip_val"],
        callbacks=callbacks,
        limit_val_batches=1.0 if regime == "limited" else 0,
        val_check_interval=max(1, steps // VALIDATIONS),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = perf_counter()
    trainer.fit(module, datamodule)
    seconds = perf_counter() - start
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    loss = trainer.validate(module, datamodule, verbose=False)[0]["val/loss"]
    return {
        "arm": arm,
        "regime": regime,
        "tokens_per_parameter": tokens_per_parameter,
        "seed": seed,
        "width": width,
        "overrides": list(overrides),
        "loss": loss,
        "best_loss": min(best.value, loss),
        "train_loss": float(trainer_loss(module, datamodule)),
        "block_flops": block_flops(settings, steps),
        "steps": steps,
        "parameters": n_parameters,
        "seconds": round(seconds, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def block_flops(settings: dict[str, Any], steps: int) -> float:
    """FLOPs that an arm's schedule spends in the blocks."""
    module = build("module", settings["module"])
    config = module.hf_config
    shape = settings["datamodule"]["batch_size"], settings["datamodule"]["context_length"]
    full = planned_flops(config, SubnetworkSpec.full(dimensions_of(config)), *shape).blocks
    node = (settings["callbacks"] or {}).get("est")
    if node is None:
        return full * steps
    est = cast(EvolvingSubnetworkTraining, build("callbacks.est", node))
    return sum(
        planned_flops(config, est.draw(config, s, steps), *shape).blocks for s in range(steps)
    )


@torch.no_grad()
def trainer_loss(module: CausalLM, datamodule: LanguageModelingDataModule) -> torch.Tensor:
    """Loss of the full model on 64 training batches: how far it overfits."""
    module.eval()
    loader = datamodule.train_dataloader()
    losses = [module(batch) for batch, _ in zip(loader, range(64), strict=False)]
    return torch.stack(losses).mean()


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two trainings the same one."""
    names = ("arm", "regime", "tokens_per_parameter", "seed", "width")
    return (*(row[name] for name in names), *row["overrides"])


def read(path: Path | None) -> list[dict[str, Any]]:
    """The rows of a results file; none if there is no file yet."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_arms(seeds: Sequence[int], quick: bool) -> dict[str, list[float]]:
    """Validation losses by arm and seed, at the budget that a benchmark can afford."""
    arms = (
        "dense",
        "EST",
        "EST, paper",
        "dense, equal FLOPs",
        "depth only",
        "LayerDrop",
    )
    budget = 3 if quick else 100
    return {arm: [train(arm, "abundant", budget, seed)["loss"] for seed in seeds] for arm in arms}


Group = tuple[str, int, float, str]
"""Regime, width, tokens per parameter and arm."""


def grouped(rows: Sequence[dict[str, Any]]) -> dict[Group, list[dict[str, Any]]]:
    """The trainings that differ in their seed only."""
    groups: dict[Group, list[dict[str, Any]]] = {}
    for row in rows:
        name = " ".join([row["arm"], *row["overrides"]])
        group = row["regime"], row["width"], row["tokens_per_parameter"], name
        groups.setdefault(group, []).append(row)
    return dict(sorted(groups.items()))


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Mean validation loss of each arm, and its gap to dense training of the same seeds."""
    result = Table(title="Validation loss, nats per token; +- is the deviation over seeds")
    headings = "regime width tokens/parameter arm seeds block_FLOPs loss -_dense best_loss"
    for heading in headings.split():
        side = "left" if heading in ("regime", "arm") else "right"
        result.add_column(heading.replace("_", " "), justify=side)  # type: ignore[arg-type]
    groups = grouped(rows)
    for (regime, width, budget, name), members in groups.items():
        dense = {r["seed"]: r for r in groups.get((regime, width, budget, "dense"), ())}
        gaps = [r["loss"] - dense[r["seed"]]["loss"] for r in members if r["seed"] in dense]
        whole = [r["block_flops"] for r in dense.values()][:1]
        flops = [members[0]["block_flops"] / each for each in whole]
        result.add_row(
            regime,
            str(width),
            f"{budget:g}",
            name,
            str(len(members)),
            f"{mean(flops):.1%}" if flops else "",
            _spread([r["loss"] for r in members]),
            _spread(gaps, sign="+") if gaps else "",
            _spread([r["best_loss"] for r in members]) if regime == "limited" else "",
        )
    return result


def figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss over the block FLOPs, a panel for each regime, width and budget.

    Args:
        rows: The results.
        path: A PNG, SVG or PDF.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, int, float], dict[str, list[dict[str, Any]]]] = {}
    for (*panel, name), members in grouped(rows).items():
        panels.setdefault(cast(Any, tuple(panel)), {})[name] = members
    names = sorted({name for arms in panels.values() for name in arms})
    size = 4.5 * len(panels), 3.6 + 0.25 * len(names)
    drawn, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, ((regime, width, budget), arms) in zip(axes[0], panels.items(), strict=True):
        for name, members in arms.items():
            losses = [row["loss"] for row in members]
            axis.errorbar(
                members[0]["block_flops"],
                mean(losses),
                yerr=stdev(losses) if len(losses) > 1 else 0.0,
                fmt="oDsv^<>Ph*X"[names.index(name) % 11],
                color=f"C{names.index(name) % 10}",
                capsize=3,
                label=name,
            )
        axis.set_title(f"{regime} text, width {width}, {budget:g} tokens a parameter")
        axis.set_xlabel("FLOPs of the blocks")
        axis.set_ylabel("validation loss, nats per token")
        axis.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for axis in axes[0]:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    drawn.legend(handles.values(), handles.keys(), loc="outside lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=150)
    plt.close(drawn)


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = f" +- {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.4f}{deviation}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for and not there yet; show all results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.est_quality", description=__doc__)
    parser.add_argument("--regime", choices=REGIMES, default="abundant")
    parser.add_argument("--budgets", type=float, nargs="*", default=[], help="tokens per parameter")
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=["dense", "EST"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--results", type=Path, default=Path("outputs/est_quality.jsonl"))
    parser.add_argument("--width", type=int, choices=RATES, default=32)
    parser.add_argument("--figure", type=Path, help="draw all results")
    parser.add_argument("--override", action="append", default=[], help="a setting of the config")
    args = parser.parse_args(arguments)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for budget in args.budgets:
        for seed in args.seeds:
            for arm in args.arms:
                wanted = {
                    "arm": arm,
                    "regime": args.regime,
                    "tokens_per_parameter": budget,
                    "seed": seed,
                    "width": args.width,
                    "overrides": args.override,
                }
                if key_of(wanted) in map(key_of, read(args.results)):
                    continue
                row = train(arm, args.regime, budget, seed, args.override, args.width)
                with args.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    rows = read(args.results)
    Console(width=140).print(table(rows))
    if args.figure is not None:
        figure(rows, args.figure)


if __name__ == "__main__":
    main()
