"""The card of an exported model: what it is, from what, by what, and what was measured on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from ledger import Ledger
from runner.run_record import RunRecord
from subnetworks.families import longest_context

MEASURED = ("test", "val", "old")
"""Splits whose metrics are of the whole model as it stands; training's are of a step before it."""


def measured(record: RunRecord, checkpoint: Path, content: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that were measured on a checkpoint's weights.

    Args:
        record: The run's run.json.
        checkpoint: The checkpoint.
        content: What it holds.

    Returns:
        By name; empty if nothing was measured on it.
    """
    metrics: Mapping[str, float | None] = {}
    for state in content["callbacks"].values():
        if isinstance(state, Mapping) and state.get("validated_step") == content["global_step"]:
            metrics = state["metrics"]
    # A run that ends between two validations is validated after its last checkpoint.
    last = Path(record.checkpoint or "").name
    if not metrics and record.status == "finished" and checkpoint.name == last:
        metrics = record.metrics
    return {
        name: value
        for name, value in metrics.items()
        if name.partition("/")[0] in MEASURED and value is not None
    }


def card(
    record: RunRecord,
    settings: Mapping[str, Any],
    checkpoint: Path,
    content: Mapping[str, Any],
    config: Any,
    hub: str | None = None,
) -> str:
    """Return the README of an exported model.

    Args:
        record: The run's run.json.
        settings: Its resolved config.
        checkpoint: What was exported.
        content: What the checkpoint holds.
        config: The model's Hugging Face config; None for a module without one.
        hub: OWNER/NAME of the repository that it is for; None: it stays a folder.
    """
    kind = str(getattr(config, "model_type", "language"))
    name = f"{record.name}-{record.id}"
    reached = measured(record, checkpoint, content)
    module, node = settings["module"] or {}, settings["datamodule"] or {}
    base, base_card = _base(module.get("pretrained"))
    data = _data(node, record.data)
    hub_sets = [each["path"] for each in (node.get("datasets") or {}).values()]
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[kind, "frugal", *record.ledgers],
        base_model=base if _is_hub_id(base) else None,
        license=getattr(base_card, "license", None),
        datasets=hub_sets or None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=str(node.get("source", "unknown")),
                dataset_name=f"{data}, {metric.partition('/')[0]}",
                metric_type=metric.partition("/")[2],
                metric_value=value,
            )
            for metric, value in reached.items()
        ]
        or None,
    )
    rows = _origin(record, content["global_step"], checkpoint, base, data, front.license, config)
    about = "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value is not None)
    return str(
        ModelCard(
            f"""---
{front.to_yaml()}
---

# {name}

A {kind} model, trained by the Frugal laboratory.

| | |
|---|---|
{about}
{_results(reached)}
{_saved(record)}
## Limits

Only what stands above was measured. Licence and contents of the training data were not checked.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{hub or "PATH_OF_THIS_FOLDER"}")
tokenizer = AutoTokenizer.from_pretrained("{hub or "PATH_OF_THIS_FOLDER"}")
```
"""
        )
    )


def _origin(
    record: RunRecord,
    step: int,
    checkpoint: Path,
    base: str | None,
    data: str,
    licence: str | None,
    config: Any,
) -> dict[str, Any]:
    """What a model goes back to, by name; None where it does not apply."""
    commit = (record.git.commit or "unknown")[:12]
    return {
        "run": f"`{record.id}`",
        "experiment": f"`{record.name}`",
        "checkpoint": f"`{checkpoint.name}`",
        "optimizer steps": f"{step:,}",
        "base model": base or "none: trained from scratch",
        "licence of the base model": licence,
        "data": data,
        "context": f"{limit:,} tokens" if (limit := longest_context(config)) else None,
        "seed": record.seed,
        "code": f"`{commit}`{', with changes' if record.git.dirty else ''}",
        "config hash": f"`{record.config_hash}`",
        "torch": record.versions.get("torch"),
        "transformers": record.versions.get("transformers"),
    }


def _base(named: str | None) -> tuple[str | None, Any]:
    """The base model's name without this machine's paths, and the front matter of its own card."""
    if named is None:
        return None, None
    folder, own = Path(named).expanduser(), None
    file = try_to_load_from_cache(named, "README.md") if _is_hub_id(named) else folder / "README.md"
    if isinstance(file, str | Path) and Path(file).is_file():
        own = ModelCard.load(file, ignore_metadata_errors=True).data
    return (folder.name if folder.exists() else named), own


def _is_hub_id(named: str | None) -> bool:
    """Whether a name is OWNER/MODEL, and no file, folder, experiment or package."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", named or "")) and not Path(named or "").exists()


def _data(node: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """The training data in words: where from and how much."""
    source = str(node.get("source") or str(node.get("_target_", "unknown")).rpartition(".")[2])
    sets = [str(each["path"]) for each in (node.get("datasets") or {}).values()]
    files = node.get("files") or []
    files = [files] if isinstance(files, str) else files
    words = [source, *sets, *(Path(file).name for file in files)]
    if tokens := described.get("train_tokens"):
        words.append(f"{tokens:,} tokens")
    return ", ".join(words)


def _results(reached: Mapping[str, float]) -> str:
    if not reached:
        return "Nothing was measured on this checkpoint.\n"
    rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in sorted(reached.items()))
    return f"Measured on this checkpoint:\n\n| | |\n|---|---|\n{rows}"


def _saved(record: RunRecord) -> str:
    ledgers = [Ledger.from_dict(content) for content in record.ledgers.values()]
    rows = "".join(
        f"| {row.quantity} | {100 * row.saved:.1f} % | {ledger.method}; {ledger.baseline} |\n"
        for ledger in ledgers
        for row in ledger.savings
        if row.saved is not None
    )
    if not rows:
        return ""
    return f"Saved by the whole run:\n\n| | saved | by, against |\n|---|---|---|\n{rows}"
