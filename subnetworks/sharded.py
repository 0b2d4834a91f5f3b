"""Blocks whose parameters FSDP2 splits over the ranks (`fully_shard`), in which a sub-network runs.

They run apart from FSDP while they are cut: their weights are put together once per step, instead
of in every micro-batch's passes, each rank keeps the compact copies, and the gradients are averaged
and split once. Whole blocks, the embeddings and the head stay with FSDP.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial


def introduce(block: nn.Module) -> None:
    """Show FSDP a block's own parameters: it remembers those of the block's first run."""
    if isinstance(block, FSDPModule):
        block.unshard()
        block.reshard()


@contextmanager
def whole_weights(parameters: Iterable[tuple[nn.Module, str]]) -> Iterator[None]:
    """Let modules have whole weights where FSDP splits them over the ranks.

    Args:
        parameters: Modules, and names of their parameters.
    """
    found = [(module, name, cast(Any, module._parameters[name])) for module, name in parameters]
    shards = [(module, name, value) for module, name, value in found if isinstance(value, DTensor)]
    try:
        for module, name, shard in shards:
            tensor = cast(DTensor, shard.detach()).full_tensor()
            whole: Any = nn.Parameter(tensor, shard.requires_grad)
            whole.shard = shard
            module._parameters[name] = whole
        yield
    finally:
        for module, name, shard in shards:
            module._parameters[name] = cast(nn.Parameter, shard)


def held(value: nn.Parameter) -> nn.Parameter:
    """Return the parameter that the optimizer holds: of a whole weight, FSDP's shard."""
    return getattr(value, "shard", value)


def add_gradient(original: DTensor, gradient: Tensor, index: Tensor | None, axis: int) -> None:
    """Average a compact gradient over the ranks; each adds the rows that it has of the parameter.

    Args:
        original: The parameter.
        gradient: Of its compact copy; changed.
        index: Where that lies on the axis of the whole parameter; None: it is all of it.
        axis: The axis.
    """
    if index is not None:
        gradient = gradient.new_zeros(original.shape).index_copy_(axis, index, gradient)
    mesh = original.device_mesh
    summed = DTensor.from_local(gradient.div_(mesh.size()), mesh, [Partial()], run_check=False)
    mine = summed.redistribute(placements=original.placements)
    original.grad = mine if original.grad is None else original.grad + mine


def hooks_without_fsdp(block: FSDPModule) -> list[tuple[Any, str, Any]]:
    """Return a block's hooks but FSDP's, which would put whole weights where compact ones are.

    Returns:
        Owner, attribute and value of each kind of hooks.
    """
    state, left = block._get_fsdp_state(), list[tuple[Any, str, Any]]()
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(block, name)
        others = ((k, h) for k, h in hooks.items() if getattr(h, "__self__", None) is not state)
        left.append((block, name, type(hooks)(others)))
    return left
