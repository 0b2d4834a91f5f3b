"""What a run computes with: the code's commit, versions, hardware, and the memory it took."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from reports.run_record import Git, Hardware, PeakMemory

PACKAGES = (
    *("datasets", "hydra-core", "numpy", "pytorch-lightning", "tokenizers", "torch"),
    *("transformers", "wandb"),
)


def git() -> Git:
    """Return the commit and whether files differ from it; None for both outside of git."""
    root = Path(__file__).resolve().parent.parent

    def ask(*command: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    changes = ask("status", "--porcelain")
    return Git(ask("rev-parse", "HEAD"), None if changes is None else changes != "")


def versions() -> dict[str, str]:
    """Return Python's version and those of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> Hardware:
    """Return what this process can compute with."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Hardware(_processor(), cores(), torch.get_num_threads(), gpus)


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def shares(workers: int) -> list[dict[str, str]]:
    """Share this machine out among processes that run at once.

    Args:
        workers: How many.

    Returns:
        For each the environment variables that give it its threads, fewer only if this process has
        fewer, and its GPUs. Where GPUs are fewer than workers, several share one.
    """
    threads = max(1, cores() // workers)
    with suppress(KeyError, ValueError):
        threads = min(threads, int(os.environ["OMP_NUM_THREADS"]))
    each = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if not (gpus := _visible_gpus()):
        return [each] * workers
    return [{**each, "CUDA_VISIBLE_DEVICES": part} for part in _parts(gpus, workers)]


def _visible_gpus() -> list[str]:
    """Return the GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [each for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if each]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _parts(gpus: list[str], workers: int) -> list[str]:
    if len(gpus) < workers:
        return [gpus[place % len(gpus)] for place in range(workers)]
    ends = [place * len(gpus) // workers for place in range(workers + 1)]
    return [",".join(gpus[a:b]) for a, b in pairwise(ends)]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def forget_peak() -> None:
    """Count peak memory from here: the jobs of a sweep share a process."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then the process's
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> PeakMemory:
    """Return the most memory that was held since `forget_peak`."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    unit = 1 if sys.platform == "darwin" else 1024
    held = marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return PeakMemory(held, torch.cuda.max_memory_allocated() if torch and on_gpu else None)
