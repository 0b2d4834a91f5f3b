"""Tiny models of every known family, and two oracles: a small model by hand, and a masked one."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from subnetworks.anatomy import Anatomy
from subnetworks.families import UNITS
from subnetworks.slicing import SlicedModel
from subnetworks.spec import LayerChoice, SubnetworkSpec

VOCAB = 53
CONTEXT = 24
_GROUPED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 40,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=VOCAB,
        n_layer=4,
        n_head=4,
        n_embd=32,
        n_positions=CONTEXT,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "llama": LlamaConfig(**_GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**_GROUPED, sliding_window=None),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=6),
}
"""Of these the small model is built by hand."""

# Windows shorter than the context, in some of the layers: a skipped layer must not shift them.
_WINDOWS: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")],
}
_GEMMA: dict[str, Any] = {
    "head_dim": 6,
    "query_pre_attn_scalar": 9,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
_NO_DROPOUT = {"residual_dropout": 0.0, "attention_dropout": 0.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 2.0,
    "original_max_position_embeddings": CONTEXT // 2,
    "llama_4_scaling_beta": 0.1,
}
_BIASED = {"attention_bias": True, "mlp_bias": True}
_OTHERS: dict[str, dict[str, Any]] = {
    "arcee": _BIASED,
    "cohere": {"logit_scale": 0.5, "attention_bias": True},
    "cohere2": {**_WINDOWS, "logit_scale": 0.5},
    "ernie4_5": {"use_bias": True, "head_dim": 6},
    "exaone4": _WINDOWS,
    "gemma": {"head_dim": 6},
    "gemma2": {**_WINDOWS, **_GEMMA},
    "gemma3_text": {**_WINDOWS, **_GEMMA},
    "granite": {
        **_BIASED,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.0,
        "embedding_multiplier": 3.0,
    },
    "hunyuan_v1_dense": {"head_dim": 6},
    "ministral3": {"rope_parameters": _YARN},
    "mistral": {"sliding_window": 6},
    "nemotron": {**_BIASED, "head_dim": 6},
    "olmo": {"clip_qkv": 1.0},
    "phi": {"qk_layernorm": True},
    "qwen2": {**_WINDOWS, "use_sliding_window": True},
    "qwen3": {**_WINDOWS, "use_sliding_window": True, "attention_bias": True},
    "seed_oss": {**_NO_DROPOUT, "attention_bias": True, "attention_out_bias": True, "head_dim": 6},
    "smollm3": {**_WINDOWS, "use_sliding_window": True, "no_rope_layers": [1, 0, 1, 0]},
    "starcoder2": {**_NO_DROPOUT, "sliding_window": 6, "embedding_dropout": 0.0},
    "vaultgemma": {**_WINDOWS, **_GEMMA},
}
_EAGER = ("gemma2", "vaultgemma")
FAMILIES: dict[str, PretrainedConfig] = {
    **CONFIGS,
    **{
        f"{name}, windows" if name in CONFIGS else name: AutoConfig.for_model(
            name, **_GROUPED, **further
        )
        for name, further in _OTHERS.items()
    },
}
"""Every known family, with all that its config can put between the units and the logits."""


def build(name: str, seed: int = 0, tied: bool | None = None) -> PreTrainedModel:
    """A model in training mode whose biases and norms are not at their initial zeros and ones."""
    torch.manual_seed(seed)
    config = copy.deepcopy(FAMILIES[name])
    if tied is not None:
        config.tie_word_embeddings = tied
    attention = "eager" if config.model_type in _EAGER else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(size: int = 3, seed: int = 1) -> Tensor:
    """Token ids of shape (size, CONTEXT)."""
    return torch.randint(VOCAB, (size, CONTEXT), generator=torch.Generator().manual_seed(seed))


def subnetwork_of(sliced: SlicedModel) -> SubnetworkSpec:
    """The sub-network that ran, with the chooser's units."""
    layers = list(sliced.spec.layers)
    for (layer, branch), tiers in sliced._units.items():
        unit, choice = UNITS[branch], cast(LayerChoice, layers[layer])
        found: dict[str, Any] = {
            tier: tuple(units[unit].tolist()) for tier, units in tiers.items() if unit in units
        }
        changed: dict[str, Any] = {branch: replace(choice.branch(branch), **found)}
        layers[layer] = replace(choice, **changed)
    return replace(sliced.spec, layers=tuple(layers))


def masked(model: PreTrainedModel, spec: SubnetworkSpec) -> PreTrainedModel:
    """A copy of the whole model in which zeros stand where units are left out.

    Skipped layers hand on what they read. The oracle of families whose small model nobody wrote.
    """
    copied = copy.deepcopy(model)
    anatomy, d, config = Anatomy(copied), spec.dimensions, model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // d.n_heads

    def scaled(projection: nn.Module, args: Any, output: Tensor, scale: Any, bias: Any) -> Tensor:
        added = getattr(projection, "bias", None)
        return output * scale if added is None else (output - added) * scale + added * bias

    for index, choice in enumerate(spec.layers):
        if choice is None:
            anatomy.layers[index].register_forward_hook(lambda module, args, output: args[0])
            continue
        for cut, projection in anatomy.cuts(index):
            if cut.side == "out":
                continue
            active = choice.branch(cut.branch).active
            keep = torch.zeros(d.total(cut.unit), width if cut.branch == "attention" else 1)
            keep[slice(None) if active is None else list(active)] = 1.0
            projection.register_forward_pre_hook(
                lambda module, args, keep=keep: (args[0] * keep.flatten(),)
            )
            factors = {"scale": choice.scale(cut.branch), "bias": choice.residual_scale}
            projection.register_forward_hook(partial(scaled, **factors))
    return copied


class SmallModel(nn.Module):
    """The sub-network as a model of its own: sliced weights as leaves, plain PyTorch operations.

    It shares no code with `subnetworks.slicing`, nor with Hugging Face's forward passes.
    """

    def __init__(self, model: PreTrainedModel, spec: SubnetworkSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, model.config
        self.head_dim = getattr(
            model.config,
            "head_dim",
            model.config.hidden_size // model.config.num_attention_heads,
        )
        self.weights: dict[str, Tensor] = {}
        self.source: dict[str, tuple[str, tuple[Tensor, ...] | None, float]] = {}
        state = dict(model.named_parameters())
        every = torch.arange
        gpt2 = model.config.model_type == "gpt2"
        width = model.config.hidden_size
        for name, value in state.items():
            index: tuple[Tensor, ...] | None = None
            scale = 1.0
            parts = name.split(".")
            if "h" in parts[:2] or "layers" in parts[:2]:
                layer = int(next(part for part in parts if part.isdigit()))
                choice = spec.layers[layer]
                if choice is None:
                    continue
                heads = choice.attention.active or tuple(range(spec.dimensions.n_heads))
                groups = sorted({head // spec.dimensions.queries_per_group for head in heads})
                neurons = torch.tensor(
                    choice.mlp.active or tuple(range(spec.dimensions.intermediate_size))
                )
                q_rows = torch.cat([h * self.head_dim + every(self.head_dim) for h in heads])
                kv_rows = torch.cat([g * self.head_dim + every(self.head_dim) for g in groups])
                weight = parts[-1] == "weight"
                attention_scale = choice.attention.scale * choice.residual_scale
                mlp_scale = choice.mlp.scale * choice.residual_scale
                module = parts[-2]
                if gpt2 and module == "c_attn":
                    rows = torch.cat([q_rows, width + q_rows, 2 * width + q_rows])
                    index = (every(width)[:, None], rows[None]) if weight else (rows,)
                elif gpt2 and module == "c_fc":
                    index = (every(width)[:, None], neurons[None]) if weight else (neurons,)
                elif gpt2 and module == "c_proj":
                    rows = q_rows if parts[-3] == "attn" else neurons
                    index = (rows,) if weight else None
                    branch = attention_scale if parts[-3] == "attn" else mlp_scale
                    scale = branch if weight else choice.residual_scale
                elif module == "q_proj":
                    index = (q_rows,)
                elif module in ("k_proj", "v_proj"):
                    index = (kv_rows,)
                elif module in ("gate_proj", "up_proj"):
                    index = (neurons,)
                elif module in ("o_proj", "down_proj"):
                    rows = q_rows if module == "o_proj" else neurons
                    index = (every(width)[:, None], rows[None]) if weight else None
                    branch = attention_scale if module == "o_proj" else mlp_scale
                    scale = branch if weight else choice.residual_scale
            sliced = value.detach() if index is None else value.detach()[index]
            self.weights[name] = (sliced * scale).clone().requires_grad_()
            self.source[name] = (name, index, scale)

    def gradients(self, model: PreTrainedModel) -> dict[str, Tensor | None]:
        """The gradients that the full model's parameters should have."""
        result: dict[str, Tensor | None] = {}
        for name, parameter in model.named_parameters():
            if name not in self.weights:
                result[name] = None
                continue
            _, index, scale = self.source[name]
            leaf = self.weights[name].grad
            assert leaf is not None
            gradient = leaf * scale
            if index is not None:
                full = torch.zeros_like(parameter)
                full[index] = gradient
                gradient = full
            result[name] = gradient
        return result

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of shape (batch, context, vocabulary)."""
        return self._gpt2(ids) if self.config.model_type == "gpt2" else self._llama(ids)

    def _gpt2(self, ids: Tensor) -> Tensor:
        w, c = self.weights, self.config
        x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: ids.shape[1]]
        for layer in self.spec.active_layers:
            p = f"transformer.h.{layer}."

            def norm(x: Tensor, name: str, p: str = p) -> Tensor:
                return F.layer_norm(x, x.shape[-1:], w[p + name + ".weight"], w[p + name + ".bias"])

            def affine(x: Tensor, name: str, p: str = p) -> Tensor:
                return x @ w[p + name + ".weight"] + w[p + name + ".bias"]

            q, k, v = affine(norm(x, "ln_1"), "attn.c_attn").chunk(3, dim=-1)
            x = x + affine(self._attend(q, k, v), "attn.c_proj")
            x = x + affine(
                F.gelu(affine(norm(x, "ln_2"), "mlp.c_fc"), approximate="tanh"), "mlp.c_proj"
            )
        x = F.layer_norm(
            x, (c.hidden_size,), w["transformer.ln_f.weight"], w["transformer.ln_f.bias"]
        )
        return x @ w["transformer.wte.weight"].T

    def _llama(self, ids: Tensor) -> Tensor:
        w, c = self.weights, self.config

        def rms(x: Tensor, name: str) -> Tensor:
            scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps)
            return x * scale * w[name + ".weight"]

        x = w["model.embed_tokens.weight"][ids]
        for layer in self.spec.active_layers:
            p = f"model.layers.{layer}."

            def linear(x: Tensor, name: str, p: str = p) -> Tensor:
                return F.linear(x, w[p + name + ".weight"], w.get(p + name + ".bias"))

            y = rms(x, p + "input_layernorm")
            q, k = linear(y, "self_attn.q_proj"), linear(y, "self_attn.k_proj")
            if c.model_type == "qwen3":
                q = rms(q.unflatten(-1, (-1, self.head_dim)), p + "self_attn.q_norm").flatten(-2)
                k = rms(k.unflatten(-1, (-1, self.head_dim)), p + "self_attn.k_norm").flatten(-2)
            attended = self._attend(q, k, linear(y, "self_attn.v_proj"), rotary=True)
            x = x + linear(attended, "self_attn.o_proj")
            y = rms(x, p + "post_attention_layernorm")
            gated = F.silu(linear(y, "mlp.gate_proj")) * linear(y, "mlp.up_proj")
            x = x + linear(gated, "mlp.down_proj")
        x = rms(x, "model.norm")
        head = "lm_head.weight" if "lm_head.weight" in w else "model.embed_tokens.weight"
        return x @ w[head].T

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rotary: bool = False) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        if rotary:
            half = self.head_dim // 2
            frequencies = 10000.0 ** (-torch.arange(half) / half)
            angles = torch.arange(q.shape[2])[:, None] * frequencies
            cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
            q, k = (
                t * cos + torch.cat([-t[..., half:], t[..., :half]], dim=-1) * sin for t in (q, k)
            )
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(-2)
