"""Counting the FLOPs of a training step: what was executed, not what was meant."""

import re
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from torch.utils.module_tracker import ModuleTracker
from transformers import PretrainedConfig

from subnetworks.families import architecture_of
from subnetworks.spec import SubnetworkSpec, Tier

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


# torch 2.13 has formulas for the fused attention of CUDA but not for that of the CPU.
@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _cpu_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


class FlopCount(TorchDispatchMode):
    """Counts the FLOPs of matrix products and attention that run inside it, with torch's formulas.

    Unlike torch's `FlopCounterMode` it executes every operation as it is: that one decomposes some
    (the backward pass of SiLU, say), and a counted step would differ from others in its last bits.

    Args:
        config: Config of the model that runs, which tells where its blocks are.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self._block = re.compile(rf"(.*\.)?{re.escape(architecture_of(config).layers)}\.\d+")
        self._modules = ModuleTracker()
        self._eager: Any = None
        self.flops = StepFlops()
        """FLOPs by now, without the optimizer's."""

    def __enter__(self) -> Self:
        # A compiled block would hide its operations; one first called here would never be compiled.
        self._eager = torch.compiler.set_stance("force_eager")
        self._eager.__enter__()
        self._modules.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._modules.__exit__(*exception)
        self._eager.__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = float(formula(*args, **kwargs, out_val=output))
            in_block = any(self._block.fullmatch(name) for name in self._modules.parents)
            self.flops += StepFlops(flops * in_block, flops)
        return output


def planned_flops(
    config: PretrainedConfig,
    spec: SubnetworkSpec,
    batch_size: int,
    context_length: int,
    frozen_weights: bool = False,
    trained_tokens: int | None = None,
) -> StepFlops:
    """FLOPs of a forward and backward pass in closed form: two per weight and token, and attention.

    A test holds it equal to the counter's for every architecture. Attention is counted as it is
    executed, not halved for causality: 2 products forward and 4 backward, or 5 in the fused
    kernels, which recompute the scores.

    Args:
        config: Config of the model.
        spec: The active sub-network.
        batch_size: Sequences in the batch.
        context_length: Tokens in a sequence.
        frozen_weights: Whether the model's own weights get no gradient, as under LoRA, whose
            adapters are left out of this plan.
        trained_tokens: Under `context_forward_only`, how many of the tokens predict something;
            `None`: all.

    Returns:
        The FLOPs, without the optimizer's.
    """
    architecture = architecture_of(config)
    d = spec.dimensions
    hidden = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // d.n_heads
    tokens = batch_size * context_length
    in_both_passes = tokens
    if spec.context_forward_only and trained_tokens is not None:
        in_both_passes = trained_tokens
    per_weight = 4 if frozen_weights else 6
    both_passes = 6 if config._attn_implementation == "eager" else 7
    costs: dict[Tier, tuple[int, int]] = {  # of a weight, and products of attention
        "active": (per_weight, both_passes),
        "frozen": (4, both_passes),
        "forward": (2, 2),
    }
    blocks = 0
    for layer in spec.active_layers:
        for tier, (flops, products) in costs.items():
            sizes = spec.sizes(layer, tier)
            for cut in architecture.cuts:
                width = 1 if cut.unit == "neurons" else head_dim
                each = 2 * tokens + (flops - 2) * in_both_passes
                blocks += each * hidden * width * sizes[cut.unit] * cut.fused
            blocks += products * 2 * tokens * context_length * head_dim * sizes["heads"]
    return StepFlops(
        float(blocks), float(blocks + per_weight * tokens * hidden * config.vocab_size)
    )
