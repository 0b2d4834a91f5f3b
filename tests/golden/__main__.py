"""python -m tests.golden compare: run again what expected.json was written from, print what moved.

`write` replaces the file; that is right only after an intended change, in a commit that names it.
Digests of weights depend on the processor and on the versions of libraries. Where these differ from
the file's, weights are left out and metrics may differ by a relative 1e-5.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"COLUMNS": "100", "NETRC": os.devnull}
os.environ.pop("WANDB_API_KEY", None)

from tests.golden.runs import RUNS, write_data

EXPECTED = Path(__file__).with_name("expected.json")
LIBRARIES = ("torch", "numpy", "transformers", "tokenizers", "pytorch-lightning")
TOLERANCE = 1e-5

REFUSALS = {
    "key": ["experiment=est_gpt2", "trainer.max_stepz=3"],
    "option": ["experiment=est_gpt"],
    "type": ["experiment=dlch", "module.bits=many"],
    "method": ["experiment=est_gpt2", "callbacks=est_paper", "callbacks.est.rates.heads=0.01"],
    "target": ["experiment=sat_sft", "module._target_=os.system"],
    "checkpoint": ["experiment=est_gpt2", "task=test"],
}


def main() -> int:
    """Run everything; write it or say what moved."""
    arguments = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    arguments.add_argument("do", choices=["write", "compare"])
    arguments.add_argument("only", nargs="*", help="names of runs; none: all, and the refusals")
    asked = arguments.parse_args()
    if asked.do == "write" and asked.only:
        arguments.error("write takes no names: the file is written whole")
    if unknown := sorted({*asked.only} - {*RUNS}):
        arguments.error(f"no such run: {', '.join(unknown)}. There are {', '.join(RUNS)}")
    began = time.process_time()
    found = measured(asked.only or [*RUNS], refusals=not asked.only)
    print(f"{time.process_time() - began:.0f} s of one core", file=sys.stderr)
    if asked.do == "write":
        EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    moved = differences(json.loads(EXPECTED.read_text(encoding="utf-8")), found)
    print(*moved or ["equal"], sep="\n")
    return 1 if moved else 0


def machine() -> dict[str, str]:
    """Return what digests of weights depend on."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    found = Path("/proc/cpuinfo")
    lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    python = ".".join(platform.python_version_tuple()[:2])
    return {**versions, "processor": f"{processor}, {capability}", "python": python}


def measured(names: list[str], refusals: bool) -> dict[str, Any]:
    """Run the experiments in a folder that goes away, and return what they came to."""
    found: dict[str, Any] = {"machine": machine(), "runs": {}, "configs": {}, "refusals": {}}
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="frugal-golden-") as folder:
        os.chdir(folder)  # paths in a config are then the same every time
        os.environ["FRUGAL_OUTPUTS"] = "outputs"
        try:
            write_data()
            for name in names:
                began = time.process_time()
                found["runs"][name] = _run(name)
                text = _said(0, f"experiment={name}", "--cfg", "job")
                found["configs"][name] = text.replace(folder, ".").splitlines()
                print(f"{name}: {time.process_time() - began:.0f} s", file=sys.stderr)
            for case, overrides in REFUSALS.items() if refusals else ():
                found["refusals"][case] = _said(2, *overrides).splitlines()
        finally:
            os.chdir(here)
    return found


def _said(code: int, *arguments: str) -> str:
    """Do what `python run.py ARGUMENTS` does; return what it says, if it ends with `code`."""
    from tests.runner.laboratory import command

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ended = command(*arguments)
    if ended != code:
        raise SystemExit(f"{' '.join(arguments)}: ended with {ended}\n{said.getvalue()}")
    return said.getvalue()


def _run(name: str) -> dict[str, Any]:
    """Train an experiment in small and return its config's hash, metrics and weights' digest."""
    import torch

    given = [f"name={name}", "trainer=cpu", "paths.output_dir=outputs", "paths.cache_dir=cache"]
    _said(0, f"experiment={name}", "debug=fast", *RUNS[name], *given)
    (folder,) = Path("outputs", name).iterdir()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    last = max((folder / "checkpoints").glob("step-*.ckpt"))
    weights = torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
    return {
        "config_hash": record["config_hash"],
        "metrics": {key: value for key, value in record["metrics"].items() if not _of_time(key)},
        "weights": digest(weights),
    }


def _of_time(metric: str) -> bool:
    """Whether a metric is measured with a clock."""
    return any(word in metric for word in ("second", "choosing_share"))


def digest(weights: dict[str, Any]) -> str:
    """Return the SHA-256 of a state dict: names, types, shapes and bits."""
    import torch

    found = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key]
        if isinstance(value, torch.Tensor):
            found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(f"{key} {value!r}".encode())
    return found.hexdigest()


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what moved, a line each; what only one of the two was asked for is no difference."""
    lines = []
    same_machine = before["machine"] == after["machine"]
    if not same_machine:
        print("another machine: no weights, metrics within 1e-5", file=sys.stderr)
    for name, new in after["runs"].items():
        old = before["runs"][name]
        if old["config_hash"] != new["config_hash"]:
            lines.append(f"{name}: config hash {old['config_hash']} -> {new['config_hash']}")
        if same_machine and old["weights"] != new["weights"]:
            lines.append(f"{name}: weights {old['weights'][:8]} -> {new['weights'][:8]}")
        tolerance = 0.0 if same_machine else TOLERANCE
        for key in sorted({*old["metrics"]} | {*new["metrics"]}):
            first, second = old["metrics"].get(key), new["metrics"].get(key)
            if not _close(first, second, tolerance):
                lines.append(f"{name}: {key} {first} -> {second}")
    for kind in ("configs", "refusals"):
        for name, new in after[kind].items():
            changes = difflib.unified_diff(before[kind][name], new, lineterm="", n=0)
            lines += [
                f"{kind[:-1]} {name}: {line}"
                for line in changes
                if not line.startswith(("---", "+++", "@@"))
            ]
    return lines


def _close(first: Any, second: Any, tolerance: float) -> bool:
    if not isinstance(first, float | int) or not isinstance(second, float | int):
        return bool(first == second)
    both = math.isnan(first) and math.isnan(second)
    return both or math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)


if __name__ == "__main__":
    sys.exit(main())
