"""Run folders as the runner leaves them, made in milliseconds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ledger import Ledger, Saving

STEPS = range(10, 101, 10)


def make_run(
    output_dir: Path,
    name: str,
    seed: int,
    *,
    loss: float = 4.0,
    method: dict[str, Any] | None = None,
    steps: range = STEPS,
    record: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder: its loss falls from `loss` + 1 to `loss`; a method saves a quarter.

    A dense step costs 8 GFLOPs and sees 64 tokens, at 640 tokens a second.
    """
    run_id = f"{abs(hash((name, seed, loss))) % 10**8:08d}"
    folder = output_dir / name / f"2026-01-01_00-00-{seed:02d}-{run_id}"
    folder.mkdir(parents=True)
    last = steps[-1]
    config = {
        "module": {"_target_": "lightning_modules.causal_lm.CausalLM", "architecture": {"n": 1}},
        "datamodule": {"batch_size": 2, "context_length": 16, "seed": seed, **(data or {})},
        "callbacks": {"est": method},
        "trainer": {"max_steps": last, "accumulate_grad_batches": 2, "devices": 1},
        "paths": {"output_dir": str(output_dir), "run_dir": str(folder)},
        "name": name,
        "seed": seed,
        "task": "train",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = ["step,tokens,FLOPs,train/loss,val/loss,perf/tokens_per_second,est/active_fraction"]
    for step in steps:
        value, spent = loss + (last - step) / last, (6e9 if method else 8e9) * step
        active = 0.75 if method else ""
        rows.append(f"{step},{64 * step},{spent},{value},{value + 0.5},640,{active}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    savings = (
        Saving("FLOPs counted, all", "FLOPs", 6e9 * last, 8e9 * last),
        Saving("FLOPs counted, blocks", "FLOPs", 3e9 * last, 4e9 * last),
        Saving("time of the steps", "s", 8.0, 10.0, estimated=True),
    )
    content = {
        "id": run_id,
        "name": name,
        "experiment": None,
        "task": "train",
        "status": "finished",
        "seed": seed,
        "started": f"2026-01-01T00:00:{seed:02d}+00:00",
        "seconds": 12.0,
        "command": f"python run.py name={name} seed={seed}",
        "metrics": {"train/loss": loss, "val/loss": loss + 0.5, "val/perplexity": 9.0},
        "ledgers": {"est": asdict(Ledger("EST", "dense", savings))} if method else {},
    }
    (folder / "run.json").write_text(json.dumps({**content, **(record or {})}))
    return folder


def make_study(output_dir: Path) -> None:
    """Write a dense arm and one of a method, three seeds each."""
    for seed, dense, sparse in ((1, 4.0, 4.1), (2, 4.2, 4.5), (3, 4.4, 4.6)):
        make_run(output_dir, "dense", seed, loss=dense)
        make_run(output_dir, "est", seed, loss=sparse, method={"_target_": "callbacks.est.EST"})
