"""Disks that are full at some moment, and what becomes of the runs on them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.forked import Child, Ended
from tests.resilience.kills import SECONDS, Laboratory, Record, differences, orphans


def try_sizes(laboratory: Laboratory, name: str, sizes: list[int]) -> Record:
    """Run where no file may be larger than so many bytes, then go on where any may.

    Args:
        laboratory: With the data.
        name: The experiment, which has run whole there.
        sizes: In bytes.
    """
    record = Record(name)
    for size in sizes:
        place = laboratory.folder / name / f"size {size}"
        command = laboratory.command(name, f"{name}/size {size}")

        run = laboratory.work(command)

        def work(size: int = size, run: Callable[[], int] = run) -> int:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return run()

        _go_on(record, laboratory, command, Child(work).wait(SECONDS), place, f"{size} bytes")
    return record


def try_disks(laboratory: Laboratory, name: str, sizes: list[int]) -> Record:
    """Run on disks of so many bytes, then go on once there is room.

    Args:
        laboratory: With the data.
        name: The experiment, which has run whole there.
        sizes: In bytes.
    """
    record = Record(name)
    for size in sizes:
        place = laboratory.folder / name / f"disk {size}"
        with disk(place, size):
            command = laboratory.command(name, f"{name}/disk {size}")
            ended = laboratory.start(command).wait(SECONDS)
            subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
            _go_on(record, laboratory, command, ended, place, f"disk of {size} bytes")
    return record


def _go_on(
    record: Record, laboratory: Laboratory, command: list[str], full: Ended, place: Path, about: str
) -> None:
    """Judge how a run ended on a full disk, and go on with it where there is room."""
    record.killed += 1
    if full.code is None:
        record.hangs.append(f"{about}: {full.said[-500:]}")
    elif full.code not in (0, 1, 2) or not full.in_words:
        record.tracebacks.append(f"{about}: {full.code} {full.said[-1500:]}")
    record.orphans += [f"{about}, full: {file}" for file in orphans(place)]
    again = laboratory.start(command).wait(SECONDS)
    if again.code != 0 or not again.in_words:
        record.tracebacks.append(f"{about}, again: {again.code} {again.said[-1500:]}")
        return
    record.resumed += "Going on with" in again.said
    record.anew += "a new run" in again.said
    expected = laboratory.folder / record.name / "whole"
    record.lost += [f"{about}: {key}" for key in differences(expected, place)]
    record.orphans += [f"{about}: {file}" for file in orphans(place)]


@contextlib.contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """Mount a disk in memory on a folder."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def may_mount(folder: Path) -> bool:
    """Whether this process may mount a disk in memory."""
    if os.geteuid() != 0:
        return False
    try:
        with disk(folder / "mounted", 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
