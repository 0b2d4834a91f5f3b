"""python -m tests.resilience: kill every method's runs and go on; print one table.

--kills says how many kills a method gets, --seed draws others. The tests fill disks as well.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"COLUMNS": "200", "NETRC": os.devnull}

from rich.console import Console
from rich.table import Table

from tests.resilience.kills import RESUMABLE, Laboratory

COLUMNS = ("runs", "killed", "resumed", "anew", "lost", "corrupt", "orphans", "tracebacks", "hangs")


def main() -> int:
    """Kill, print, and return 1 if something was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience", description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="EXPERIMENT")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    table = Table("method", *COLUMNS, "seconds", title="Kills")
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="frugal-resilience-") as folder:
        laboratory = Laboratory(Path(folder))
        for name in asked.methods or RESUMABLE:
            began = time.monotonic()
            record = laboratory.try_kills(name, asked.kills, asked.seed)
            shown = (getattr(record, column) for column in COLUMNS)
            cells = [str(len(v) if isinstance(v, list) else v) for v in shown]
            table.add_row(name, *cells, f"{time.monotonic() - began:.0f}")
            moments = ", ".join(f"{what} {n}" for what, n in record.moments.most_common())
            print(f"{name}: {moments}", *record.faults, sep="\n  ", flush=True)
            faults += record.faults
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
