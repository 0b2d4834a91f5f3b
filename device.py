"""What the host makes goes to a GPU without the host waiting for it."""

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
