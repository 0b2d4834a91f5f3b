"""What is looked at in every optimizer step: its learning rate, and whether all is finite."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.utils import get_total_norm


class NotFinite(ArithmeticError):
    """A training has come to a loss, a gradient or a weight that is NaN or infinite."""


def not_finite_behind(error: BaseException) -> str | None:
    """Return the words of the `NotFinite` that an error is or stands for; None for another error.

    Args:
        error: What ended the run; where processes were spawned, that one of them has raised it.
    """
    if isinstance(error, NotFinite):
        return str(error)
    name = f"{NotFinite.__module__}.{NotFinite.__qualname__}: "
    if isinstance(error, ProcessRaisedException) and name in str(error):
        return str(error).rpartition(name)[2].strip()
    return None


class StepWatch(pl.Callback):
    """Logs `train/lr`, and ends a training whose loss or gradient is not finite.

    On a CPU it ends before the optimizer takes that step. A GPU's flag is read where it does not
    hold up the host: at the steps that are logged and before a checkpoint is written. No checkpoint
    is written after such a step, nor one whose weights are not finite. With fp16, whose loss
    scaling skips steps of infinite gradients, the loss alone is looked at.
    """

    def __init__(self) -> None:
        self._losses_are_finite: Tensor | None = None
        self._first: Tensor | None = None
        """The first step that was not finite; infinity as long as there is none."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what was seen in a training before."""
        self._losses_are_finite, self._first = None, None

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss of a micro-batch."""
        finite = loss.detach().isfinite()
        before = self._losses_are_finite
        self._losses_are_finite = finite if before is None else before & finite

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the gradients, which all callbacks before this one have written."""
        rate = optimizer.param_groups[0]["lr"]
        # Made where it is kept: the host would wait for a copy.
        pl_module.log("train/lr", torch.full((), rate, device=pl_module.device))
        assert self._losses_are_finite is not None, "a step has a loss"
        wrong = ~self._losses_are_finite
        self._losses_are_finite = None
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
            wrong = wrong | ~_are_finite(gradients)
        wrong = _on_any_rank(wrong)
        none = torch.full_like(wrong, torch.inf)
        this = torch.where(wrong > 0, trainer.global_step + 1.0, none)
        self._first = this if self._first is None else torch.minimum(self._first, this)
        if self._is_read_at_once():
            self._stop()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Read what a GPU has found where its values are read anyway."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._stop()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save what no training can go on from."""
        self._stop()
        trained = (p.detach() for p in pl_module.parameters() if p.requires_grad)
        if _on_any_rank(~_are_finite(trained)):
            raise NotFinite(
                f"step {trainer.global_step} left weights that are NaN or infinite, which are not "
                f"saved. {_ADVICE}"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what a GPU has found in the last steps."""
        self._stop()

    def _is_read_at_once(self) -> bool:
        return self._first is not None and self._first.device.type == "cpu"

    def _stop(self) -> None:
        if self._first is not None and (step := float(self._first)) != torch.inf:
            raise NotFinite(
                f"step {step:.0f}: the loss or a gradient is NaN or infinite. The checkpoints are "
                f"of steps before. {_ADVICE}"
            )


_ADVICE = (
    "A lower learning rate, a longer warm-up or trainer.gradient_clip_val may help; so may a look "
    "at the data of that step."
)


def _are_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """Whether all numbers of some tensors are finite, or of this rank's parts of them."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    # Of a short parameter a rank may have no row, and nothing has no largest number.
    return get_total_norm([t for t in local if t.numel()], torch.inf).isfinite()


def _on_any_rank(flag: Tensor) -> Tensor:
    """1 if a flag is set on any rank, else 0; all ranks must call this."""
    value = flag.float()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value
