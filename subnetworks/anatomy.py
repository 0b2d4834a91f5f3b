"""Where heads, key/value heads, intermediate neurons and layers live in a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from subnetworks.spec import Dimensions

Unit = Literal["heads", "kv_heads", "neurons"]


@dataclass(frozen=True)
class Cut:
    """One projection of a block and the axis along which its units lie.

    Args:
        path: The projection's path inside the block.
        unit: What the axis is made of.
        side: `out` when the projection produces the units (its bias is cut too), `in` when it
            consumes them (its output is the residual branch, so it carries the branch's scale).
        fused: Number of equal parts stored side by side on the axis (3 for a fused q, k, v).
    """

    path: str
    unit: Unit
    side: Literal["in", "out"]
    fused: int = 1

    @property
    def branch(self) -> Literal["attention", "mlp"]:
        """The residual branch that the projection belongs to."""
        return "mlp" if self.unit == "neurons" else "attention"


@dataclass(frozen=True)
class Architecture:
    """How one family of models names its parts.

    Args:
        layers: Path of the `nn.ModuleList` of blocks, from the model's root.
        attention: Path of the attention module inside a block.
        cuts: The projections of a block.
        out_axis: Axis of a weight that holds its outputs: 0 for `nn.Linear`, 1 for `Conv1D`.
    """

    layers: str
    attention: str
    cuts: tuple[Cut, ...]
    out_axis: int

    def axis(self, cut: Cut) -> int:
        """Axis of the projection's weight along which its units lie."""
        return self.out_axis if cut.side == "out" else 1 - self.out_axis


_LLAMA = Architecture(
    layers="model.layers",
    attention="self_attn",
    cuts=(
        Cut("self_attn.q_proj", "heads", "out"),
        Cut("self_attn.k_proj", "kv_heads", "out"),
        Cut("self_attn.v_proj", "kv_heads", "out"),
        Cut("self_attn.o_proj", "heads", "in"),
        Cut("mlp.gate_proj", "neurons", "out"),
        Cut("mlp.up_proj", "neurons", "out"),
        Cut("mlp.down_proj", "neurons", "in"),
    ),
    out_axis=0,
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        layers="transformer.h",
        attention="attn",
        cuts=(
            Cut("attn.c_attn", "heads", "out", fused=3),
            Cut("attn.c_proj", "heads", "in"),
            Cut("mlp.c_fc", "neurons", "out"),
            Cut("mlp.c_proj", "neurons", "in"),
        ),
        out_axis=1,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA,
}


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The architecture of a model's config; `ValueError` with the known ones if it is not known."""
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"sub-networks of model_type={config.model_type!r} are not known; known: "
            f"{', '.join(sorted(ARCHITECTURES))}. Add an entry to subnetworks/anatomy.py."
        )
    if getattr(config, "add_cross_attention", False):
        raise ValueError("sub-networks of a model with cross-attention are not supported")
    return ARCHITECTURES[config.model_type]


def dimensions_of(config: PretrainedConfig) -> Dimensions:
    """The units a model of this config has, read without building it."""
    architecture_of(config)
    heads = config.num_attention_heads
    return Dimensions(
        n_layers=config.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        intermediate_size=(
            getattr(config, "intermediate_size", None)
            or getattr(config, "n_inner", None)
            or 4 * config.hidden_size
        ),
    )


class Anatomy:
    """A model with its parts found: the list of blocks, and each projection of each block.

    Args:
        model: A Hugging Face causal language model of a known architecture.

    Raises:
        ValueError: The architecture is not known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.architecture = architecture_of(model.config)
        self.dimensions = dimensions_of(model.config)
        parent, _, self.layers_name = self.architecture.layers.rpartition(".")
        self.parent = model.get_submodule(parent)
        self.layers = tuple(model.get_submodule(self.architecture.layers).children())

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a block."""
        return self.layers[layer].get_submodule(self.architecture.attention)

    def cuts(self, layer: int) -> Iterator[tuple[Cut, nn.Module]]:
        """Every projection of a block with its module."""
        for cut in self.architecture.cuts:
            yield cut, self.layers[layer].get_submodule(cut.path)
