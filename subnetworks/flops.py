"""Counting the floating-point operations of a training step: what was executed, not what was meant."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from transformers import PretrainedConfig

from subnetworks.anatomy import architecture_of
from subnetworks.spec import SubnetworkSpec

ADAMW_FLOPS_PER_PARAMETER = 14
"""Decay 1, first moment 3, second moment 4, bias corrections 2, root, epsilon, division, update."""


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step: of the transformer blocks, and of everything.

    `total` adds the LM head and, once given to `with_optimizer`, the optimizer's arithmetic.
    """

    blocks: float = 0.0
    total: float = 0.0

    def __add__(self, other: "StepFlops") -> "StepFlops":
        return StepFlops(self.blocks + other.blocks, self.total + other.total)

    def __mul__(self, factor: float) -> "StepFlops":
        return StepFlops(self.blocks * factor, self.total * factor)

    def with_optimizer(self, n_parameters: int) -> "StepFlops":
        """Add the arithmetic of AdamW on all parameters, which no operator counter sees."""
        return StepFlops(self.blocks, self.total + ADAMW_FLOPS_PER_PARAMETER * n_parameters)


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop(query, key, value)


def _cpu_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop(grad, query, key, value)


# torch 2.13 knows the fused attention of CUDA but not that of the CPU, and would count it as zero.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


class FlopCount:
    """What a `counted_flops` block has executed so far."""

    def __init__(self, mode: FlopCounterMode, layers: str) -> None:
        self._mode = mode
        self._layers = layers

    @property
    def flops(self) -> StepFlops:
        """FLOPs by now, without the optimizer's."""
        counts = self._mode.get_flop_counts()
        blocks = 0
        for name, operations in counts.items():
            head, _, index = name.rpartition(".")
            if index.isdigit() and f".{head}".endswith(f".{self._layers}"):
                blocks += sum(operations.values())
        return StepFlops(float(blocks), float(self._mode.get_total_flops()))


@contextmanager
def counted_flops(config: PretrainedConfig) -> Iterator[FlopCount]:
    """Count the matrix-product and attention FLOPs executed inside the block, backward included.

    Args:
        config: Config of the model that runs, which tells where its blocks are.

    Yields:
        The count.
    """
    layers = architecture_of(config).layers
    mode = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with mode:
        yield FlopCount(mode, layers)


def planned_flops(
    config: PretrainedConfig, spec: SubnetworkSpec, batch_size: int, context_length: int
) -> StepFlops:
    """FLOPs of a forward and backward pass in closed form: two per weight and token, and attention.

    A test holds it equal to the counter's for every architecture. Attention is counted as the fused
    kernels execute it, which recompute the scores: 2 products forward, 5 backward, not halved for
    causality.

    Args:
        config: Config of the model.
        spec: The active sub-network.
        batch_size: Sequences in the batch.
        context_length: Tokens in a sequence.

    Returns:
        The FLOPs, without the optimizer's.
    """
    architecture = architecture_of(config)
    d = spec.dimensions
    hidden = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // d.n_heads
    tokens = batch_size * context_length
    totals = {"heads": d.n_heads, "kv_heads": d.n_kv_heads, "neurons": d.intermediate_size}
    blocks = 0
    for layer in spec.active_layers:
        choice = spec.choice(layer)
        active = {
            unit: total if (units := choice.units(unit)) is None else len(units)
            for unit, total in totals.items()
        }
        for cut in architecture.cuts:
            width = 1 if cut.unit == "neurons" else head_dim
            blocks += 6 * tokens * hidden * width * active[cut.unit] * cut.fused
        blocks += 7 * 2 * tokens * context_length * head_dim * active["heads"]
    return StepFlops(float(blocks), float(blocks + 6 * tokens * hidden * config.vocab_size))
