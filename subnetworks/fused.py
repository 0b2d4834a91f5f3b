"""The loss and the norms of a causal language model in fewer passes over memory, equal in value.

Where a processor multiplies matrices fast, what remains is reading and writing: logits in fp32
three times over, a norm in nine operations, and a cast of one input for each projection. `fuse`
replaces the norms of a Hugging Face model and `loss_from_hidden` its loss, both only where they
are known to be the plain ones; the model's code runs unchanged around them. `compile_branches` has
torch compile that code, up to where methods look into it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PretrainedConfig, PreTrainedModel

from subnetworks.context import IGNORED, predicted
from subnetworks.families import architecture_of

PLAIN_HEADS = (
    "arcee",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gpt2",
    "hunyuan_v1_dense",
    "llama",
    "ministral3",
    "mistral",
    "nemotron",
    "olmo",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "starcoder2",
)
"""Models whose loss is the cross-entropy of a plain linear head: no scale, bias or soft cap."""
PLAIN_NORMS = tuple(
    f"{family}RMSNorm"
    for family in (
        "Arcee",
        "Ernie4_5",
        "Granite",
        "HunYuanDenseV1",
        "Llama",
        "Ministral3",
        "Mistral",
        "Qwen2",
        "Qwen3",
        "SeedOss",
        "SmolLM3",
    )
)
"""Norms that compute weight x / rms(x) with `variance_epsilon`, and only before products."""


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """What a linear layer would cast `x` to here."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# --- loss ---------------------------------------------------------------------------------------

# Of logits in fp32, by whether the device is CUDA: on a CPU a block should stay in the cache.
BLOCK_BYTES = {False: 1 << 21, True: 1 << 28}


def _to_gradient(logits_RV: Tensor, targets_R1: Tensor, differentiate: bool) -> Tensor:
    """Turn logits into the gradient of their targets' -log p in place; return log p, (R, 1)."""
    log_p_RV = F.log_softmax(logits_RV, dim=1, dtype=torch.float32)
    log_p_R1 = log_p_RV.gather(1, targets_R1)
    if differentiate:
        if torch.compiler.is_compiling():  # nothing in fp32 is written to memory
            columns_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
            logits_RV.copy_(log_p_RV.exp() - (columns_V == targets_R1).float())
        else:
            gradient_RV = log_p_RV.exp_()
            logits_RV.copy_(gradient_RV.scatter_add_(1, targets_R1, -torch.ones_like(log_p_R1)))
    return log_p_R1


@cache
def _compiled() -> Any:
    return torch.compile(_to_gradient)


class _LinearCrossEntropy(torch.autograd.Function):
    """Logits become their gradient in place, a few rows at a time, within the forward pass.

    As in Liger-Kernel (arXiv 2410.10989); the logits are kept in the precision of the product, and
    only a block of them is in fp32 at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        differentiate: bool,
        compiled: bool,
    ) -> Tensor:
        to_gradient = _compiled() if compiled else _to_gradient
        dtype = _autocast_dtype(hidden_ND)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            x_ND, w_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
            predicted_N1 = (labels_N != IGNORED).float()[:, None]
            targets_N1 = labels_N.clamp_min(0)[:, None]
            logits_NV = torch.mm(x_ND, w_VD.T)
            losses = []
            rows = max(1, BLOCK_BYTES[hidden_ND.is_cuda] // (4 * len(w_VD)))
            for first in range(0, len(x_ND), rows):
                block = slice(first, first + rows)
                log_p_R1 = to_gradient(logits_NV[block], targets_N1[block], differentiate)
                losses.append((log_p_R1 * predicted_N1[block]).sum())
            count = predicted_N1.sum().clamp_min(1.0)
            loss = -torch.stack(losses).sum() / count
            if differentiate:
                of_hidden, of_weight = ctx.needs_input_grad[:2]
                # Tokens that predict nothing: kept out here, where a row is short.
                kept_N1 = predicted_N1.to(dtype)
                ctx.save_for_backward(
                    torch.mm(logits_NV, w_VD).mul_(kept_N1) if of_hidden else None,
                    torch.mm(logits_NV.T, x_ND * kept_N1) if of_weight else None,
                    count,
                )
                ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, count = ctx.saved_tensors
        # The mean's factor comes last: products of fp16 or bf16 would lose what it makes tiny.
        factor = upstream / count
        scaled = (
            None if gradient is None else gradient.to(dtype, copy=True).mul_(factor)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, compiled: bool = False
) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T` in nats, at the labels that are not -100.

    Equal to the loss of the whole logits in fp32, which never exist at once: they are kept in the
    precision of the product (bf16 under autocast) and turned into their gradient in place. The
    gradients of both factors are ready when the forward pass ends. Not twice differentiable.

    Args:
        hidden: What the head reads, (..., hidden).
        weight: The head's, (vocabulary, hidden).
        labels: Token ids, (...); -100 where nothing is predicted.
        compiled: Compile what turns logits into their gradient: it reads and writes them once.

    Returns:
        The loss, 0 if nothing is predicted.
    """
    rows, targets, gradients = hidden.flatten(0, -2), labels.flatten(), torch.is_grad_enabled()
    loss: Tensor = _LinearCrossEntropy.apply(rows, weight, targets, gradients, compiled)
    return loss


@contextmanager
def loss_from_hidden(model: PreTrainedModel, compiled: bool = False) -> Iterator[None]:
    """Let the model compute its loss by `linear_cross_entropy`, if its head is a plain one.

    Inside, the head hands on what it reads, and the output's `logits` are that.

    Args:
        model: A Hugging Face causal language model.
        compiled: See `linear_cross_entropy`.
    """
    head = model.get_output_embeddings()
    if model.config.model_type not in PLAIN_HEADS or type(head) is not nn.Linear:
        yield
        return
    usual = model.loss_function

    def loss_of(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
        return linear_cross_entropy(logits, head.weight, predicted(labels), compiled)

    head.forward = lambda hidden: hidden  # type: ignore[assignment, method-assign]
    model.loss_function = loss_of
    try:
        yield
    finally:
        del head.forward
        model.loss_function = usual


# --- norms --------------------------------------------------------------------------------------


class _RMSNorm(torch.autograd.Function):
    """weight x / rms(x), put out in the precision that the next product takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        inverse = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        gradient = upstream.float()
        if gradient is upstream:
            gradient = gradient.clone()
        products = (gradient * x).flatten(0, -2)
        # Matrix-vector products read once what a multiplication and a sum would write and read.
        of_weight = torch.mv(products.T, inverse.flatten())
        along = (
            torch.mv(products, weight.float())
            .view_as(inverse)
            .mul_(inverse.pow(3))
            .div_(-x.shape[-1])
        )
        of_x = gradient.mul_(weight).mul_(inverse).addcmul_(x, along)
        return of_x.to(x.dtype), of_weight, None, None


def _rms_norm(norm: Any, x: Tensor) -> Tensor:
    """The forward pass of a plain norm; in evaluation and in fp64 it is Hugging Face's own."""
    if not norm.training or x.dtype == torch.float64:
        own: Tensor = type(norm).forward(norm, x)
        return own
    if x.is_cuda:  # one kernel forward and two backward
        whole = F.rms_norm(x.float(), norm.weight.shape, norm.weight.float(), norm.variance_epsilon)
        return whole.to(_autocast_dtype(x))
    normed: Tensor = _RMSNorm.apply(x, norm.weight, norm.variance_epsilon, _autocast_dtype(x))
    return normed


def fuse(model: nn.Module, apart: Iterable[nn.Module] = ()) -> None:
    """Replace the forward passes of all plain norms in training; parameters and names stay.

    Args:
        model: A model, changed in place.
        apart: Parts of it that are left: compiled ones, whose norms the compiler fuses.
    """
    left = {module for part in apart for module in part.modules()}
    for norm in model.modules():
        if type(norm).__name__ in PLAIN_NORMS and norm not in left:
            norm.forward = partial(_rms_norm, norm)


# --- compiled -------------------------------------------------------------------------------------

RECOMPILE_LIMIT = 64
"""Sizes of a sub-network that a module is compiled for: past torch's own limit, 8, it is not."""


def compile_branches(blocks: Iterable[nn.Module], config: PretrainedConfig) -> list[nn.Module]:
    """Compile attention and MLP of blocks, but not the hooks on them, which run as they are.

    Args:
        blocks: Changed in place.
        config: Config of their model, of a known family.

    Returns:
        What is compiled.
    """
    paths = architecture_of(config).branches.values()
    branches = [block.get_submodule(path) for block in blocks for path in paths]
    compiled: Any = partial(torch.compile, recompile_limit=RECOMPILE_LIMIT)
    for branch in branches:
        # Not of the bound method, which a copy of the model would share.
        branch.forward = partial(compiled(type(branch).forward), branch)
    return branches
