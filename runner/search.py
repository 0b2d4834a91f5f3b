"""A search: Optuna asks for settings, runs answer, a study in one file remembers.

Only this process asks Optuna and writes the study. A trial is a run like any other, whose folder is
decided before it starts; its metrics.csv is read while it runs, and it is stopped like any run.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from reports import registry
from reports.configs import shortened
from reports.run_record import RUN_FILE
from reports.tables import duration
from runner import jobs
from runner.engines import Command, Engine, Running, follow
from runner.errors import ConfigError, disk_behind, first_line
from runner.folder import Start, from_json, lock, newest_whole, read_record, to_json
from runner.job import Job, difference, listed
from runner.jobs import End, Sweep
from runner.resume import CHILD, choose
from terminal import literal

STUDY_FILE = "study.db"


@dataclass(frozen=True)
class Space:
    """What is searched.

    Args:
        fixed: Overrides that all trials share.
        searched: Those that have an interval, a range or choices for a value.
    """

    fixed: tuple[str, ...]
    searched: tuple[Override, ...]

    def corners(self) -> list[list[str]]:
        """Return overrides in which every end of an interval and every choice comes up."""
        values = {each.get_key_element(): _ends(each) for each in self.searched}
        count = max(map(len, values.values()))
        return [
            [*self.fixed, *(f"{key}={ends[min(n, len(ends) - 1)]}" for key, ends in values.items())]
            for n in range(count)
        ]

    def words(self) -> list[str]:
        """Return what is searched as it was written."""
        return [each.input_line or "" for each in self.searched]


def space_of(config: DictConfig) -> Space:
    """Return what a sweep's config and command line search; ConfigError if it is nothing."""
    overrides = {each.get_key_element(): each for each in jobs.overrides_of(config)}
    searched = tuple(each for each in overrides.values() if each.is_sweep_override())
    if not searched:
        raise ConfigError(
            "hydra/sweeper=search: nothing is searched. Say what in conf/search/EXPERIMENT.yaml or "
            "on the command line: 'module.optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        )
    fixed = [each.input_line or "" for each in overrides.values() if not each.is_sweep_override()]
    return Space(tuple(fixed), searched)


def _ends(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [repr(value.start), repr(value.end)]
    return list(override.sweep_string_iterator())


def search(config: DictConfig, engine: Engine, space: Space, plan: Mapping[str, Any]) -> None:
    """Go on with a study, or begin one, until it has as many trials as the sweeper's plan wants.

    Raises:
        ConfigError: The study is of another search, or another process is at work on it.
        SystemExit: A signal came, 128 + its number; or a trial was stopped otherwise, 1.
    """
    job = jobs.checked(config, space.corners()[0])
    if job.settings["resume"] != "never" or job.task != "train":
        raise ConfigError("hydra/sweeper=search: trials are trainings, and go on by themselves")
    if engine.workers is None:
        raise ConfigError(
            "hydra.launcher.workers=null: a search learns from trials that have ended. Say how "
            "many run at once: workers=4"
        )
    folder = Path(config.paths.output_dir, "search", plan["study"] or job.settings["name"])
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        study = _Study(folder, job, space, plan)
        jobs.begin(Sweep(study.id, Path(config.paths.output_dir), plan["trials"]))
        try:
            _Search(config, engine, study, plan["trials"]).run()
        finally:
            study.show()
            jobs.forget()
        if study.unfinished():
            raise SystemExit(1)


class _Study:
    """Optuna's study: what was tried, what came of it, what to try next."""

    def __init__(self, folder: Path, job: Job, space: Space, plan: Mapping[str, Any]) -> None:
        import optuna

        self.folder, self.job, self.space = folder, job, space
        self.optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        watched = (job.settings["callbacks"] or {}).get("checkpoint") or {}
        self.monitor = watched.get("monitor")
        if self.monitor is None or str(self.monitor).startswith("test/"):
            raise ConfigError(
                f"callbacks.checkpoint.monitor={self.monitor}: a search looks for the best of a "
                "metric of validation; name one, val/loss for example"
            )
        try:
            self.study = optuna.create_study(
                storage=f"sqlite:///{(folder / STUDY_FILE).absolute()}",
                study_name="search",
                load_if_exists=True,
                direction="maximize" if watched.get("mode") == "max" else "minimize",
            )
            self._is_the_same()
            done = len(self.trials())
        except ConfigError:
            raise
        except Exception as error:  # SQLAlchemy, Alembic and SQLite have errors of their own
            if disk_behind(error):
                raise
            raise ConfigError(
                f"{folder / STUDY_FILE}: no study that can be read: {first_line(error)}. Begin "
                "another: hydra.sweeper.study=NAME"
            ) from error
        # A sampler that began with the same seed again would ask for the same settings again.
        self.study.sampler = optuna.samplers.TPESampler(
            seed=plan["seed"] + done, n_startup_trials=plan["startup"], constant_liar=True
        )
        self.study.pruner = optuna.pruners.NopPruner()
        if plan["prune_after"] is not None:
            steps = max(0, job.settings["trainer"]["max_steps"])
            self.study.pruner = optuna.pruners.MedianPruner(
                n_startup_trials=plan["startup"], n_warmup_steps=int(plan["prune_after"] * steps)
            )

    @property
    def id(self) -> str:
        """The id of its runs' sweep."""
        return str(self.study.user_attrs["id"])

    def _is_the_same(self) -> None:
        """Keep what is searched with a new study; compare it with an old one's."""
        now = json.loads(json.dumps(self.job.recorded, default=str))
        attributes = self.study.user_attrs
        if "id" not in attributes:
            self.study.set_user_attr("settings", now)
            self.study.set_user_attr("space", self.space.words())
            self.study.set_user_attr("id", f"search-{self.folder.name}-{secrets.token_hex(3)}")
            return
        changes = listed(difference(attributes["settings"], now))
        if sorted(attributes["space"]) != sorted(self.space.words()):
            changes += [f"  searched: {attributes['space']} -> {self.space.words()}"]
        if changes:
            raise ConfigError(
                f"{self.folder}: this study is of another search. Give the same settings, or begin "
                "another study: hydra.sweeper.study=NAME\n" + "\n".join(changes)
            )

    @cached_property
    def distributions(self) -> dict[str, Any]:
        """What Optuna draws from, by key."""
        return {each.get_key_element(): self._distribution(each) for each in self.space.searched}

    def _distribution(self, override: Override) -> Any:
        value, log = override.value(), "log" in getattr(override.value(), "tags", ())
        kinds = self.optuna.distributions
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int)
            kind = kinds.IntDistribution if whole else kinds.FloatDistribution
            return kind(value.start, value.end, log=log)
        choices = list(override.sweep_string_iterator())
        if isinstance(value, RangeSweep) and all(re.fullmatch(r"-?\d+", each) for each in choices):
            return kinds.IntDistribution(int(choices[0]), int(choices[-1]), step=int(value.step))
        return kinds.CategoricalDistribution(choices)

    def trials(self) -> list[Any]:
        """Return all trials, in their order."""
        found: list[Any] = self.study.get_trials(deepcopy=False)
        return found

    def unfinished(self) -> list[Any]:
        """Return the trials that have begun and not ended."""
        return [each for each in self.trials() if each.state.name == "RUNNING"]

    def again(self, frozen: Any) -> Any:
        """Return a trial that has begun earlier."""
        trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
        for key, distribution in self.distributions.items():
            trial._suggest(key, distribution)  # draws what a kill has kept `ask` from drawing
        return trial

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """End a trial: COMPLETE with a value, PRUNED, or FAIL."""
        self.study.tell(number, value, state=self.optuna.trial.TrialState[state])

    def show(self) -> None:
        """Print a table of all trials, and the command that repeats the best one."""
        names = shortened(self.distributions, ("trial", "state", "time"))
        table = Table("trial", "state", "time", str(self.monitor), *names.values())
        trials = self.trials()
        is_complete = any(each.state.name == "COMPLETE" for each in trials)
        best = self.study.best_trial if is_complete else None
        for each in trials:
            state = each.state.name.lower().replace("running", "unfinished")
            taken = each.duration.total_seconds() if each.duration else None
            value = "" if each.value is None else f"{each.value:.4g}"
            params = [each.params.get(key, "") for key in names]
            settings = [literal(f"{v:.4g}" if isinstance(v, float) else v) for v in params]
            style = "bold" if best is not None and each.number == best.number else ""
            table.add_row(
                str(each.number + 1), state, duration(taken), value, *settings, style=style
            )
        Console().print(table)
        print(f"The study: {self.folder / STUDY_FILE}")
        if best is not None:
            words = [*self.space.fixed, *_settings_of(best)]
            print(f"The best, trial {best.number + 1}:")
            print(shlex.join(["python", "run.py", *words]))


def _settings_of(trial: Any) -> list[str]:
    """Return a trial's settings as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]


@dataclass
class _Trial:
    """A trial that runs: Optuna's, its run folder, and what was read of its metrics."""

    asked: Any
    folder: Path
    read: int = 0
    steps: set[int] = field(default_factory=set)
    pruned: bool = False


class _Search:
    """Runs trials until the study has `count` of them, and tells it what came of each."""

    def __init__(self, config: DictConfig, engine: Engine, study: _Study, count: int) -> None:
        self.config, self.engine, self.study, self.count = config, engine, study, count
        self.running: dict[int, _Trial] = {}

    def run(self) -> None:
        """Run what is left to do."""
        had = len(self.study.trials())
        words = f"{had} of {self.count} trials are there" if had else f"{self.count} trials"
        print(
            f"{words}, {self.engine.workers} at once; what each prints: "
            f"{self.study.folder}/trial-NUMBER.log",
            flush=True,
        )
        for job, code in follow(self.engine, self._commands(), self._look):
            trial = self.running.pop(job.number)
            self._end(job.number, trial, jobs.end_of(trial.folder, job.log, code))

    def _commands(self) -> Iterator[Command]:
        """Yield the commands of trials that were left unfinished, then of new ones."""
        for frozen in self.study.unfinished():
            if (start := self._where_it_was(frozen)) is not None:
                yield self._command(self.study.again(frozen), start)
        while len(self.study.trials()) < self.count:
            asked = self.study.study.ask(self.study.distributions)
            yield self._command(asked, choose(self.study.job.settings))

    def _where_it_was(self, frozen: Any) -> Start | None:
        """Return what to go on with for a trial that has begun; None if its run has ended since."""
        start = from_json(frozen.user_attrs["start"]) if "start" in frozen.user_attrs else None
        if start is not None and (start.folder / RUN_FILE).exists():
            jobs.wait_for(start.folder)
            record = read_record(start.folder)
            if record.status in ("finished", "failed"):
                end = jobs.end_of(start.folder, start.folder, 0)
                self._end(frozen.number + 1, _Trial(frozen, start.folder), end)
                return None
            checkpoint, _ = newest_whole(start.folder)
            if checkpoint is not None:
                return Start(start.folder, start.run_id, checkpoint)
        return choose(self.study.job.settings)

    def _command(self, trial: Any, start: Start) -> Command:
        number = trial.number + 1
        trial.set_user_attr("start", to_json(start))
        steps = set(self.study.trials()[trial.number].intermediate_values)
        self.running[number] = _Trial(trial, start.folder, steps=steps)
        overrides = [*self.study.space.fixed, *_settings_of(trial)]
        log = self.study.folder / f"trial-{number}.log"
        return jobs.command(self.config, overrides, number, log, **{CHILD: to_json(start)})

    def _look(self, running: Mapping[int, Running]) -> None:
        """Report what trials have reached since the last look; stop those without prospects."""
        for number, job in running.items():
            trial = self.running[number]
            file = trial.folder / "metrics.csv"
            size = file.stat().st_size if file.exists() else 0
            if size == trial.read or trial.pruned:
                continue
            trial.read = size
            series = registry.read(trial.folder).series(str(self.study.monitor))
            new = series.keys() - trial.steps
            for step in sorted(new):
                trial.asked.report(series[step], step)
            trial.steps |= new
            if new and trial.asked.should_prune():
                trial.pruned = True
                job.stop()

    def _end(self, number: int, trial: _Trial, end: End) -> None:
        """Tell the study of a trial whose process has ended; one that was stopped goes on later."""
        if end.status == "finished" and end.value is not None:
            self.study.tell(number - 1, "COMPLETE", end.value)
        elif end.status in ("finished", "failed"):
            self.study.tell(number - 1, "FAIL")
        elif trial.pruned:
            self.study.tell(number - 1, "PRUNED")
        words = "pruned" if trial.pruned and end.status == "interrupted" else end.words
        own = " ".join(_settings_of(trial.asked))
        print(f"trial {number}/{self.count} {own}: {words}", flush=True)
