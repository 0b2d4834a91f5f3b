"""dry_run=true: what a run is and what it will cost, without training or writing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_modules.optimization import remarks
from runner.job import device_count, plans_steps
from runner.parts import answer, best_precision, build, build_data, planned_steps
from runner.validate import refuse_misfits

BYTES = {"64": 8, "32": 4, "16": 2, "bf16": 2}


def show(settings: dict[str, Any]) -> dict[str, float]:
    """Build the module without data, print what it is and what it will cost.

    Args:
        settings: The checked config.

    Returns:
        The model's `parameters` and the `tokens_per_step`.

    Raises:
        ConfigError: Something cannot be built.
    """
    console = Console()
    known = settings["module"]
    datamodule = build_data(settings)
    module = build("module", known)
    if not known.get("architecture"):
        refuse_misfits(settings, getattr(module, "hf_config", None))
    trainer = {**settings["trainer"]}
    if plans_steps(settings):
        trainer["max_steps"] = planned_steps(module, datamodule, trainer["max_steps"])
    # Without weights, at once and at any size; what is pretrained, or has such parts, is loaded.
    with torch.device("meta" if known.get("architecture") else "cpu"):
        module.configure_model()
    parameters = sum(p.numel() for p in module.parameters())
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    data = settings["datamodule"]
    sequences = data.get("batch_size", 1) * trainer.get("accumulate_grad_batches", 1)
    shape = (sequences * device_count(trainer), data.get("context_length", 1))
    tokens, unit = shape[0] * shape[1], "tokens" if "context_length" in data else "examples"
    title = Text(f"{settings['name']}, dry run")
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("parameters", f"{parameters:,}")
    table.add_row("of these trained", f"{trainable:,}")
    table.add_row(f"{unit} per optimizer step", f"{tokens:,}")
    table.add_row("optimizer steps", f"{trainer['max_steps']:,}")
    table.add_row(f"{unit} in all", f"{tokens * trainer['max_steps']:,}")
    console.print(table)
    precision = trainer.get("precision") or "32-true"
    if precision == "auto":
        precision = best_precision(str(trainer.get("accelerator", "auto")))
    strategy = trainer.get("strategy")
    split = isinstance(strategy, dict) and strategy["_target_"].endswith(".FullyShardedStrategy")
    micro_batches = trainer.get("accumulate_grad_batches") or 1
    spread = Spread(device_count(trainer), split, micro_batches)
    console.print(memory(parameters, trainable, precision, spread))
    for name, node in (settings["callbacks"] or {}).items():
        callback = build(f"callbacks.{name}", node)
        if (plan := answer(callback, "plan", module, shape, trainer["max_steps"])) is not None:
            console.print(plan)
    for line in remarks(getattr(module, "schedule_settings", None), trainer["max_steps"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("Dry run: nothing was trained and nothing was written.")
    return {"parameters": float(parameters), "tokens_per_step": float(tokens)}


@dataclass(frozen=True)
class Spread:
    """How several devices share a training.

    Args:
        devices: How many train together.
        split: Whether each keeps its share of everything (FSDP2) or the whole (DDP).
        micro_batches: In an optimizer step.
    """

    devices: int = 1
    split: bool = False
    micro_batches: int = 1

    def kept(self, count: float) -> float:
        """Return what one device keeps of so many bytes."""
        return count / self.devices if self.split else count

    def sent(self, parameters: float, gradients: float) -> float:
        """Return the bytes that a device sends, and receives, in an optimizer step.

        In a ring of N each collective moves (N - 1) / N of what it collects. DDP adds the gradients
        up once and gathers the sums. FSDP2 gathers the parameters before the forward and before the
        backward pass of each micro-batch, and adds its gradients up.
        """
        share = (self.devices - 1) / self.devices
        if self.split:
            return share * self.micro_batches * (2 * parameters + gradients)
        return share * 2 * gradients


def memory(parameters: int, trainable: int, precision: str, spread: Spread) -> Table:
    """Return what training keeps in memory on each device, and what that sends the others.

    Args:
        parameters: How many parameters the model has.
        trainable: How many of them get a gradient.
        precision: One of Lightning's names: mixed precision keeps the parameters in 32 bits.
        spread: How the devices share it.
    """
    kind = "32" if precision.endswith("-mixed") else precision.split("-")[0]
    size, name = BYTES.get(kind, 4), {"bf16": "bfloat16", "16": "float16", "64": "float64"}
    table = Table(
        "memory", "type", "", title="Memory on each device", caption="without activations"
    )
    table.columns[2].justify = "right"
    rows = (
        ("parameters", parameters * size),
        ("gradients", trainable * size),
        ("optimizer states (AdamW: two a parameter)", 2 * trainable * size),
    )
    for label, count in rows:
        table.add_row(label, name.get(kind, "float32"), _size_in_words(spread.kept(count)))
    table.add_section()
    table.add_row("in all", "", _size_in_words(sum(spread.kept(count) for _, count in rows)))
    if spread.devices > 1:
        if spread.split:
            table.caption = "without activations, and the blocks that run, whole for that time"
        sent = spread.sent(parameters * size, trainable * size)
        way = "FSDP2" if spread.split else "DDP"
        label = f"sent by each of {spread.devices} devices in an optimizer step ({way})"
        table.add_row(label, "", _size_in_words(sent))
    return table


def _size_in_words(count: float) -> str:
    power = min(int(math.log(count, 1024)), 4) if count >= 1 else 0
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
