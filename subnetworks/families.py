"""Which families of models have sub-networks, and where their heads and neurons lie.

Without PyTorch, so that a model that cannot run is refused before anything heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Unit = Literal["heads", "kv_heads", "neurons"]
Branch = Literal["attention", "mlp"]
BRANCHES: tuple[Branch, Branch] = ("attention", "mlp")
UNITS: Mapping[Branch, Unit] = {"attention": "heads", "mlp": "neurons"}
"""What the output of a branch is a sum over."""


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
    def branch(self) -> Branch:
        """The residual branch that the projection belongs to."""
        return "mlp" if self.unit == "neurons" else "attention"


@dataclass(frozen=True)
class Architecture:
    """How one family of models names its parts.

    Args:
        layers: Path of the `nn.ModuleList` of blocks, from the model's root.
        branches: Path of each residual branch's module inside a block.
        cuts: The projections of a block.
        out_axis: Axis of a weight that holds its outputs: 0 for `nn.Linear`, 1 for `Conv1D`.
        normed_output: Whether a norm follows each branch, before the residual stream: it undoes any
            scale of the branch.
        refused: {key of the config: why a model in which it is true cannot be cut}.
    """

    layers: str
    branches: Mapping[Branch, str]
    cuts: tuple[Cut, ...]
    out_axis: int = 0
    normed_output: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)

    def axis(self, cut: Cut) -> int:
        """Axis of the projection's weight along which its units lie."""
        return self.out_axis if cut.side == "out" else 1 - self.out_axis


def _blocks(attention: tuple[str, str, str, str], *mlp: str, **further: Any) -> Architecture:
    """A family whose blocks have `self_attn` and `mlp`, of linear layers.

    Args:
        attention: Names of the projections to queries, keys, values, and back.
        mlp: Names of those to the neurons, and of the one back.
        further: Of `Architecture`.
    """
    sides: tuple[tuple[Unit, Literal["in", "out"]], ...] = (
        ("heads", "out"),
        ("kv_heads", "out"),
        ("kv_heads", "out"),
        ("heads", "in"),
    )
    *produce, consume = mlp
    return Architecture(
        layers="model.layers",
        branches={"attention": "self_attn", "mlp": "mlp"},
        cuts=(
            *(Cut(f"self_attn.{n}", *s) for n, s in zip(attention, sides, strict=True)),
            *(Cut(f"mlp.{name}", "neurons", "out") for name in produce),
            Cut(f"mlp.{consume}", "neurons", "in"),
        ),
        **further,
    )


_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_LLAMA = _blocks(_QKVO, "gate_proj", "up_proj", "down_proj")
_UP_DOWN = _blocks(_QKVO, "up_proj", "down_proj")
_NORMED = replace(_LLAMA, normed_output=True)

ARCHITECTURES: dict[str, Architecture] = {
    "arcee": _UP_DOWN,
    "cohere": replace(_LLAMA, refused={"use_qk_norm": "the norm of queries and keys is by head"}),
    "cohere2": _LLAMA,
    "ernie4_5": _LLAMA,
    "exaone4": _NORMED,
    "gemma": _LLAMA,
    "gemma2": _NORMED,
    "gemma3_text": _NORMED,
    "gpt2": Architecture(
        layers="transformer.h",
        branches={"attention": "attn", "mlp": "mlp"},
        cuts=(
            Cut("attn.c_attn", "heads", "out", fused=3),
            Cut("attn.c_proj", "heads", "in"),
            Cut("mlp.c_fc", "neurons", "out"),
            Cut("mlp.c_proj", "neurons", "in"),
        ),
        out_axis=1,
        refused={"add_cross_attention": "cross-attention has no units of its own"},
    ),
    "granite": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "llama": _LLAMA,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "nemotron": _UP_DOWN,
    "olmo": _LLAMA,
    "phi": _blocks(("q_proj", "k_proj", "v_proj", "dense"), "fc1", "fc2"),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "seed_oss": _LLAMA,
    "smollm3": _LLAMA,
    "starcoder2": _blocks(_QKVO, "c_fc", "c_proj"),
    "vaultgemma": _LLAMA,
}
"""By `model_type`. Each agrees with the masked full model to 1e-5 in tests/subnetworks."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model.

    Args:
        config: Its Hugging Face config, or any object with the same attributes.

    Raises:
        ValueError: Its sub-networks are not known, or not right; the message names the known ones.
    """
    known = ", ".join(ARCHITECTURES)
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"sub-networks of model_type={config.model_type!r} are not known; known are {known}"
        )
    architecture = ARCHITECTURES[config.model_type]
    refused = {"is_heterogeneous": "layers differ in their sizes", **architecture.refused}
    for key, reason in refused.items():
        if getattr(config, key, False):
            raise ValueError(
                f"sub-networks of model_type={config.model_type!r} with {key}=true are not "
                f"supported: {reason}; known are {known}"
            )
    return architecture


def sizes(config: Any) -> dict[str, int] | None:
    """Return a model's layers, heads and widths.

    Args:
        config: See `architecture_of`; None of a model that is not known yet.

    Returns:
        n_layers, n_heads, n_kv_heads and intermediate_size; None if the config does not tell.
    """

    def look(name: str) -> Any:
        return getattr(config, name, None)

    heads = look("num_attention_heads")
    found = {
        "n_layers": look("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": look("num_key_value_heads") or heads,
        "intermediate_size": (
            look("intermediate_size") or look("n_inner") or 4 * (look("hidden_size") or 0)
        ),
    }
    return found if all(isinstance(size, int) and size > 0 for size in found.values()) else None


def fits(settings: Mapping[str, Any], config: Any) -> None:
    """Refuse a model that a method cannot run on its sub-networks, before anything is built.

    Args:
        settings: The method's arguments as plain containers.
        config: See `architecture_of`; its `name_or_path` is empty where it trains from scratch.

    Raises:
        ValueError: It names the family, or the setting.
    """
    architecture = architecture_of(config)
    if settings.get("entering_layers") == "copied" and config.name_or_path:
        raise ValueError(
            "entering_layers=copied: a layer that enters would lose what module.pretrained="
            f"{config.name_or_path} has learned; set entering_layers=initial"
        )
    if not architecture.normed_output:
        return
    for key, off in (("rescale_units", False), ("layer_rescale", "none")):
        if (value := settings.get(key, off)) != off:
            raise ValueError(
                f"{key}={str(value).lower()}: a {config.model_type} norms what a branch puts out, "
                f"which undoes any scale; set {key}={str(off).lower()}"
            )


def longest_context(config: Any) -> int | None:
    """Tokens that a model was made to read at once; `None` where its config states no limit.

    With rotary positions nothing breaks behind it, but the model was not trained there.

    Args:
        config: Its Hugging Face config, or any object with the same attributes.
    """
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
