"""What a second process brings: tokens per second of `trainer=ddp` against one process.

`python -m benchmarks.processes [--width 512] [--steps 20] [--rounds 3] [--json PATH]`. Both are
runs of `run.py` that take turns, with one thread for each process and the same micro-batch in each:
two processes have twice the tokens in a step. The rate is each run's median over its steps after
the first five, by its metrics.csv. On a machine that has other work the ratio says nothing: the
load is printed beside it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.arena import interleaved, versions, write
from reports.registry import find

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 5  # steps in which buffers are allocated


def rate(args: argparse.Namespace, processes: int) -> float:
    """Train for a few steps; return tokens per second."""
    with tempfile.TemporaryDirectory(prefix="frugal-processes-") as folder:
        command = [sys.executable, "run.py", "experiment=est_gpt2_dense", "logger=csv"]
        command += [f"paths.output_dir={folder}", f"datamodule.batch_size={args.batch_size}"]
        command += [f"module.architecture.n_embd={args.width}"]
        command += [f"trainer.max_steps={args.steps}", "trainer.log_every_n_steps=1"]
        command += ["trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0"]
        command += ["callbacks.checkpoint.monitor=null"]
        command += [f"trainer={'ddp' if processes > 1 else 'cpu'}", "trainer.accelerator=cpu"]
        command += [f"trainer.devices={processes}"]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, check=True)
        (run,), _ = find([folder])
        rates = run.series("perf/tokens_per_second").values()
    return median([*rates][WARM_UP:])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and return what is written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--width", type=int, default=512, help="of the GPT-2")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences, in each process")
    parser.add_argument("--steps", type=int, default=20, help="of a run, more than 5")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    args = parser.parse_args(arguments)
    if args.steps <= WARM_UP:
        parser.error(f"--steps {args.steps}: more than {WARM_UP}, which are not counted")
    load = os.getloadavg()[0]
    arms = {n: partial(rate, args, n) for n in (1, args.processes)}
    rates = {n: median(found) for n, found in interleaved(arms, args.rounds).items()}
    result = {
        "tokens_per_second": rates,
        "ratio": rates[args.processes] / rates[1],
        "load_before": load,
        "cores": os.cpu_count(),
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "versions": versions(),
    }
    print(
        f"width {args.width}: 1 process {rates[1]:,.0f} tokens/s, {args.processes} processes "
        f"{rates[args.processes]:,.0f} tokens/s: x {result['ratio']:.2f} (load before: {load:.1f} "
        f"on {result['cores']} cores)"
    )
    write(args.json, result)
    return result


if __name__ == "__main__":
    main()
