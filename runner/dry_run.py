"""dry_run=true: what a run is and what it will cost, without training or writing anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_modules.optimization import remarks
from runner.fit import is_language_model
from runner.footprint import Footprint, Precision, footprint
from runner.job import device_count, methods, plans_steps
from runner.parts import answer, build, build_callbacks, build_data, prepare, trainer_node
from runner.validate import refuse_misfits


def show(settings: dict[str, Any]) -> dict[str, float]:
    """Build the module, print what it is and what it will cost.

    A language model needs no data for it. What else there is takes words or sizes from its data.

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
    callbacks = build_callbacks(settings, module)
    trainer = trainer_node(settings, module, datamodule)
    if not is_language_model(known):  # words, labels and sizes are the data's
        if not plans_steps(settings):
            prepare(datamodule)
        module.trainer = SimpleNamespace(datamodule=datamodule)
    cost = Cost.of(module, {**settings, "trainer": trainer})
    data = settings["datamodule"]
    shape = (cost.sequences, cost.batch[1])
    tokens, unit = shape[0] * shape[1], "tokens" if "context_length" in data else "examples"
    title = Text(f"{settings['name']}, dry run")
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("parameters", f"{cost.parameters:,}")
    table.add_row("of these trained", f"{cost.trained:,}")
    table.add_row(f"{unit} per optimizer step", f"{tokens:,}")
    table.add_row("optimizer steps", f"{trainer['max_steps']:,}")
    table.add_row(f"{unit} in all", f"{tokens * trainer['max_steps']:,}")
    console.print(table)
    console.print(memory(cost))
    for callback in callbacks.values():
        if (plan := answer(callback, "plan", module, shape, trainer["max_steps"])) is not None:
            console.print(plan)
    for line in remarks(getattr(module, "schedule_settings", None), trainer["max_steps"]):
        print(line)
    print("Dry run: nothing was trained and nothing was written.")
    return {"parameters": float(cost.parameters), "tokens_per_step": float(tokens)}


@dataclass(frozen=True)
class Cost:
    """What a training holds on each device, and sends.

    Args:
        parameters: How many the model has.
        trained: How many of them get a gradient.
        batch: Sequences of a micro-batch on one device, and tokens of each; 1 where it has none.
        precision: Of the trainer.
        step: What a step takes of a device; None for what is no language model.
        devices: How many train together.
        split: Whether each keeps its share of everything (FSDP2) or the whole (DDP).
        apart: Whether gradients lie beside the buckets in which DDP adds them up. Those of weights
            that a method cuts do.
        micro_batches: In an optimizer step.
    """

    parameters: int
    trained: int
    batch: tuple[int, int]
    precision: Precision
    step: Footprint | None
    devices: int = 1
    split: bool = False
    apart: bool = False
    micro_batches: int = 1

    @classmethod
    def of(cls, module: Any, settings: Mapping[str, Any]) -> Cost:
        """Build a module's parts, without content where it is a language model, and count.

        Args:
            module: As it is before `configure_model`.
            settings: The checked config.
        """
        data, trainer = settings["datamodule"], settings["trainer"]
        batch = (data.get("batch_size", 1), data.get("context_length", 1))
        precision = Precision.of(str(trainer.get("precision") or "32-true"))
        devices, strategy = device_count(trainer), trainer.get("strategy")
        split = isinstance(strategy, dict) and strategy["_target_"].endswith(
            ".FullyShardedStrategy"
        )
        in_buckets = isinstance(strategy, dict) and strategy.get("gradient_as_bucket_view")
        apart = devices > 1 and not split and not (in_buckets and not methods(dict(settings)))
        step = None
        if is_language_model(settings["module"]):
            # Its sizes are enough: nothing is loaded, and nothing is compiled.
            module.pretrained, module.compiled = None, False
            step = footprint(module, batch, precision, devices, split, apart)
        else:
            module.configure_model()
        counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
        return cls(
            parameters=sum(count for count, _ in counts),
            trained=sum(count for count, trains in counts if trains),
            batch=batch,
            precision=precision,
            step=step,
            devices=devices,
            split=split,
            apart=apart,
            micro_batches=trainer.get("accumulate_grad_batches") or 1,
        )

    @property
    def sequences(self) -> int:
        """In an optimizer step, on all devices."""
        return self.batch[0] * self.micro_batches * self.devices

    @property
    def kept(self) -> tuple[float, float, float]:
        """Bytes of parameters, gradients and AdamW's moments that stay on one device."""
        size = self.precision.kept.itemsize / (self.devices if self.split else 1)
        return self.parameters * size, self.trained * size, 2 * self.trained * size

    @property
    def sent(self) -> float:
        """The bytes that a device sends, and receives, in an optimizer step.

        In a ring of N each collective moves (N - 1) / N of what it collects. DDP adds the gradients
        up once and gathers the sums.
        """
        if self.split:
            assert self.step is not None, "only language models are split"
            collected = self.micro_batches * self.step.collected
        else:
            collected = 2.0 * self.trained * self.precision.kept.itemsize
        return collected * (self.devices - 1) / self.devices


def memory(cost: Cost) -> Table:
    """Return what a device holds in a step, and what it sends the others."""
    name = str(cost.precision.kept).removeprefix("torch.")
    table = Table("memory", "type", "", title="Memory on each device")
    table.columns[2].justify = "right"
    labels = ("parameters", "gradients", "optimizer states (AdamW: two a parameter)")
    for label, count in zip(labels, cost.kept, strict=True):
        table.add_row(label, name, size_in_words(count))
    if cost.step is None:
        table.caption = "without activations"
    else:
        more = "activations" + (", whole blocks" if cost.split else "")
        more += ", DDP's sums" if cost.apart else ""
        besides = size_in_words(cost.step.peak - sum(cost.kept))
        table.add_row(f"at the peak besides: {more}", "", besides)
        table.caption = "a step of the whole model; without what CUDA and its allocator add"
    table.add_section()
    table.add_row("in all", "", size_in_words(cost.step.peak if cost.step else sum(cost.kept)))
    if cost.devices > 1:
        way = "FSDP2" if cost.split else "DDP"
        label = f"sent by each of {cost.devices} devices in an optimizer step ({way})"
        table.add_row(label, "", size_in_words(cost.sent))
    return table


def size_in_words(count: float) -> str:
    """Return a number of bytes with a unit in which it is short."""
    power = min(int(math.log(count, 1024)), 4) if count >= 1 else 0
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
