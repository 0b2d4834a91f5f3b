"""The papers' tables, by runs of `run.py` that are read back from their run.json.

`python -m benchmarks.reproduce est|sat|dlch|delta|all --scale demo|cpu|gpu|paper`. A table is a
file in `benchmarks/tables`: its arms, which are experiments and overrides; its cells, each a figure
of an arm's run; what the paper says; and at each scale the seeds and what makes the arms so large.
What is missing is run. A run that has finished is known by its run.json, whose config must be the
one asked for, and is not repeated; one that was stopped goes on. The result is a Markdown table and
a JSON file in docs/results, and the claims' section of docs/RESULTS.md. A cell that was not run
stays empty.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_type_hints

import yaml

from datamodules.settings import validate
from ledger import slug
from reports import registry
from reports.configs import at, config_hash
from runner.errors import ConfigError
from runner.validate import checked

ROOT = Path(__file__).resolve().parents[1]
TABLES = Path(__file__).with_name("tables")
SCALES = ("demo", "cpu", "gpu", "paper")
RULE = (
    "Same: as far from the paper's figure as the row allows, or better. Same direction: on the "
    "paper's side of no effect. Different: neither. Not run at this scale: a run is missing."
)
KEPT = ("id", "config_hash", "git", "versions", "ended")
"""What a result keeps of each run's record."""

MARKS = ("<!-- written by make reproduce -->", "<!-- end of what it writes -->")


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        experiment: The experiment that it is.
        steps: Its share of the scale's steps.
        overrides: What it has beside the experiment and the scale.
        against: The arm with which its cells are compared, if not the one that these name.
    """

    experiment: str
    steps: float = 1.0
    overrides: tuple[str, ...] = ()
    against: str | None = None


@dataclass(frozen=True)
class Cell:
    """One figure of an arm, mean over the seeds.

    Args:
        value: Where it stands in run.json, keys joined by dots; `a | b`: the first that is there;
            several: their mean. `lowest.NAME` is the lowest value of a column of metrics.csv.
        ledger: In place of `value`: the ledger and the quantity whose saved share it is.
        against: The arm with which it is compared, run by run of the same seed.
        how: `minus` the other arm's, `saved`: 1 - this / that, or `gain`: this / that - 1.
        percent: Show it as one.
    """

    value: str | tuple[str, ...] = ()
    ledger: tuple[str, str] | None = None
    against: str | None = None
    how: Literal["minus", "saved", "gain"] = "minus"
    percent: bool = False


@dataclass(frozen=True)
class Claim:
    """What the paper says.

    Args:
        words: The claim.
        arm: Whose cell it is compared with.
        cell: Which one.
        figure: The paper's figure, in the cell's unit.
        within: How far from it is still the same.
        better: Which side of the figure is better.
        neutral: The cell's value where there is no effect.
    """

    words: str
    arm: str
    cell: str
    figure: float
    within: float
    better: Literal["lower", "higher"]
    neutral: float = 0.0


@dataclass(frozen=True)
class Scale:
    """How large the arms are.

    Args:
        seeds: Each arm is run with each of them.
        arms: Those that are run; all of the table's if not given.
        overrides: Of every arm.
        arm_overrides: {an arm: what it alone has}.
        experiments: {an experiment of the arms: the one that stands for it}.
        steps: Optimizer steps of an arm whose share is 1; the experiment's if not given.
        tokens_per_parameter: In place of it: training tokens for each parameter of the blocks.
    """

    seeds: tuple[int, ...] = (1,)
    arms: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    arm_overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    experiments: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None
    tokens_per_parameter: float | None = None


@dataclass(frozen=True)
class Table:
    """What `benchmarks/tables/NAME.yaml` says."""

    name: str
    title: str
    arms: dict[str, Arm]
    cells: dict[str, Cell]
    paper: tuple[Claim, ...]
    scales: dict[str, Scale]

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Read a table.

        Raises:
            ValueError: A value is not of its type, or an arm or a cell that it refers to is not one
                of its own.
        """
        content = {"name": path.stem, **yaml.safe_load(path.read_text(encoding="utf-8"))}
        table = cls(**validate(get_type_hints(cls), content, path.name))
        parts: list[Arm | Cell] = [*table.cells.values(), *table.arms.values()]
        arms = [part.against for part in parts if part.against]
        arms += [claim.arm for claim in table.paper]
        for scale in table.scales.values():
            arms += [*scale.arms, *scale.arm_overrides]
        cells = [claim.cell for claim in table.paper]
        for kind, named, known in (("arm", arms, table.arms), ("cell", cells, table.cells)):
            for word in named:
                if word not in known:
                    raise ValueError(f"{path}: {kind} {word!r} is not one of: {', '.join(known)}")
        return table


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training that a table asks for, whose run folder lies in `folder`."""

    arm: str
    seed: int
    overrides: tuple[str, ...]
    digest: str
    folder: Path

    def find(self) -> registry.Run | None:
        """Return the newest finished run of this config, None if there is none."""
        for file in sorted(self.folder.glob("*/run.json"), reverse=True):
            run = registry.read(file.parent)
            if run.status == "finished" and run.config_hash == self.digest:
                return run
        return None

    def start(self) -> int:
        """Run it; return its exit code."""
        return subprocess.run([sys.executable, "run.py", *self.overrides], cwd=ROOT).returncode


def runs_of(table: Table, scale: Scale, folder: Path) -> list[Run]:
    """Return the runs that a table asks for, below a folder, the arms of one seed after each other.

    Raises:
        ConfigError: One of them cannot run.
    """
    runs = []
    steps: dict[str, float] = {}
    """Of the whole training, by experiment: its model decides how many tokens it is given."""
    for seed in scale.seeds:
        for name in scale.arms or table.arms:
            arm = table.arms[name]
            overrides = [
                f"experiment={scale.experiments.get(arm.experiment, arm.experiment)}",
                f"name={slug(name)}",
                f"paths.output_dir={folder.resolve()}",
                "logger=csv",
                "resume=auto",
                f"seed={seed}",
                *scale.overrides,
                *scale.arm_overrides.get(name, ()),
                *arm.overrides,
            ]
            if scale.steps is not None:
                steps[arm.experiment] = scale.steps
            elif scale.tokens_per_parameter is not None and arm.experiment not in steps:
                steps[arm.experiment] = _steps(checked(overrides), scale.tokens_per_parameter)
            if (whole := steps.get(arm.experiment)) is not None:
                overrides.append(f"trainer.max_steps={max(1, round(whole * arm.steps))}")
            digest = config_hash(checked(overrides))
            runs.append(Run(name, seed, tuple(overrides), digest, folder / slug(name)))
    return runs


def _steps(settings: Mapping[str, Any], tokens_per_parameter: float) -> float:
    """Return the steps in which each parameter of the blocks meets so many tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from lightning_modules.hugging_face import model_config
    from subnetworks.anatomy import Anatomy

    config = model_config(settings["module"]["architecture"], None)
    with torch.device("meta"):
        blocks = Anatomy(AutoModelForCausalLM.from_config(config)).layers
    parameters = sum(p.numel() for block in blocks for p in block.parameters())
    data, accumulated = settings["datamodule"], settings["trainer"]["accumulate_grad_batches"]
    tokens = data["batch_size"] * accumulated * data["context_length"]
    return tokens_per_parameter * parameters / tokens


Runs = Mapping[tuple[str, int], registry.Run]
"""What was run, by arm and seed."""


# --- figures -------------------------------------------------------------------------------------


def figure_of(cell: Cell, run: registry.Run) -> float | None:
    """Return what a cell is of one run; None where the run has no such figure."""
    if cell.ledger is not None:
        name, quantity = cell.ledger
        rows = run.ledgers[name].savings if name in run.ledgers else ()
        return next((row.saved for row in rows if row.quantity == quantity), None)
    paths = (cell.value,) if isinstance(cell.value, str) else cell.value
    values = [value for path in paths if (value := _value(run, path)) is not None]
    return mean(values) if values and len(values) == len(paths) else None


def _value(run: registry.Run, paths: str) -> float | None:
    for path in paths.split(" | "):
        if path.startswith("lowest."):
            return min(run.series(path.removeprefix("lowest.")).values(), default=None)
        if isinstance(value := at(vars(run), path), int | float):
            return float(value)
    return None


def fill(table: Table, runs: Runs) -> dict[str, dict[str, dict[int, float]]]:
    """Return the figure of every arm, cell and seed that was run."""
    filled: dict[str, dict[str, dict[int, float]]] = {arm: {} for arm, _ in runs}
    for name, cell in table.cells.items():
        for (arm, seed), run in runs.items():
            value = figure_of(cell, run)
            if cell.against is not None:
                against = table.arms[arm].against or cell.against
                other = runs.get((against, seed)) if arm != against else None
                base = None if other is None else figure_of(cell, other)
                value = _compared(value, base, cell.how)
            if value is not None and math.isfinite(value):
                filled[arm].setdefault(name, {})[seed] = value
    return filled


def _compared(value: float | None, base: float | None, how: str) -> float | None:
    if value is None or base is None:
        return None
    if how == "minus":
        return value - base
    if not base:
        return None
    return 1 - value / base if how == "saved" else value / base - 1


def verdict(claim: Claim, value: float | None) -> str:
    """Say in words how a figure of ours stands to the paper's, by `RULE`.

    A paper that claims an effect and gives no figure has `neutral` for one: no effect is different.
    """
    if value is None:
        return "not run at this scale"
    beyond = (value - claim.figure) * (1 if claim.better == "higher" else -1)
    claims_more = claim.figure == claim.neutral and not claim.within
    if beyond > -claim.within or (beyond == -claim.within and not claims_more):
        return "same"
    same_side = (value - claim.neutral) * (claim.figure - claim.neutral) > 0
    return "same direction" if same_side else "different"


# --- what is written -----------------------------------------------------------------------------


def result_of(table: Table, name: str, scale: Scale, runs: Runs) -> dict[str, Any]:
    """Return all that is known of a table at a scale of some name, as JSON data."""
    filled, arms = fill(table, runs), scale.arms or tuple(table.arms)
    claims = []
    for claim in table.paper:
        found = filled.get(claim.arm, {}).get(claim.cell)
        ours = mean(found.values()) if found else None
        claims.append(
            {"claim": claim.words, "arm": claim.arm, "cell": claim.cell, "paper": claim.figure,
             "within": claim.within, "ours": ours, "verdict": verdict(claim, ours)}
        )  # fmt: skip
    return {
        "table": table.name,
        "title": table.title,
        "scale": name,
        "command": f"make reproduce TABLE={table.name} SCALE={name}",
        "seeds": list(scale.seeds),
        # As in `config_hash`: where files go and who logs decides nothing.
        "overrides": [o for o in scale.overrides if not o.startswith(("paths.", "logger"))],
        "arm_overrides": {arm: list(each) for arm, each in scale.arm_overrides.items()},
        "missing": [f"{a}, seed {s}" for s in scale.seeds for a in arms if (a, s) not in runs],
        "arms": {arm: filled.get(arm, {}) for arm in arms},
        "paper": claims,
        "rule": RULE,
        "seconds": sum(run.figures.get("seconds", 0.0) for run in runs.values()),
        "runs": {
            f"{arm}, seed {seed}": {key: asdict(run)[key] for key in KEPT}
            for (arm, seed), run in runs.items()
        },
    }


def markdown(table: Table, result: Mapping[str, Any]) -> str:
    """Return a result as Markdown: arms by cells, then what the paper says."""
    lines = [f"### {result['title']}, scale `{result['scale']}`", ""]
    lines += _head("arm", *table.cells)
    for arm, cells in result["arms"].items():
        shown = [_shown(cell, cells.get(name)) for name, cell in table.cells.items()]
        lines.append(_row((arm, *shown)))
    lines += ["", *_head("the paper says", "paper", "ours", "verdict")]
    lines += [_row(_compared_with_paper(table, claim)) for claim in result["paper"]]
    versions: dict[str, str] = next((run["versions"] for run in result["runs"].values()), {})
    foot = [
        f"Seeds {', '.join(map(str, result['seeds']))}; mean, +- the deviation over seeds.",
        f"Missing: {'; '.join(missing)}." if (missing := result.get("missing")) else "",
        result["rule"],
        f"Training time of the runs here: {result['seconds'] / 3600:.2f} hours.",
        f"Overrides: `{' '.join(result['overrides'])}`." if result["overrides"] else "",
        *(f"Of {arm}: `{' '.join(each)}`." for arm, each in result["arm_overrides"].items()),
        " ".join(f"{name} {versions[name]}." for name in ("torch", "transformers") if versions),
        f"Command: `{result['command']}`.",
    ]  # fmt: skip
    return "\n".join([*lines, "", " ".join(part.strip() for part in foot if part), ""])


def page_with(text: str, folder: Path) -> str:
    """Return a page whose section between `MARKS` says what the results of a folder say."""
    lines = ["", *_head("table", "scale", "the paper says", "paper", "ours", "verdict", "seeds")]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        table = Table.read(TABLES / f"{result['table']}.yaml")
        link = f"[{result['table']}](results/{path.stem}.md)"
        for claim in result["paper"]:
            seeds = len(result["arms"].get(claim["arm"], {}).get(claim["cell"], {}))
            cells = _compared_with_paper(table, claim)
            lines.append(_row((link, result["scale"], *cells, str(seeds))))
    begin, end = MARKS
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return "\n".join([before + begin, *lines, "", RULE, "", end + after])


def _head(*headings: str) -> list[str]:
    return [_row(headings), f"|{' --- |' * len(headings)}"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _compared_with_paper(table: Table, claim: Mapping[str, Any]) -> tuple[str, ...]:
    cell = table.cells[claim["cell"]]
    ours = "" if claim["ours"] is None else _number(cell, claim["ours"])
    return claim["claim"], _number(cell, claim["paper"]), ours, claim["verdict"]


def _shown(cell: Cell, values: Mapping[int, float] | None) -> str:
    if not values:
        return ""
    spread = f" +- {_number(cell, stdev(values.values()))}" if len(values) > 1 else ""
    return _number(cell, mean(values.values())) + spread


def _number(cell: Cell, value: float) -> str:
    if cell.percent:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# --- the command ---------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    names = sorted(path.stem for path in TABLES.glob("*.yaml"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("table", choices=[*names, "all"])
    parser.add_argument("--scale", choices=SCALES, default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the scale's")
    parser.add_argument("--arms", nargs="+", help="in place of the scale's")
    parser.add_argument("--set", action="append", default=[], help="a further setting of all arms")
    parser.add_argument("--tokens-per-parameter", type=float, help="in place of the scale's steps")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/reproduce"), help="runs")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="the tables")
    parser.add_argument("--read-only", action="store_true", help="run nothing, show what there is")
    args = parser.parse_args(arguments)
    args.tables = names if args.table == "all" else [args.table]
    return args


def asked_of(table: Table, args: argparse.Namespace) -> Scale:
    """Return a table's scale as the command line changes it.

    Raises:
        ValueError: The table has no such scale, or no such arm.
    """
    if args.scale not in table.scales:
        raise ValueError(f"{table.name} has no scale {args.scale}: {', '.join(table.scales)}")
    scale = table.scales[args.scale]
    arms = tuple(args.arms or scale.arms or table.arms)
    for name in arms:
        if name not in table.arms:
            raise ValueError(f"{table.name} has no arm {name!r}: {', '.join(table.arms)}")
    changes: dict[str, Any] = {"arms": arms, "overrides": (*scale.overrides, *args.set)}
    if args.seeds:
        changes["seeds"] = tuple(args.seeds)
    if args.tokens_per_parameter is not None:
        changes |= {"steps": None, "tokens_per_parameter": args.tokens_per_parameter}
    return replace(scale, **changes)


def reproduce(table: Table, scale: Scale, runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Run what is missing of a table and write it; return how many runs failed."""
    place = args.results / f"{table.name}-{args.scale}"
    place.parent.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, int], registry.Run] = {}
    failed = 0
    for number, run in enumerate(runs, 1):
        words = f"{run.arm}, seed {run.seed}"
        finished = run.find()
        if finished is None and not args.read_only:
            print(f"{place.name}, run {number} of {len(runs)}: {words}", flush=True)
            code = run.start()
            finished = run.find()
            if finished is None:
                failed += 1
                print(f"{place.name}: {words} ended with code {code}", flush=True)
        if finished is not None:
            found[run.arm, run.seed] = finished
        # After each run: whoever stops here has a table of what there is.
        result = result_of(table, args.scale, scale, found)
        place.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        place.with_suffix(".md").write_text(markdown(table, result))
    page = args.results.parent / "RESULTS.md"
    if page.exists() and MARKS[0] in (text := page.read_text(encoding="utf-8")):
        page.write_text(page_with(text, args.results), encoding="utf-8")
    print(place.with_suffix(".md").read_text())
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    args = parse(arguments)
    try:
        tables = [Table.read(TABLES / f"{name}.yaml") for name in args.tables]
        scales = [asked_of(table, args) for table in tables]
        runs = [
            runs_of(table, scale, args.outputs / f"{table.name}-{args.scale}")
            for table, scale in zip(tables, scales, strict=True)
        ]
    except (ConfigError, ValueError) as error:
        print(f"Refused, nothing was started.\n{error}", file=sys.stderr)
        return 2
    failed = [
        reproduce(table, scale, asked, args)
        for table, scale, asked in zip(tables, scales, runs, strict=True)
    ]
    return 1 if sum(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
