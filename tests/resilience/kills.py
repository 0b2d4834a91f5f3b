"""Runs that are killed at random moments, gone on with, and compared with one that was not.

A moment is a time, or a number of things done to files: the process ends itself just before it
opens a file for writing, renames, links or removes one. A run that goes on after a kill is killed
again, up to `LIVES` times, and then left alone.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from runner.command import guard
from runner.explain import composed
from tests.forked import Child, Ended, forked
from tests.fuzz.warm import inputs, warm_up
from tests.golden.runs import RUNS

SECONDS = 240.0  # for a run that takes a few, on a machine that does other things as well
STACK = "killed at, most recent call first"  # what a process says before its stack
EVENT = "killed before"  # what a process says that ends itself
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "os.truncate")
RESUMABLE = [name for name in RUNS if name != "end_to_end_sparc"]

LIVES = 4

# What a process did when it was killed: by the file that it was about to change, or by the
# innermost of its frames that lies in one of these files.
OF_FILE = {
    "/cache/": "cache",
    "/checkpoints/": "checkpoint",
    "/run.json": "run.json",
    "/config.yaml": "config.yaml",
    "/metrics.csv": "metrics.csv",
    "/wandb/": "W&B",
    "": "other file",
}
OF_FRAME = {
    "/datamodules/cache.py": "cache",
    "/callbacks/checkpoint.py": "checkpoint",
    "/reports/run_record.py": "run.json",
    "/reports/figures.py": "plots",
    "/loops/evaluation_loop.py": "validation",
    "/loops/training_epoch_loop.py": "step",
    "": "start or end",
}

# Beside the small runs' own: a checkpoint at every other step, so that a kill costs little.
OFTEN = ["trainer.checkpoint_every=2", "trainer=cpu", "resume=auto"]


@dataclass
class Record:
    """What became of one method's runs.

    Args:
        name: The experiment.
        runs: How many were begun, each killed once or more.
        killed: How often one was killed; some had ended before the kill came.
        resumed: How often one went on from a checkpoint.
        anew: How often there was nothing to go on from, and it said so.
        moments: What was going on when a kill came.
        lost: Ends that are not those of a run that was left alone.
        corrupt: Files or folders that a later run could not read.
        orphans: Files that nobody will remove, and processes that outlive theirs.
        tracebacks: Runs after a kill that ended in a traceback.
        hangs: Runs that did not end.
    """

    name: str
    runs: int = 0
    killed: int = 0
    resumed: int = 0
    anew: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Everything that should not be."""
        kinds = ("lost", "corrupt", "orphans", "tracebacks", "hangs")
        return [f"{self.name}, {kind}: {each}" for kind in kinds for each in getattr(self, kind)]


class Laboratory:
    """A folder with the data of the small runs, in which runs are killed.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._composed: dict[str, DictConfig] = {}
        inputs(folder)

    def command(self, name: str, place: str, *more: str) -> list[str]:
        """Return the command line of a method's small run whose files lie below a place."""
        own = [f"paths.output_dir={place}/outputs", f"paths.cache_dir={place}/cache"]
        return [f"experiment={name}", "debug=fast", *RUNS[name], *OFTEN, *own, *more]

    def work(
        self, command: list[str], events: int | None = None, seconds: float | None = None
    ) -> Callable[[], int]:
        """Return what `python run.py COMMAND` does once Hydra has composed its config.

        Args:
            command: Composed here, once for all places.
            events: The process ends itself before so many events on files.
            seconds: The process ends itself after so many.
        """
        places = [each.split("=") for each in command if each.startswith("paths.")]
        key = " ".join(each for each in command if not each.startswith("paths."))
        if key not in self._composed:
            with contextlib.chdir(self.folder):
                warm_up(command)
            self._composed[key] = composed(command)

        def work() -> int:
            import run

            os.chdir(self.folder)
            if events is not None:
                _end_at(events, self._places(command))
            if seconds is not None:
                _end_after(seconds)
            cfg = self._composed[key]
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
                for name, place in places:
                    OmegaConf.update(cfg, name, place)
            sys.argv = ["run.py", *command]
            return guard(lambda: run.main(cfg))

        return work

    def start(
        self, command: list[str], events: int | None = None, seconds: float | None = None
    ) -> Child:
        """Start a run in a child, which ends itself where `work` is told so."""
        return Child(self.work(command, events, seconds))

    def events(self, name: str, *more: str) -> tuple[int, float]:
        """Let a method run and keep it; return its events on files, and its seconds."""
        command = self.command(name, f"{name}/whole", *more)
        (self.folder / name).mkdir()
        counted = self.folder / name / "events"
        run = self.work(command)

        def work() -> int:
            number = _count(self._places(command))
            code = run()
            counted.write_text(str(number[0]))
            return code

        ended = forked(work, SECONDS)
        if ended.code != 0:
            raise AssertionError(f"{name}: {ended.said}")
        return int(counted.read_text()), ended.seconds

    def _places(self, command: list[str]) -> tuple[str, ...]:
        paths = [each.partition("=")[2] for each in command if each.startswith("paths.")]
        return tuple(str(self.folder / path) for path in paths)

    def try_kills(self, name: str, kills: int, seed: int, *more: str) -> Record:
        """Kill a method's runs until there were so many kills; let each run end at last.

        Args:
            name: The experiment.
            kills: How many, half of them at an event, half at a time.
            seed: Draws the moments.
            more: Further overrides.
        """
        record, draw = Record(name), random.Random(f"{name} {seed}")
        events, seconds = self.events(name, *more)
        while record.killed < kills:
            place = self.folder / name / f"run {record.runs}"
            record.runs += 1
            command = self.command(name, str(place.relative_to(self.folder)), *more)
            moments: list[str] = []
            ended: Ended | None = None
            for _ in range(LIVES):
                if draw.random() < 0.5:
                    ended = self.start(command, draw.randrange(events)).wait(SECONDS)
                else:
                    after = draw.uniform(0.1, seconds)
                    ended = self.start(command, seconds=after).wait(SECONDS)
                self._judge_start(record, ended, moments)
                if ended.code != -signal.SIGKILL:
                    break
                moments.append(moment_of(ended.said))
                record.moments[moments[-1]] += 1
                record.killed += 1
            else:
                ended = self.start(command).wait(SECONDS)
                self._judge_start(record, ended, moments)
            about = f"run {record.runs - 1}, killed at: {', '.join(moments) or 'nothing'}"
            _judge_end(record, ended, about)
            if ended.code == 0:
                expected = self.folder / name / "whole"
                record.lost += [f"{about}: {key}" for key in differences(expected, place)]
                record.orphans += [f"{about}: {file}" for file in orphans(place)]
        return record

    def _judge_start(self, record: Record, ended: Ended, moments: list[str]) -> None:
        """Count what a process said of the kills before it, and what it left running."""
        record.resumed += "Going on with" in ended.said
        record.anew += bool(moments) and "a new run" in ended.said
        skipped = [line for line in ended.said.splitlines() if "Skipped" in line]
        record.corrupt += [f"killed at {', '.join(moments)}: {line}" for line in skipped]
        record.orphans += [f"process: {line}" for line in ended.survivors]


def moment_of(said: str) -> str:
    """Return what a killed process did, by what it said last: `OF_FILE` or `OF_FRAME`."""
    *_, last = said.rpartition(EVENT)
    if EVENT in said:
        return next(what for part, what in OF_FILE.items() if part in last.splitlines()[0])
    files = [line for line in said.rpartition(STACK)[2].splitlines() if 'File "' in line]
    parts = (what for line in files for part, what in OF_FRAME.items() if part and part in line)
    return next(parts, OF_FRAME[""])


def _judge_end(record: Record, ended: Ended, about: str) -> None:
    if ended.code is None:
        record.hangs.append(f"{about}: {ended.said[-500:]}")
    elif ended.code != 0 or not ended.in_words:
        record.tracebacks.append(f"{about}: {ended.code} {ended.said[-1500:]}")


# --- moments -------------------------------------------------------------------------------------


def _touches(event: str, arguments: tuple[Any, ...], places: tuple[str, ...]) -> bool:
    """Whether an audit event of Python's changes a file below one of the places."""
    if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
        return False
    if event == "open" and not (
        (isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+"))
        or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    ):
        return False
    return os.path.abspath(os.fsdecode(arguments[0])).startswith(places)


def _count(places: tuple[str, ...]) -> list[int]:
    """Count events below some folders from here on; the list's only number is the count."""
    number = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        number[0] += _touches(event, arguments, places)

    sys.addaudithook(hook)
    return number


def _end_at(last: int, places: tuple[str, ...]) -> None:
    """Let this process end itself before an event."""
    left = [last]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _touches(event, arguments, places):
            if left[0] <= 0:
                os.write(2, f"\n{EVENT} {event} {os.fsdecode(arguments[0])}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(hook)


def _end_after(seconds: float) -> None:
    """Let this process say where its main thread stands, and end itself, after some seconds."""
    main = threading.main_thread().ident

    def end() -> None:
        stack = traceback.format_stack(sys._current_frames()[main or 0])
        os.write(2, f"\n{STACK}:\n{''.join(reversed(stack))}".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


# --- what is left --------------------------------------------------------------------------------


def orphans(place: Path) -> Iterator[str]:
    """Yield what should not be there once a run has ended: half-made files, folders of no run.

    A run that was given up, since it had come to no checkpoint, keeps its folder as it is.
    """
    given_up = [
        file.parent
        for file in place.glob("outputs/*/*/run.json")
        if json.loads(file.read_text())["status"] == "running"
    ]
    for path in sorted(place.rglob("*")):
        if path.name.endswith((".tmp", ".partial")) and not {*path.parents} & {*given_up}:
            yield str(path.relative_to(place))
    for folder in sorted(place.glob("outputs/*/*")):
        of_a_run = folder.is_dir() and folder.parent.name != "wandb"
        if of_a_run and not (folder / "run.json").exists():
            yield f"{folder.relative_to(place)}: no run.json"


def differences(expected: Path, place: Path) -> list[str]:
    """Return in what two places' newest runs differ: status, losses, last checkpoint."""
    from tests.runner.test_resume import unequal

    first, second = (_reached(each) for each in (expected, place))
    return unequal(first, second)


def _reached(place: Path) -> dict[str, Any]:
    """Return all that a place's newest run has come to; clocks apart."""
    import torch

    # The newest; a base model's run, which begins after that of the method, keeps no metrics.
    found = place.glob("outputs/*/*/checkpoints/step-*.ckpt")
    kept = (file for file in found if (file.parents[1] / "metrics.csv").exists())
    files = sorted(kept, key=lambda file: file.parts[-3:])
    if not files:
        return {"checkpoints": 0}
    folder = files[-1].parents[1]
    content = torch.load(files[-1], weights_only=True)
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "rng_states", "global_step")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = folder / "checkpoints" / "best.ckpt"  # some methods keep none
    return {
        "best": torch.load(best, weights_only=True)["global_step"] if best.exists() else None,
        "status": json.loads((folder / "run.json").read_text())["status"],
        "losses": [
            (row["step"], key, row[key])
            for row in rows
            for key in row
            if key.endswith("loss") and row[key]
        ],
        **{key: content[key] for key in keys},
    }
