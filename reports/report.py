"""task=report: what a set of runs says, as Markdown, LaTeX and one HTML file, with its figures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console

from ledger import amount
from reports import figures
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
from reports.registry import MEASURED, Run, find
from reports.statistics import Arm, Difference, Spread, arms_of, baseline_of, paired, saved, spread
from reports.tables import duration
from terminal import literal

DOCUMENTS = ("report.md", "report.tex", "report.html")

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
    places = [runs] if isinstance(runs, str) else runs
    found, skipped = find(places)
    arms, left_out = arms_of(found)
    if not arms:
        raise ValueError(f"runs={runs}: none of {len(found)} runs has finished")
    base = baseline_of(arms, baseline)
    folder = (
        Path(settings["paths"]["output_dir"]) / "reports" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    )
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
    title = f"{len(arms)} arms, {sum(len(arm.runs) for arm in arms)} runs"
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
        "An arm is a set of runs whose settings differ by the seed alone. Values are the last "
        "ones of each run: mean \u00b1 standard deviation over seeds."
    ]
    if base is not None:
        lines.append(
            f"Differences are those to {base.label}, paired by seed, with Student's 95 % interval."
        )
    missing = [
        f"{name} of {run.id} (seed {run.seed}) is not a finite number and is left out."
        for arm in arms
        for run in arm.runs
        for name in run.not_finite
    ]
    return lines + missing


def reported(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics to report: of test, validation and training, then speed and time.

    What is the same number in all of several runs says nothing about the arms and is left out,
    unless it was measured in a test or validation. Of many files with a mean the mean is shown.
    """
    runs = [run for arm in arms for run in arm.runs]
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    splits = ("test", "val", *MEASURED, "train", "perf", "seconds")
    kept = [name for name in names if name.partition("/")[0] in splits]
    means = [name.removesuffix("/mean") for name in kept if name.endswith("/mean")]
    each = tuple(f"{mean}{joint}" for mean in means for joint in "/_")
    kept = [name for name in kept if name.endswith("/mean") or not name.startswith(each)]

    def varies(name: str) -> bool:
        values = [run.figures[name] for run in runs if name in run.figures]
        return name.startswith(("test/", "val/")) or len(runs) == 1 or len(set(values)) > 1

    return sorted(filter(varies, kept), key=lambda name: splits.index(name.partition("/")[0]))


def results(arms: Sequence[Arm], base: Arm | None) -> Table:
    """Return each metric of each arm, and its difference to the baseline."""
    headings = ["metric, arm", "seeds", "mean \u00b1 std"]
    headings += [f"minus {base.label} [95 % interval]", "pairs"] if base else []
    rows: list[list[Cell]] = []
    for metric in reported(arms):
        rows.append([metric])
        for arm in arms:
            values = arm.values(metric)
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
    digits = 0 if step <= 0 else max(0, min(12, -math.floor(math.log10(step))))
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "\u2212")


def savings(arms: Sequence[Arm]) -> Table | None:
    """Return the ledgers side by side: each quantity with what each arm spent; None without any."""
    rows: list[list[Cell]] = []
    quantities = dict.fromkeys(key for arm in arms for key in saved(arm))
    estimated = False
    for method, quantity in quantities:
        rows.append([f"{method}: {quantity}"])
        for arm in arms:
            lines = [
                row
                for ledger in arm.ledgers()
                if ledger.method == method
                for row in ledger.savings
                if row.quantity == quantity
            ]
            if not lines:
                continue
            known = [row.baseline for row in lines if row.baseline is not None]
            against = amount(fmean(known), lines[0].unit) if known else "not measured"
            if any(row.estimated for row in lines) and known:
                against, estimated = f"{against} (estimated)", True
            spent = amount(fmean(row.spent for row in lines), lines[0].unit)
            share = number(saved(arm)[method, quantity], percent=True) or "not measured"
            rows.append([arm.label, spent, against, share])
    notes = ["estimated: not measured in a run of the baseline."] if estimated else []
    notes += dict.fromkeys(note for arm in arms for each in arm.ledgers() for note in each.notes)
    headings = ["quantity, arm", "spent", "baseline", "saved"]
    return Table(headings, rows, " ".join(notes)) if rows else None


@cache
def papers() -> list[dict[str, str]]:
    """Return the claims of the papers, see papers.yaml."""
    text = Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8")
    content: list[dict[str, str]] = yaml.safe_load(text)
    return content


def claims(arms: Sequence[Arm]) -> Table | None:
    """Return the papers' figures beside those of the arms; None where no arm runs a method."""
    rows: list[list[Cell]] = []
    for arm in arms:
        methods = {ledger.method.partition(",")[0] for ledger in arm.ledgers()}
        of_method = [claim for claim in papers() if claim["method"] in methods]
        names = {arm.label, *(run.experiment or run.name for run in arm.runs)}
        fitting = [c for c in of_method if any(fnmatch(name, c["runs"]) for name in names)]
        for claim in fitting or of_method:
            ours = number(spread(_as_claimed(arm, claim)), percent=True) or "not measured"
            name = f"{claim['method']}, {claim['claim']} ({claim['paper']})"
            rows.append([name, claim["figure"], arm.label, ours])
    rows.sort(key=lambda row: str(row[0]))
    return Table(["claim", "paper", "arm", "here"], rows, left=(2,)) if rows else None


def _as_claimed(arm: Arm, claim: Mapping[str, str]) -> list[float]:
    """Return an arm's figures in a claim's own unit, as shares."""
    ledgers = arm.ledgers()
    pairs = [(r.quantity, r.spent, r.baseline) for ledger in ledgers for r in ledger.savings]
    pairs += [(q.metric, q.value, q.baseline) for ledger in ledgers for q in ledger.quality]
    known = [(ours, base) for name, ours, base in pairs if name == claim["quantity"] and base]
    share = {
        "saved": lambda ours, base: 1 - ours / base,
        "throughput": lambda ours, base: base / ours - 1,
        "gain": lambda ours, base: ours / base - 1,
    }[claim["as"]]
    return [share(ours, base) for ours, base in known if ours]


def _differences(arms: Sequence[Arm], base: Arm, folder: Path) -> Picture | None:
    """Draw the differences of at most four metrics of test and validation; None without any."""
    metrics = [m for m in reported(arms) if m.partition("/")[0] in ("test", "val", *MEASURED)]
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
        drawn = figures.differences_figure(gaps, [a.label for a in arms], base.label, columns)
        figures.save(drawn, folder / "figures" / f"differences{suffix}", formats)
    words = f"Differences to {base.label}, paired by seed: mean and Student's 95 % interval."
    return Picture("differences", words)


def _pictures(arms: Sequence[Arm], folder: Path) -> list[Picture]:
    found = []
    for metric in figures.metrics_of(arms):
        curves = figures.curves_of(arms, metric)
        if not curves:
            continue
        name = "".join(c if c.isalnum() else "-" for c in metric)
        label = figures.label_of(metric, [arm.runs[0] for arm in arms])
        for suffix, columns, formats in _WIDTHS:
            drawn = figures.arms_figure(curves, label, metric.startswith("val/"), columns)
            figures.save(drawn, folder / "figures" / f"{name}{suffix}", formats)
        words = f"{label.capitalize()}: mean over seeds, band \u00b1 one standard deviation."
        if metric.startswith("train/"):
            words += " Smoothed over a twentieth of the run."
        if len(arms) > figures.MOST_ARMS:
            words += f" The first {figures.MOST_ARMS} of {len(arms)} arms."
        found.append(Picture(name, words))
    return found


def runs_table(arms: Sequence[Arm], folder: Path) -> Table:
    """Return every run with its folder, as seen from the report's, and its command."""
    rows: list[list[Cell]] = []
    for arm in arms:
        rows.append([arm.label])
        rows += [
            [_link(run, folder), str(run.seed), duration(run.seconds), Code(run.own_command or "")]
            for run in arm.runs
        ]
    return Table(["run", "seed", "time", "command"], rows, left=(3,))


def _link(run: Run, folder: Path) -> Link:
    path = Path(os.path.relpath(run.folder.resolve(), folder.resolve()))
    return Link(run.id, path.as_posix())
