"""Where the host reads a tensor's values: of one on a GPU it would wait until they are there."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_READING = (
    *("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim"),
    *("_unique", "_unique2", "unique_consecutive"),
)


class NoReading(TorchDispatchMode):
    """Refuses what makes the host wait: numbers of a tensor, or sizes that depend on its values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _READING, f"{name} reads values"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [each for each in args[1] if isinstance(each, Tensor)]
            masks = [each for each in indices if each.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{name} counts what a mask lets through"
        return func(*args, **(kwargs or {}))
