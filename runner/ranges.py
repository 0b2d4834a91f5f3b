"""Keys of settings that no class of ours takes as arguments, with their types and ranges.

Libraries' own annotations say the type alone: a field here takes the place of an argument's
annotation. `runner.signatures` reads it.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from annotated_types import Ge, Gt, Interval

from datamodules.settings import Share, Whole

Part = Annotated[float, Interval(gt=0, le=1)]
Amount = Annotated[int, Interval(ge=0, le=10_000_000)]
Dropout = Annotated[float, Interval(ge=0, lt=1)]
Batches = Annotated[int, Ge(0)] | Share | None
Precision = Literal[
    "auto", 64, 32, 16, "64", "32", "16", "bf16", "64-true", "32-true", "16-true", "16-mixed",
    "bf16-true", "bf16-mixed", "transformer-engine", "transformer-engine-float16"
]  # fmt: skip


class TopLevel(TypedDict):
    """The keys of conf/config.yaml that are no groups."""

    task: str
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    name: str | None
    tags: list[str]
    dry_run: bool
    resume: str
    stretch: bool
    ckpt_path: str | None


class Paths(TypedDict):
    """The keys of `paths`."""

    output_dir: str
    cache_dir: str
    run_dir: str


class Duration(TypedDict, total=False):
    """A time, as `datetime.timedelta` takes it; that ends at a thousand million days."""

    weeks: Amount
    days: Amount
    hours: Amount
    minutes: Amount
    seconds: Amount


class Trainer(TypedDict, total=False):
    """Keys of `trainer`: arguments of Lightning's Trainer and what the runner reads beside them."""

    checkpoint_every: Whole
    precision: Precision | None
    devices: Literal[-1] | Whole | str | list[Annotated[int, Ge(0)]]
    num_nodes: Whole
    max_steps: Annotated[int, Ge(-1)]
    min_steps: Annotated[int, Ge(0)] | None
    max_epochs: Literal[-1] | Whole | None
    max_time: str | Duration | None
    min_epochs: Annotated[int, Ge(0)] | None
    accumulate_grad_batches: Whole
    gradient_clip_val: Annotated[float, Ge(0)] | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    log_every_n_steps: Whole | None
    val_check_interval: Whole | Part | str | Duration | None
    check_val_every_n_epoch: Whole | None
    num_sanity_val_steps: Annotated[int, Ge(-1)] | None
    limit_train_batches: Whole | Part | None
    limit_val_batches: Batches
    limit_test_batches: Batches
    overfit_batches: Annotated[int, Ge(0)] | Share


class Architecture(TypedDict, total=False):
    """Keys of an `architecture`, by the names that transformers' `attribute_map` leads to."""

    vocab_size: Annotated[int, Interval(ge=1, le=10_000_000)]
    hidden_size: Whole
    num_hidden_layers: Annotated[int, Interval(ge=1, le=1000)]
    num_attention_heads: Whole
    num_key_value_heads: Whole | list[Whole] | None
    head_dim: Whole | None
    intermediate_size: Whole | list[Whole] | None
    n_inner: Whole | None
    max_position_embeddings: Annotated[int, Interval(ge=1, le=10_000_000)]
    attn_pdrop: Dropout
    embd_pdrop: Dropout
    resid_pdrop: Dropout
    attention_dropout: Dropout
    hidden_dropout: Dropout
    hidden_dropout_prob: Dropout
    attention_probs_dropout_prob: Dropout
    layer_norm_epsilon: Annotated[float, Gt(0)]
    layer_norm_eps: Annotated[float, Gt(0)]
    rms_norm_eps: Annotated[float, Gt(0)]
    initializer_range: Annotated[float, Ge(0)]
