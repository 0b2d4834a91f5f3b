"""Lifelong hashing against no update, fine-tuning and retraining, in one run.

`python -m benchmarks.dlch [--quick] [--data PATH] --json PATH`. Each class split and seed trains
the original data once; the strategies go on from there, one after the other, in turns. mAP is over
the whole ranking of the queries, means over splits and seeds. Times are those of the increments,
taken in the same run: `time_saved` and `steps_saved` are against retraining, `overhead_share` is
what lifelong increments spend on data access and code updates, `outside_steps_share` all that is
not a training step. `search_ratio_to_faiss` is from `benchmarks.hamming_search`, on random codes as
long as the trained ones; `search` holds its figures. Trainings that the JSON file holds already,
with equal settings, are not repeated.
"""

import argparse
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table

from benchmarks.est_quality import settings_of
from benchmarks.hamming_search import measure
from benchmarks.stepper import versions
from hashing.plots import sessions_plot
from hashing.sessions import STRATEGIES
from lightning_modules.lifelong_hashing import DIRECTIONS, SUBSETS, LifelongHashing
from runner.life import build

Histories = dict[str, dict[str, list[dict[str, float]]]]
"""By strategy, for each split and seed, the metrics after each session."""


class SaveBefore(pl.Callback):
    """Writes a checkpoint one step before the original session ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Save if this is the step."""
        assert isinstance(pl_module, LifelongHashing)
        if trainer.global_step == pl_module.plan.sessions[0].end - 1:
            trainer.save_checkpoint(self.path)


def train(
    experiment: str, overrides: Sequence[str], strategy: str, datamodule: Any, checkpoint: Path
) -> list[dict[str, float]]:
    """Train by one strategy, from a checkpoint if it exists; return what each session reached."""
    settings = settings_of(experiment, [f"strategy={strategy}", *overrides])
    pl.seed_everything(settings["seed"], workers=True, verbose=False)
    module: LifelongHashing = build("module", settings["module"])
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=module.max_steps(datamodule),
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        callbacks=[SaveBefore(checkpoint)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    known = checkpoint if checkpoint.exists() else None
    trainer.fit(module, datamodule=datamodule, ckpt_path=known)
    return module.history


def compare(args: argparse.Namespace, console: Console) -> Histories:
    """Train every strategy for every class split and seed."""
    histories = known(args)
    with tempfile.TemporaryDirectory() as folder:
        for split in args.splits:
            for seed in args.seeds:
                key = f"split {split}, seed {seed}"
                if all(key in histories[strategy] for strategy in args.strategies):
                    continue
                overrides = [
                    f"bits={args.bits}",
                    f"seed={seed}",
                    f"datamodule.class_seed={split}",
                    f"datamodule.classes_per_session=[{args.increments.replace('+', ',')}]",
                    f"module.evaluate={args.evaluate}",
                    *source_of(args.data),
                    *args.override,
                ]
                settings = settings_of(args.experiment, overrides)
                datamodule = build("datamodule", settings["datamodule"])
                datamodule.setup("fit")
                checkpoint = Path(folder) / f"{split}-{seed}.ckpt"
                for strategy in args.strategies:
                    history = train(args.experiment, overrides, strategy, datamodule, checkpoint)
                    histories[strategy][key] = history
                    last = history[-1]
                    words = ", ".join(
                        f"{name} {last[f'map_{name}_i2t']:.3f}/{last[f'map_{name}_t2i']:.3f}"
                        for name in SUBSETS
                    )
                    seconds = sum(figures["seconds"] for figures in history[1:])
                    console.print(f"{key}, {strategy}: {words}, {seconds:.2f} s", soft_wrap=True)
                if args.json:
                    write(args, histories)
    return histories


def source_of(data: Path | None) -> list[str]:
    """Overrides for a feature file, or a folder of pictures and texts."""
    if data is None:
        return []
    source = "pictures_folder" if data.is_dir() else "features"
    return [f"datamodule={source}", f"datamodule.path={data}"]


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, apart from how often."""
    left_out = ("json", "splits", "seeds")
    return {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in left_out
    }


def known(args: argparse.Namespace) -> Histories:
    """Return the trainings that the JSON file holds already, if it is of the same settings."""
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if before["settings"] == asked(args):
            return before["histories"]
    return {strategy: {} for strategy in args.strategies}


def write(
    args: argparse.Namespace, histories: Histories, search: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Summarise what was trained so far, and write it; with what searching took, once known."""
    result = summarise({s: list(trainings.values()) for s, trainings in histories.items()})
    if search is not None:
        result |= {"search_ratio_to_faiss": search["search_ratio_to_faiss"], "search": search}
    result |= {"settings": asked(args), "versions": versions(), "histories": histories}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(histories, args.json.with_suffix(".png"))
    return result


def draw(histories: Histories, path: Path) -> Path:
    """Draw mAP after each session, mean of both directions and over the trainings, by strategy."""

    def after(strategy: str, group: str) -> list[float]:
        trainings = [t for t in histories[strategy].values() if t]
        names = [f"map_{group}_{direction}" for direction, *_ in DIRECTIONS]
        sessions = range(len(trainings[0])) if trainings else ()
        return [mean(t[s].get(n, math.nan) for t in trainings for n in names) for s in sessions]

    curves = {s: {group: after(s, group) for group in SUBSETS} for s, t in histories.items() if t}
    return sessions_plot(curves, path)


def summarise(histories: Mapping[str, list[list[dict[str, float]]]]) -> dict[str, Any]:
    """Return means over all trainings, and what the increments saved against retraining."""

    def average(strategy: str, name: str, session: int = -1) -> dict[str, float]:
        return {
            direction: mean(h[session][f"{name}_{direction}"] for h in histories[strategy])
            for direction, *_ in DIRECTIONS
        }

    def spread(strategy: str, name: str) -> dict[str, float]:
        values = {
            direction: [h[-1][f"{name}_{direction}"] for h in histories[strategy]]
            for direction, *_ in DIRECTIONS
        }
        return {d: stdev(v) if len(v) > 1 else 0.0 for d, v in values.items()}

    def total(strategy: str, *names: str) -> float:
        return sum(f[name] for h in histories[strategy] for f in h[1:] for name in names)

    result: dict[str, Any] = {
        "map": {s: {n: average(s, f"map_{n}") for n in SUBSETS} for s in histories},
        "map_deviation": {s: {n: spread(s, f"map_{n}") for n in SUBSETS} for s in histories},
        "map_original_before": average(next(iter(histories)), "map_all", 0),
        "map_original_after": {s: average(s, "map_original") for s in histories},
        "forgetting": {s: average(s, "forgetting") for s in histories},
        "drift": {s: average(s, "drift") for s in histories},
        "trainings": len(next(iter(histories.values()))),
    }
    if "lifelong" not in histories:
        return result
    ours = mean(result["map"]["lifelong"]["all"].values())
    others = {s: mean(result["map"][s]["all"].values()) for s in histories if s != "lifelong"}
    result["gain_in_points"] = {s: 100 * (ours - value) for s, value in others.items()}
    result["relative_gain"] = {s: ours / value - 1 for s, value in others.items()}
    seconds = total("lifelong", "seconds")
    result["overhead_share"] = total("lifelong", "data_seconds", "code_seconds") / seconds
    result["outside_steps_share"] = 1 - total("lifelong", "step_seconds") / seconds
    if "retrain" in histories:
        result["time_saved"] = 1 - seconds / total("retrain", "seconds")
        result["steps_saved"] = 1 - total("lifelong", "steps") / total("retrain", "steps")
    return result


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dlch", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split, one seed, few epochs")
    parser.add_argument("--data", type=Path, help="feature file or folder; else generated pictures")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    parser.add_argument("--experiment", help="dlch_wikipedia with --data, dlch without")
    parser.add_argument("--bits", type=int, default=32, help="length of a code")
    parser.add_argument(
        "--increments", help="classes of each session: 8+2, 6+2+2 (the experiment's)"
    )
    parser.add_argument("--splits", type=int, nargs="+", help="seeds of the class split (1 to 5)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the trainings (1 2 3; quick: 1)")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument(
        "--evaluate", default="query", choices=("query", "validation"), help="who asks"
    )
    parser.add_argument("--override", action="append", default=[], help="a setting of the config")
    args = parser.parse_args(arguments)
    args.experiment = args.experiment or ("dlch_wikipedia" if args.data else "dlch")
    args.splits = args.splits or ([1] if args.quick else [1, 2, 3, 4, 5])
    args.seeds = args.seeds or ([1] if args.quick else [1, 2, 3])
    if args.quick:
        args.override = [
            "module.lengths.epochs=20",
            "module.lengths.rounds=4",
            "module.text_width=256",
            *args.override,
        ]
    if args.increments is None:
        settings = settings_of(args.experiment, source_of(args.data))
        counts = settings["datamodule"]["classes_per_session"]
        args.increments = "+".join(map(str, counts))
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables and write its JSON."""
    args = parse(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    console = Console()
    histories = compare(args, console)
    search = measure(100_000 if args.quick else 1_000_000, args.bits, rounds=5)
    result = write(args, histories, search)
    console.print(table(result))
    return result


def table(result: dict[str, Any]) -> Table:
    """Return the strategies side by side."""
    before = result["map_original_before"]
    settings = result["settings"]
    table = Table(
        title=f"mAP i2t / t2i, {settings['bits']} bits, {settings['increments']} classes, mean of "
        f"{result['trainings']} trainings; original classes before: "
        f"{before['i2t']:.3f} / {before['t2i']:.3f}",
        caption_justify="left",
    )
    table.add_column()
    for name in (*SUBSETS, "forgetting", "drift"):
        table.add_column(name, justify="right")
    for strategy, maps in result["map"].items():
        rows = [*maps.values(), result["forgetting"][strategy], result["drift"][strategy]]
        table.add_row(strategy, *(f"{row['i2t']:.3f} / {row['t2i']:.3f}" for row in rows))
    shares = ("time_saved", "steps_saved", "overhead_share", "outside_steps_share")
    lines = [f"{name}: {result[name]:.1%}" for name in shares if name in result]
    ratio, items = result["search_ratio_to_faiss"], result["search"]["items"]
    lines.append(f"search_ratio_to_faiss: {ratio:.2f} ({items:,} codes)")
    table.caption = "\n".join(lines)
    return table


if __name__ == "__main__":
    main()
