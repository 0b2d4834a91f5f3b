"""python -m tests.fuzz [configs] [pairs] [parts] [runs] [files]: try many; one table, every fault.

FRUGAL_FUZZ_SEED draws others; FRUGAL_FUZZ_EXAMPLES draws more or fewer of each kind.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from rich.console import Console
from rich.table import Table

from runner.validate import experiments
from tests.fuzz import configs, judge
from tests.fuzz.trials import Tally, each, examples, place, trace_of

Tried = Iterator[tuple[str, Tally]]
KINDS = ("configs", "pairs", "parts", "runs", "files")


def main() -> int:
    """Try, print, and return 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--only", help="an experiment or a loader")
    asked = parser.parse_args()
    table = Table("kind", "of", "tried", "ends", "slowest", "faults", title="Fuzz")
    tallies: list[tuple[str, str, Tally]] = []
    for kind in asked.kinds or KINDS:
        for name, tally in globals()[f"try_{kind}"](asked.only):
            tallies.append((kind, name, tally))
            ends = ", ".join(f"{n} {end}" for end, n in sorted(tally.ends.items()))
            tried = str(sum(tally.ends.values()))
            table.add_row(kind, name, tried, ends, f"{tally.slowest:.2f} s", str(len(tally.faults)))
            print(kind, name, tried, ends, flush=True)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(any(tally.faults for _, _, tally in tallies))


def try_configs(only: str | None) -> Tried:
    """Check configs that differ from every experiment."""
    for name in [only] if only else experiments():
        base = configs.base(f"experiment={name}")
        tally = Tally()

        def use(given: configs.Changes, base=base, tally=tally) -> None:
            began = time.process_time()
            end, said = "refused", ""
            try:
                end = "refused" if judge.check(base, given) else "accepted"
            except AssertionError as error:
                end, said = "no words", f"{error}"
            except Exception as error:  # noqa: BLE001  that is what is sought
                end, said = "traceback", trace_of(error)
            took = time.process_time() - began
            tally.count(end, took, said, dict(given))
            if end == "no words":
                tally.faults.pop(place(said), None)
                tally.faults.setdefault(said.splitlines()[0][:80], (said, dict(given)))

        each(configs.changes(configs.keys_of(base)), examples(60), use, shrink=False)
        yield name, tally


def try_pairs(only: str | None) -> Tried:
    """Check every experiment with every other option of a group."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.errors import ConfigError
    from runner.validate import check

    tally = Tally()
    for experiment, option in configs.pairs():
        if only not in (None, experiment):
            continue
        began = time.process_time()
        end, said = "accepted", ""
        try:
            check(configs.base(f"experiment={experiment}", option))
        except (ConfigError, HydraException, OmegaConfBaseException):
            end = "refused"
        except Exception as error:  # noqa: BLE001  that is what is sought
            end, said = "traceback", trace_of(error)
        tally.count(end, time.process_time() - began, said, (experiment, option))
    yield "experiment x option", tally


def try_runs(only: str | None, trains: bool = True) -> Tried:
    """Start configs that differ from each method's small run."""
    from tests.fuzz.warm import inputs, warm_up
    from tests.golden.runs import RUNS

    with tempfile.TemporaryDirectory(prefix="frugal-fuzz-") as folder:
        place_ = Path(folder)
        inputs(place_)
        warm_up()
        for name in [only] if only else RUNS:
            base = judge.small(name, place_)
            tally = Tally()

            def use(given: configs.Changes, base=base, tally=tally) -> None:
                ended = judge.run(base, given, place_, trains)
                ends = {0: "ran", 1: "failed in words", 2: "refused"}
                end = ends.get(ended.code, "traceback") if ended.in_words else "traceback"
                end = "hung" if ended.code is None else end
                fault = ended.said or end if end in ("traceback", "hung") else ""
                tally.count(end, ended.seconds, fault, dict(given))

            keys = judge.harmless(configs.keys_of(base))
            each(configs.changes(keys), examples(63), use, shrink=False)  # 504 in all
            yield name, tally


def try_parts(only: str | None) -> Tried:
    """Build the parts of such configs, as is done before every run."""
    return try_runs(only, trains=False)


def try_files(only: str | None) -> Tried:
    """Read files that are damaged or foreign."""
    from tests.fuzz import files
    from tests.fuzz.warm import warm_up

    warm_up()
    for name, loader in files.LOADERS.items():
        if only not in (None, name):
            continue
        tally = Tally()
        with tempfile.TemporaryDirectory(prefix="frugal-fuzz-") as folder:
            loader.write(Path(folder))

            def use(edits, loader=loader, tally=tally, folder=folder) -> None:
                ended = files.read(loader, Path(folder), edits)
                ends = {0: "read", 2: "refused", None: "hung"}
                fault = "" if ended.code in (0, 2) else ended.said or f"ended by {ended.code}"
                tally.count(ends.get(ended.code, "traceback"), ended.seconds, fault, edits)

            use([])
            each(files.damages(), examples(100), use, shrink=False)
        yield name, tally


if __name__ == "__main__":
    sys.exit(main())
