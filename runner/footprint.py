"""What a device holds at most in an optimizer step: the step itself, on tensors without content.

A module's own passes and AdamW's step run in PyTorch's `FakeTensorMode`, under its memory tracker
and in the order in which Lightning calls them. So whatever changes the memory of a step changes the
figure: precision, attention, adapters, recomputed activations, how FSDP2 splits the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Precision:
    """What a step computes in.

    Args:
        kept: The type of parameters, gradients and moments.
        computed: That of products; another one is autocast.
    """

    kept: torch.dtype
    computed: torch.dtype

    @classmethod
    def of(cls, name: str) -> Precision:
        """Return what one of Lightning's names stands for; mixed ones keep 32 bits."""
        bits, _, way = name.partition("-")
        computed = _TYPES.get(bits, torch.float32)
        return cls(torch.float32 if way == "mixed" else computed, computed)


@dataclass(frozen=True)
class Footprint:
    """What a step takes of a device.

    Args:
        peak: The most bytes of tensors that it holds at once.
        collected: Bytes that FSDP2 gathers or adds up in a micro-batch: each of N devices sends
            (N - 1) / N of them, and receives as many.
    """

    peak: float
    collected: float


_TYPES = {"64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}


def footprint(
    module: Any, shape: tuple[int, int], precision: Precision, devices: int, split: bool
) -> Footprint:
    """Return what each step takes of a device, from the second one on.

    The module is built by this, and has no content afterwards.

    Args:
        module: A language model as it is before `configure_model`.
        shape: Sequences of a micro-batch on one device, and tokens of each.
        precision: Of the trainer.
        devices: How many train together.
        split: Whether they split the model (FSDP2). Else each holds all, and DDP, if there are
            several, a second copy of the gradients, in which it adds them up.
    """
    mixed = precision.kept != precision.computed
    with _one_of(devices, module, split), FakeTensorMode():
        module.configure_model()
        module.to(precision.kept)
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes the moments
        ids = torch.zeros(shape, dtype=torch.long)
        tracker = FSDPMemTracker(module.model, optimizer) if split else MemTracker()
        tracker.track_external(module, optimizer)
        with _Collectives() as collectives, tracker:
            with torch.autocast("cpu", precision.computed, enabled=mixed):
                loss = module.training_step({"input_ids": ids}, 0)
            optimizer.zero_grad()  # Lightning keeps the last step's until the loss is there
            loss.backward()
            optimizer.step()
        (peak,) = (each["Total"] for each in tracker.get_tracker_snapshot("peak").values())
    buckets = sum(p.numel() for p in trained) * precision.kept.itemsize
    return Footprint(
        peak + (buckets if devices > 1 and not split else 0), collectives.collected
    )


class _Collectives(TorchDispatchMode):
    """Counts the bytes that are whole before or after a collective of FSDP2."""

    WHOLE: ClassVar = {
        torch.ops.c10d._allgather_base_.default: 0,
        torch.ops.c10d._reduce_scatter_base_.default: 1,
    }

    def __init__(self) -> None:
        super().__init__()
        self.collected = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if (place := self.WHOLE.get(func)) is not None:
            self.collected += args[place].numel() * args[place].itemsize
        return func(*args, **(kwargs or {}))


@contextmanager
def _one_of(devices: int, module: Any, split: bool) -> Iterator[None]:
    """Be one of several processes that split a module, without the others."""
    if not split:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices)
    try:
        names = ("data_parallel", "tensor_parallel")
        module._device_mesh = init_device_mesh("cpu", (devices, 1), mesh_dim_names=names)
        yield
    finally:
        dist.destroy_process_group()
