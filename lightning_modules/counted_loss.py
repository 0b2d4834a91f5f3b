"""The loss of an optimizer step as a mean over all that it counts, however the step is split."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Loss = tuple[Tensor, Tensor | int]
"""A mean over a micro-batch, and the count that it is over."""
Figure = tuple[float, int]
"""Likewise, of what is only logged."""
_UNIT = 1024.0
"""What sums are divided by in the backward pass: their gradients are then about as large as a
mean's, which fp16 asks for."""


class CountedLoss(pl.LightningModule):
    """Trains on the mean over what an optimizer step counts: tokens, choices of a grammar, turns.

    Lightning averages a step's micro-batches and ranks as if each counted the same. Here each goes
    into the backward pass with its sum; before the gradients are clipped they are divided by the
    step's whole count, over all micro-batches (at the end of an epoch there may be fewer) and
    ranks. `train/loss` is the step's mean likewise, and what else is logged that of one rank's part
    of it. The host waits for no device.

    A step that counts nothing has gradients and a `train/loss` of 0: AdamW then moves weights by
    momentum and decay alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._totals: dict[str, Tensor] = {}
        self._figures: dict[str, Figure] = {}

    def parts(self) -> Mapping[str, nn.Module]:
        """The losses that a step adds up, by name, each with the module that no other one trains.

        Each is a mean over a count of its own. Of several, each is logged under its name.
        """
        return {"train/loss": self}

    def counted(
        self, losses: Mapping[str, Loss], figures: Mapping[str, Figure] | None = None
    ) -> Tensor:
        """Take a micro-batch into its step; `training_step` returns the result.

        Args:
            losses: Of `parts`. Those left out count nothing; their parameters have a gradient of 0.
            figures: What else is logged.
        """
        for name, (figure, of) in (figures or {}).items():
            before, counted = self._figures.get(name, (0.0, 0))
            share = of / (counted + of)
            self._figures[name] = before + (figure - before) * share, counted + of
        summed = []
        for name, part in self.parts().items():
            if name not in losses:
                # DDP waits for a gradient of every parameter.
                zeros = [p.sum() * 0.0 for p in part.parameters() if p.requires_grad]
                summed.append(torch.stack(zeros).sum())
                continue
            mean, count = losses[name]
            total = mean * count
            found = torch.stack([total.detach(), torch.ones_like(mean) * count])
            self._totals[name] = found + self._totals[name] if name in self._totals else found
            summed.append(total)
        return torch.stack(summed).sum() / _UNIT

    def on_train_start(self) -> None:
        """Forget micro-batches of a training that was broken off."""
        self._totals, self._figures = {}, {}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Divide the gradients by the step's counts, after callbacks have written theirs."""
        trainer, parts = self.trainer, self.parts()
        nothing = torch.zeros(2, device=self.device)
        totals = torch.stack([self._totals.pop(name, nothing) for name in parts])
        if trainer.world_size > 1:
            dist.all_reduce(totals)
        counts = totals[:, 1].clamp_min(1.0)
        # Lightning has divided by the micro-batches of a whole step, DDP and FSDP by the ranks.
        factors = _UNIT * trainer.accumulate_grad_batches * trainer.world_size / counts
        for part, factor in zip(parts.values(), factors, strict=True):
            gradients = [p.grad for p in part.parameters() if p.grad is not None]
            local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
            if local:
                torch._foreach_mul_(local, factor)
        means = totals[:, 0] / counts
        self.log("train/loss", means.sum())
        if len(parts) > 1:
            self.log_dict(dict(zip(parts, means, strict=True)))
        for name, (mean, _) in self._figures.items():
            # Made where it is kept: the host would wait for a copy.
            self.log(name, torch.full((), mean, device=self.device))
        self._figures = {}
