"""What a device holds at most in an optimizer step: the step itself, on tensors without content.

A module's own passes and AdamW's step run in PyTorch's `FakeTensorMode`, under its memory tracker
and in the order in which Lightning calls them. So whatever changes the memory of a step changes the
figure: precision, attention, adapters, recomputed activations, how FSDP2 splits the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from subnetworks import fused


class Precision(NamedTuple):
    """What a step computes in; products in another type than what is kept are autocast."""

    kept: torch.dtype  # parameters, gradients and moments
    computed: torch.dtype  # products

    @classmethod
    def of(cls, name: str) -> Precision:
        """Return what one of Lightning's names stands for; mixed ones keep 32 bits."""
        types = {"64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}
        bits, _, way = name.partition("-")
        computed = types.get(bits, torch.float32)
        return cls(torch.float32 if way == "mixed" else computed, computed)


class Footprint(NamedTuple):
    """What a step takes of a device.

    Args:
        peak: The most bytes of tensors that it holds at once.
        collected: Bytes that FSDP2 gathers or adds up in a micro-batch: each of N devices sends
            (N - 1) / N of them, and receives as many.
    """

    peak: float
    collected: float


def footprint(
    module: Any,
    shape: tuple[int, int],
    precision: Precision,
    devices: int = 1,
    split: bool = False,
    apart: bool = False,
) -> Footprint:
    """Return what each step takes of a device, from the second one on.

    The module is built by this, and has no content afterwards.

    Args:
        module: A language model as it is before `configure_model`.
        shape: Sequences of a micro-batch on one device, and tokens of each.
        precision: Of the trainer.
        devices: How many train together.
        split: Whether they split the model (FSDP2). Else each holds all, and DDP, if there are
            several, buckets in which it adds the gradients up.
        apart: Whether the gradients lie beside these buckets, and not in them.
    """
    mixed = precision.kept != precision.computed
    if not split:
        with torch.device("meta"):
            module.configure_model()
    with _one_of(devices, module, split), FakeTensorMode():
        if split:
            module.configure_model()
            module.to(precision.kept)
        else:
            _materialize(module, precision.kept)
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes the moments
        ids = torch.zeros(shape, dtype=torch.long)
        tracker = _PeakOfSplit(module.model, optimizer) if split else _Peak()
        tracker.track_external(module, optimizer)
        with _Collectives() as collectives, _as_on_a_gpu(), tracker:
            with torch.autocast("cpu", precision.computed, enabled=mixed):
                loss = module.training_step({"input_ids": ids}, 0)
            # Lightning keeps the last step's until the loss is there, and buckets stay.
            optimizer.zero_grad(set_to_none=split or apart or devices == 1)
            loss.backward()
            optimizer.step()
        (peak,) = (each["Total"] for each in tracker.get_tracker_snapshot("peak").values())
    buckets = sum(p.numel() for p in trained) * precision.kept.itemsize if apart else 0
    return Footprint(peak + buckets, collectives.collected)


def _materialize(module: nn.Module, kept: torch.dtype) -> None:
    """Put parameters and buffers of the meta device onto the CPU of the fake mode around this.

    `Module.to` would do, but cannot swap fake tensors.
    """
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        groups: tuple[Any, ...] = (part._parameters, part._buffers)
        for tensors in groups:
            for name, old in tensors.items():
                if old is not None and id(old) not in made:  # a tied one stays one
                    dtype = kept if old.is_floating_point() else old.dtype
                    new = torch.zeros(old.shape, dtype=dtype, device="cpu")
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                if old is not None:
                    tensors[name] = made[id(old)]


class _Peak(MemTracker):
    """Counts what is held in all, and not by module and kind, which takes most of the time."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, held in self._curr_mem_snap.items():
            if held["Total"] > self._peak_mem.get(device, 0):
                self._peak_mem[device] = held["Total"]
                self._peak_mem_snap[device] = {**held}

    def _track_module_params_and_buffers(
        self, module: nn.Module, install_grad_hooks: bool = True
    ) -> tuple[int, int]:
        # Hooks say of gradients what they are; a frozen parameter, beside an adapter, takes none.
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


class _PeakOfSplit(_Peak, FSDPMemTracker):
    """The same of a model that FSDP2 has split."""


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Let the loss take a GPU's blocks, and build no mask for packed sequences.

    Hugging Face would build one where it cannot ask position ids for their values.
    """
    with (
        patch.dict(fused.BLOCK_BYTES, {False: fused.BLOCK_BYTES[True]}),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda positions: None),
    ):
        yield


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
        with warnings.catch_warnings():
            # Of what GPT-2 puts out; nothing changes it in place.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            yield
    finally:
        dist.destroy_process_group()
