"""Runs that are killed at a random moment, gone on with, and compared with one that was not.

A moment is a time, or a number of things done to files: the process ends itself just before it
opens a file for writing, renames, links or removes one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.forked import Child, Ended, forked
from tests.fuzz.warm import inputs, warm_up
from tests.golden.runs import RUNS

SECONDS = 240.0  # for a run that takes a few, on a machine that does other things as well
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "os.truncate")
RESUMABLE = [name for name in RUNS if name != "end_to_end_sparc"]

# Beside the small runs' own: a checkpoint at every other step, so that a kill costs little.
OFTEN = ["trainer.checkpoint_every=2", "trainer=cpu", "resume=auto"]


@dataclass
class Record:
    """What became of one method's runs.

    Args:
        name: The experiment.
        killed: How many ended by a kill; the others had ended before it came.
        resumed: How many of these went on from a checkpoint.
        anew: How many had nothing to go on from, and said so.
        lost: Ends that are not those of a run that was left alone.
        corrupt: Files or folders that a later run could not read.
        orphans: Files that nobody will remove, and processes that outlive theirs.
        tracebacks: Runs after a kill that ended in a traceback.
        hangs: Runs that did not end.
    """

    name: str
    killed: int = 0
    resumed: int = 0
    anew: int = 0
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
        inputs(folder)
        warm_up()

    def command(self, name: str, place: str, *more: str) -> list[str]:
        """Return the command line of a method's small run whose files lie below a place."""
        own = [f"paths.output_dir={place}/outputs", f"paths.cache_dir={place}/cache"]
        return [f"experiment={name}", "debug=fast", *RUNS[name], *OFTEN, *own, *more]

    def start(self, command: list[str], events: int | None = None) -> Child:
        """Start a run in a child; it ends itself before the given number of events on files."""

        def work() -> int:
            from tests.runner.laboratory import command as do

            os.chdir(self.folder)
            if events is not None:
                _end_at(events, command)
            return do(*command)

        return Child(work)

    def events(self, name: str) -> tuple[int, float]:
        """Let a method run; return how much it does to files, and how long it takes."""
        command = self.command(name, f"{name}/whole")
        (self.folder / name).mkdir()
        counted = self.folder / name / "events"

        def work() -> int:
            from tests.runner.laboratory import command as do

            os.chdir(self.folder)
            number = _count(command)
            code = do(*command)
            counted.write_text(str(number[0]))
            return code

        ended = forked(work, SECONDS)
        if ended.code != 0:
            raise AssertionError(f"{name}: {ended.said}")
        return int(counted.read_text()), ended.seconds

    def try_kills(self, name: str, kills: int, seed: int, *more: str) -> Record:
        """Kill a method's run again and again, each time from its beginning.

        Args:
            name: The experiment.
            kills: How many times: the odd ones at an event, the others at a time.
            seed: Draws the moments.
            more: Further overrides.
        """
        record, draw = Record(name), random.Random(f"{name} {seed}")
        events, seconds = self.events(name)
        expected = self.folder / name / "whole"
        for number in range(kills):
            place = self.folder / name / f"kill {number}"
            command = self.command(name, str(place.relative_to(self.folder)), *more)
            moment: int | None = None
            if number % 2:
                moment = draw.randrange(events)
                killed = self.start(command, moment).wait(SECONDS)
            else:
                child = self.start(command)
                _sleep_while(child, draw.uniform(0.2, seconds))
                if not child.is_over():
                    child.kill()
                killed = child.wait(SECONDS)
            about = f"event {moment}" if moment is not None else f"{killed.seconds:.2f} s"
            if killed.code != -signal.SIGKILL:
                _judge_end(record, killed, about)
                continue
            record.killed += 1
            again = self.start(command).wait(SECONDS)
            _judge_end(record, again, about)
            if "Going on with" in again.said:
                record.resumed += 1
            elif "a new run" in again.said:
                record.anew += 1
            if "Skipped" in again.said:
                line = next(x for x in again.said.splitlines() if "Skipped" in x)
                record.corrupt.append(f"{about}: {line}")
            if again.code == 0:
                record.lost += [f"{about}: {key}" for key in differences(expected, place)]
                record.orphans += [f"{about}: {file}" for file in orphans(place)]
        return record


def _sleep_while(child: Child, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not child.is_over():
        time.sleep(0.005)


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


def _places(command: list[str]) -> tuple[str, ...]:
    return tuple(
        os.path.abspath(each.partition("=")[2]) for each in command if each.startswith("paths.")
    )


def _count(command: list[str]) -> list[int]:
    """Count events from here on; the list's only number is the count."""
    places, number = _places(command), [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        number[0] += _touches(event, arguments, places)

    sys.addaudithook(hook)
    return number


def _end_at(last: int, command: list[str]) -> None:
    """Let this process end itself before an event."""
    places, left = _places(command), [last]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _touches(event, arguments, places):
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(hook)


# --- what is left --------------------------------------------------------------------------------


def orphans(place: Path) -> Iterator[str]:
    """Yield what should not be there once a run has ended: half-made files, folders of no run."""
    for path in sorted(place.rglob("*")):
        if path.name.endswith((".tmp", ".partial")):
            yield str(path.relative_to(place))
    for folder in sorted(place.glob("outputs/*/*")):
        if folder.is_dir() and not (folder / "run.json").exists():
            yield f"{folder.relative_to(place)}: no run.json"


def differences(expected: Path, place: Path) -> list[str]:
    """Return in what the last checkpoints of two places' newest runs differ; clocks apart."""
    import torch

    from tests.runner.test_resume import unequal

    found = []
    for each in (expected, place):
        files = sorted(each.glob("outputs/*/*/checkpoints/step-*.ckpt"), key=lambda p: p.name)
        if not files:
            return ["no checkpoint"]
        found.append(torch.load(files[-1], weights_only=True))
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "rng_states", "global_step")
    first, second = ({key: each[key] for key in keys} for each in found)
    return unequal(first, second)
