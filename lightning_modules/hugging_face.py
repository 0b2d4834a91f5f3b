"""A Hugging Face causal language model: its config, its weights, and adapters, or why not."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

import torch
from annotated_types import Ge, Interval, MinLen
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from weights import load_whole


def model_config(
    architecture: Mapping[str, Any] | None, pretrained: str | None
) -> PretrainedConfig:
    """The Hugging Face config of a model to be built or loaded.

    Args:
        architecture: `model_type` and the arguments of its config class, to train from scratch.
        pretrained: A folder or a hub id, to go on from; an architecture beside it says what it
            must be.

    Returns:
        The config.

    Raises:
        ValueError: Neither is given, they differ, or Hugging Face does not accept a value.
    """
    if architecture is None and pretrained is None:
        raise ValueError(
            "module: give architecture (train from scratch) or pretrained (a folder or hub id)"
        )
    if pretrained is not None:
        if (folder := Path(pretrained)).is_absolute() and not folder.is_dir():
            raise ValueError(f"module.pretrained={pretrained}: there is no such folder")
        try:
            found = AutoConfig.from_pretrained(pretrained, trust_remote_code=False)
        except Exception as error:  # parsers of damaged files raise anything
            raise ValueError(f"module.pretrained={pretrained}: {error}") from error
        _refuse_damaged(folder)
        for key, value in (architecture or {}).items():
            if getattr(found, key, value) != value:
                raise ValueError(
                    f"module.pretrained={pretrained} has {key}={getattr(found, key)}, "
                    f"module.architecture.{key}={value}; set module.architecture=null to take it"
                )
        return found
    arguments = dict(cast(Mapping[str, Any], architecture))
    try:
        return AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    except (KeyError, ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"module.architecture: {error}") from error


def _refuse_damaged(folder: Path) -> None:
    """Look at the head of each file of weights in a folder, which says how long the file is.

    Raises:
        ValueError: One is cut off, or no such file.
    """
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"module.pretrained={folder}: {file.name}: {error}") from error


def load(pretrained: str, attn_implementation: str) -> PreTrainedModel:
    """Load a model with its weights; code that comes with it is not run.

    Raises:
        ValueError: They cannot be loaded, see `load_whole`.
    """
    try:
        model, _ = load_whole(
            AutoModelForCausalLM,
            pretrained,
            attn_implementation=attn_implementation,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except Exception as error:  # parsers of damaged files raise anything
        raise ValueError(f"module.pretrained={pretrained}: cannot be loaded: {error}") from error
    return cast(PreTrainedModel, model)


def without_weights(
    pretrained: str, config: PretrainedConfig, attn_implementation: str
) -> PreTrainedModel:
    """Build what `load` loads, for weights that come from elsewhere; its own need not be there.

    Args:
        pretrained: A folder or a hub id, asked for advice on generation only.
        config: Its config.
        attn_implementation: The attention function.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, attn_implementation=attn_implementation, dtype=torch.float32
    )
    with suppress(OSError):  # many bring none
        model.generation_config = GenerationConfig.from_pretrained(pretrained)
    return model


class Lora(TypedDict, total=False):
    """Low-rank adapters (arXiv 2106.09685); needs the extra lora."""

    rank: Annotated[int, Ge(1)]
    alpha: Annotated[int, Ge(1)]
    dropout: Annotated[float, Interval(ge=0, lt=1)]
    targets: Annotated[list[str], MinLen(1)]


def adapt(model: PreTrainedModel, lora: Lora) -> Any:
    """The model with adapters, which alone are trained; `targets` are all of its linear layers."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(
            "module.lora needs the package peft, of the extra lora: pip install peft -c "
            "constraints.txt"
        ) from error
    config = LoraConfig(
        r=lora.get("rank", 8),
        lora_alpha=lora.get("alpha", 16),
        lora_dropout=lora.get("dropout", 0.0),
        target_modules=lora.get("targets") or "all-linear",
        # GPT-2's Conv1D stores its weights the other way round.
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # Of GPT-2's LM head, which is stored as others are: PEFT says that it has seen it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        return get_peft_model(model, config)


_REFUSALS = (ArithmeticError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What Hugging Face and PEFT raise for a model that does not fit together."""


def refuse_unbuildable(
    source: str, config: PretrainedConfig, attention: str, lora: Lora | None
) -> None:
    """Build a model without weights, so that what cannot be built is refused before it is started.

    Args:
        source: The key below `module` that says which model it is.
        config: Of the model.
        attention: The attention function.
        lora: Its adapters.

    Raises:
        ValueError: Hugging Face or PEFT refuse it; or an adapter is meant for a part that the model
            has not, or for one of two parts with one weight.
    """
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation=attention
            )
        except _REFUSALS as error:
            words = f"no such thing as {error}" if isinstance(error, LookupError) else error
            raise ValueError(
                f"module.{source}: a {config.model_type} cannot be built: {words}"
            ) from error
        if lora is None:
            return
        _check_targets(model, lora.get("targets") or [])
        try:
            adapt(model, lora)
        except _REFUSALS as error:
            raise ValueError(f"module.lora: {error}") from error


def _check_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        meant = [name for name in names if name == target or name.endswith(f".{target}")]
        if not meant:
            kinds = (nn.Linear, nn.Embedding, Conv1D)
            known = (n for n, part in model.named_modules() if isinstance(part, kinds))
            listed = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
            raise ValueError(
                f"module.lora.targets: a {model.config.model_type} has no {target}; there are: "
                f"{listed}"
            )
        if tied and any(model.get_submodule(name) in (head, embeddings) for name in meant):
            raise ValueError(
                f"module.lora.targets: {target} is the embedding and the LM head of this model in "
                "one (tie_word_embeddings), and an adapter would change one of the two only; leave "
                "it out"
            )
