"""Draws the README's picture: what runs and their baselines reached, over what they spent.

    python -m benchmarks.picture EST=outputs/est_gpt2 dense=outputs/est_gpt2_dense --out picture.svg

Each folder, or pattern, holds the runs of one arm: they differ by their seeds alone, and of a seed
the newest counts. Runs in the first one must have a ledger: it says what a dense step costs, so
that all are drawn on the same axis.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ledger import Ledger
from reports.figures import COLOURS as PALETTE
from reports.figures import save, styled
from reports.registry import Run, find
from reports.statistics import arms_of

# The method's arm first, in the warm one of the first two.
COLOURS = (PALETTE[1], PALETTE[0], *PALETTE[2:5])
QUANTITY = "FLOPs counted, blocks"


def read(place: Path) -> list[Run]:
    """Return the finished trainings of an arm, by seed.

    Raises:
        ValueError: There is none, or there are several arms.
    """
    arms, _ = arms_of([run for run in find([place])[0] if run.task == "train"])
    if not arms:
        raise ValueError(f"{place}: no run folder of a finished training below it")
    if len(arms) > 1:
        labels = ", ".join(arm.label for arm in arms)
        raise ValueError(
            f"{place}: its runs differ in more than their seeds: {labels}. Name those of one arm "
            "by a pattern, in quotes"
        )
    return [*arms[0].runs]


def over_flops(run: Run, dense_step: float) -> dict[int, tuple[float, float]]:
    """Return by step the FLOPs spent in the blocks until a validation, and its loss.

    In `dense_step` are the FLOPs of the blocks in a dense step.
    """
    saved = {0: 0.0}
    for method in run.ledgers:
        saved |= run.series(f"{method}/counted_flops_saved_blocks")
    return {
        step: (
            (1 - saved[max(known for known in saved if known <= step)]) * step * dense_step,
            loss,
        )
        for step, loss in run.series("val/loss").items()
    }


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
    losses = {
        name: {run.seed: run.figures.get("val/loss") for run in runs} for name, runs in arms.items()
    }
    seeds = sorted({seed for each in losses.values() for seed in each}, key=lambda seed: seed or 0)
    lines = [("last validation loss", f"seeds {' '.join(map(str, seeds))}")]
    for name, each in losses.items():
        found = [each.get(seed) for seed in seeds]
        lines.append((name, "  ".join("-" if loss is None else f"{loss:.3f}" for loss in found)))
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
            every = [point for seed in points for point in seed.values()]
            plot.plot(*np.array(every).T, "o", color=colour, alpha=0.35)
            shared = sorted(set.intersection(*map(set, points)))
            means = np.mean([[seed[step] for step in shared] for seed in points], axis=0)
            plot.plot(*means.T, color=colour, linewidth=2, label=name)
        plot.set_xlabel("TFLOPs spent in the transformer blocks")
        plot.set_ylabel("validation loss, nats per token")
        plot.legend()
        text.set_axis_off()
        for place, (name, value) in enumerate(table(arms, ledger)):
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
    names = {name for name, _, folder in pairs if name and folder}
    if len(names) < len(pairs) or len(pairs) > len(COLOURS):
        words = f"at most {len(COLOURS)} times NAME=FOLDER, each with a name of its own"
        parser.error(f"{' '.join(chosen.arms)}: {words}")
    try:
        draw({name: read(Path(folder)) for name, _, folder in pairs}, chosen.out)
    except ValueError as error:
        parser.error(str(error))
    print(chosen.out)


if __name__ == "__main__":
    main()
