"""task=report: what a set of runs says, as Markdown, LaTeX and one HTML file, with its figures."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console

from ledger import Saving, amount
from reports import figures
from reports.configs import differences
from reports.document import (
    Block,
    Cell,
    Code,
    Heading,
    Lines,
    Link,
    Picture,
    Table,
    latex,
    markdown,
    webpage,
)
from reports.registry import MEASURED, SPLITS, Run, find
from reports.statistics import Arm, Difference, Spread, arms_of, baseline_of, paired, saved, spread
from reports.tables import duration
from terminal import literal

DOCUMENTS = ("report.md", "report.tex", "report.html")

# What the papers claim stands beside the cells of these tables.
PAPERS = Path(__file__).resolve().parent.parent / "benchmarks" / "tables"

# Of each figure: a suffix of its name, panels side by side, formats.
_WIDTHS = (("", 2, figures.FORMATS), ("-narrow", 1, ("svg",)))


def report(
    settings: Mapping[str, Any], *, runs: str | list[str], baseline: str | None = None
) -> dict[str, float]:
    """Compare runs: means over seeds, paired differences, what was saved, curves.

    Writes report.md, report.tex, report.html and their figures into a new folder below
    `paths.output_dir`/reports.

    Args:
        settings: The resolved config.
        runs: Run folders, folders of runs, patterns such as outputs/est_gpt2*/*, or a list of
            these.
        baseline: The arm that the others are compared with, by its name in the report or the id of
            one of its runs. null: the arm without a method.

    Returns:
        How many runs and arms there were.

    Raises:
        ValueError: There is no such folder, no finished run, or no such arm.
    """
    found, skipped = find([runs] if isinstance(runs, str) else runs)
    arms, left_out = arms_of(found)
    if not arms:
        said = "".join(f"\n  {line}" for line in (*left_out, *skipped))
        raise ValueError(f"runs={runs}: no finished run there{said}")
    base = baseline_of(arms, baseline)
    time = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = Path(settings["paths"]["output_dir"], "reports", time)
    write(folder, arms, base, [*left_out, *skipped])
    console = Console()
    for line in (*left_out, *skipped):
        console.print(literal(f"left out: {line}"), soft_wrap=True)
    for name in DOCUMENTS:
        console.print(literal(folder / name), soft_wrap=True)
    return {"runs": float(sum(len(arm.runs) for arm in arms)), "arms": float(len(arms))}


def write(folder: Path, arms: Sequence[Arm], base: Arm | None, left_out: Sequence[str]) -> None:
    """Write a report of some arms, compared with `base` if there is one, into a folder.

    `left_out` has a line for each run or folder that is not in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"arm": len(arms), "run": sum(len(arm.runs) for arm in arms)}
    title = ", ".join(f"{n} {what}{'s' if n != 1 else ''}" for what, n in counts.items())
    blocks: list[Block] = [Lines(_method_of_this(arms, base)), Heading("Results")]
    blocks += [results(arms, base)]
    if table := savings(arms):
        blocks += [Heading("What was saved"), table]
    if table := claims(arms):
        blocks += [Heading("The papers' figures beside ours"), table]
    if base and (picture := _differences(arms, base, folder)):
        blocks += [Heading("Differences"), picture]
    if pictures := _pictures(arms, folder):
        blocks += [Heading("Curves"), *pictures]
    blocks += [Heading("Runs"), runs_table(arms, folder)]
    if left_out:
        blocks += [Heading("Left out"), Lines(left_out)]
    texts = (markdown(title, blocks), latex(title, blocks), webpage(title, blocks, folder))
    for name, text in zip(DOCUMENTS, texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")


def _method_of_this(arms: Sequence[Arm], base: Arm | None) -> list[str]:
    lines = [
        "An arm is a set of runs whose settings differ by seeds alone. Values are the last "
        "ones of each run: mean \u00b1 standard deviation over seeds."
    ]
    if base is not None:
        lines.append(
            f"Differences are those to {base.label}, paired by seed, with Student's 95 % interval."
        )
        lines += [line for arm in arms if (line := _other_data(arm, base))]
    lines += _what_runs_differ_in([run for arm in arms for run in arm.runs])
    missing = [
        f"{name} of {run.id} (seed {run.seed}) is not a finite number and is left out."
        for arm in arms
        for run in arm.runs
        for name in run.not_finite
    ]
    return lines + missing


def _other_data(arm: Arm, base: Arm) -> str | None:
    """Warn of a difference that is not the method's alone."""
    configs = [arm.runs[0].config, base.runs[0].config]
    changes = differences(configs) if all(configs) else {}
    found = [
        f"{key.partition('.')[2]} {ours} and {theirs}"
        for key, (ours, theirs) in changes.items()
        if key.startswith("datamodule.")
    ]
    if not found:
        return None
    more = f", and {len(found) - 4} more" if len(found) > 4 else ""
    return f"{arm.label} and {base.label} differ in their data: {', '.join(found[:4])}{more}."


def _what_runs_differ_in(runs: Sequence[Run]) -> list[str]:
    """Name what is no setting and still decides a loss or a time, where it is not the same."""
    facts: dict[str, list[object]] = {
        "commit": [(run.git.commit or "")[:8] for run in runs],
        "version of torch": [run.versions.get("torch") for run in runs],
        "processor": [run.hardware.cpu for run in runs],
        "threads": [run.hardware.threads for run in runs],
        "GPUs": [", ".join(run.hardware.gpus) for run in runs],
    }
    for task in MEASURED:
        facts[f"keys of task={task}"] = [r.asked[task] for r in runs if task in r.asked]
    counts = {name: Counter(values) for name, values in facts.items()}
    return [
        f"Not all runs have the same {name}: "
        + ", ".join(f"{v or 'none'} ({n} of {each.total()})" for v, n in each.items())
        for name, each in counts.items()
        if len(each) > 1
    ]


def reported(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics to report: of the whole model and of training, then speed and time.

    What is the same number in all of several runs says nothing about the arms and is left out,
    unless it is of the whole model. Of many files with a mean the mean is shown.
    """
    runs = [run for arm in arms for run in arm.runs]
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    splits = (*SPLITS, *MEASURED, "train", "perf", "seconds")
    kept = [name for name in names if name.partition("/")[0] in splits]
    means = [name.removesuffix("/mean") for name in kept if name.endswith("/mean")]
    each = tuple(f"{mean}{joint}" for mean in means for joint in "/_")
    kept = [name for name in kept if name.endswith("/mean") or not name.startswith(each)]

    def varies(name: str) -> bool:
        values = [run.figures[name] for run in runs if name in run.figures]
        return name.partition("/")[0] in SPLITS or len(runs) == 1 or len(set(values)) > 1

    return sorted(filter(varies, kept), key=lambda name: splits.index(name.partition("/")[0]))


def results(arms: Sequence[Arm], base: Arm | None) -> Table:
    """Return each metric of each arm, and its difference to the baseline."""
    headings = ["metric, arm", "seeds", "mean \u00b1 std"]
    headings += [f"minus {base.label} [95 % interval]", "pairs"] if base else []
    rows: list[list[Cell]] = []
    for metric in reported(arms):
        rows.append([metric])
        for arm in arms:
            if not (values := arm.values(metric)):
                continue
            row: list[Cell] = [arm.label, str(len(values)), number(spread([*values.values()]))]
            if base is not None:
                gap = None if arm is base else paired(values, base.values(metric))
                row += _difference(gap)
            rows.append(row)
    return Table(headings, rows)


def _difference(gap: Difference | None) -> list[Cell]:
    if gap is None:
        return ["", ""]
    scale = max(abs(gap.mean), *(abs(end) for end in gap.interval or (0.0,)))
    shown = [_rounded(value, scale / 100, sign=True) for value in (gap.mean, *(gap.interval or ()))]
    return [f"{shown[0]} [{', '.join(shown[1:])}]" if gap.interval else shown[0], str(gap.n)]


def number(value: Spread | None, percent: bool = False) -> str:
    """Write mean \u00b1 standard deviation, to two digits of the latter; four digits without it."""
    if value is None:
        return ""
    factor, unit = (100, " %") if percent else (1, "")
    mean, std = value.mean * factor, (value.std or 0) * factor
    step = std / 10 if std else abs(mean) / 1000
    if value.std is None:
        return f"{_rounded(mean, step)}{unit}"
    return f"{_rounded(mean, step)} \u00b1 {_rounded(std, step)}{unit}"


def _rounded(value: float, step: float, sign: bool = False) -> str:
    """Write a number to the digit that a step is about the size of."""
    digits = 0 if step <= 0 else max(0, -math.floor(math.log10(step)))
    form = f",.{digits}f"
    if digits > 7:  # more than these are hard to count
        form = f".{max(0, math.floor(math.log10(abs(value))) + digits)}e" if value else ".0f"
    return f"{value:{'+' if sign else ''}{form}}".replace("-", "\u2212")


def savings(arms: Sequence[Arm]) -> Table | None:
    """Return the ledgers side by side: each quantity with what each arm spent; None without any."""
    rows: list[list[Cell]] = []
    of_arms = {arm.label: arm.savings() for arm in arms}
    estimated = False
    for key in dict.fromkeys(key for each in of_arms.values() for key in each):
        rows.append([": ".join(key)])
        for label, each in of_arms.items():
            if not (lines := each.get(key)):
                continue
            unit, known = lines[0].unit, [r.baseline for r in lines if r.baseline is not None]
            against = amount(fmean(known), unit) if known else "not measured"
            if any(row.estimated for row in lines) and known:
                against, estimated = f"{against} (estimated)", True
            spent = amount(fmean(row.spent for row in lines), unit)
            rows.append([label, spent, against, _share(lines)])
    notes = ["estimated: not measured in a run of the baseline."] if estimated else []
    notes += dict.fromkeys(note for arm in arms for each in arm.ledgers() for note in each.notes)
    headings = ["quantity, arm", "spent", "baseline", "saved"]
    return Table(headings, rows, " ".join(notes)) if rows else None


def _share(rows: Sequence[Saving]) -> str:
    return number(saved(rows), percent=True) or "not measured"


@cache
def papers() -> list[dict[str, Any]]:
    """Return the papers' claims about what is saved: those that one run's ledger can answer.

    Each has `words`, a `figure`, the `experiment` with which the names of those begin that it is
    about, and the `row` of their ledgers that is the same quantity: its method and name.
    """
    found = []
    for path in sorted(PAPERS.glob("*.yaml")):
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        for claim in table["paper"]:
            if (row := table["cells"][claim["cell"]].get("ledger")) is not None:
                experiment = table["arms"][claim["arm"]]["experiment"]
                found.append({**claim, "experiment": experiment, "row": (row[0].upper(), row[1])})
    return found


def claims(arms: Sequence[Arm]) -> Table | None:
    """Return the papers' figures beside those of the arms; None where no arm runs a method."""
    rows: list[list[Cell]] = []
    for arm in arms:
        of_arm, names = arm.savings(), {run.experiment or run.name for run in arm.runs}
        of_method = [claim for claim in papers() if claim["row"] in of_arm]
        fitting = [c for c in of_method if any(n.startswith(c["experiment"]) for n in names)]
        for claim in fitting or of_method:
            words = f"{claim['row'][0]}: {claim['words']}"
            paper = f"{100 * claim['figure']:.3g} %"
            rows.append([words, paper, arm.label, _share(of_arm[claim["row"]])])
    rows.sort(key=lambda row: str(row[0]))
    return Table(["claim", "paper", "arm", "here"], rows, left=(2,)) if rows else None


def _differences(arms: Sequence[Arm], base: Arm, folder: Path) -> Picture | None:
    """Draw the differences of at most four metrics of the whole model; None without any."""
    metrics = [m for m in reported(arms) if m.partition("/")[0] in (*SPLITS, *MEASURED)]
    runs = [arm.runs[0] for arm in arms]
    gaps = {
        figures.label_of(metric, runs): {
            arm.label: gap
            for arm in arms
            if arm is not base and (gap := paired(arm.values(metric), base.values(metric)))
        }
        for metric in metrics[:4]
    }
    gaps = {metric: each for metric, each in gaps.items() if each}
    if not gaps:
        return None
    for suffix, columns, formats in _WIDTHS:
        figure = figures.differences_figure(gaps, [a.label for a in arms], base.label, columns)
        figures.save(figure, folder / "figures" / f"differences{suffix}", formats)
    words = f"Differences to {base.label}, paired by seed: mean and Student's 95 % interval."
    return Picture("differences", words)


def _pictures(arms: Sequence[Arm], folder: Path) -> list[Picture]:
    found, shown = [], arms[: figures.MOST_ARMS]
    for metric in figures.metrics_of(arms):
        curves = {a.label: c for a in shown if (c := figures.curve(a.runs, metric)) is not None}
        if not curves:
            continue
        name = "".join(c if c.isalnum() else "-" for c in metric)
        label = figures.label_of(metric, [arm.runs[0] for arm in arms])
        for suffix, columns, formats in _WIDTHS:
            figure = figures.arms_figure(curves, label, metric.startswith("val/"), columns)
            figures.save(figure, folder / "figures" / f"{name}{suffix}", formats)
        words = f"{label.capitalize()}: mean over seeds, band \u00b1 one standard deviation."
        if metric.startswith("train/"):
            words += " Smoothed over a twentieth of the run."
        if len(shown) < len(arms):
            words += f" The first {len(shown)} of {len(arms)} arms."
        drawn = [(arm, curves[arm.label].runs if arm.label in curves else 0) for arm in shown]
        if fewer := [f"{a.label} {n} of {len(a.runs)}" for a, n in drawn if n < len(a.runs)]:
            words += f" Runs in it: {', '.join(fewer)}; all other arms are whole."
        found.append(Picture(name, words))
    return found


def runs_table(arms: Sequence[Arm], folder: Path) -> Table:
    """Return every run with its folder, as seen from the report's, and its command."""
    rows: list[list[Cell]] = []
    for arm in arms:
        rows.append([arm.label])
        for run in arm.runs:
            command = Code(run.own_command) if run.own_command else ""
            rows.append([_link(run, folder), str(run.seed), duration(run.seconds), command])
    return Table(["run", "seed", "time", "command"], rows, left=(3,))


def _link(run: Run, folder: Path) -> Link:
    path = Path(os.path.relpath(run.folder.resolve(), folder.resolve()))
    return Link(run.id, path.as_posix())
