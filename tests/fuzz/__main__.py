"""python -m tests.fuzz [configs] [pairs] [runs] [resumes] [files]: one table, every fault.

FRUGAL_FUZZ_SEED draws others; FRUGAL_FUZZ_EXAMPLES draws more or fewer of each kind;
FRUGAL_FUZZ_LOG names a file to which a line of JSON is added for each that was started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from runner.validate import experiments
from tests.fuzz import configs, judge
from tests.fuzz.trials import Tally, each, examples, trace_of

Only = Callable[[str], bool]
Tried = Iterator[tuple[str, Tally]]
Groups = dict[str, tuple[Any, ...]]
KINDS = ("configs", "pairs", "runs", "resumes", "files")


def main() -> int:
    """Try, print, and return 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--only", default="*", help="a pattern of experiments or loaders")
    asked = parser.parse_args()
    table = Table("kind", "of", "tried", "ends", "slowest", "faults", title="Fuzz")
    tallies: list[tuple[str, str, Tally]] = []
    for kind in asked.kinds or KINDS:
        for name, tally in globals()[f"try_{kind}"](lambda name: fnmatch(name, asked.only)):
            tallies.append((kind, name, tally))
            ends = ", ".join(f"{n} {end}" for end, n in sorted(tally.ends.items()))
            tried = str(sum(tally.ends.values()))
            table.add_row(kind, name, tried, ends, f"{tally.slowest:.2f} s", str(len(tally.faults)))
            print(kind, name, tried, ends, flush=True)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(any(tally.faults for _, _, tally in tallies))


def try_configs(only: Only) -> Tried:
    """Check configs that differ from every experiment."""
    for name in filter(only, experiments()):
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
            tally.count(end, time.process_time() - began, said, dict(given))

        each(name, configs.changes(configs.keys_of(base)), examples(60), use, shrink=False)
        yield name, tally


def try_pairs(only: Only) -> Tried:
    """Check every experiment with every other option of a group."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.errors import ConfigError
    from runner.validate import check

    tally = Tally()
    for experiment, option in configs.pairs():
        if not only(experiment):
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


def try_runs(only: Only) -> Tried:
    """Start configs that differ from each experiment's small run."""
    with _small_runs() as (folder, bases, groups):
        for name, base in bases.items():
            if only(name):

                def start(given: configs.Changes, base=base) -> judge.Verdict:
                    return judge.run(base, given, folder)

                yield name, _judged(name, base, groups, 15, start)  # 525 in all


def try_resumes(only: Only) -> Tried:
    """Go on with interrupted small runs by configs that differ."""
    with _small_runs() as (folder, bases, groups):
        for name, base in bases.items():
            if not only(name):
                continue
            outputs, again = judge.interrupted(name, base, folder)

            def go_on(given: configs.Changes, again=again, outputs=outputs) -> judge.Verdict:
                return judge.run(again, given, folder, outputs)

            yield name, _judged(name, again, groups, 5, go_on)


@contextlib.contextmanager
def _small_runs() -> Iterator[tuple[Path, dict[str, DictConfig], Groups]]:
    """Write the data, import what runs import, and compose every experiment's small run."""
    from tests.fuzz.small import small, write_inputs
    from tests.fuzz.warm import warm_up

    with tempfile.TemporaryDirectory(prefix="frugal-fuzz-") as place_:
        folder = Path(place_)
        warm_up()
        write_inputs(folder)
        bases = {name: small(name, folder) for name in experiments()}
        yield folder, bases, configs.groups_of(bases.values())


def _judged(
    name: str,
    base: DictConfig,
    groups: Groups,
    count: int,
    judged: Callable[[configs.Changes], judge.Verdict],
) -> Tally:
    """Draw changes of a small run, and count how each ends."""
    tally = Tally()

    def use(given: configs.Changes) -> None:
        verdict = judged(given)
        tally.count(verdict.end, verdict.seconds, verdict.fault, dict(given))
        log(experiment=name, given=given, **vars(verdict))

    keys = judge.harmless(configs.keys_of(base))
    drawn = configs.with_groups(configs.changes(keys), groups)
    each(name, drawn, examples(count), use, shrink=False)
    return tally


def log(**what: object) -> None:
    """Append a line of JSON to the file that FRUGAL_FUZZ_LOG names, if it does."""
    if (path := os.environ.get("FRUGAL_FUZZ_LOG")) is not None:
        with open(path, "a", encoding="utf-8") as file:
            print(json.dumps(what, default=str), file=file)


def try_files(only: Only) -> Tried:
    """Read files that are damaged or foreign."""
    from tests.fuzz import files
    from tests.fuzz.loaders import LOADERS
    from tests.fuzz.warm import warm_up

    warm_up()
    for name, loader in LOADERS.items():
        if not only(name):
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
            each(name, files.damages(), examples(100), use, shrink=False)
        yield name, tally


if __name__ == "__main__":
    sys.exit(main())
