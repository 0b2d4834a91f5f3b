"""Tasks of EleutherAI's lm-eval, the extra lm_eval."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml

from language.minimal_pairs import read_pairs


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    blimp: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Return a model's metrics in tasks of lm-eval.

    Args:
        model: A Hugging Face causal language model, in evaluation mode.
        tokenizer: Of the model.
        tasks: Names of tasks or groups, `blimp` for all of BLiMP.
        blimp: A folder of BLiMP's jsonl files, which `blimp` then reads instead of the hub.
        limit: Only the first so many examples of each task.
        batch_size: Sequences computed together.

    Returns:
        By task and metric.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: There is no such task, its data cannot be had, there are no such files, or an
            answer is longer than the model's context.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            f"task=lm_eval needs the package lm-eval, of the extra lm_eval ({error}): pip install "
            "'lm-eval[hf]' -c constraints.txt; task=minimal_pairs needs none"
        ) from error
    manager = TaskManager()
    local: list[dict[str, Any]] = []
    if blimp is not None and "blimp" in tasks:
        tasks = [task for task in tasks if task != "blimp"]
        local = _local_blimp(blimp)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise ValueError(
            f"tasks: lm-eval has no {', '.join(unknown)}; `lm-eval ls tasks` lists its tasks"
        )
    reader = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        with torch.compiler.set_stance("force_eager"):  # as in `as_told`: some tasks generate
            found = simple_evaluate(
                model=reader,
                tasks=[*tasks, *local],
                limit=limit,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=False,
            )
    except (ConnectionError, FileNotFoundError) as error:
        raise ValueError(f"tasks: their data cannot be had: {error}") from error
    except AssertionError as error:
        raise ValueError(
            "tasks: a check of lm-eval failed, as it does where an answer has more tokens than the "
            f"model's context ({reader.max_length}); task=minimal_pairs takes any length. {error}"
        ) from error
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and "stderr" not in name and name != "sample_len"
        }
        for task, metrics in found["results"].items()
    }


def _local_blimp(folder: str) -> list[dict[str, Any]]:
    """Return lm-eval's own BLiMP tasks, with the files of a folder for their data."""
    template = resources.files("lm_eval").joinpath("tasks/blimp/_template_yaml").read_text("utf-8")
    return [
        {
            **yaml.safe_load(template),
            "task": f"blimp_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"train": str(Path(folder).expanduser() / f"{name}.jsonl")}
            },
        }
        for name in read_pairs(folder)
    ]
