"""Draws the README's picture: what runs and their baselines reached, over what they spent.

    python -m benchmarks.picture EST=outputs/est_gpt2 dense=outputs/est_gpt2_dense --out picture.svg

Each folder holds run folders that `run.py` left, one for each seed. Runs in the first one must have
a ledger: it says what a dense step costs, so that all are drawn on the same axis.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from ledger import Ledger
from reports.figures import COLOURS as PALETTE
from reports.figures import save, styled
from reports.registry import Run, find

# The method's arm first, in the warm one of the first two.
COLOURS = (PALETTE[1], PALETTE[0], *PALETTE[2:5])
QUANTITY = "FLOPs counted, blocks"


def read(folder: Path) -> list[Run]:
    """Return the finished trainings in a folder, by seed.

    Raises:
        ValueError: It has none.
    """
    runs = [run for run in find([folder])[0] if (run.task, run.status) == ("train", "finished")]
    if not runs:
        raise ValueError(f"{folder}: no run folder of a finished training below it")
    return sorted(runs, key=lambda run: run.seed or 0)


def over_flops(run: Run, dense_step: float) -> list[tuple[float, float]]:
    """Return the FLOPs spent in the blocks until each validation, with its loss.

    In `dense_step` are the FLOPs of the blocks in a dense step.
    """
    saved = {0: 0.0}
    for method in run.ledgers:
        saved |= run.series(f"{method}/counted_flops_saved_blocks")
    return [
        ((1 - saved[max(known for known in saved if known <= step)]) * step * dense_step, loss)
        for step, loss in run.series("val/loss").items()
    ]


def ledger_of(run: Run) -> tuple[Ledger, float]:
    """Return a run's ledger and the FLOPs of the blocks in one of its baseline's steps.

    Raises:
        ValueError: No method of the run counted FLOPs.
    """
    for ledger in run.ledgers.values():
        for row in ledger.savings:
            if row.quantity == QUANTITY and row.baseline is not None:
                return ledger, row.baseline / run.steps()
    raise ValueError(f"run {run.id} has no ledger with '{QUANTITY}': name EST's runs first")


def table(arms: dict[str, list[Run]], ledger: Ledger) -> list[tuple[str, str]]:
    """Return the lines of the final table: each arm's last loss by seed, then what was saved."""
    lines = []
    for name, runs in arms.items():
        losses = [run.figures["val/loss"] for run in runs]
        lines.append((name, "  ".join(f"{loss:.3f}" for loss in losses)))
    saved = [row for row in ledger.savings if row.quantity.startswith("FLOPs counted")]
    return lines + [
        (f"{ledger.method} saves, {row.quantity}", f"{100 * row.saved:.1f} %")
        for row in saved
        if row.saved is not None
    ]


def draw(arms: dict[str, list[Run]], path: Path) -> None:
    """Draw the validation losses over the FLOPs, and the final table beside them.

    The first arm has a ledger; the path is that of an SVG or PNG file.
    """
    ledger, dense_step = ledger_of(next(iter(arms.values()))[0])
    with styled():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        plot, text = figure.subplots(1, 2, width_ratios=[3, 2])
        for (name, runs), colour in zip(arms.items(), COLOURS, strict=False):
            points = [over_flops(run, dense_step / 1e12) for run in runs]
            for seed in points:
                plot.plot(*zip(*seed, strict=True), "o", color=colour, alpha=0.35)
            means = [
                (column[0][0], mean(y for _, y in column)) for column in zip(*points, strict=True)
            ]
            plot.plot(*zip(*means, strict=True), color=colour, linewidth=2, label=name)
        plot.set_xlabel("TFLOPs spent in the transformer blocks")
        plot.set_ylabel("validation loss, nats per token")
        plot.legend()
        text.set_axis_off()
        seeds = " ".join(str(run.seed) for run in next(iter(arms.values())))
        lines = [("last validation loss", f"seeds {seeds}"), *table(arms, ledger)]
        for place, (name, value) in enumerate(lines):
            weight = "bold" if place else "normal"
            text.text(0, 0.92 - 0.13 * place, name, va="top")
            text.text(1, 0.92 - 0.13 * place, value, va="top", ha="right", weight=weight)
    save(figure, path.with_suffix(""), (path.suffix[1:],))


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
