"""Draws the README's picture: what runs and their baselines reached, over what they spent.

    python -m benchmarks.picture EST=outputs/est_gpt2 dense=outputs/est_gpt2_dense --out picture.svg

Each folder holds run folders that `run.py` left, one for each seed. Runs in the first one must have
a ledger: it says what a dense step costs, so that all are drawn on the same axis.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ledger import Ledger

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
SHARE, QUANTITY = "/counted_flops_saved_blocks", "FLOPs counted, blocks"


@dataclass(frozen=True)
class Run:
    """One finished run: its run.json and the rows of its metrics.csv."""

    record: dict[str, Any]
    rows: list[dict[str, str]]

    def over_flops(self, dense_step: float) -> list[tuple[float, float]]:
        """Return the FLOPs spent in the blocks until each validation, with its loss.

        Args:
            dense_step: FLOPs of the blocks in a dense step.
        """
        points, saved = [], 0.0
        for row in self.rows:
            saved = next(
                (float(row[key]) for key in row if key.endswith(SHARE) and row[key]), saved
            )
            if row.get("val/loss"):
                spent = (1 - saved) * int(row["step"]) * dense_step
                points.append((spent, float(row["val/loss"])))
        return points


def read(folder: Path) -> list[Run]:
    """Return the finished runs in a folder, by seed.

    Raises:
        ValueError: It has none.
    """
    runs = []
    for path in folder.glob("**/run.json"):
        record = json.loads(path.read_text())
        if record["status"] == "finished" and record["task"] == "train":
            with path.with_name("metrics.csv").open(newline="") as file:
                runs.append(Run(record, list(csv.DictReader(file))))
    if not runs:
        raise ValueError(f"{folder}: no run folder of a finished training below it")
    return sorted(runs, key=lambda run: run.record["seed"])


def ledger_of(run: Run) -> tuple[Ledger, float]:
    """Return a run's ledger and the FLOPs of the blocks in one of its baseline's steps.

    Raises:
        ValueError: No method of the run counted FLOPs.
    """
    for content in run.record["ledgers"].values():
        ledger = Ledger.from_dict(content)
        for row in ledger.savings:
            if row.quantity == QUANTITY and row.baseline is not None:
                return ledger, row.baseline / int(run.rows[-1]["step"])
    raise ValueError(
        f"run {run.record['id']} has no ledger with '{QUANTITY}': name EST's runs first"
    )


def table(arms: dict[str, list[Run]], ledger: Ledger) -> list[tuple[str, str]]:
    """Return the lines of the final table: each arm's last loss by seed, then what was saved."""
    lines = []
    for name, runs in arms.items():
        losses = [run.record["metrics"]["val/loss"] for run in runs]
        lines.append((name, "  ".join(f"{loss:.3f}" for loss in losses)))
    saved = [row for row in ledger.savings if row.quantity.startswith("FLOPs counted")]
    return lines + [
        (f"{ledger.method} saves, {row.quantity}", f"{100 * row.saved:.1f} %")
        for row in saved
        if row.saved is not None
    ]


def draw(arms: dict[str, list[Run]], path: Path) -> None:
    """Draw the validation losses over the FLOPs, and the final table beside them.

    Args:
        arms: Runs by the name of their arm; the first arm has a ledger.
        path: An SVG or PNG file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ledger, dense_step = ledger_of(next(iter(arms.values()))[0])
    # A fixed salt and no date: the same runs give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frugal", "font.size": 10}):
        figure, (plot, text) = plt.subplots(
            1, 2, figsize=(10, 3.6), width_ratios=[3, 2], layout="constrained"
        )
        for (name, runs), colour in zip(arms.items(), COLOURS, strict=False):
            points = [run.over_flops(dense_step / 1e12) for run in runs]
            for seed in points:
                plot.plot(*zip(*seed, strict=True), "o", color=colour, alpha=0.35, markersize=4)
            means = [
                (column[0][0], mean(y for _, y in column)) for column in zip(*points, strict=True)
            ]
            plot.plot(*zip(*means, strict=True), color=colour, linewidth=2, label=name)
        plot.set_xlabel("TFLOPs spent in the transformer blocks")
        plot.set_ylabel("validation loss, nats per token")
        plot.legend(frameon=False)
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.3)
        text.set_axis_off()
        seeds = " ".join(str(run.record["seed"]) for run in next(iter(arms.values())))
        lines = [("last validation loss", f"seeds {seeds}"), *table(arms, ledger)]
        for place, (name, value) in enumerate(lines):
            weight = "bold" if place else "normal"
            text.text(0, 0.92 - 0.13 * place, name, va="top")
            text.text(1, 0.92 - 0.13 * place, value, va="top", ha="right", weight=weight)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.add_argument("arms", nargs="+", metavar="NAME=FOLDER", help="the method's runs first")
    parser.add_argument("--out", type=Path, required=True, help="an .svg or .png file")
    chosen = parser.parse_args(arguments)
    pairs = [arm.partition("=") for arm in chosen.arms]
    if not all(name and folder for name, _, folder in pairs) or len(pairs) > len(COLOURS):
        parser.error(f"{' '.join(chosen.arms)}: at most {len(COLOURS)} times NAME=FOLDER")
    try:
        draw({name: read(Path(folder)) for name, _, folder in pairs}, chosen.out)
    except ValueError as error:
        parser.error(str(error))
    print(chosen.out)


if __name__ == "__main__":
    main()
