"""Jobs of a sweep as commands: started as there is room, followed to their ends, stopped.

Where they run is a launcher's choice, see `hydra_plugins/frugal.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

# Tells a job which process has started it.
STARTER = "FRUGAL_STARTER"

# What a job is sent at the first request to stop, the second, and all later ones. A training saves
# and stops after its step at the first, and at once at the second.
REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)

# Seconds between two looks at what runs.
PAUSE = 0.1


@dataclass(frozen=True)
class Command:
    """One job, as a command for this machine or another one that sees the same folders.

    Args:
        number: The job's number in its sweep, from 1.
        words: The command line.
        environment: Variables beside those of the machine where it runs.
        log: The file to which its output is appended, from the folder.
        folder: Where the command is given.
    """

    number: int
    words: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    folder: Path = field(default_factory=Path.cwd)

    def begin(self, share: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start it in a session of its own: a Ctrl-C reaches it through its starter alone.

        Args:
            share: Variables that say which part of the machine it may use.
        """
        file = self.folder / self.log
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as log:
            return subprocess.Popen(
                self.words,
                cwd=self.folder,
                env={**os.environ, **share, **self.environment, STARTER: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class Running(Protocol):
    """A job that has been started."""

    def code(self) -> int | None:
        """Return its exit code, minus the signal's number if one has killed it; None: it runs."""

    def stop(self) -> None:
        """Ask it to stop, each time more firmly."""


class Engine(Protocol):
    """Starts jobs; `workers` of them at once, None: all."""

    workers: int | None

    def start(self, command: Command) -> Running:
        """Start a job. At most `workers` run when this is called again."""


def follow(
    engine: Engine,
    commands: Iterator[Command],
    between: Callable[[Mapping[int, Running]], None] = lambda running: None,
) -> Iterator[tuple[Command, int]]:
    """Start jobs as there is room, and yield each with its exit code when it has ended.

    At SIGTERM or Ctrl-C nothing more is started, what runs is asked to stop and is waited for.

    Args:
        engine: Where they run.
        commands: The jobs; the next one is asked for when there is room for it.
        between: Called again and again with what runs, by the job's number.

    Raises:
        SystemExit: A signal came; 128 + its number.
    """
    running: dict[int, Running] = {}
    started: dict[int, Command] = {}
    more = True
    with _signals() as received:
        heeded = 0
        while True:
            while more and not received and len(running) < (engine.workers or len(running) + 1):
                command = next(commands, None)
                if command is None:
                    more = False
                else:
                    started[command.number] = command
                    running[command.number] = engine.start(command)
            for _ in received[heeded:]:
                heeded += 1
                for each in running.values():
                    each.stop()
            for number, code in [(n, each.code()) for n, each in running.items()]:
                if code is not None:
                    del running[number]
                    yield started.pop(number), code
            between(running)
            if not running and (received or not more):
                break
            time.sleep(PAUSE)
    if received:
        raise SystemExit(128 + received[0])


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of being ended by them; main thread only."""
    received: list[int] = []

    def receive(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        name = signal.Signals(signum).name
        print(f"{name}: stopping the jobs after their steps; once more: at once.", flush=True)

    before = {each: signal.signal(each, receive) for each in REQUESTS[:2]}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def end_with_starter() -> None:
    """Stop this process, as at SIGTERM, when the one that has started it as a job is gone."""
    starter = os.environ.pop(STARTER, None)
    if starter is not None:
        threading.Thread(target=_watch, args=(int(starter),), daemon=True).start()


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def execute(command: Command) -> int:
    """Run a job to its end in a process that a cluster has given us; return its exit code.

    What stops that process stops the job.
    """
    process = command.begin({})
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def path_with_ours() -> str:
    """Return a PYTHONPATH by which another process finds `execute`."""
    root, before = str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")
    return f"{root}{os.pathsep}{before}" if before else root
