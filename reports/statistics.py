"""Arms and what can be said of them: means over seeds, differences paired by seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ledger import Ledger, Saving
from reports.configs import INDIFFERENT, arm_hash, differences, is_seed, shortened
from reports.registry import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A mean over `n` runs, and the standard deviation of one run (n - 1); None for one run."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of differences within pairs, and its 95 % interval; None for one pair."""

    mean: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Arm:
    """Runs whose settings differ by seeds alone: a finished one for each."""

    label: str
    runs: tuple[Run, ...]

    def values(self, metric: str) -> dict[str, float]:
        """Return the last figure of a metric by its run's seeds."""
        return {run.seeds: run.figures[metric] for run in self.runs if metric in run.figures}

    def ledgers(self) -> list[Ledger]:
        """Return what its runs' methods saved."""
        return [ledger for run in self.runs for ledger in run.ledgers.values()]

    def savings(self) -> dict[tuple[str, str], list[Saving]]:
        """Return the rows of these, by method and quantity."""
        found: dict[tuple[str, str], list[Saving]] = {}
        for ledger in self.ledgers():
            for row in ledger.savings:
                found.setdefault((ledger.method, row.quantity), []).append(row)
        return found


def spread(values: Sequence[float]) -> Spread | None:
    """Return the mean and the standard deviation of some values; None of none."""
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: Mapping[str, float], base: Mapping[str, float]) -> Difference | None:
    """Return ours minus the baseline's over the seeds that both have; None if they share none.

    The interval is Student's t: it takes the differences of pairs for normally distributed.
    """
    gaps = [ours[seed] - base[seed] for seed in ours if seed in base]
    if not gaps:
        return None
    mean, count = fmean(gaps), len(gaps)
    if count == 1:
        return Difference(mean, None, 1)
    from scipy.special import stdtrit  # the import of scipy.stats takes three times as long

    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    half = quantile * stdev(gaps) / math.sqrt(count)
    return Difference(mean, (mean - half, mean + half), count)


def arms_of(runs: Sequence[Run]) -> tuple[list[Arm], list[str]]:
    """Group finished runs by arm; what a test of a run's checkpoint found is added to that run.

    Returns:
        The arms by label, and a line for each run that is in none and why.
    """
    left_out = [f"{run.folder}: {run.state}" for run in runs if run.status != "finished"]
    originals: dict[tuple[str, str], Run] = {}
    for run in (run for run in runs if run.status == "finished"):
        first = originals.setdefault((run.id, run.folder.name), run)
        if first is not run:
            left_out.append(f"{run.folder}: a copy of {first.folder}")
    finished, passed_over = _with_tests([*originals.values()])
    left_out += passed_over
    groups: dict[str, dict[str, Run]] = {}
    for run in finished:
        # As run.json says only where there is no config: hashes of other versions are other ones.
        seeds = groups.setdefault(
            arm_hash(run.config) if run.config else run.arm or str(run.folder), {}
        )
        if (older := seeds.get(run.seeds)) is not None:
            left_out.append(f"{older.folder}: {run.id} is newer, of the same arm and seed")
        seeds[run.seeds] = run
    members = [
        sorted(each.values(), key=lambda run: (run.seed is None, run.seed or 0, run.seeds))
        for each in groups.values()
    ]
    labels = _labels(members)
    arms = [Arm(label, tuple(runs)) for label, runs in zip(labels, members, strict=True)]
    return sorted(arms, key=lambda arm: arm.label), left_out


def _with_tests(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Add what validate and test runs found to the run that trained their checkpoint.

    What that run has measured itself stays. Of several tests of one run the newest counts.

    Returns:
        The runs that trained, then those whose training is not among them; and a line for each run
        that adds nothing and why.
    """
    trained = {run.folder.name: run for run in runs if run.task == "train"}
    others: list[Run] = []
    left_out: list[str] = []
    newest: dict[tuple[str, str], Run] = {}
    for run in (run for run in runs if run.task != "train"):
        owner = Path(run.checkpoint or "").parent.parent.name
        if owner not in trained:
            others.append(run)
        elif changes := _changes_of_data(trained[owner], run):
            left_out.append(
                f"{run.folder}: {run.task} of {trained[owner].id} with other data: {changes}"
            )
        else:
            if (older := newest.get((owner, run.task))) is not None:
                left_out.append(f"{older.folder}: {run.id} is newer, a {run.task} of the same run")
            newest[owner, run.task] = run
    for (owner, _), run in newest.items():
        known = trained[owner].metrics
        if run.metrics.keys() <= known.keys():
            left_out.append(f"{run.folder}: the last figures of {trained[owner].id} stand for it")
        trained[owner] = replace(trained[owner], metrics={**run.metrics, **known})
    return [*trained.values(), *others], left_out


def _changes_of_data(trained: Run, tested: Run) -> str:
    """Return in which settings that a figure depends on a run was tested on other data."""
    # Where the data lies may change: only modules that compare the data itself read `path`.
    free = {f"datamodule.{key}" for key in (*INDIFFERENT, "batch_size", "path")}
    changes = differences([trained.config, tested.config]) if trained.config else {}
    found = [key for key in changes if key.startswith("datamodule.") and key not in free]
    limit = f"trainer.limit_{'val' if tested.task == 'validate' else 'test'}_batches"
    if limit in changes and changes[limit][1] not in (1.0, None):
        found.append(limit)
    return ", ".join(f"{key}={changes[key][1]}" for key in found)


def _labels(members: Sequence[Sequence[Run]]) -> list[str]:
    """Name each arm: by its experiment, else by what its runs' names begin with.

    Where arms share that, their runs' own names stand for them, or the settings in which they
    differ are added.
    """
    names = [_name(runs) for runs in members]
    labels = list(names)
    for name in set(names):
        places = [place for place, other in enumerate(names) if other == name]
        if len(places) == 1:
            continue
        own = [{run.name for run in members[place]} for place in places]
        if all(len(each) == 1 for each in own) and len(set.union(*own)) == len(places):
            for place, (given,) in zip(places, own, strict=True):
                labels[place] = given
            continue
        changes = _telling(differences([members[place][0].config for place in places]))
        words = shortened(changes)
        for column, place in enumerate(places):
            absent = tuple(f"{key}." for key, row in changes.items() if row[column] is None)
            values = [
                f"{words[key]}={'null' if row[column] is None else row[column]}"
                for key, row in changes.items()
                if not key.startswith(absent)
            ]
            few = ", ".join(values) if 0 < len(values) <= 3 else members[place][0].id
            labels[place] = f"{name} ({few})"
    uses = Counter(labels)
    return [
        label if uses[label] == 1 else f"{label}, {runs[0].id}"
        for label, runs in zip(labels, members, strict=True)
    ]


def _telling(changes: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Leave out seeds, and what a setting nearer to the top says by the same word: its source."""
    found: dict[str, list[Any]] = {}
    for key in sorted(changes, key=lambda key: key.count(".")):
        again = any(
            key.endswith(f".{other}") and row == changes[key] for other, row in found.items()
        )
        if not is_seed(key) and not again:
            found[key] = changes[key]
    return found


def _name(runs: Sequence[Run]) -> str:
    experiments = {run.experiment for run in runs}
    if len(experiments) == 1 and runs[0].experiment:
        return runs[0].experiment
    names = [run.name for run in runs]
    if len(set(names)) == 1:
        return names[0]
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in shared).rstrip("-_. 0123456789") or names[0]


def baseline_of(arms: Sequence[Arm], wanted: str | None = None) -> Arm | None:
    """Return the arm that the others are compared with: the one of a label, or of a run's id.

    None wanted: of the arms without a method the one that differs from those with one in the fewest
    settings, if there is any.

    Raises:
        ValueError: No arm is called so.
    """
    if wanted is not None:
        for arm in arms:
            if wanted == arm.label or wanted in (run.id for run in arm.runs):
                return arm
        labels = ", ".join(arm.label for arm in arms)
        raise ValueError(f"baseline={wanted}: no arm is called so. There are: {labels}")
    others = [arm.runs[0].config for arm in arms if arm.ledgers()]

    def rank(arm: Arm) -> tuple[object, ...]:
        config = arm.runs[0].config
        changes = sum(len(differences([config, other])) for other in others)
        return arm.runs[0].task != "train", changes, len(arm.label), arm.label

    return min((arm for arm in arms if not arm.ledgers()), key=rank, default=None)


def saved(rows: Sequence[Saving]) -> Spread | None:
    """Return the share that was saved; None where nobody measured it."""
    return spread([row.saved for row in rows if row.saved is not None])
