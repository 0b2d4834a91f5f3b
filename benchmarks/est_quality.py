"""Validation loss of EST and its controls against tokens per parameter: what does saving cost?

`python -m benchmarks.est_quality --budgets 10 30 100 300 --seeds 1 2 3 --results PATH.jsonl`. Every
arm is an experiment of the repository at a size where two cores reach hundreds of tokens per
parameter; arms of one seed see the same data in the same order. Each training appends one line to
the results, and one that is there already is not repeated.
"""

import argparse
import json
import logging
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


ARMS = {
    "dense": Arm("est_gpt2_dense"),
    "EST": Arm("est_gpt2"),
    "dense, equal FLOPs": Arm("est_gpt2_dense", steps=11 / 15),
    "depth only": Arm("est_gpt2_depth_only"),
    "LayerDrop": Arm("est_gpt2_layerdrop"),
    "EST, layers rescaled": Arm("est_gpt2", overrides=("callbacks.est.layer_rescale=inverse",)),
    "EST, units not rescaled": Arm("est_gpt2", overrides=("callbacks.est.rescale_units=false",)),
    "EST, ends exempt": Arm("est_gpt2", overrides=("callbacks.est.exempt_layers=[0,-1]",)),
    "EST, shared indices": Arm("est_gpt2", overrides=("callbacks.est.shared_indices=true",)),
    "EST, rows frozen": Arm("est_gpt2", overrides=("callbacks.est.freeze_unsampled=true",)),
    # Other boundaries for the same FLOPs: no stage without all layers.
    "EST, all layers": Arm(
        "est_gpt2",
        overrides=(
            "callbacks.est.stages=[{until: 0.5333333333333333, sample: [heads, neurons]},"
            "{until: 1.0, sample: []}]",
        ),
    ),
}

_TINY = (
    "module.architecture.n_embd=32",
    "datamodule.context_length=64",
    "datamodule.batch_size=64",
    "datamodule.vocab_size=512",
    "module.optimizer.lr=0.006",
    "module.schedule.warmup=0.1",
)
REGIMES = {
    # 8.2 million tokens of text: seen twice at 300 tokens per parameter.
    "abundant": _TINY,
    # 60,000 tokens of text, seen 85 times at 100 tokens per parameter: dense training overfits.
    "limited": (*_TINY, "datamodule.max_tokens=60000"),
}


def settings_of(experiment: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The checked config of an experiment, as `run.py` would see it."""
    return checked([f"experiment={experiment}", *overrides])


def train(
    arm: str, regime: str, tokens_per_parameter: float, seed: int, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Train one arm to the end of its budget.

    Args:
        arm: A key of `ARMS`.
        regime: A key of `REGIMES`.
        tokens_per_parameter: Training tokens of the dense arm per non-embedding parameter.
        seed: Of the initial weights, the data order and the draws.
        overrides: Further settings, e.g. `module.optimizer.lr=0.02`.

    Returns:
        A row of the results.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    chosen = (*REGIMES[regime], *ARMS[arm].overrides, f"seed={seed}", *overrides)
    settings = settings_of(ARMS[arm].experiment, chosen)
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule = cast(LanguageModelingDataModule, build("datamodule", settings["datamodule"]))
    module = cast(CausalLM, build("module", settings["module"]))
    node = (settings["callbacks"] or {}).get("est")
    callbacks = [] if node is None else [build("callbacks.est", node)]
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
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    loss = trainer.validate(module, datamodule, verbose=False)[0]["val/loss"]
    return {
        "arm": arm,
        "regime": regime,
        "tokens_per_parameter": tokens_per_parameter,
        "seed": seed,
        "overrides": list(overrides),
        "loss": loss,
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
    names = ("arm", "regime", "tokens_per_parameter", "seed")
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
        "EST, units not rescaled",
        "dense, equal FLOPs",
        "depth only",
        "LayerDrop",
    )
    budget = 3 if quick else 100
    return {arm: [train(arm, "abundant", budget, seed)["loss"] for seed in seeds] for arm in arms}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Mean validation loss of each arm, and its gap to dense training of the same seeds."""
    result = Table(title="Validation loss, nats per token; +- is the deviation over seeds")
    for heading in ("regime", "tokens/parameter", "arm", "seeds", "block FLOPs", "loss", "- dense"):
        result.add_column(heading, justify="left" if heading in ("regime", "arm") else "right")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        name = " ".join([row["arm"], *row["overrides"]])
        groups.setdefault((row["regime"], row["tokens_per_parameter"], name), []).append(row)
    for (regime, budget, name), members in sorted(groups.items()):
        dense = {r["seed"]: r for r in groups.get((regime, budget, "dense"), ())}
        gaps = [r["loss"] - dense[r["seed"]]["loss"] for r in members if r["seed"] in dense]
        whole = [r["block_flops"] for r in dense.values()][:1]
        flops = [members[0]["block_flops"] / each for each in whole]
        result.add_row(
            regime,
            f"{budget:g}",
            name,
            str(len(members)),
            f"{mean(flops):.1%}" if flops else "",
            _spread([r["loss"] for r in members]),
            _spread(gaps, sign="+") if gaps else "",
        )
    return result


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
                    "overrides": args.override,
                }
                if key_of(wanted) in map(key_of, read(args.results)):
                    continue
                row = train(arm, args.regime, budget, seed, args.override)
                with args.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    Console(width=120).print(table(read(args.results)))


if __name__ == "__main__":
    main()
