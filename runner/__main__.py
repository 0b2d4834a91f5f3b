"""`python -m runner ls [FOLDER]`, `show RUN`, `compare RUN RUN ...`: runs, without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from reports import tables
from reports.registry import find, resolve
from reports.run_record import NoRun
from runner import output


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Do what a command line says; return the exit code: 2 where a run or folder is not there."""
    parser = argparse.ArgumentParser(prog="python -m runner", description="Looks at runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    ls = commands.add_parser("ls", help="list the runs below a folder, newest last")
    ls.add_argument("place", nargs="?", default="outputs", metavar="FOLDER")
    show = commands.add_parser("show", help="what one run was and reached")
    show.add_argument("runs", nargs=1, metavar="RUN", help="a run folder, or an id")
    compare = commands.add_parser("compare", help="in what runs differ, and what each reached")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or an id")
    for command in (show, compare):
        command.add_argument("--in", dest="place", default="outputs", help="where ids are sought")
    asked = parser.parse_args(arguments)
    if console is None:
        console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        if asked.command == "ls":
            tables.list_runs(console, *find([asked.place]))
            return 0
        runs = [resolve(word, Path(asked.place)) for word in asked.runs]
        if asked.command == "show":
            tables.show_run(console, runs[0])
        else:
            tables.compare(console, runs)
    except NoRun as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    output.outlive()
    sys.exit(main())
