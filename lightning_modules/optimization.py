"""AdamW with decay groups, and a learning rate that rises and falls by optimizer step."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict, cast

import pytorch_lightning as pl
from annotated_types import Ge, Gt, Interval, Len
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


class Optimizer(TypedDict, total=False):
    """Arguments of AdamW; the runner checks their names and types before anything is imported."""

    lr: Annotated[float, Gt(0)]
    betas: Annotated[list[Annotated[float, Interval(ge=0, lt=1)]], Len(2, 2)]
    eps: Annotated[float, Ge(0)]
    weight_decay: Annotated[float, Ge(0)]


class Schedule(TypedDict, total=False):
    """Arguments of `learning_rate_factor`."""

    warmup: Annotated[float, Ge(0)]
    final: Annotated[float, Interval(ge=0, le=1)]
    decay: Literal["cosine", "linear", "wsd", "constant"]


COOLDOWN = 0.2
"""Share of the steps over which `wsd` decays (Hägele et al. 2024, arXiv 2405.18392)."""


def learning_rate_factor(
    step: int, max_steps: int, warmup: float, final: float, decay: str
) -> float:
    """Factor on the learning rate: linear warm-up, then decay by step to the last step.

    Args:
        step: Optimizer steps already taken.
        max_steps: Steps of the whole training.
        warmup: Steps of linear warm-up, or a fraction of `max_steps` if below 1.
        final: Factor at the last step, unless the warm-up or a constant rate goes on until then.
        decay: `cosine`, `linear`, `wsd` (warm-up, stable, decay: at the peak until the last fifth
            of the steps, then linear) or `constant`.

    Returns:
        The factor, in [0, 1].
    """
    warmup_steps, last = _warmup_steps(warmup, max_steps), max_steps - 1
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    start = warmup_steps
    if decay == "wsd":
        start = max(warmup_steps, min(last, round((1 - COOLDOWN) * max_steps)))
    if decay == "constant" or step < start:
        return 1.0
    if start < last:
        progress = min(1.0, (step - start) / (last - start))
    else:  # the one step after a warm-up; a training of one step takes it at the peak
        progress = 0.0 if last == 0 else 1.0
    shape = (1 + math.cos(math.pi * progress)) / 2 if decay == "cosine" else 1 - progress
    return final + (1 - final) * shape


def _warmup_steps(warmup: float, max_steps: int) -> int:
    return round(warmup * max_steps) if warmup < 1 else int(warmup)


def remarks(schedule: Mapping[str, Any] | None, max_steps: int) -> list[str]:
    """Return what is odd about a learning rate's course, a sentence each.

    Args:
        schedule: Complete, see `Schedule`; None where there is none.
        max_steps: Optimizer steps of the whole training.
    """
    if schedule is None:
        return []
    steps = _warmup_steps(schedule["warmup"], max_steps)
    if steps < max_steps:
        return []
    peak = max_steps / steps
    return [
        f"module.schedule.warmup={schedule['warmup']} is not shorter than the training, which has "
        f"{max_steps:,} steps: the learning rate only rises, to {peak:.3g} of its peak."
    ]


def adamw_with_schedule(
    module: pl.LightningModule,
    optimizer: Mapping[str, Any],
    schedule: Mapping[str, Any],
    slower: nn.Module | None = None,
    slower_lr: float = 0.0,
) -> dict[str, Any]:
    """Return what `configure_optimizers` does: AdamW, and `learning_rate_factor` by step.

    Args:
        module: Attached to a trainer; all of its parameters that need a gradient are trained.
        optimizer: Complete, see `Optimizer`; decay applies to matrices and embeddings only.
        schedule: Complete, see `Schedule`.
        slower: A part of the module with a learning rate of its own, say a pretrained encoder.
        slower_lr: That learning rate, at its peak.
    """
    settings = dict(optimizer)
    decay = settings.pop("weight_decay")
    settings["betas"] = tuple(settings["betas"])

    inner = set() if slower is None else {id(p) for p in slower.parameters()}
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for is_inner, lr in ((False, settings["lr"]), (True, slower_lr)):
        part = [p for p in trained if (id(p) in inner) == is_inner]
        if part or not is_inner:
            groups += [
                {"params": [p for p in part if p.ndim >= 2], "lr": lr, "weight_decay": decay},
                {"params": [p for p in part if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
            ]
    adamw = AdamW(groups, fused=True, **settings)
    if module.trainer.precision == "bf16-mixed":
        # A fused optimizer can undo a loss scaling by itself, for which Lightning refuses to
        # clip its gradients; bf16 has no loss scaling.
        cast(Any, adamw)._step_supports_amp_scaling = False
    max_steps = int(module.trainer.estimated_stepping_batches)
    s = schedule
    if module.trainer.is_global_zero:
        for words in remarks(schedule, max_steps):
            print(words, flush=True)
    scheduler = LambdaLR(
        adamw,
        lambda step: learning_rate_factor(step, max_steps, s["warmup"], s["final"], s["decay"]),
    )
    return {
        "optimizer": adamw,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/lr"},
    }


def optimization(
    optimizer: Optimizer | None,
    schedule: Schedule | None,
    optimizer_defaults: Optimizer,
    schedule_defaults: Schedule | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Complete the settings of AdamW and of `learning_rate_factor`.

    Args:
        optimizer: What was asked for.
        schedule: Likewise.
        optimizer_defaults: The learning rate, and what differs from a small network's.
        schedule_defaults: What differs from a short warm-up and a linear fall to 0.
    """
    small: dict[str, Any] = {"betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.01}
    short: dict[str, Any] = {"warmup": 0.05, "final": 0.0, "decay": "linear"}
    settings = {**small, **optimizer_defaults, **(optimizer or {})}
    return settings, {**short, **(schedule_defaults or {}), **(schedule or {})}
