"""The host waits for a GPU only where it says so."""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device.

    The host waits for a copy from pageable memory until all that the GPU had to do before is done.
    It does not wait for one from page-locked memory, through which a tensor goes to a GPU here.
    Elsewhere this is `values.to(device)`, which on a CPU copies nothing.

    Args:
        values: On the CPU, of any shape; not written to afterwards.
        device: Where it is used.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def wait(device: torch.device) -> None:
    """Return when a device has done all that it was given: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
